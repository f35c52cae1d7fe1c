"""From flags to a running engine: find the model, plan, load. Each step refuses before the next one costs anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.describe import describe
from hgca_cli.commands.interrupt import end_if_asked
from hgca_cli.commands.machine import NONE, profile_for
from hgca_cli.commands.starting import search_as_before
from hgca_cli.errors import UsageError
from hgca_cli.events import Event, Notice

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hardware.settings import Plan, PlanRequest
    from hgca_cli.hf.registry import ModelFiles
    from hgca_cli.hf.tokenizer import Tokenizer

SWITCH = "enable_thinking"  # what chat templates call it
PLANNED = (None, "auto", "cpu")  # devices that are always there


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it may be found."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    offline: bool = False
    template: str | None = None  # a chat template that replaces the model's


def plan_model(
    choice: ModelChoice,
    request: PlanRequest,
    notify: Callable[[Event], None],
    *,
    profile: str = NONE,
    elsewhere: bool = False,
    sequences: int = 1,
    measure: bool = True,
) -> tuple[ModelFiles, Plan]:
    """Where a model is, and the plan for it, from its config and the headers of its files: no weights are read.

    profile    whose rates decide: a name, a file, "auto" for this machine's, "none" for assumed ones
    elsewhere  a named profile's memory and GPUs count, not this machine's: nothing will be run
    sequences  that are to run at once
    measure    a machine without a profile is measured; else rates are assumed
    """
    from hgca_cli.hf.registry import resolve

    numbers = request.quant, request.dtype
    if (request.device not in PLANNED or None not in numbers) and not elsewhere:  # refused before anything is fetched
        from hgca_cli.hardware.machine import choose_device
        from hgca_cli.hardware.packing import check_numbers
        from hgca_cli.hardware.probe import probe_gpus

        check_numbers(*numbers, choose_device(request.device, probe_gpus()))
    files = resolve(choice.name, revision=choice.revision, offline=choice.offline, notify=notify)
    from hgca_cli.hardware.plan import make_plan, shared
    from hgca_cli.hardware.probe import probe_machine
    from hgca_cli.hardware.profiles import machine_of

    machine = probe_machine()
    rates = profile_for(profile, machine, notify, measure=measure)
    if elsewhere and rates is not None and profile != "auto":
        machine = machine_of(rates)
    model = describe(files, choice.trust_remote_code)
    plan = shared(make_plan(model, machine, request, rates), sequences, model, machine, request, rates)
    for notice in plan.notices:
        notify(Notice(notice))
    return files, plan


def start_engine(
    choice: ModelChoice,
    files: ModelFiles,
    plan: Plan,
    *,
    balance: bool = False,
    guesses: int = 0,
    notify: Callable[[Event], None] = lambda _: None,
) -> Engine:
    """Load the model by plan; balance, guesses: as of Engine, notify: of load_model. Raises ModelError, DoesNotFitError."""
    import torch

    from hgca_cli import native
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hf.load import load_model

    search_as_before()
    native.set_threads(plan.threads)
    torch.set_num_threads(plan.threads)
    loaded = load_model(
        files,
        device=plan.device,
        dtype=plan.dtype,
        trust_remote_code=choice.trust_remote_code,
        yarn_context=plan.yarn_context,
        quant=plan.quant,
        notify=notify,
    )
    if choice.template is not None:
        loaded.tokenizer.with_template(choice.template)
    end_if_asked()
    return Engine(loaded, plan.cache, prefill_chunk=plan.chunk, balance=balance, guesses=guesses)


def lost_guesses(engine: Engine, asked: int | None) -> str | None:
    """What to say of --prompt-lookup, if so many guesses were asked for (None: by nobody) and a model's, or a policy's, cannot be
    checked.
    """
    if not asked or (engine.may_guess and not engine.watches):
        return None
    who = f"--select {engine.settings.select}" if engine.may_guess else "this model"
    return f"{who} computes one token of an answer at a time: --prompt-lookup has no effect."


def lost_options(tokenizer: Tokenizer, told: Iterable[str]) -> str | None:
    """A notice about options rows tell a chat template that does not look at them; None: it knows them all."""
    from hgca_cli.batch.check import shown

    lost = [one for one in told if not tokenizer.template_knows(one)]
    return f"the chat template does not look at what rows tell it: {', '.join(map(shown, lost[:10]))}" if lost else None


def check_template(
    tokenizer: Tokenizer, sampling: Mapping[str, Any], think: bool | None, options: Mapping[str, Any]
) -> None:
    """Raises UsageError for a wish about thinking, or an option, that the chat template does not look at.

    sampling  of sampling_flags
    """
    from hgca_cli.engine.reasoning import BEGIN

    if think is not None and not tokenizer.template_knows(SWITCH):
        raise UsageError(
            f"this model's chat template has no switch for thinking ({SWITCH}).", "Leave --think and --no-think out."
        )
    for name in options:
        if not tokenizer.template_knows(name):
            raise UsageError(
                f"this model's chat template has no option {name!r}.", "Drop it of --chat-template-kwargs."
            )
    thinks = tokenizer.in_channels or any(map(tokenizer.template_knows, (SWITCH, BEGIN)))
    if "reasoning_budget" in sampling and not thinks:
        raise UsageError("this model's chat template knows no thoughts.", "Leave --reasoning-budget out.")
