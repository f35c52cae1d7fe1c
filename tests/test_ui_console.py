"""What reaches the screen: harmless text, figures, and nothing but the answer on standard output."""

from __future__ import annotations

import pytest

from hgca_cli.errors import UsageError
from hgca_cli.events import Balanced, Done, Notice, PrefillProgress, Rows, Text
from hgca_cli.ui import console
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.editor import fitting, in_block, without_quotes
from hgca_cli.ui.figures import figures
from hgca_cli.ui.inert import inert
from hgca_cli.ui.style import Style, style_of

EVIL = (
    "\x1b]52;c;aGk=\x07 \x1b[2J \x1b]8;;http://x\x1b\\link \x9b31m over\rwrite \x07 \u202egnp.exe ok\n\ttab 🙂 שלום é"
)
PLAIN = Style(color=False, bar=False)


def done(text: str = "hello", reason: str = "stop", tokens: int = 11, store: int = 0) -> Done:
    return Done(reason, 100, 40, tokens, 1.0, 1.5, 2.0, Rows(64, store, 0.25), seed=7, text=text)


def test_escape_sequences_are_inert() -> None:
    shown = inert(EVIL)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown) and "\u202e" not in shown
    assert shown.endswith("ok\n\ttab 🙂 שלום é") and "overwrite" in shown


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_inert_however_the_text_is_cut(size: int) -> None:
    assert "".join(inert(EVIL[i : i + size]) for i in range(0, len(EVIL), size)) == inert(EVIL)


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_changes_the_answer(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _: terminal)
    sink = HumanSink(PLAIN, stats=True, stream=True, quiet=False)
    for event in (
        PrefillProgress(100, 40, 100, 1.0),
        Notice("no\x1b[2Jte"),
        Text(EVIL[:9]),
        Text(EVIL[9:]),
        done(EVIL),
    ):
        sink.show(event)
    out, err = capsys.readouterr()
    assert out == (inert(EVIL) if terminal else EVIL) + "\n"
    assert "\x1b" not in err and "te" in err and "11 tokens" in err


def test_quiet_says_nothing_and_answers_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    sink = HumanSink(PLAIN, stats=False, stream=False, quiet=True)
    for event in (Notice("x"), PrefillProgress(100, 0, 50, 9.0), Text("hel"), Text("lo\n"), done("hello\n")):
        sink.show(event)
    sink.attached("file", 3)
    assert capsys.readouterr() == ("hello\n", "")
    sink.tell("asked for")
    assert capsys.readouterr().err == "asked for\n"


def test_an_answer_that_breaks_off_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    sink = HumanSink(PLAIN, stats=False, stream=True, quiet=False)
    sink.show(Text("half"))
    sink.close()
    sink.close()
    assert capsys.readouterr().out == "half\n"


def test_a_line_now_and_then_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    sink = HumanSink(PLAIN, stats=False, stream=True, quiet=False)
    for step in range(13):  # 24 s
        sink.show(PrefillProgress(1200, 0, step * 100, step * 2.0))
        clock[0] += 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0] == "read 300 of 1,200 tokens, 0:18 left"


def test_a_bar_is_gone_when_the_answer_begins(capsys: pytest.CaptureFixture[str]) -> None:
    sink = HumanSink(Style(color=False, bar=True), stats=False, stream=True, quiet=False)
    sink.show(PrefillProgress(100, 10, 40, 1.0))
    assert sink._bar is not None
    sink.show(Text("a"))
    assert sink._bar is None
    sink.show(PrefillProgress(100, 10, 40, 1.0))
    sink.close()  # however a turn ends
    assert sink._bar is None and capsys.readouterr().out == "a\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_move_is_told_to_who_asks_for_more(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _: terminal)
    for verbose in (False, True):
        sink = HumanSink(PLAIN, stats=False, stream=True, quiet=False, verbose=verbose)
        for event in (Text("hel"), Balanced("threads", 2, 1, "tried"), Text("lo"), done("hello")):
            sink.show(event)
        out, err = capsys.readouterr()
        assert out == "hello\n", "the answer is what the model wrote"
        line = "balance: threads 2 to 1: tried\n"
        assert err == (("\n" if terminal else "") + line if verbose else ""), "and no line of the screen is shared"


def test_figures() -> None:
    line = figures(done(store=36))
    assert line == (
        "11 tokens, 5.0 tok/s, first after 1.5 s | prompt 100 (40 cached) | "
        "rows: window 64, store 36, 25% of it read | seed 7"
    )
    assert figures(done(reason="interrupted", tokens=0)).startswith("0 tokens | prompt")
    assert figures(done(reason="length")).endswith("| length") and "read" not in figures(done())


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("color", "plain", "env", "want"),
    [
        ("auto", False, {"TERM": "xterm"}, (True, True)),
        ("auto", False, {"TERM": "xterm", "NO_COLOR": "1"}, (False, True)),
        ("auto", False, {"TERM": "dumb"}, (False, False)),
        ("auto", False, {"TERM": "dumb", "FORCE_COLOR": "1"}, (True, False)),
        ("auto", True, {"TERM": "xterm"}, (False, False)),
        ("never", False, {"TERM": "xterm"}, (False, True)),
        ("always", False, {"TERM": "xterm", "NO_COLOR": "1"}, (True, True)),
    ],
)
def test_style(
    color: str, plain: bool, env: dict[str, str], want: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", Terminal())
    style = style_of(color, plain=plain)
    assert (style.color, style.bar) == want
    with pytest.raises(UsageError, match="--color"):
        style_of("mauve", plain=False)


def test_blocks_of_triple_quotes() -> None:
    assert (
        in_block('"""') and in_block('"""a\nb') and not in_block('"""a"""') and not in_block("a") and in_block('""""')
    )
    assert without_quotes('"""\na\nb\n"""') == "a\nb" and without_quotes('say """') == 'say """'


def test_a_bar_drops_whole_parts() -> None:
    parts = ["ctx 4,773/8,192 58%", " + 4,691 attached", " | window 215 store 4,557", "   /help", "   Ctrl-D leaves"]
    assert fitting(parts, 200) == "".join(parts)
    assert fitting(parts, 40) == "ctx 4,773/8,192 58% + 4,691 attached"
    assert fitting(parts, 34) == "ctx 4,773/8,192 58%   /help" and fitting(parts, 10) == "/help"
