"""The options commands share: names users' fingers know, checked here, turned into settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgca_cli.errors import UsageError
from hgca_cli.units import parse_bytes, parse_count, parse_share

# Spellings of other tools, accepted everywhere and not shown in --help.
ALIASES = {
    "--ctx-size": "--ctx",
    "--num-ctx": "--ctx",
    "--max-model-len": "--ctx",
    "--context-length": "--ctx",
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--max-new-tokens": "--max-tokens",
    "--max-completion-tokens": "--max-tokens",
    "--temperature": "--temp",
    "--repetition-penalty": "--repeat-penalty",
    "--system-prompt": "--system",
    "--system-prompt-file": "--system-file",
    "--kv-cache-dtype": "--kv-dtype",
    "--cache-type": "--kv-dtype",
    "--gpu-memory": "--gpu-mem",
    "--prefill-step-size": "--prefill-chunk",
    "--chunked-prefill-size": "--prefill-chunk",
    "--reverse-prompt": "--stop",
}


def rename_aliases(arguments: list[str]) -> list[str]:
    """Arguments in our own spelling; what follows `--` is left alone."""
    renamed: list[str] = []
    for index, word in enumerate(arguments):
        if word == "--":
            return renamed + arguments[index:]
        name, equals, value = word.partition("=")
        renamed.append(ALIASES.get(name, name) + equals + value if name.startswith("--") else word)
    return renamed


MODEL, MEMORY, TEXT = "Model", "Memory and speed", "Answer"

Model = Annotated[
    str, typer.Option("--model", "-m", envvar="HGCA_MODEL", help="Alias, hub id, safetensors directory or .gguf file.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", envvar="HGCA_REVISION", help="Branch or commit on the hub.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", envvar="HGCA_TRUST_REMOTE_CODE", help="Run code that comes with the model."),
]
Offline = Annotated[bool, typer.Option("--offline", envvar="HGCA_OFFLINE", help="Ask no network.")]
Ctx = Annotated[
    str | None,
    typer.Option(
        "--ctx", "-c", envvar="HGCA_CTX", help="Context in tokens, like 128k. Default: the model's, if it fits."
    ),
]
Yarn = Annotated[
    bool, typer.Option("--yarn", envvar="HGCA_YARN", help="Stretch positions to a --ctx beyond the trained length.")
]
Device = Annotated[str, typer.Option("--device", envvar="HGCA_DEVICE", help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option("--dtype", envvar="HGCA_DTYPE", help="Weights: auto, fp32, bf16 or fp16.")]
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype", envvar="HGCA_KV_DTYPE", help="Rows in the store: auto (as the weights), fp32, bf16, fp16."
    ),
]
Window = Annotated[
    str, typer.Option("--window", envvar="HGCA_WINDOW", help="Newest rows that stay on the device, like 4k, or auto.")
]
Sinks = Annotated[
    int | None, typer.Option("--sinks", envvar="HGCA_SINKS", help="First rows that stay on the device. Default: 4.")
]
Select = Annotated[
    str,
    typer.Option(
        "--select",
        envvar="HGCA_SELECT",
        help="Rows of the store that are read: exact (all), window (none), moving-average; auto is exact.",
    ),
]
Exact = Annotated[bool, typer.Option("--exact", envvar="HGCA_EXACT", help="Short for --select exact.")]
Budget = Annotated[
    str,
    typer.Option(
        "--budget", envvar="HGCA_BUDGET", help="Most of the store a head reads, like 5% or 0.05: 0 window only, 1 all."
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", envvar="HGCA_THREADS", help="CPU threads. Default: all usable.")
]
PrefillChunk = Annotated[
    int | None, typer.Option("--prefill-chunk", envvar="HGCA_PREFILL_CHUNK", help="Prompt tokens read at once.")
]
GpuMem = Annotated[
    str | None, typer.Option("--gpu-mem", envvar="HGCA_GPU_MEM", help="Most GPU memory to use, like 8GiB.")
]
RamLimit = Annotated[
    str | None, typer.Option("--ram-limit", envvar="HGCA_RAM_LIMIT", help="Most host memory to use, like 16GiB.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", envvar="HGCA_MAX_TOKENS", help="Most tokens of an answer. Default: what fits, to 4096."
    ),
]
Temp = Annotated[
    float | None,
    typer.Option("--temp", envvar="HGCA_TEMP", help="Temperature; 0 is greedy. Default: the model's, else 0.7."),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", envvar="HGCA_TOP_K", help="Draw from the k likeliest; 0 is off. Default: the model's."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        envvar="HGCA_TOP_P",
        help="Draw from the likeliest that hold this mass. Default: the model's, else 0.95.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", envvar="HGCA_MIN_P", help="Drop what is less likely than this share of the likeliest."),
]
RepeatPenalty = Annotated[
    float | None, typer.Option("--repeat-penalty", envvar="HGCA_REPEAT_PENALTY", help="Above 1 discourages repetition.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", envvar="HGCA_SEED", help="For the same answer again. Default: random.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", envvar="HGCA_STOP", help="Text that ends the answer. May be repeated.")
]
System = Annotated[str | None, typer.Option("--system", "-s", envvar="HGCA_SYSTEM", help="System message.")]
SystemFile = Annotated[
    Path | None, typer.Option("--system-file", envvar="HGCA_SYSTEM_FILE", help="File with the system message.")
]
ChatTemplate = Annotated[
    Path | None, typer.Option("--chat-template", envvar="HGCA_CHAT_TEMPLATE", help="File with a chat template (jinja).")
]
Raw = Annotated[
    bool, typer.Option("--raw", envvar="HGCA_RAW", help="Continue the text as it stands: no chat template.")
]

MOST_ROWS = 1 << 30


def count_of(text: str | None, flag: str) -> int | None:
    """Tokens or rows a flag names, None for auto. Raises UsageError naming flag and range."""
    if text is None or text == "auto":
        return None
    value = parse_count(text, flag)
    if not 1 <= value <= MOST_ROWS:
        raise UsageError(f"{flag}: {text} is out of range.", "Give 1 to 1073741824 (1024M).")
    return value


def bytes_of(text: str | None, flag: str) -> int | None:
    """Bytes a flag names, None if it was not given."""
    return None if text is None else parse_bytes(text, flag)


def choice_of(text: str, flag: str, choices: tuple[str, ...]) -> str | None:
    """One of the choices, None for auto. Raises UsageError naming them."""
    if text == "auto":
        return None
    if text not in choices:
        raise UsageError(f"{flag}: no such choice {text!r}.", f"Choose from auto, {', '.join(choices)}.")
    return text


def policy_of(select: str, exact: bool, budget: str) -> tuple[str, float | None]:
    """Policy and budget from --select, --exact and --budget. Raises UsageError if they contradict each other."""
    from hgca_cli.config import SELECTORS

    share = None if budget == "auto" else parse_share(budget, "--budget")
    named = choice_of(select, "--select", SELECTORS)
    if exact:
        if named not in (None, "exact"):
            raise UsageError(f"--exact and --select {named} exclude each other.", "Drop one of them.")
        named = "exact"
    if share is None:
        return named or "exact", None
    if share == 1.0 and named in (None, "exact"):
        return "exact", None
    if share == 0.0 and named in (None, "window"):
        return "window", None
    if named in ("exact", "window"):
        raise UsageError(f"--budget {budget} and --select {named} exclude each other.", "Drop one of them.")
    if named is None:
        raise UsageError(
            f"--budget {budget} needs a policy that chooses rows.", "Add --select moving-average, or give 0 or 1."
        )
    return named, share


def threads_of(count: int | None) -> int | None:
    """--threads, checked. Raises UsageError outside 1 .. 1024."""
    if count is not None and not 1 <= count <= 1024:
        raise UsageError(f"--threads: {count} is out of range.", "Give 1 to 1024.")
    return count
