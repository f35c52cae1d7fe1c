"""A job whose rows are answered on a Ray cluster: what engines there are made of, and what of the job stays here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgca_cli.batch.check import Entry
from hgca_cli.batch.cluster import Calls, Cluster
from hgca_cli.batch.hand import Finished, Given, Ready, Started, Told
from hgca_cli.batch.rows import Reader, RowError
from hgca_cli.batch.work import Terms, Work
from hgca_cli.commands.flag_values import guesses_on
from hgca_cli.commands.flags import sampling_of
from hgca_cli.commands.setup import ModelChoice
from hgca_cli.engine.batch_metrics import together
from hgca_cli.events import Event, Notice
from hgca_cli.metrics import Metrics, Slot

if TYPE_CHECKING:
    import threading

    from hgca_cli.hardware.settings import PlanRequest
    from hgca_cli.ui.job import JobView
    from hgca_cli.ui.job_snapshot import JobWatcher


@dataclass(frozen=True)
class Recipe:
    """All that an engine needs to know, to be sent to its node.

    common  tokens that most rows may grow to; read: of these, of their prompts; shared: of these, with which others begin, too
    slots   rows at once; None: its planner's
    watched somebody looks at what engines do; told_template: options that rows tell the chat template
    """

    choice: ModelChoice
    request: PlanRequest
    profile: str
    sampling: Mapping[str, Any]
    options: Mapping[str, Any]
    think: bool | None
    form: str
    seconds: float | None
    reader: Reader
    slots: int | None
    common: int
    read: int
    shared: int
    watched: bool = False
    told_template: tuple[str, ...] = ()
    guesses: int | None = None


def start(recipe: Recipe, beside: int, tell: Callable[[str], None]) -> Started:
    """An engine on this node, by a plan for this node. Raises HgcaError."""
    from hgca_cli.commands.describe import describe
    from hgca_cli.commands.machine import profile_for
    from hgca_cli.commands.setup import check_template, lost_guesses, lost_options, plan_model, start_engine
    from hgca_cli.engine.batch import Batch
    from hgca_cli.engine.room import Room
    from hgca_cli.hardware.probe import probe_machine
    from hgca_cli.hardware.together import together as sizes_of
    from hgca_cli.hf.fingerprint import fingerprint_of

    def notify(event: Event) -> None:
        if isinstance(event, Notice):
            tell(event.text)

    machine = probe_machine()
    request = recipe.request if beside == 1 else shared(recipe.request, beside, machine.memory_free)
    choice = recipe.choice
    files, plan = plan_model(choice, request, notify, profile=recipe.profile)
    profile = profile_for(recipe.profile, machine, notify)
    sizes = sizes_of(describe(files, choice.trust_remote_code), machine, request, profile, plan)
    guesses = guesses_on(recipe.guesses if plan.device == "cpu" else None, plan.device)  # machines of any kind
    engine = start_engine(choice, files, plan, guesses=guesses, notify=notify)
    check_template(engine.loaded.tokenizer, recipe.sampling, recipe.think, recipe.options)
    sampling, _, wrong = sampling_of(recipe.sampling, engine.loaded.model.generation_config.to_diff_dict())
    for text in wrong:
        tell(text)
    for lost in (lost_options(engine.loaded.tokenizer, recipe.told_template), lost_guesses(engine, recipe.guesses)):
        if lost:
            tell(lost)
    terms = Terms(sampling, choice.name, recipe.form, dict(recipe.options), recipe.seconds)
    slots = recipe.slots or sizes.sequences(recipe.common, recipe.read + 1, recipe.shared)
    batch = Batch(engine, slots, Room(sizes.limits, sizes.takes, sizes.holds, sizes.free, sizes.shares))
    return Started(batch, recipe.reader, terms, plan, fingerprint_of(files, plan.quant), recipe.watched)


def shared(request: PlanRequest, beside: int, free: int) -> PlanRequest:
    """Of a machine with several engines: each has its share of memory and processors."""
    limit = min(free // beside, request.ram_limit // beside if request.ram_limit else free)
    threads = request.threads or max(1, len(os.sched_getaffinity(0)) // beside)
    return replace(request, ram_limit=limit, threads=threads)


def there(choice: ModelChoice) -> ModelChoice:
    """The same model, wherever the process that looks for it was started."""
    path = Path(choice.name).expanduser()
    return replace(choice, name=str(path.resolve())) if path.exists() else choice


class Elsewhere:
    """The part of a job that stays here: input, output, figures. begin: called once an engine is ready."""

    def __init__(self, work: Work, view: JobView, begin: Callable[[], None]) -> None:
        self.peak = 0  # most rows that ran at once
        self._work, self._view, self._begin = work, view, begin
        self._cluster: Cluster | None = None
        self._watcher: JobWatcher | None = None
        self._model = ""

    def run(
        self, recipe: Recipe, fingerprint: str, address: str | None, entries: list[Entry], stop: threading.Event
    ) -> None:
        """Answer these rows on the cluster. Raises HgcaError."""
        self._model = recipe.choice.name
        cluster = self._cluster = Cluster(address, partial(start, recipe), fingerprint, self._view.note)
        try:
            calls = Calls(self._make, self._finish, self._lose, self._ready, self._progress)
            cluster.run(entries, calls, stop)
        finally:
            self._view.close()
            cluster.close()

    def _make(self, entry: Entry) -> Given | None:
        line = self._work.lines.at(entry.begin, entry.number)
        documents: dict[str, tuple[str, str]] = {}
        if (document := self._work.reader.document) is not None:

            def keeping(name: str) -> tuple[str, str]:
                documents[name] = found = document(name)
                return found

            try:
                replace(self._work.reader, document=keeping).row(line)
            except RowError as error:  # a file it names has changed
                self._work.refuse(entry._replace(error=(error.message, error.code)))
                return None
        return Given(entry, line, documents)

    def _finish(self, one: Finished) -> None:
        self._work.take(one.name, one.record, one.size, one.answers)

    def _lose(self, entry: Entry) -> None:
        self._work.refuse(entry._replace(error=("every engine that ran this row ended", "engine")))

    def _ready(self, ready: Ready) -> None:
        """The dashboard shows the plan of the first one."""
        if self._watcher is not None:
            self._watcher.most += ready.rows
            return
        from hgca_cli.hardware.usage import Usage
        from hgca_cli.ui.job_snapshot import JobWatcher

        self._begin()
        used, tally = Usage("cpu").read, self._work.tally
        tally.start()
        self._watcher = JobWatcher(
            self._metrics, self._slots, used, tally, _name, plan=ready.plan, model=self._model, most=ready.rows
        )
        self._view.watch(self._watcher)

    def _progress(self, told: Told) -> None:
        tally = self._work.tally
        tally.read += told.read
        tally.written += told.written
        running = self._cluster.slots if self._cluster is not None else ()
        tally.aside = sum(slot.aside for _, slot in running)
        tally.waiting = sum(slot.read < slot.prompt and not slot.aside for _, slot in running)
        tally.running = len(running) - tally.waiting - tally.aside
        tally.set_aside = self._cluster.set_aside if self._cluster is not None else 0
        self.peak = max(self.peak, self._cluster.peak if self._cluster is not None else 0)
        self._view.progress(tally)

    def _metrics(self) -> Metrics | None:
        found = self._cluster.metrics if self._cluster is not None else ()
        return together(found, found, max(one.context for one in found)) if found else None

    def _slots(self) -> tuple[Slot, ...]:
        cluster = self._cluster
        return () if cluster is None else tuple(replace(slot, key=(at, *slot.key)) for at, slot in cluster.slots)


def _name(key: tuple[int, str, int]) -> str:
    """The engine, the row, and which of its answers, but for the first."""
    at, name, choice = key
    return f"{at}: {name}" if choice == 0 else f"{at}: {name} #{choice + 1}"
