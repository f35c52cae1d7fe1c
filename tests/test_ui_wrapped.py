"""Lines for a narrow terminal: words stay whole, and what goes on stands below what it belongs to."""

from __future__ import annotations

import os
import pty
import sys
import termios
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from hgca_cli.commands.output import report
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.job import JobView
from hgca_cli.ui.session_table import sessions_table
from hgca_cli.ui.style import Style
from hgca_cli.ui.wrapped import columns_of, wrapped


@pytest.mark.parametrize(
    ("line", "columns", "want"),
    [
        ("as it was", 20, "as it was"),
        ("twenty columns of it", 20, "twenty columns of it"),
        ("twenty-one columns of", 20, "twenty-one columns\nof"),
        ("error: there is no such thing", 20, "error: there is no\nsuch thing"),
        ("  weights 1 GiB + window 2 MiB", 20, "  weights 1 GiB +\n    window 2 MiB"),
        ("  /a B   one two three", 20, "  /a B   one two\n         three"),
        ("  /a-long-name  one two three", 20, "  /a-long-name  one\n    two three"),
        ("see /a/path/that/is/longer/than/this then", 20, "see\n/a/path/that/is/longer/than/this\nthen"),
        ("/a/path/that/is/longer/than/this then", 20, "/a/path/that/is/longer/than/this\nthen"),
        ("  flags: --ctx 8192 --window 512", 20, "  flags: --ctx 8192 --window 512"),  # to be copied
        ("犬犬犬犬犬 犬犬犬犬犬", 20, "犬犬犬犬犬\n犬犬犬犬犬"),
        ("two lines\n\nof which one is empty", 20, "two lines\n\nof which one is\nempty"),
        ("nobody says how wide it is", None, "nobody says how wide it is"),
        ("too narrow for any of it", 5, "too narrow for any of it"),
    ],
)
def test_lines_are_broken_between_words(line: str, columns: int | None, want: str) -> None:
    assert wrapped(line, columns) == want


def test_only_a_terminal_has_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert columns_of(sys.stderr) is None
    HumanSink(Style(color=False, bar=False), stats=False, stream=True, quiet=False).tell("word " * 60)
    assert capsys.readouterr().err == "word " * 60 + "\n"


def said_on(columns: int, say: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a terminal of so many columns gets on stderr."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        assert columns_of(stream) == columns
        monkeypatch.setattr(sys, "stderr", stream)
        say()
    lines = os.read(master, 4096).decode().split("\r\n")
    os.close(master)
    return lines


PLAIN = Style(color=False, bar=False)


@pytest.mark.parametrize(
    "say",
    [
        lambda: HumanSink(PLAIN, stats=False, stream=True, quiet=False).tell("word " * 20),
        lambda: JobView(PLAIN, mode="off", quiet=False).tell("word " * 20),
        lambda: report("word " * 20, "word", "usage", 2, as_json=False),
    ],
)
def test_what_is_told_fits_the_terminal(say: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said_on(40, say, monkeypatch)
    assert len(lines) > 2 and all(len(line) <= 40 and not line.startswith("ord") for line in lines)
    assert {word for line in lines for word in line.split()} - {"hgca:", "error:"} == {"word"}


def test_colours_take_no_columns() -> None:
    assert wrapped("\x1b[31merror    \x1b[0mone two three", 20) == "\x1b[31merror    \x1b[0mone two\n         three"


def test_what_a_session_begins_with_ends_at_the_terminal() -> None:
    one = SimpleNamespace(name="mine", record=None, bytes=2048, used=0.0)
    table = [sessions_table([one], ["what " * 20], 60.0, color=False, columns=columns) for columns in (60, 20, None)]
    wide = [max(len(line) for line in lines.splitlines()) for lines in table]
    assert wide[0] <= 60 and "what" in table[0] and "what" not in table[1] and wide[2] > 60
