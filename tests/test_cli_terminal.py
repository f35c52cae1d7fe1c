"""A conversation at a terminal: turns, slash commands, Ctrl-C and Ctrl-D, with the line editor and without."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli_process import ROOT, environment, save_tiny

pexpect = pytest.importorskip("pexpect")
PROMPT = ">>>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("terminal") / "model")


@pytest.fixture
def spawn(model: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    children = []

    def start(*words: str, **env: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "hgca_cli", "chat", "-m", model, *words],
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
            dimensions=(30, 160),
            env=environment(HGCA_DATA_DIR=str(tmp_path / "data"), PROMPT_TOOLKIT_NO_CPR="1", **env),
            cwd=str(ROOT),
        )
        children.append(child)
        child.expect(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def say(child: pexpect.spawn, text: str) -> None:
    time.sleep(0.3)  # the editor has drawn its prompt
    child.send(text + "\r")


def leave(child: pexpect.spawn, code: int = 0) -> None:
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == code


def test_a_conversation(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my notes.txt").write_text("the cat sat on the mat. " * 5)
    child = spawn("--plain", "-n", "5", "--temp", "0")
    child.sendline("the cat")
    child.expect(r"5 tokens, .* tok/s.*prompt (\d+) \|")
    first = int(child.match[1])
    child.expect(PROMPT)
    child.sendline("and the mat?")
    child.expect(r"prompt (\d+) \((\d+) cached\)")  # only what is new is read
    assert int(child.match[1]) > first + 5 and int(child.match[2]) >= first + 4
    for said, answered in (
        (f"/file '{tmp_path}/my notes.txt'", r"my notes.txt: \d+ tokens"),
        ("/ctx", r"attached +\d+ tokens"),
        ("/hepl", r"no command /hepl. Did you mean /help\?"),
        ("/help", "what fills the context"),
        ("/file", "needs a path"),
        ("/file ./nowhere", "no such file"),
        ("/set temp 0.5", "temperature = 0.5"),
        ("/set temp hot", "'hot' is not a number"),
        ("/set temp -1", "out of range"),
        ("/set tempp 1", "Did you mean temp"),
        ("/show", r"temperature +0.5 +set here"),
        ("/stats", "5 tokens"),
        ("/system be terse", "begins anew"),
        ("/system", "be terse"),
        ("/clear", "forgotten"),
        ("/ctx", r"0 of 512 tokens"),
    ):
        child.expect(PROMPT)
        child.sendline(said)
        child.expect(answered)
    child.expect(PROMPT)
    child.sendline("/exit")
    leave(child)


def test_what_begins_with_a_slash_can_be_said(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("--plain", "-n", "2")
    for said in ("//hepl", " /hepl", '"""', "one", '/two"""'):
        child.sendline(said)
    for _ in range(3):
        child.expect("2 tokens")
    child.sendline("/ctx")
    for said in ("/hepl", "/hepl", "one /two"):
        child.expect(rf"user +\d+ tokens +{said}")
    child.sendline("quit")
    leave(child)


def test_an_error_ends_the_turn_and_keeps_the_session(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("--plain", "-n", "3", "--ctx", "64")
    child.sendline("the cat")
    child.expect("3 tokens")
    child.expect(PROMPT)
    child.sendline("the cat " * 60)
    child.expect(r"error: prompt is \d+ tokens, context is 64")
    child.expect(PROMPT)
    child.sendline("go on")
    child.expect(r"3 tokens.*cached")
    child.sendeof()
    leave(child)


@pytest.mark.parametrize("words", [["--plain"], []], ids=["plain", "editor"])
def test_ctrl_c_stops_the_answer_and_keeps_the_session(words: list[str], spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn(*words, "--ctx", "20k", "-n", "19000")
    say(child, "the cat")
    time.sleep(4.0)  # it answers, also on a busy machine
    child.sendintr()
    child.expect(r"(\d+) tokens.*interrupted")
    assert int(child.match[1]) > 0
    child.expect(PROMPT)
    time.sleep(1.5)  # the line editor has taken the terminal over
    child.sendintr()  # nothing to stop
    child.expect("Ctrl-D or /exit leaves")
    say(child, "/set max_tokens 4")
    child.expect("max_tokens = 4")
    say(child, "more")
    child.expect(r"4 tokens.*cached")
    time.sleep(0.3)
    child.sendeof()
    leave(child)


def test_the_editor_keeps_a_paste_whole_and_its_history(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    child = spawn("-n", "2")
    for said in (
        "\x1b[200~first\nsecond\n\nthird\x1b[201~ end",
        '"""\rone\rtwo"""',
        "a\x1b\rb",  # Esc Enter begins a new line
    ):
        say(child, said)
        child.expect("2 tokens")
    say(child, "/ctx")
    for shown in ("first second third end", "one two", "a b"):
        child.expect(rf"user +\d+ tokens +{shown}")
    time.sleep(0.3)
    child.sendeof()
    leave(child)
    history = tmp_path / "data" / "history"
    assert "third end" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_a_dumb_terminal_gets_no_escape_codes(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("-n", "3", TERM="dumb")
    said = child.before
    say(child, "the cat")
    child.expect("3 tokens.*\n")
    assert "\x1b" not in said + child.before + child.after
    child.sendeof()
    leave(child)


def test_terminated_at_the_prompt(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn()
    time.sleep(0.3)
    child.kill(signal.SIGTERM)
    leave(child, 143)
