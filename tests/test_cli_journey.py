"""An evening with the chat, as a person has it, on a small terminal and on a large one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli_process import environment, save_tiny
from tests.screens import Terminal

BOOK = "".join(f"{number} cats sat on the mat. " for number in range(1000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("journey") / "model")


def numbers(found: re.Match[str]) -> list[int]:
    """What was counted."""
    return [int(one.replace(",", "")) for one in found.groups()]


def since(terminal: Terminal, line: str) -> str:
    """What was shown after a line that was typed."""
    shown = "".join(terminal.lines)
    return shown.rpartition(f">>> {line}")[2] if f">>> {line}" in shown else ""


def said(terminal: Terminal, line: str, answer: str, *, keys: str = "") -> list[int]:
    """Type a line, and wait for the answer and the next prompt; returns the numbers in it."""
    terminal.send(keys or line + "\r")
    found: list[re.Match[str]] = []

    def answered() -> bool:
        after = since(terminal, line)
        found[:] = list(re.finditer(answer, after))
        return bool(found) and ">>>" in after[found[0].end() :]

    terminal.until(answered, answer)
    return numbers(found[0])


def interrupted(terminal: Terminal, line: str) -> None:
    """Ask, and press Ctrl-C in the midst of the answer."""
    terminal.send(line + "\r")
    terminal.until(lambda: len("".join(since(terminal, line).split())) > 200, "answer")
    terminal.child.sendintr()
    terminal.until(lambda: ">>>" in since(terminal, line).partition("interrupted")[2], "interrupted")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_an_evening(columns: int, rows: int, model: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    words = [sys.executable, "-m", "hgca_cli", "chat", "-m", model, "-n", "8", "--temp", "0", "--ctx", "20k"]
    words += ["--window", "512", "--select", "scan", "--no-cache"]
    env = environment(HOME=str(tmp_path), HGCA_DATA_DIR=str(tmp_path / "data"), PROMPT_TOOLKIT_NO_CPR="1")
    terminal = Terminal(words, env=env, columns=columns, rows=rows)
    counted = r"8 tokens, .*?prompt ([\d,]+)"
    cached = counted + r" \(([\d,]+) cached\)"
    try:
        terminal.until_text(">>>")
        (first,) = said(terminal, "the cat", counted)
        again, kept = said(terminal, '"""', cached, keys='"""\rone\rtwo"""\r')
        assert again > first and kept >= first
        (book,) = said(terminal, "/file ~/book.txt", r"book\.txt: ([\d,]+) tokens")
        assert book > 7000
        (long,) = said(terminal, "who?", counted)
        assert long > book
        said(terminal, "/set max_tokens 9000", "max_tokens = (9,000)")
        interrupted(terminal, "tell me all")
        said(terminal, "/undo", r"taken back: 'tell me all' \(([\d,]+) of")
        said(terminal, "/set max_tokens 8", "max_tokens = (8)")
        total, kept = said(terminal, "/regen", cached)
        assert total == long and kept == long - 1, "the book is not read again"
        said(terminal, "/save story", "saved as session story")
        terminal.send("\x04")
        terminal.until(lambda: not terminal.child.isalive(), "end")
        assert terminal.child.exitstatus == 0
    finally:
        terminal.child.close(force=True)
    terminal = Terminal([*words, "--session", "story", "--dashboard", "full"], env=env, columns=columns, rows=rows)
    try:
        terminal.until_text("session story: 3 turns", ">>>")
        total, kept = said(terminal, "and?", cached)
        assert kept > book and total - kept < 40, "nor is it after a restart"
        said(terminal, "/set max_tokens 9000", "max_tokens = (9,000)")
        terminal.send("go on\r")
        terminal.until_text("machine  cpu")
        for size in ((rows * 4, rows), (columns, rows)):
            terminal.resize(*size)
            terminal.until_text("machine  cpu", "writing")
        terminal.child.sendintr()
        terminal.until(lambda: terminal.as_before and "interrupted" in terminal.flat, "prompt")
        terminal.until_text(">>>")
        terminal.send("/exit\r")
        terminal.until(lambda: not terminal.child.isalive(), "end")
        assert terminal.child.exitstatus == 0
    finally:
        terminal.child.close(force=True)
