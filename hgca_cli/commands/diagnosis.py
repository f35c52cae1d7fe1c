"""From flags to a diagnosis: look at everything, rehearse what chat would do up to its plan, and judge."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands.describe import describe, describe_config
from hgca_cli.commands.flags import naming_variables
from hgca_cli.commands.inputs import read_text
from hgca_cli.commands.origins import Setting, setter, settings_of
from hgca_cli.commands.setup import ModelChoice
from hgca_cli.errors import HgcaError, NotHereError, UsageError
from hgca_cli.hf.registry import PACKAGED, ModelFiles, ignore, resolve, resolve_config, target_of

if TYPE_CHECKING:
    from hgca_cli.hardware.checkup.checks import Finding
    from hgca_cli.hardware.checkup.facts import Facts, Failure, Kept, Run
    from hgca_cli.hardware.machine import Machine
    from hgca_cli.hardware.memory import Model
    from hgca_cli.hardware.settings import Plan, PlanRequest


@dataclass(frozen=True)
class Diagnosis:
    """What there is, what a run would be, and what looks wrong."""

    facts: Facts
    settings: list[Setting]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """What chat would end with: the first error's; 0 if nothing keeps it from running."""
        return next((one.exit_code for one in self.findings if one.exit_code), 0)

    @property
    def record(self) -> dict[str, Any]:
        """As plain data. Bytes."""
        facts = asdict(self.facts)
        devices = {"host": facts.pop("host"), "graphics": facts.pop("graphics")}
        parts = {"environment": facts["environment"], "kernels": facts["kernels"], "devices": devices}
        parts |= {"profile": facts["profile"], "models": facts["places"], "run": facts["run"]}
        told = {"settings": [asdict(one) for one in self.settings], "findings": [asdict(one) for one in self.findings]}
        return parts | told | {"exit_code": self.exit_code}


def diagnose(
    context: typer.Context,
    given: Mapping[str, Any],
    request: PlanRequest,
    sampling: Mapping[str, Any],
    known: Collection[str],
) -> Diagnosis:
    """Look, rehearse and judge. given: chat's options by name; known: the variables hgca reads."""
    from hgca_cli.hardware.checkup.checks import check
    from hgca_cli.hardware.checkup.environment import look_at_environment
    from hgca_cli.hardware.checkup.facts import Facts
    from hgca_cli.hardware.checkup.machine import look_at_graphics, look_at_host, look_at_kernels, machine_from
    from hgca_cli.hf.places import model_places

    environment, kernels = look_at_environment(known), look_at_kernels()
    host, graphics = look_at_host(kernels), look_at_graphics()
    machine = machine_from(host, graphics)
    kept = _profile(context, given["profile"], machine, kernels.isa)
    rehearsal = _Rehearsal(context, given)
    if kernels.failure is None:  # else nothing is planned, and that it does not load is said once
        rehearsal.plan(machine, request, kept)
    settings, wrong = settings_of(context, given, request, rehearsal.planned, sampling, rehearsal.models)
    facts = Facts(environment, kernels, host, graphics, kept, model_places(), rehearsal.run(wrong))
    return Diagnosis(facts, settings, check(facts))


def _profile(context: typer.Context, asked: str, machine: Machine, isa: str) -> Kept:
    from hgca_cli.hardware.checkup.facts import Failure, Kept
    from hgca_cli.hardware.checkup.kept import look_at_profile

    try:
        with naming_variables(context):
            return look_at_profile(asked, machine, isa)
    except UsageError as error:
        return Kept(asked, "", "unknown", error.message, failure=Failure.of(error))
    except OSError as error:  # its directory may not be looked into: chat would not expect that
        why = f"profiles cannot be read ({error.strerror or error})."
        return Kept(asked, "", "unknown", why, failure=Failure(why, "Set HGCA_PROFILE_DIR to another directory.", 1))


class _Rehearsal:
    """What chat does before it loads a model, with every refusal kept. Nothing is fetched, converted or measured."""

    def __init__(self, context: typer.Context, given: Mapping[str, Any]) -> None:
        self.planned: Plan | None = None
        self.models: dict[str, Any] = {}  # the model's generation_config
        self._context, self._given = context, given
        self._choice = ModelChoice(given["model"], given["revision"], given["trust_remote_code"], offline=True)
        self._failures: list[Failure] = []
        self._missing: NotHereError | None = None
        self._files: ModelFiles | None = None
        self._shape: Model | None = None
        for name in ("system_file", "chat_template"):
            if (file := given[name]) is not None:
                self._try(lambda file=file: read_text(file.expanduser(), str(file)))
        self._try(self._find)

    def plan(self, machine: Machine, request: PlanRequest, kept: Kept) -> None:
        """The plan, whether it fits or not, if the model's shape is known."""
        self._try(self._describe)
        self._try(self._sampling)
        self._try(lambda: self._draw_up(machine, request, kept))

    def run(self, wrong: list[str]) -> Run:
        """What came of it. wrong: more that chat would say."""
        from hgca_cli.hardware.checkup.facts import Failure, Run
        from hgca_cli.hf.places import CONVERTED, HUB

        name = self._given["model"].strip()
        packaged = target_of(name) == PACKAGED
        fetched = packaged or self._missing is None or not Path(name).expanduser().exists()  # else a .gguf file is here
        kind = HUB if fetched and not packaged else CONVERTED
        return Run(
            model=name,
            path=str(self._files.path) if self._files else "",
            missing=Failure.of(self._missing) if self._missing else None,
            step="fetches" if fetched else "converts",
            kind=kind,
            needs=self._needs(kind),
            offline=self._offline(hub=not packaged) if fetched and self._missing else "",
            failures=tuple(self._failures),
            notices=(*(self.planned.notices if self.planned else ()), *wrong),
        )

    def _try(self, step: Any) -> None:
        from hgca_cli.hardware.checkup.facts import Failure

        try:
            step()
        except NotHereError as error:
            self._missing = self._missing or error
        except HgcaError as error:
            self._failures.append(Failure.of(error))
        except ImportError as error:  # a package that is broken: chat would end with an error nobody expected
            why = " ".join(str(error).split())[:200]
            self._failures.append(Failure(f"a package cannot be imported ({why}).", "Install hgca anew.", 1))
        except OSError as error:  # a directory on the way that may not be read, a name too long
            what = f"{str(error.filename or self._choice.name)[:200]}: {error.strerror or error}."
            self._failures.append(Failure(what, "Check the path and its permissions.", 1))

    def _find(self) -> None:
        choice = self._choice
        self._files = resolve(choice.name, revision=choice.revision, offline=True, convert=False)

    def _describe(self) -> None:
        from hgca_cli.hardware.shapes import known_model

        choice = self._choice
        if self._files is not None:
            self._shape = describe(self._files, choice.trust_remote_code)
        elif self._missing is not None:
            config = None
            if (known := known_model(choice.name)) is None:
                config = resolve_config(choice.name, revision=choice.revision, offline=True)
            self._shape = describe_config(choice, ignore) if config is not None else known

    def _sampling(self) -> None:
        from hgca_cli.hf.here import generation_settings

        if self._files is not None:
            self.models = generation_settings(self._files.path)

    def _draw_up(self, machine: Machine, request: PlanRequest, kept: Kept) -> None:
        from hgca_cli.hardware.assumed import assume
        from hgca_cli.hardware.place import Case
        from hgca_cli.hardware.plan import draw_up
        from hgca_cli.hardware.refusal import does_not_fit

        if self._shape is None:
            return
        rates = kept.profile if kept.state == "good" and kept.asked != "none" else None
        case = Case(self._shape, machine, request, rates or assume(machine))
        self.planned = draw_up(case)
        if not self.planned.fits:
            raise does_not_fit(case, self.planned, draw_up)

    def _needs(self, kind: str) -> int:
        """Bytes the model takes where it is brought to; 0 if it is here, or nobody knows."""
        from hgca_cli.hf.gguf_convert import FULL_PRECISION_BYTES
        from hgca_cli.hf.places import CONVERTED

        if self._missing is None or self._shape is None:
            return 0
        numbers = self._shape.parameters
        return numbers * (4 if kind == CONVERTED and numbers * 4 <= FULL_PRECISION_BYTES else 2)

    def _offline(self, *, hub: bool) -> str:
        """What forbids to ask a network, "" if nothing does."""
        from hgca_cli.hf.hub import told_offline

        if self._given["offline"]:
            return (setter(self._context, "offline") or ("", "--offline"))[1]
        return "HF_HUB_OFFLINE" if hub and told_offline() else ""
