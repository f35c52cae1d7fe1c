"""What `hgca batch` does with its options: check the input, open the output, plan, and run what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgca_cli.batch.check import Checked, Entry, check, shown
from hgca_cli.batch.group import alike, grouped
from hgca_cli.batch.lines import Lines
from hgca_cli.batch.output import Output
from hgca_cli.batch.rows import Reader
from hgca_cli.commands.documents import documents_under
from hgca_cli.commands.job_report import again, report
from hgca_cli.commands.setup import SWITCH
from hgca_cli.errors import HgcaError
from hgca_cli.events import Event, Notice
from hgca_cli.ui.job import JobView
from hgca_cli.ui.log_file import LogFile
from hgca_cli.ui.style import Style, is_terminal
from hgca_cli.units import counted

if TYPE_CHECKING:
    import threading

    from hgca_cli.batch.work import Work
    from hgca_cli.commands.setup import ModelChoice
    from hgca_cli.config import SamplingSettings
    from hgca_cli.hardware.settings import Plan, PlanRequest
    from hgca_cli.hardware.together import Together
    from hgca_cli.hf.registry import ModelFiles

FAILED = 3
MOST_TOLD = 5  # lines that cannot run
# Options that make an answer what it is; what is not named, the planner may choose otherwise next time
TOLD = (
    "model", "revision", "ctx", "yarn", "dtype", "kv_dtype", "window", "sinks", "select", "exact", "quality", "budget",
    "dense_layers", "raw", "text", "think", "output_format",
)  # fmt: skip
BYTES_PER_TOKEN = 3.0  # of a line, for how long rows may get
CHARACTERS_PER_TOKEN = 6.0  # at most, of a text: for how much of it rows have in common
COMMON = 0.75  # of the rows are no longer than what the number of rows at once is chosen for


@dataclass
class Job:
    """A job and what it was asked to be. paths: of answers and errors; slots: rows at once, None: the planner's; shard: which of how
    many shares of the rows; dashboard: of ui/job.py.
    """

    given: Mapping[str, Any]
    paths: tuple[Path | None, Path | None]
    style: Style
    request: PlanRequest
    sampling: Mapping[str, Any]
    system: str | None
    template: str | None
    template_options: Mapping[str, Any]
    slots: int | None
    profile: str
    dashboard: str = "line"
    shard: tuple[int, int] = (1, 1)
    _open: list[Any] = field(default_factory=list)
    _lost_rows: int = 0
    _order: list[str] = field(default_factory=list)  # ids of all rows, other shares' too
    told_template: list[str] = field(default_factory=list)  # options, by rows

    def __post_init__(self) -> None:
        path = self.given["log_file"]
        log = LogFile(path.expanduser()) if path is not None else None
        if log is not None:
            self._open.append(log)
        self.view = JobView(self.style, quiet=self.given["quiet"], mode=self.dashboard, log=log)

    def done(self, work: Callable[[], int]) -> int:
        """Run, or count; how it ends is logged. Returns the exit code."""
        try:
            code = work()
        except BaseException as error:
            self.view.log(f"error: {error}" if isinstance(error, HgcaError) else f"ended by {type(error).__name__}")
            raise
        self.view.log(f"exit code {code}")
        return code

    def close(self) -> None:
        """Give files and the terminal back."""
        self.view.close()
        while self._open:
            self._open.pop().close()

    def run(self) -> int:
        """Do what is missing; returns the exit code."""
        lines, reader, checked = self._checked()
        output = Output(*self.paths, overwrite=self.given["overwrite"])
        self._open.append(output)
        if output.mended:
            self.view.note(f"{self.paths[0]}: an unfinished line of {output.mended:,} bytes was cut off")
        told = self._told()
        output.of(told)
        if self.given["retry_errors"] and (again := output.forget_errors()):
            self.view.note(f"{counted(again, 'row')} that failed: to be done again")
        output.compare(checked)
        missing = [entry for entry in checked.entries if entry.id not in output.done]
        before = len(checked.entries) - len(missing)
        failures = sum(output.done.get(entry.id, False) for entry in checked.entries)
        if before and missing:
            failed = f", {failures:,} of them failed" if failures else ""
            self.view.note(f"{before:,} of {len(checked.entries):,} rows are done already{failed}")
        if not missing:
            output.keep()
            if self.given["ordered"]:
                output.arrange(self._order)
            tell = self.view.tell if failures else self.view.note
            tell(f"all {len(checked.entries):,} rows are done" + (f", {failures:,} failed" if failures else ""))
            return FAILED if failures else 0
        code = self._work(lines, reader, output, missing, told)
        return FAILED if code == 0 and failures else code

    def count(self) -> int:
        """Check and count, and show what a run would take; returns the exit code."""
        from hgca_cli.commands.job_count import count_tokens

        lines, reader, checked = self._checked()
        return count_tokens(self, lines, reader, checked)

    def _checked(self) -> tuple[Lines, Reader, Checked]:
        """The input looked at from end to end."""
        given = self.given
        lines = Lines(given["source"])
        self._open.append(lines)
        reader = Reader(given["text"], given["raw"], self.system, documents_under(given["root"]))
        checked = check(lines, reader, limit=given["limit"], strict=given["strict"])
        which, of = self.shard
        self._order = [entry.id for entry in checked.entries]
        checked.entries = checked.entries[which - 1 :: of]
        self.told_template = checked.options
        if checked.unknown:
            self.view.note(f"nobody looks at these fields: {', '.join(shown(one) for one in checked.unknown[:10])}")
        if models := [one for one in checked.models if one != given["model"]]:
            self.view.note(f"rows ask for {', '.join(map(shown, models[:3]))}: all are answered by {given['model']}")
        for entry in checked.bad[:MOST_TOLD]:
            assert entry.error is not None
            self.view.note(f"line {entry.number:,}: {entry.error[0]}")
        if len(checked.bad) > MOST_TOLD:
            self.view.note(f"and {len(checked.bad) - MOST_TOLD:,} more lines that cannot run")
        return lines, reader, checked

    def _lost(self, text: str) -> None:
        """A row failed as it ran: the first ones are told, all are logged."""
        self._lost_rows += 1
        if self._lost_rows <= MOST_TOLD:
            self.view.note(text)
            return
        self.view.log(text)
        if self._lost_rows == MOST_TOLD + 1:
            self.view.note("more rows fail: the output says which")

    def _told(self) -> dict[str, Any]:
        """What must be the same when the job goes on."""
        settings = {name: self.given[name] for name in TOLD}
        drawn = {name: list(value) if isinstance(value, tuple) else value for name, value in self.sampling.items()}
        if self.request.quant not in (None, "none"):
            settings["quant"] = self.request.quant
        told = settings | {"sampling": drawn, "system": self.system, "chat_template": self.template}
        return told | ({"chat_template_kwargs": dict(self.template_options)} if self.template_options else {})

    def _work(self, lines: Lines, reader: Reader, output: Output, missing: list[Entry], told: dict[str, Any]) -> int:
        from hgca_cli.batch.tally import Tally
        from hgca_cli.batch.work import TooManyErrorsError, Work
        from hgca_cli.commands.ending import ending
        from hgca_cli.hardware.packing import rounded_by
        from hgca_cli.hf.fingerprint import fingerprint_of

        elsewhere = self.given["engine"] == "ray"
        planned: list[Any]
        asked, began = self.request.quant, output.began()
        if began and asked is None and not elsewhere:  # whatever would fit now, rows are of the same weights
            self.request = replace(self.request, quant=began.get("quant chosen"), may_round=False)
        choice, files, *planned = self.found() if elsewhere else self.plan()
        fingerprint = told["fingerprint"] = fingerprint_of(files, asked or "none")
        told["quant chosen"] = rounded_by(planned[0]) if planned and asked is None else None
        output.of(told)
        if self.given["ordered"]:
            output.in_order(missing)
        tally = Tally(len(missing), sum(entry.size for entry in missing))
        good = [entry for entry in missing if entry.error is None]
        if self.given["group_prefix"] and not self.given["ordered"]:
            good = grouped(good)
        work = Work(lines, reader, output, self.terms(choice)({}), tally, self._lost)
        begin = partial(work.begin, told, [entry for entry in missing if entry.error is not None])
        code, peak = 0, 0
        with ending() as stop:
            try:
                if not good:
                    begin()
                elif elsewhere:
                    peak = self._there(good, work, begin, stop, choice, fingerprint)
                else:
                    from hgca_cli.commands.job_here import here

                    peak = here(self, good, work, begin, stop, choice, files, *planned)
            except TooManyErrorsError as error:
                self.view.close()
                self.view.tell(f"error: {error}")
            code = stop.exit_code
        self.view.close()
        report(self, tally.summary() | {"concurrency": peak})
        if code:
            self.view.tell(f"interrupted; go on with: {again(self, work.begun)}")
            return code
        if self.given["ordered"]:
            output.arrange(self._order)
        return FAILED if tally.failed else 0

    def _there(
        self,
        good: list[Entry],
        work: Work,
        begin: Callable[[], None],
        stop: threading.Event,
        choice: ModelChoice,
        fingerprint: str,
    ) -> int:
        """Answer these rows on a Ray cluster; returns how many ran at once, at most."""
        from hgca_cli.commands.job_cluster import Elsewhere, Recipe, there

        given = self.given
        recipe = Recipe(
            choice=there(choice),
            # the same weights on machines of any kind
            request=replace(self.request, quant=self.request.quant or "none"),
            profile=self.profile,
            sampling=self.sampling,
            options=self.options(),
            think=self.given["think"],
            form=given["output_format"],
            seconds=given["timeout"],
            reader=Reader(given["text"], given["raw"], self.system),
            slots=self.slots,
            common=self.common_length(good),
            read=self.common_length(good) - given["max_tokens"],
            shared=self.shared_length(good),
            watched=self.dashboard == "full",
            told_template=tuple(self.told_template),
            guesses=given["guesses"],
        )
        elsewhere = Elsewhere(work, self.view, begin)
        elsewhere.run(recipe, fingerprint, given["address"], good, stop)
        return elsewhere.peak

    def found(self) -> tuple[ModelChoice, ModelFiles]:
        """The model, without a plan for this machine. Raises ModelError."""
        from hgca_cli.hf.registry import resolve

        choice = self._choice()
        return choice, resolve(choice.name, revision=choice.revision, offline=choice.offline, notify=self._notify)

    def _choice(self) -> ModelChoice:
        from hgca_cli.commands.setup import ModelChoice

        given = self.given
        return ModelChoice(
            given["model"], given["revision"], given["trust_remote_code"], given["offline"], self.template
        )

    def plan(self) -> tuple[ModelChoice, ModelFiles, Plan, Together]:
        """The model, the plan for it, and how many rows it can run at once. Raises ModelError, DoesNotFitError."""
        from hgca_cli.commands.describe import describe
        from hgca_cli.commands.machine import profile_for
        from hgca_cli.commands.setup import plan_model
        from hgca_cli.hardware.probe import probe_machine
        from hgca_cli.hardware.together import together
        from hgca_cli.ui.figures import plan_line, plan_table

        given, choice = self.given, self._choice()
        files, plan = plan_model(choice, self.request, self._notify, profile=self.profile, sequences=self.slots or 1)
        machine = probe_machine()
        sizes = together(
            describe(files, choice.trust_remote_code),
            machine,
            self.request,
            profile_for(self.profile, machine, self._notify),
            plan,
        )
        if given["verbose"] or given["dry_run"]:
            self.view.tell(plan_table(plan, given["model"]))
        elif is_terminal(sys.stderr):
            self.view.note(plan_line(plan, given["model"]))
        return choice, files, plan, sizes

    def common_length(self, entries: list[Entry]) -> int:
        """Tokens that most rows may grow to, by the bytes of their lines."""
        sizes = sorted(entry.size for entry in entries) or [0]
        return int(sizes[int(COMMON * (len(sizes) - 1))] / BYTES_PER_TOKEN) + self.given["max_tokens"]

    def shared_length(self, entries: list[Entry]) -> int:
        """Tokens with which most rows begin as another one does, at least."""
        lengths = sorted(alike(entries), reverse=True) or [0]
        return (
            int(lengths[int(COMMON * (len(lengths) - 1))] / CHARACTERS_PER_TOKEN) if self.given["group_prefix"] else 0
        )

    def options(self) -> dict[str, Any]:
        """For the chat template."""
        switch = {} if self.given["think"] is None else {SWITCH: self.given["think"]}
        return {**self.template_options, **switch}

    def terms(self, choice: ModelChoice) -> Any:
        from hgca_cli.batch.work import Terms
        from hgca_cli.commands.flags import sampling_of

        def terms(models: Mapping[str, Any]) -> Terms:
            sampling: SamplingSettings
            sampling, _, wrong = sampling_of(self.sampling, models)
            for text in wrong:
                self.view.note(text)
            given = self.given
            return Terms(
                sampling, choice.name, given["output_format"], self.options(), given["timeout"], given["max_errors"]
            )

        return terms

    def _notify(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.view.note(event.text)
