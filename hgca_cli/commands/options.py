"""The options commands share. Values arrive as they were written; commands/flags.py checks what Typer cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgca_cli.commands.completion import complete_model, complete_session
from hgca_cli.commands.defaults import model_chosen

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="HGCA_QUIET", help="Show the answer and errors, nothing else.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", envvar="HGCA_VERBOSE", help="Say more: what is chosen, and why.")
]
Color = Annotated[
    str,
    typer.Option("--color", envvar="HGCA_COLOR", metavar="auto|always|never", help="Colours on the terminal."),
]
Debug = Annotated[bool, typer.Option("--debug", envvar="HGCA_DEBUG", help="Show the traceback of an error.")]

Dashboard = Annotated[
    str,
    typer.Option(
        "--dashboard", envvar="HGCA_DASHBOARD", metavar="auto|line|full|off",
        help="While the model works: a bar as long as a prompt is read (line), or figures in the lower half of the"
        " terminal (full). auto: line.",
    ),
]  # fmt: skip
JobDashboard = Annotated[
    str,
    typer.Option(
        "--dashboard", envvar="HGCA_DASHBOARD", metavar="auto|line|full|off",
        help="While rows run: a bar, or a line every thirty seconds (line), figures in the lower half of the terminal (full),"
        " or nothing (off). auto: line.",
    ),
]  # fmt: skip
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Config file in place of ./hgca.toml. Before the command or after it."
    ),
]

JsonLines = Annotated[
    bool, typer.Option("--json", envvar="HGCA_JSON", help="One JSON object per line on standard output.")
]
JsonDocument = Annotated[bool, typer.Option("--json", envvar="HGCA_JSON", help="One JSON document on standard output.")]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="HGCA_MODEL",
        metavar="NAME",
        is_eager=True,  # what is set for a model must be known before other options are looked at
        callback=model_chosen,
        autocompletion=complete_model,
        help="Alias, hub id (org/name, org/name:Q4_K_M), safetensors directory or .gguf file.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", envvar="HGCA_REVISION", metavar="NAME", help="Branch, tag or commit on the hub."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", envvar="HGCA_TRUST_REMOTE_CODE", help="Run code that comes with the model."),
]
Offline = Annotated[bool, typer.Option("--offline", envvar="HGCA_OFFLINE", help="Ask no network.")]

Ctx = Annotated[
    str,
    typer.Option(
        "--ctx", "-c", envvar="HGCA_CTX", metavar="N[k]",
        help="Context in tokens: 128k is 131,072. auto (or 0): what the model was trained for, or what fits.",
    ),
]  # fmt: skip
Yarn = Annotated[
    bool,
    typer.Option("--yarn", envvar="HGCA_YARN", help="Stretch positions (YaRN) to a --ctx beyond the trained one."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="HGCA_DEVICE",
        metavar="auto|cuda[:N]|cpu",
        help="Where the model and the window are.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", envvar="HGCA_DTYPE", metavar="auto|fp32|bf16|fp16", help="Numbers of the weights."),
]
Quant = Annotated[
    str,
    typer.Option(
        "--quant", envvar="HGCA_QUANT", metavar="auto|none|file|q8|q4",
        help="Hold the weights packed only. file: as a quantised GGUF file has them, in 4 bits, or 8 where it has more;"
        " q8, q4: rounded to 8 bits and a scale for 32, or to 4 (the output layer 8). auto: file where there is such a file,"
        " q8 or q4 on a GPU that 16 bits do not fit on, else none.",
    ),
]  # fmt: skip
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype", envvar="HGCA_KV_DTYPE", metavar="auto|fp32|bf16|fp16|int8",
        help="Numbers of the rows in the store, and on the CPU of those on their way there; int8: with a scale per row."
        " auto: those of the weights; bf16 in place of fp32 where a chat's policy chooses rows.",
    ),
]  # fmt: skip
Window = Annotated[
    str,
    typer.Option("--window", envvar="HGCA_WINDOW", metavar="N[k]", help="Newest rows that stay on the device."),
]
Sinks = Annotated[
    int | None,
    typer.Option("--sinks", envvar="HGCA_SINKS", metavar="N", help="First rows that stay on the device. Default: 4."),
]
Select = Annotated[
    str,
    typer.Option(
        "--select", envvar="HGCA_SELECT", metavar="POLICY",
        help="Rows of the store that are read: scan, cluster, two-level, page (they follow the query), exact (all), window"
        " (none), moving-average. auto: the planner's.",
    ),
]  # fmt: skip
Exact = Annotated[bool, typer.Option("--exact", envvar="HGCA_EXACT", help="Short for --select exact.")]
Quality = Annotated[
    str,
    typer.Option(
        "--quality", envvar="HGCA_QUALITY", metavar="SHARE",
        help="Attention mass each head keeps: 0.98 or 98%; 1 is exact. auto: 0.95 or more.",
    ),
]  # fmt: skip
Budget = Annotated[
    str,
    typer.Option(
        "--budget", envvar="HGCA_BUDGET", metavar="SHARE",
        help="Most of the store a head reads, in place of --quality: 0.05 or 5%; 0 is the window only, 1 is exact.",
    ),
]  # fmt: skip
DenseLayers = Annotated[
    int,
    typer.Option(
        "--dense-layers", envvar="HGCA_DENSE_LAYERS", metavar="N", min=0,
        help="So many of the first layers read the whole store, whatever the policy.",
    ),
]  # fmt: skip
Balance = Annotated[
    str,
    typer.Option(
        "--balance", envvar="HGCA_BALANCE", metavar="auto|off",
        help="Threads, and how much is read, follow what is measured, never below --quality. Off with --seed and --temp 0.",
    ),
]  # fmt: skip
PromptLookup = Annotated[
    str,
    typer.Option(
        "--prompt-lookup", envvar="HGCA_PROMPT_LOOKUP", metavar="auto|off|N",
        help="Guess up to N next tokens from the text so far, and compute them with the newest one: fewer passes, the same answer."
        " auto: 7 on the CPU, off on a GPU.",
    ),
]  # fmt: skip
JobLookup = Annotated[
    str,
    typer.Option(
        "--prompt-lookup", envvar="HGCA_PROMPT_LOOKUP", metavar="auto|off|N",
        help="Of a row that runs by itself, guess up to N next tokens from its text, and compute them with the newest one."
        " auto: 7 on the CPU, off on a GPU.",
    ),
]  # fmt: skip
Threads = Annotated[
    str,
    typer.Option("--threads", "-t", envvar="HGCA_THREADS", metavar="N", help="CPU threads. auto: all it may use."),
]
PrefillChunk = Annotated[
    str,
    typer.Option("--prefill-chunk", envvar="HGCA_PREFILL_CHUNK", metavar="N[k]", help="Prompt tokens read at once."),
]
GpuMem = Annotated[
    str | None,
    typer.Option("--gpu-mem", envvar="HGCA_GPU_MEM", metavar="SIZE", help="Most GPU memory to use, like 8GiB."),
]
VramMargin = Annotated[
    str | None,
    typer.Option(
        "--vram-margin", envvar="HGCA_VRAM_MARGIN", metavar="MIB",
        help="GPU memory that stays free, in MiB, or a size like 2GiB. Default: 1024.",
    ),
]  # fmt: skip
RamLimit = Annotated[
    str | None,
    typer.Option("--ram-limit", envvar="HGCA_RAM_LIMIT", metavar="SIZE", help="Most host memory to use, like 16GiB."),
]
StoreDir = Annotated[
    str | None,
    typer.Option(
        "--store-dir", envvar="HGCA_STORE_DIR", metavar="DIR",
        help="Keep the store's rows in files in this directory, on a fast disk, in place of memory.",
    ),
]  # fmt: skip
Profile = Annotated[
    str,
    typer.Option(
        "--profile", envvar="HGCA_PROFILE", metavar="NAME",
        help="Machine whose rates the plan is made with: a profile's name or file. auto: this one, measured at the first"
        " use; none: assumed rates.",
    ),
]  # fmt: skip
ShowPlan = Annotated[
    bool, typer.Option("--plan", envvar="HGCA_PLAN", help="Show what would be where, and why, and exit.")
]

MaxTokens = Annotated[
    str | None,
    typer.Option(
        "--max-tokens", "-n", envvar="HGCA_MAX_TOKENS", metavar="N[k]",
        help="Most tokens of an answer; -1: what the context has room for. Default: that, at most 4096.",
    ),
]  # fmt: skip
BatchTokens = Annotated[
    str,
    typer.Option(
        "--max-tokens",
        "-n",
        envvar="HGCA_MAX_TOKENS",
        metavar="N[k]",
        help="Most tokens of an answer, unless its row says.",
    ),
]
Temp = Annotated[
    float | None,
    typer.Option(
        "--temp",
        envvar="HGCA_TEMP",
        metavar="T",
        help="Temperature; 0 is greedy. Default: the model's, else 0.7.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", envvar="HGCA_TOP_K", metavar="K",
        help="Draw from the K likeliest; 0 (or -1) is off. Default: the model's, else off.",
    ),
]  # fmt: skip
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", envvar="HGCA_TOP_P", metavar="P",
        help="Draw from the likeliest that hold this mass. Default: the model's, else 0.95.",
    ),
]  # fmt: skip
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", envvar="HGCA_MIN_P", metavar="P",
        help="Drop what is less likely than this share of the likeliest. Default: the model's, else 0.",
    ),
]  # fmt: skip
RepeatPenalty = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty", envvar="HGCA_REPEAT_PENALTY", metavar="X",
        help="Above 1 discourages repetition. Default: the model's, else 1.",
    ),
]  # fmt: skip
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", envvar="HGCA_PRESENCE_PENALTY", metavar="X",
        help="Taken off each token that is in the answer already, -2 to 2. Default: 0.",
    ),
]  # fmt: skip
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty", envvar="HGCA_FREQUENCY_PENALTY", metavar="X",
        help="Taken off each token as often as it is in the answer already, -2 to 2. Default: 0.",
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", envvar="HGCA_SEED", metavar="N", help="The same seed, the same answer; -1: random. Default: random."
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", envvar="HGCA_STOP", metavar="TEXT", help="Text that ends the answer. May be repeated."),
]
System = Annotated[
    str | None, typer.Option("--system", "-s", envvar="HGCA_SYSTEM", metavar="TEXT", help="System message.")
]
SystemFile = Annotated[
    Path | None,
    typer.Option("--system-file", envvar="HGCA_SYSTEM_FILE", metavar="FILE", help="File with the system message."),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        envvar="HGCA_CHAT_TEMPLATE",
        metavar="FILE",
        help="Chat template (jinja) in place of the model's.",
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs", envvar="HGCA_CHAT_TEMPLATE_KWARGS", metavar="JSON",
        help="""Options of the chat template, like '{"enable_thinking": false}'.""",
    ),
]  # fmt: skip
JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema", "-j", envvar="HGCA_JSON_SCHEMA", metavar="JSON",
        help="Answers are JSON that fits this schema (hgca[json]).",
    ),
]  # fmt: skip
JsonSchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--json-schema-file",
        envvar="HGCA_JSON_SCHEMA_FILE",
        metavar="FILE",
        help="File with a schema for --json-schema.",
    ),
]
ReasoningBudget = Annotated[
    str | None,
    typer.Option(
        "--reasoning-budget", envvar="HGCA_REASONING_BUDGET", metavar="N[k]",
        help="Most tokens of a thought: then it is ended, and the answer begins; -1: no limit. Default: no limit.",
    ),
]  # fmt: skip
Raw = Annotated[
    bool, typer.Option("--raw", envvar="HGCA_RAW", help="Continue the text as it stands: no chat template.")
]
Overflow = Annotated[
    str,
    typer.Option(
        "--overflow", envvar="HGCA_OVERFLOW", metavar="error|trim-oldest",
        help="A question the context has no room for is refused, or the oldest turns are dropped, and named.",
    ),
]  # fmt: skip
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think", envvar="HGCA_THINK",
        help="Whether the model thinks before it answers, where its template has a switch. Default: the template's.",
    ),
]  # fmt: skip
HideThinking = Annotated[
    bool, typer.Option("--hide-thinking", envvar="HGCA_HIDE_THINKING", help="Show only that the model thinks.")
]
Markdown = Annotated[
    str,
    typer.Option(
        "--markdown", envvar="HGCA_MARKDOWN", metavar="auto|on|off",
        help="Show answers as Markdown. auto: on a terminal.",
    ),
]  # fmt: skip

SessionName = Annotated[
    str | None,
    typer.Option(
        "--session", envvar="HGCA_SESSION", metavar="NAME", autocompletion=complete_session,
        help="Go on where the session of this name was, or begin it; saved after every turn.",
    ),
]  # fmt: skip
Continue = Annotated[bool, typer.Option("--continue", "-C", help="Go on with the latest session.")]
NoSave = Annotated[
    bool, typer.Option("--no-save", envvar="HGCA_NO_SAVE", help="Save nothing; a --session is only read.")
]
NoSaveKv = Annotated[
    bool,
    typer.Option("--no-save-kv", envvar="HGCA_NO_SAVE_KV", help="Save the text, not the rows: it is read again then."),
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", envvar="HGCA_NO_CACHE", help="Read a prompt even if its beginning was saved before."),
]
KvDiskLimit = Annotated[
    str,
    typer.Option(
        "--kv-disk-limit", envvar="HGCA_KV_DISK_LIMIT", metavar="SIZE",
        help="Most bytes of saved rows; those not used for longest go.",
    ),
]  # fmt: skip
Reread = Annotated[
    bool,
    typer.Option("--reread", help="Open a damaged session with what can be read of its text, and read that again."),
]
