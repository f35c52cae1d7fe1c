"""What is left of an evaluation, at the rates so far."""

from __future__ import annotations

import pytest

from hgca_cli.events import Notice, Worked
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.style import Style
from hgca_cli.ui.work import Work, WorkSink


def test_what_is_left() -> None:
    work = Work({"read": 1000, "decode": 100})
    assert work.left is None and work.line == "tokens: read 0 of 1,000, decode 0 of 100"
    work.add(Worked("read", 250, 5.0))
    assert work.left is None  # nothing is known of decoding
    work.add(Worked("decode", 10, 2.0))
    assert work.left == pytest.approx(750 * 0.02 + 90 * 0.2)
    assert work.line == "tokens: read 250 of 1,000, decode 10 of 100, 0:33 left"
    work.add(Worked("fill", 100, 7.0))  # nobody planned it: it goes on beside the others
    assert work.left == pytest.approx(33.0 * 2)
    work.add(Worked("read", 900, 18.0))
    work.add(Worked("decode", 90, 18.0))
    assert work.left == 0.0


def test_lines_and_notices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.ui.work.LINE_SECONDS", 0.0)
    style = Style(color=False, bar=False)
    for quiet in (False, True):
        work = WorkSink(HumanSink(style, stats=False, stream=True, quiet=quiet), style, quiet=quiet)
        work.plan({"read": 10})
        work.begin("book")
        work.tell(Worked("read", 5, 1.0))
        work.tell(Notice("chunks are smaller"))
        told = capsys.readouterr().err
        assert told == ("" if quiet else "book  tokens: read 5 of 10, 1.0 s left\nchunks are smaller\n")
