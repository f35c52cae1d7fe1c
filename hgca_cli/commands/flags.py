"""From what was written on the command line to settings. Everything here is checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands.config_file import Config
from hgca_cli.config import (
    DTYPES,
    GUESSES,
    KV_DTYPES,
    MOST_GUESSES,
    NO_LIMIT,
    QUANTS,
    SELECTORS,
    SamplingSettings,
    minus_one,
)
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.units import parse_bytes, parse_count, parse_share

if TYPE_CHECKING:
    from hgca_cli.hardware.settings import PlanRequest

MOST_ROWS = 1 << 30
OVERFLOW = ("error", "trim-oldest")
SAMPLING = {
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
}  # where flag and setting differ in name
LIMITS = ("max_tokens", "reasoning_budget")  # sampling settings that are tokens
OURS = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 4096}
SPELLINGS = {
    "none": ("none", "off", "no"),
    "file": ("file", "own", "asis"),
    "q8": ("q8", "q80", "int8", "8bit", "8", "w8"),
    "q4": ("q4", "q40", "q41", "int4", "4bit", "4", "w4"),
}  # of --quant, without dashes
NUMBERS = {
    "fp32": ("fp32", "f32", "float32", "float"),
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "f16", "float16", "half"),
    "int8": ("int8", "i8", "q8", "q80"),
}  # of --dtype and --kv-dtype, without dashes
THE_MODELS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
)  # what generation_config.json may set


def plan_request(given: Mapping[str, Any]) -> PlanRequest:
    """The plan the flags ask for. Raises UsageError for what is out of range or contradicts itself."""
    from hgca_cli.hardware.disk import look_at_disk
    from hgca_cli.hardware.settings import PlanRequest

    sinks = given["sinks"]
    if sinks is not None and not 0 <= sinks <= MOST_ROWS:
        raise UsageError(f"--sinks: {sinks} is out of range.", f"Give 0 to {MOST_ROWS}.")
    select, budget, quality = policy_of(given["select"], given["exact"], given["budget"], given["quality"])
    context = count_of("auto" if given["ctx"] == "0" else given["ctx"], "--ctx")  # 0: llama.cpp's
    if given["yarn"] and context is None:
        raise UsageError("--yarn needs a length to stretch to.", "Add --ctx, like --ctx 32k.")
    quant, dtype = quant_of(given.get("quant") or "auto"), dtype_of(given["dtype"], "--dtype", DTYPES)
    return PlanRequest(
        device=given["device"],
        dtype=dtype,
        kv_dtype=dtype_of(given["kv_dtype"], "--kv-dtype", KV_DTYPES),
        context=context,
        window=count_of(given["window"], "--window"),
        sinks=sinks,
        chunk=count_of(given["prefill_chunk"], "--prefill-chunk"),
        threads=count_of(given["threads"], "--threads"),  # too many are clamped
        select=select,
        budget=budget,
        quality=quality,
        dense_layers=given["dense_layers"],
        gpu_memory=bytes_of(given["gpu_mem"], "--gpu-mem"),
        gpu_margin=margin_of(given.get("vram_margin")),
        ram_limit=bytes_of(given["ram_limit"], "--ram-limit"),
        disk=look_at_disk(given["store_dir"]),
        yarn=given["yarn"],
        quant=quant,
    )


def sampling_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings the flags set, and only those. Raises UsageError for a value out of range."""
    from hgca_cli.commands.inputs import prompt_text
    from hgca_cli.commands.wanted import schema_flag

    names = {field.name for field in fields(SamplingSettings)}
    flags = {SAMPLING.get(name, name): value for name, value in given.items() if value is not None}
    flags = {name: value for name, value in flags.items() if name in names}
    flags |= {name: tokens_of(flags[name], "--" + name.replace("_", "-")) for name in LIMITS if name in flags}
    flags = {name: value for name, value in minus_one(flags).items() if value is not None}
    if (schema := schema_flag(given)) is not None:
        flags["json_schema"] = schema
    if "stop" in flags:
        flags["stop"] = tuple(prompt_text(word, "--stop") for word in flags["stop"])
        if "" in flags["stop"]:
            raise UsageError("--stop: an empty text would end every answer at once.", "Drop it.")
    SamplingSettings(**flags)
    return flags


def sampling_of(
    flags: Mapping[str, Any], models: Mapping[str, Any]
) -> tuple[SamplingSettings, dict[str, str], list[str]]:
    """Sampling settings, where each comes from, and what is wrong with the model's own.

    flags   of `sampling_flags`: they win
    models  the model's generation_config: comes next; a value that is no good is left out, and told
    """
    settings = dict(OURS)
    origins = {field.name: "default" for field in fields(SamplingSettings)}
    wrong: list[str] = []
    for name in THE_MODELS:
        value = models.get(name)
        if value is None or isinstance(value, bool):
            continue
        try:
            SamplingSettings(**{name: value})
        except (HgcaError, TypeError):
            wrong.append(f"the model's generation_config says {name} = {value!r}, which is no good: not used.")
            continue
        settings[name] = value
        origins[name] = "the model's"
    origins |= dict.fromkeys(flags, "given")
    return SamplingSettings(**settings | dict(flags)), origins, wrong


def count_of(text: str | None, flag: str, most: int = MOST_ROWS, *, auto: str = ", or auto") -> int | None:
    """Tokens or rows a flag names, None for auto. Raises UsageError naming flag and range; auto: "" if that is no answer."""
    if text is None or text == "auto":
        return None
    try:
        value = parse_count(text, flag)
    except UsageError as error:
        raise UsageError(
            f"{flag}: {text!r} is not a whole number.", f"Give 1 to {most:,}, like 8192 or 32k{auto}."
        ) from error
    if not 1 <= value <= most:
        raise UsageError(f"{flag}: {text} is out of range.", f"Give 1 to {most:,}.")
    return value


def tokens_of(text: str | int, flag: str, *, endless: bool = True) -> int:
    """Most tokens of an answer or a thought; -1: no limit. Raises UsageError naming the flag and what to write.

    endless  there may be none
    """
    if (plain := str(text).strip()) == "-1":
        if endless:
            return -1
        raise UsageError(f"{flag}: without a limit nobody knows how much memory rows take.", "Give one, like 4k.")
    try:
        return min(NO_LIMIT, parse_count(plain, flag))
    except UsageError as error:
        no_limit = ", or -1 for no limit" if endless else ""
        raise UsageError(
            f"{flag}: {plain!r} is not a number of tokens.", f"Give 0 or more, like 200 or 4k{no_limit}."
        ) from error


def bytes_of(text: str | None, flag: str) -> int | None:
    """Bytes a flag names, None if it was not given. Raises UsageError naming the flag."""
    return None if text is None else parse_bytes(text, flag)


def margin_of(text: str | None) -> int | None:
    """Bytes --vram-margin names: a number alone is MiB. Raises UsageError."""
    if text is None or not text.strip().isdecimal():
        return bytes_of(text, "--vram-margin")
    return int(text) << 20


def choice_of(text: str, flag: str, choices: tuple[str, ...]) -> str | None:
    """One of the choices, None for auto. Raises UsageError naming them."""
    if text == "auto":
        return None
    if text not in choices:
        raise UsageError(f"{flag}: no such choice {text!r}.", f"Choose from auto, {', '.join(choices)}.")
    return text


def dtype_of(text: str, flag: str, choices: tuple[str, ...]) -> str | None:
    """As `choice_of`, by any of the names a dtype has elsewhere (bfloat16, half, q8_0)."""
    known = _spelled(text, NUMBERS)
    return choice_of(known if known in choices else text, flag, choices)


def _spelled(text: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """What is called so, in any case of letters and without dashes; None: nothing."""
    plain = text.lower().replace("-", "").replace("_", "")
    return next((one for one, spellings in names.items() if plain in spellings), None)


def quant_of(text: str) -> str | None:
    """One of QUANTS, by any of the names it has elsewhere (int8, q8_0, 8bit); None for auto. Raises UsageError naming them."""
    if text.lower() == "auto":
        return None
    if (quant := _spelled(text, SPELLINGS)) is not None:
        return quant
    raise UsageError(f"--quant: no such choice {text!r}.", f"Choose from auto, {', '.join(QUANTS)}.")


def one_of(text: str, flag: str, choices: tuple[str, ...]) -> str:
    """One of the choices. Raises UsageError naming them."""
    if text not in choices:
        raise UsageError(f"{flag}: no such choice {text!r}.", f"Choose from {', '.join(choices)}.")
    return text


def balance_of(text: str) -> bool:
    """Whether settings may follow what is measured. Raises UsageError naming the choices."""
    return choice_of(text, "--balance", ("off",)) is None


def guesses_of(text: str) -> int | None:
    """Most tokens that --prompt-lookup guesses at once, 0 for off; None for auto. Raises UsageError saying what may be written."""
    if text in ("auto", "on"):
        return None
    if text in ("off", "0"):
        return 0
    if not text.isdecimal() or int(text) > MOST_GUESSES:
        raise UsageError(
            f"--prompt-lookup: {text!r} is no number of tokens.", f"Give 1 to {MOST_GUESSES}, auto or off."
        )
    return int(text)


def guesses_on(guesses: int | None, device: str) -> int:
    """The same for a device. Raises UsageError where that many were asked for and none can be checked."""
    if device == "cpu":
        return GUESSES if guesses is None else guesses
    if guesses:
        raise UsageError(
            f"--prompt-lookup {guesses}: {device} computes one token of an answer at a time.",
            "Drop it, or give --device cpu.",
        )
    return 0


def dashboard_of(given: Mapping[str, Any], without: tuple[str, ...] = ("json", "quiet")) -> str:
    """What --dashboard asks for. Raises UsageError naming the choices, or the flag that shows nothing of it, of `without`."""
    mode = choice_of(given["dashboard"], "--dashboard", ("line", "full", "off"))
    for name in without:
        if mode == "full" and given[name]:
            raise UsageError(f"--dashboard full and --{name} exclude each other.", "Drop one of them.")
    return mode or "line"


def policy_of(select: str, exact: bool, budget: str, quality: str) -> tuple[str | None, float | None, float | None]:
    """Policy (None: the planner's), budget and quality from --select, --exact, --budget and --quality.

    Raises UsageError if they contradict each other.
    """
    share = None if budget == "auto" else parse_share(budget, "--budget")
    mass = None if quality == "auto" else parse_share(quality, "--quality")
    named = choice_of(select, "--select", SELECTORS)
    if exact:
        if named not in (None, "exact"):
            raise UsageError(f"--exact and --select {named} exclude each other.", "Drop one of them.")
        named = "exact"
    if mass == 0.0:
        raise UsageError("--quality: 0 keeps nothing.", "Give a share above 0, or --select window.")
    for given, flag, text in ((share, "--budget", budget), (mass, "--quality", quality)):
        if given == 1.0 and named in (None, "exact"):
            return "exact", None, None
        if given is not None and named == "exact":
            name = "--exact" if exact else "--select exact"
            raise UsageError(f"{flag} {text} and {name} exclude each other.", "Drop one of them.")
    if share == 0.0 and named in (None, "window"):
        return "window", None, None
    if named == "window" and (share is not None or mass is not None):
        flag, text = ("--budget", budget) if share is not None else ("--quality", quality)
        raise UsageError(f"{flag} {text} and --select window exclude each other.", "Drop one of them.")
    if share is not None and mass is not None:
        raise UsageError("--budget and --quality exclude each other.", "Drop one: a fixed share, or the mass to keep.")
    if mass is not None and named == "moving-average":
        raise UsageError("--quality needs a policy that follows the query.", "Choose --select scan, or give --budget.")
    return named, share, mass


def exclude_prompt_flags(given: Mapping[str, Any]) -> None:
    """Raises UsageError for two flags that each say how a prompt begins, and for --quiet with --verbose."""
    for one, other in (
        ("system", "system_file"),
        ("raw", "system"),
        ("raw", "system_file"),
        ("raw", "chat_template"),
        ("raw", "think"),
        ("raw", "chat_template_kwargs"),
        ("raw", "reasoning_budget"),
        ("json_schema", "json_schema_file"),
        ("quiet", "verbose"),
    ):
        exclude(given, one, other)
    if given["raw"] and given["think"] is False:
        raise UsageError("--raw and --no-think exclude each other.", "Drop one of them.")


def exclude(given: Mapping[str, Any], *names: str) -> None:
    """Raises UsageError, naming both, if more than one of these was given."""
    flags = ["--" + name.replace("_", "-") for name in names if given[name] not in (None, False, [], ())]
    if len(flags) > 1:
        raise UsageError(f"{flags[0]} and {flags[1]} exclude each other.", "Drop one of them.")


@contextmanager
def naming_variables(context: typer.Context) -> Iterator[None]:
    """Inside, a UsageError about a flag that was set by an environment variable names the variable,
    and one about a flag that a config file set the file."""
    try:
        yield
    except UsageError as error:
        flags = dict.fromkeys(re.findall(r"--[a-z][a-z-]*", error.message))
        names = [flag[2:].replace("-", "_") for flag in flags]
        found = [told for name in names if (told := _set_by(context, name))]
        if found:
            error.message = f"{error.message.rstrip('.')} (set by {', '.join(found)})."
        raise


def _set_by(context: typer.Context, name: str) -> str:
    """The variable or the file that set an option; "" if that was a flag, or nobody."""
    source = getattr(context.get_parameter_source(name), "name", "")
    config = context.find_root().obj
    if source == "DEFAULT_MAP" and isinstance(config, Config):
        return config.origins.get(name, "")
    return f"HGCA_{name.upper()} in the environment" if source == "ENVIRONMENT" else ""
