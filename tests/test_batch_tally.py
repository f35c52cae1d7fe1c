"""Figures of a job: what is left by tokens, spreads, the table; and rows that begin alike stand together."""

from __future__ import annotations

import pytest

from hgca_cli.batch.check import BEGINNINGS, Entry, check
from hgca_cli.batch.group import alike, grouped
from hgca_cli.batch.lines import Line
from hgca_cli.batch.rows import Reader
from hgca_cli.batch.tally import Tally, spread
from hgca_cli.events import Done, Rows
from hgca_cli.ui.job import JobView, figures, job_table
from hgca_cli.ui.style import Style


def done(prompt: int, answer: int, seconds: float = 1.0) -> Done:
    return Done("stop", prompt, 0, answer, 0.1, 0.5, seconds, Rows(5, 10, 0.25, 0.3, 0.97))


def test_what_is_left_goes_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(rows=4, size=400, began=0.0)
    monkeypatch.setattr("hgca_cli.batch.tally.time.perf_counter", lambda: 10.0)
    assert tally.left is None
    tally.read, tally.written = 60, 40
    tally.finish(100, [done(60, 40)])
    assert tally.left == pytest.approx(30.0)
    tally.read += 30  # of a row that still runs
    assert tally.left == pytest.approx(10.0 * (400 - 130) / 130)
    tally.finish(300, ())
    assert tally.failed == 1
    tally.start()
    assert tally.seconds == 0.0


def test_the_closing_figures() -> None:
    tally = Tally(rows=3, size=30)
    tally.finish(10, [done(5, 11, 1.0), done(5, 21, 4.0)])
    tally.finish(10, ())
    summary = tally.summary() | {"concurrency": 2}
    assert (summary["done"], summary["failed"], summary["missing"]) == (1, 1, 1)
    assert summary["token_seconds"] == {"p50": 0.15, "p90": 0.19} and summary["read_share"] == 0.25
    table = job_table(summary)
    assert "1 of 3 rows done, 1 failed, 1 missing" in table and "97.0% of the attention kept" in table
    assert spread([]) is None and spread([2.0]) == {"p50": 2.0, "p90": 2.0}


def test_a_quiet_job_says_nothing_and_a_bar_is_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "120"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    tally = Tally(rows=3, size=30, running=2, failed=1)
    quiet = JobView(Style(color=False, bar=False), quiet=True)
    quiet.note("a")
    quiet.progress(tally)
    assert capsys.readouterr().err == ""
    bar = JobView(Style(color=True, bar=True), quiet=False)
    bar._told = float("-inf")
    bar.progress(tally)
    bar.note("something\x1b[2J")
    bar.close()
    told = capsys.readouterr().err
    assert "1/3" in told and "something" in told and "\x1b[2J" not in told and "\x1b[?25h" in told
    assert "2 running, 1 failed" in figures(tally)


def test_rows_that_begin_alike_stand_where_the_first_of_them_did() -> None:
    def entry(number: int, *begins: int) -> Entry:
        return Entry(number, 0, str(number), "", 1, begins=begins)

    rows = [entry(1, 7, 8), entry(2, 9), entry(3, 7, 5), entry(4), entry(5, 7, 8), entry(6, 9), entry(7, 7)]
    assert [one.number for one in grouped(rows)] == [1, 5, 3, 7, 2, 6, 4]


def test_beginnings_of_prompts_tell_documents_apart() -> None:
    class Some:
        def __iter__(self):  # type: ignore[no-untyped-def]
            for at, text in enumerate(("a" * 3000 + "?", "b" * 3000 + "?", "a" * 3000 + "!", "a")):
                yield Line(at + 1, 0, f'"{text}"'.encode())

    first, other, same, short = (one.begins for one in check(Some(), Reader()).entries)  # type: ignore[arg-type]
    assert BEGINNINGS[0] == 512 and first == same and len(first) == 3 and short == ()
    assert not set(first) & set(other)
    entries = [Entry(at, 0, str(at), "", 1, begins=one) for at, one in enumerate((first, other, (*same[:2], 5), short))]
    assert alike(entries) == [BEGINNINGS[1], 0, BEGINNINGS[1], 0] and alike([]) == []
