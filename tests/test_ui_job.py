"""A job's dashboard at every size, its numbers, and what is shown where there is none. No terminal, no model."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from hgca_cli.engine.batch_metrics import together
from hgca_cli.metrics import Slot
from hgca_cli.ui import job as jobs
from hgca_cli.ui import job_snapshot as snapshots
from hgca_cli.ui.dashboard import block_rows
from hgca_cli.ui.gauges import ASCII, BLOCKS
from hgca_cli.ui.job import JobView
from hgca_cli.ui.job_dashboard import job_block, job_short, job_words
from hgca_cli.ui.job_snapshot import JobSnapshot, JobWatcher
from hgca_cli.ui.style import Style
from tests.test_ui_dashboard import METRICS, PLACES, PLAN, WRITING, Clock, text_of

SLOTS = tuple((f"row {at}", Slot((f"row {at}", 0), 1000 * at, 1000 * at - (at > 6), at, 512)) for at in range(1, 9))
JOB = JobSnapshot(WRITING, 120, 30, 2, 90.0, 1234.0, SLOTS, 8)
EARLY = JobSnapshot(replace(WRITING, metrics=None, used=None, rate=None), 3, 0, 0, None, None, (), 4)


@pytest.mark.parametrize("snapshot", [JOB, EARLY, replace(JOB, slots=SLOTS * 9, rows=10**7, done=10**6)])
@pytest.mark.parametrize("glyphs", [BLOCKS, ASCII])
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 30), (200, 50)])
def test_it_fits(snapshot: JobSnapshot, glyphs: Any, columns: int, rows: int) -> None:
    height = block_rows(columns, rows)
    lines = job_block(snapshot, columns, height, glyphs)
    shown = text_of(lines)
    assert len(lines) == height and all(cell_len(line) <= columns for line in shown.splitlines())
    assert glyphs is BLOCKS or shown.isascii()
    assert "tiny" in shown and f"of {snapshot.rows:,} rows" in shown and f"of {snapshot.most}" in shown


def test_what_it_says() -> None:
    shown = text_of(job_block(JOB, 110, 24, BLOCKS))
    for part in (
        "32 of 120 rows (27%), 2 failed, 1:30 left", "50.0 tok/s", "prompts 1,234 tok/s", "20.0 ms", "rest, prompts 15.0",
        "3,000 store (2,048 clustered)", "quality 96.4% (95.0% asked)", "slots    8 of 8: 6 write, 2 read",
        "prompt 1,000, wrote 1/512", "prompt 7,999/8,000, wrote 8/512", "window 512: given",
    ):  # fmt: skip
        assert part in shown, part
    lines = shown.splitlines()
    assert sum(line.startswith("row ") for line in lines) == 8, "one a line where there is room"
    small = text_of(job_block(JOB, 80, 12, BLOCKS))
    assert ", 2 of them not shown" in small and small.count("row ") == 6, "side by side where there is none"
    early = text_of(job_block(EARLY, 80, 12, BLOCKS))
    assert "0 of 3 rows (0%)" in early and "n/a tok/s" in early and "slots    0 of 4: 0 write, 0 read" in early


def test_words_and_a_small_terminal() -> None:
    said = job_words(JOB)
    assert "\n".join(said).isascii() and sum(line.startswith("slot ") for line in said) == 8
    assert any("row 8: prompt 8,000" not in line and "row 8: prompt 7,999/8,000" in line for line in said)
    line = text_of([job_short(JOB, 60, 20)])
    assert len(line) <= 60 and line.startswith("dashboard needs 80x24, this is 60x20 | 32 of 120")


def test_an_id_is_data() -> None:
    odd = replace(JOB, slots=(("\x1b[2J\n" + "x" * 10_000, SLOTS[0][1]),))
    shown = text_of(job_block(odd, 80, 12, BLOCKS))
    assert "\x1b" not in shown and len(shown.splitlines()) == 12 and "xxx~" in shown


def tally(**more: Any) -> Any:
    return SimpleNamespace(**{"rows": 9, "done": 1, "failed": 0, "left": None, "written": 0, "read": 0} | more)


def test_rates_are_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, job = Clock(), tally()
    monkeypatch.setattr(snapshots, "time", clock)
    watcher = JobWatcher(
        lambda: METRICS,
        lambda: (SLOTS[0][1],),
        lambda: WRITING.used,
        job,
        lambda key: key[0],
        plan=PLAN,
        model="m",
        most=2,
    )  # type: ignore[arg-type]
    assert watcher.sample().now.rate is None
    for _ in range(8):
        clock.now += 1.0
        job.written, job.read = job.written + 30, job.read + 500
        taken = watcher.sample()
    assert taken.now.rate == pytest.approx(30.0) and taken.reading == pytest.approx(500.0)
    assert taken.slots == (("row 1", SLOTS[0][1]),) and len(taken.now.history) == 8
    clock.now += 6.0
    job.written += 30
    assert watcher.sample().reading is None, "nobody reads any more"


def test_sequences_together() -> None:
    more = replace(
        METRICS, tokens=84, read_share=0.5, bytes_share=1.0, quality=1.0, measured=21, aim=0.9,
        places=replace(PLACES, store=1000, store_bytes=20 << 20, clustered=None), read_bytes=2 * 10**7,
        heads=((1.0, 1.0), (0.0, 0.0), (0.25, 0.0), None),
    )  # fmt: skip
    reading = replace(METRICS, tokens=400, read_share=0.0, quality=None, measured=0, spent=METRICS.spent)
    whole = together([METRICS, more, reading], [METRICS, more], 8192)
    assert whole.tokens == 4000 and whole.places.store == 7000 and whole.places.clustered == 4096
    assert whole.read_share == pytest.approx((0.1234 * 3000 + 0.5 * 1000) / 4000)
    assert whole.bytes_share == pytest.approx((0.25 * 60 + 20) / 80)
    assert whole.quality == pytest.approx((0.964 * 7 + 21) / 28) and whole.measured == 28 and whole.aim == 0.9
    assert whole.heads == ((1.0, 1.0), (0.0, 0.02), (0.25, 0.5), (0.01, 0.02))
    assert whole.read_bytes == 15 * 10**6 and whole.evicted is None
    assert together([replace(METRICS, evicted=5)], [], 8192, 7).evicted == 12


class Lively(io.StringIO):
    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return True


def test_a_dashboard_that_fails_leaves_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no")

    screen = Lively()
    monkeypatch.setattr("hgca_cli.ui.pinned.os.get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr("hgca_cli.ui.pinned.Pinned._put", lambda self, text: None)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(jobs, "job_block", broken)
    monkeypatch.setattr(jobs, "BAR_SECONDS", 0.0)
    view = JobView(Style(color=False, bar=True), quiet=False, mode="full")
    view.watch(SimpleNamespace(sample=lambda: JOB))  # type: ignore[arg-type]
    assert view._drawing is not None
    view._drawing.wait(20)
    view.progress(SimpleNamespace(rows=9, done=1, failed=0, left=None, rate=3.0, running=1, waiting=0, aside=2))
    assert "the dashboard stopped: ZeroDivisionError: no" in screen.getvalue()
    assert view._bar is not None
    view.close()
    assert view._bar is None
