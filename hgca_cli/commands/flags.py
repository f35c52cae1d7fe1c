"""From what was written on the command line to settings. Everything here is checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands.config_file import Config
from hgca_cli.commands.flag_values import (
    MOST_ROWS,
    bytes_of,
    count_of,
    dtype_of,
    margin_of,
    policy_of,
    quant_of,
    tokens_of,
)
from hgca_cli.config import (
    DTYPES,
    KV_DTYPES,
    SamplingSettings,
    minus_one,
)
from hgca_cli.errors import HgcaError, UsageError

if TYPE_CHECKING:
    from hgca_cli.hardware.settings import PlanRequest

OVERFLOW = ("error", "trim-oldest")
SAMPLING = {
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
}  # where flag and setting differ in name
LIMITS = ("max_tokens", "reasoning_budget")  # sampling settings that are tokens
OURS = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 4096}
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
