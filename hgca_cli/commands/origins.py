"""Every setting of a run, and who decided it: a flag, a variable, a profile, the plan, the model, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands.config_file import Config
from hgca_cli.commands.flags import SAMPLING, sampling_of
from hgca_cli.config import QUALITY, SamplingSettings

if TYPE_CHECKING:
    from hgca_cli.hardware.settings import Plan, PlanRequest

# Settings of a plan by their flag: the field of plan and request, and other flags that decide it
PLANNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "device": ("device", ()),
    "dtype": ("dtype", ()),
    "quant": ("quant", ()),
    "kv_dtype": ("kv_dtype", ()),
    "ctx": ("context", ()),
    "window": ("window", ()),
    "sinks": ("sinks", ()),
    "select": ("select", ("exact", "quality", "budget")),
    "quality": ("quality", ()),
    "budget": ("budget", ()),
    "dense_layers": ("dense_layers", ()),
    "threads": ("threads", ()),
    "prefill_chunk": ("chunk", ()),
}
TIMED = ("window", "select", "threads", "chunk")  # fields that predicted times decide (hardware/speed.py)
AFTER = {  # None means
    "gpu_mem": "all that is free",
    "vram_margin": "1 GiB",
    "ram_limit": "80 % of the free",
    "store_dir": "in memory",
    "revision": "the newest",
    "think": "as the template has it",
}
TOLD = ("system", "system_file", "chat_template", "chat_template_kwargs", "raw", "think", "overflow")
LATER = "not planned: see the findings"

By = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Setting:
    """One setting. name: its flag without dashes; origin: flag, environment, config, profile, plan, model or default.

    by  the flag, variable, file and key, or profile; reason: why it is so, where the plan says
    """

    name: str
    value: Any
    origin: str
    by: str = ""
    reason: str = ""


def settings_of(
    context: typer.Context,
    given: Mapping[str, Any],
    request: PlanRequest,
    plan: Plan | None,
    sampling: Mapping[str, Any],
    models: Mapping[str, Any],
) -> tuple[list[Setting], list[str]]:
    """Every setting, and what is wrong with the model's own.

    given     the options by name; sampling: of `sampling_flags`; models: the model's generation_config
    plan      None where none can be made
    """
    by = partial(setter, context)
    settings, wrong = _drawn(by, sampling, models)
    return [*_chosen(by, given), *_planned(by, given, request, plan), *settings, *_told(by, given)], wrong


def setter(context: typer.Context, name: str) -> tuple[str, str] | None:
    """Origin and name of what set an option: ("flag", "--ctx"), ("environment", "HGCA_CTX"), ("config", the file and its key);
    None if nobody did.
    """
    source = getattr(context.get_parameter_source(name), "name", "")
    if source == "COMMANDLINE":
        return "flag", "--" + name.replace("_", "-")
    if source == "DEFAULT_MAP":
        config = context.find_root().obj
        return ("config", config.origins[name]) if isinstance(config, Config) and name in config.origins else None
    return ("environment", f"HGCA_{name.upper()}") if source == "ENVIRONMENT" else None


def _chosen(by: By, given: Mapping[str, Any]) -> Iterator[Setting]:
    for name in (
        "model",
        "revision",
        "trust_remote_code",
        "offline",
        "profile",
        "yarn",
        "gpu_mem",
        "vram_margin",
        "ram_limit",
        "store_dir",
        "balance",
        "prompt_lookup",
    ):
        value = given[name]
        yield Setting(name, value, *(by(name) or ("default", "")), reason=AFTER.get(name, "") if value is None else "")


def _planned(by: By, given: Mapping[str, Any], request: PlanRequest, plan: Plan | None) -> Iterator[Setting]:
    for name, (field, others) in PLANNED.items():
        asked = getattr(request, field) not in (None, "auto", "none")
        setters = [
            found for one in (name, *others) if given[one] is not False and given[one] != "auto" and (found := by(one))
        ]
        if plan is None:
            value, reason = (getattr(request, field), "") if asked else ("auto", LATER)
        else:
            value, reason = getattr(plan, field), plan.reasons.get(field, "")
        if asked and setters:
            yield Setting(name, value, *setters[0], reason="" if reason == "given" else reason)
        else:
            yield Setting(name, value, *_decided(field, value, plan), reason=reason)


def _decided(field: str, value: Any, plan: Plan | None) -> tuple[str, str]:
    """Origin of what nobody asked for."""
    usual = {
        "quant": value == "none",
        "sinks": True,
        "budget": True,
        "dense_layers": True,
        "quality": value in (None, QUALITY),
    }
    if plan is None or usual.get(field, False):
        return "default", ""
    measured = plan.predicted.profile != "assumed"
    return ("profile", plan.predicted.profile) if measured and field in (*TIMED, "quality") else ("plan", "")


def _drawn(by: By, sampling: Mapping[str, Any], models: Mapping[str, Any]) -> tuple[list[Setting], list[str]]:
    """How the next token is drawn, and what is wrong with the model's own."""
    made, origins, wrong = sampling_of(sampling, models)
    flags = {setting: flag for flag, setting in SAMPLING.items()}
    found = []
    for field in fields(SamplingSettings):
        name, value = flags.get(field.name, field.name), getattr(made, field.name)
        usual = ("model", "") if origins[field.name] == "the model's" else ("default", "")
        reason = {"seed": "a new one each time"}.get(name, "") if value is None else ""
        if name == "max_tokens" and usual[0] == "default" and name not in sampling:
            reason = "less where the context has no room"
        setter = by(name) or (by("json_schema_file") if name == "json_schema" else None)
        found.append(Setting(name, value, *((setter or usual) if field.name in sampling else usual), reason=reason))
    return found, wrong


def _told(by: By, given: Mapping[str, Any]) -> Iterator[Setting]:
    for name in TOLD:
        value = given[name]
        if name == "system" and value is not None:  # what is told to a model does not belong into a report
            value = f"{len(value)} characters"
        reason = AFTER.get(name, "") if value is None else ""
        yield Setting(name, str(value) if isinstance(value, Path) else value, *(by(name) or ("default", "")), reason)
