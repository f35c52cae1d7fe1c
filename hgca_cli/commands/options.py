"""The options commands share. Values arrive as they were written; commands/flags.py checks what Typer cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgca_cli.commands.completion import complete_model
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
        " auto: those of the weights; bf16 in place of fp32 where a chat may choose rows (on the CPU without --exact).",
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
        help="Attention mass each head keeps, or has well estimated: 0.98 or 98%; 1 is exact. auto: 0.95 or more.",
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
