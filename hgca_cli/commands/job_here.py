"""A job whose rows are answered in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hgca_cli.batch.check import Entry
from hgca_cli.commands.flag_values import guesses_on
from hgca_cli.events import Event, Notice
from hgca_cli.units import counted

if TYPE_CHECKING:
    import threading

    from hgca_cli.batch.tally import Tally
    from hgca_cli.batch.work import Work
    from hgca_cli.commands.job import Job
    from hgca_cli.commands.setup import ModelChoice
    from hgca_cli.engine.batch import Batch
    from hgca_cli.hardware.settings import Plan
    from hgca_cli.hardware.together import Together
    from hgca_cli.hf.registry import ModelFiles


def here(
    job: Job,
    good: list[Entry],
    work: Work,
    begin: Callable[[], None],
    stop: threading.Event,
    choice: ModelChoice,
    files: ModelFiles,
    plan: Plan,
    sizes: Together,
) -> int:
    """Answer these rows in this process; returns how many ran at once, at most. begin: called once the model is loaded."""
    from hgca_cli.commands.setup import check_template, lost_guesses, lost_options, start_engine
    from hgca_cli.engine.batch import Batch
    from hgca_cli.engine.room import Room

    def show(event: Event | Any) -> None:
        if isinstance(event, Notice):
            job.view.note(event.text)
        else:
            job.view.progress(work.tally)

    guesses = guesses_on(job.given["guesses"], plan.device)
    engine = start_engine(choice, files, plan, guesses=guesses, notify=show)
    check_template(engine.loaded.tokenizer, job.sampling, job.given["think"], job.template_options)
    for lost in (lost_options(engine.loaded.tokenizer, job.told_template), lost_guesses(engine, job.given["guesses"])):
        if lost:
            job.view.note(lost)
    common = job.common_length(good)
    slots = job.slots or sizes.sequences(common, common - job.given["max_tokens"] + 1, job.shared_length(good))
    job.view.note(f"{counted(len(good), 'row')}, up to {slots} at once")
    work.terms = job.terms(choice)(engine.loaded.model.generation_config.to_diff_dict())
    batch = Batch(engine, slots, Room(sizes.limits, sizes.takes, sizes.holds, sizes.free, sizes.shares))
    if stop.is_set():  # while it was loaded
        return 0
    begin()
    _watch(job, batch, work.tally, plan, slots)
    work.tally.start()
    work.run(batch, good, stop, show)
    return batch.peak


def _watch(job: Job, batch: Batch, tally: Tally, plan: Plan, slots: int) -> None:
    """What the dashboard shows is read of these."""
    from hgca_cli.engine.batch_metrics import BatchReadings
    from hgca_cli.hardware.usage import Usage
    from hgca_cli.ui.job_snapshot import JobWatcher

    readings = BatchReadings(batch)
    model = batch.engine.loaded.name
    used = Usage(plan.device).read
    job.view.watch(
        JobWatcher(readings.take, readings.slots, used, tally, _slot_name, plan=plan, model=model, most=slots)
    )


def _slot_name(key: tuple[str, int]) -> str:
    """A row's id; and which of its answers, but for the first."""
    name, choice = key
    return name if choice == 0 else f"{name} #{choice + 1}"
