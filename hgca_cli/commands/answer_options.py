"""The options of an answer that commands share: how it is drawn, what stands before it, how it is shown, what is kept of it. Values
arrive as they were written; commands/flags.py checks what Typer cannot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgca_cli.commands.completion import complete_session

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
