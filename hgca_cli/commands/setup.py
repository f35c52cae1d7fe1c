"""From flags to a running engine: find the model, plan, load. Each step refuses before the next one costs anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hgca_cli.events import Event, Notice

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hardware.memory import Model
    from hgca_cli.hardware.settings import Plan, PlanRequest
    from hgca_cli.hf.registry import ModelFiles

PLANNED = (None, "auto", "cpu")  # devices that are always there


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it may be found."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    offline: bool = False
    template: str | None = None  # a chat template that replaces the model's


def plan_model(choice: ModelChoice, request: PlanRequest, notify: Callable[[Event], None]) -> tuple[ModelFiles, Plan]:
    """Where a model is, and the plan for it, from its config and the headers of its files: no weights are read."""
    from hgca_cli.hf.registry import resolve

    if request.device not in PLANNED:  # one that is not there is refused before anything is fetched
        from hgca_cli.hardware.machine import choose_device
        from hgca_cli.hardware.probe import probe_gpus

        choose_device(request.device, probe_gpus())
    files = resolve(choice.name, revision=choice.revision, offline=choice.offline, notify=notify)
    from hgca_cli.hardware.plan import make_plan
    from hgca_cli.hardware.probe import probe_machine

    plan = make_plan(describe(files, choice.trust_remote_code), probe_machine(), request)
    for notice in plan.notices:
        notify(Notice(notice))
    return files, plan


def describe(files: ModelFiles, trust_remote_code: bool) -> Model:
    """What the planner must know of a model. Raises ModelError."""
    from hgca_cli.hardware.memory import Model
    from hgca_cli.hf.checks import weights_bytes
    from hgca_cli.hf.load import read_config
    from hgca_cli.hf.shape import kv_layout, text_config, trained_context

    config = read_config(files, trust_remote_code=trust_remote_code)
    text = text_config(config)
    own = str(getattr(config, "dtype", "") or "").removeprefix("torch.")
    return Model(
        layout=kv_layout(config),
        parameters=weights_bytes(files.path, 1),
        trained_context=trained_context(config),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        own_dtype={"bfloat16": "bf16", "float16": "fp16"}.get(own, "fp32"),
    )


def start_engine(choice: ModelChoice, files: ModelFiles, plan: Plan) -> Engine:
    """Load the model by plan. Raises ModelError, DoesNotFitError."""
    import torch

    from hgca_cli import native
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hf.load import load_model

    native.set_threads(plan.threads)
    torch.set_num_threads(plan.threads)
    loaded = load_model(
        files,
        device=plan.device,
        dtype=plan.dtype,
        trust_remote_code=choice.trust_remote_code,
        yarn_context=plan.yarn_context,
    )
    if choice.template is not None:
        loaded.tokenizer.with_template(choice.template)
    return Engine(loaded, plan.cache, prefill_chunk=plan.chunk)
