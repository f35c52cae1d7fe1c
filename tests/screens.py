"""A program in a terminal of our own, whose screen is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cli_process import ROOT

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")


class Terminal:
    """A program in a terminal, whose screen is kept as a real one would show it."""

    def __init__(self, words: list[str], *, env: dict[str, str], columns: int = 80, rows: int = 24) -> None:
        self.child = pexpect.spawn(
            words[0], words[1:], dimensions=(rows, columns), timeout=60, env=env, cwd=str(ROOT), encoding=None
        )
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self.screen)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Show what comes until it is so."""
        patience = time.monotonic() + 90
        while time.monotonic() < patience:
            if true():
                return
            self._read()
        raise AssertionError(f"no {what} on the screen:\n" + "\n".join(self.screen.display))

    def until_text(self, *texts: str) -> None:
        """Until all of these are on the screen, in one line or wrapped by the terminal."""
        self.until(lambda: all(text in self.flat for text in texts), str(texts))

    def send(self, text: str) -> None:
        """Type; the editor has drawn its prompt."""
        for _ in range(3):
            self._read()
        self.child.send(text.encode())

    def look(self, seconds: float) -> None:
        """Show what comes for so long."""
        patience = time.monotonic() + seconds
        while time.monotonic() < patience:
            self._read()

    def resize(self, columns: int, rows: int) -> None:
        """As a terminal does: without its scroll region afterwards."""
        self.screen.resize(rows, columns)
        self.screen.set_margins()
        self.child.setwinsize(rows, columns)

    def _read(self) -> None:
        try:
            self._stream.feed(self.child.read_nonblocking(1 << 16, timeout=0.1))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            time.sleep(0.1)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def flat(self) -> str:
        """The same as one line: what the terminal wrapped is whole."""
        return "".join(self.screen.display)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, after what scrolled away above it; as wide as the screen."""
        gone = ["".join(line[at].data for at in range(self.screen.columns)) for line in self.screen.history.top]
        return gone + self.screen.display

    @property
    def everything(self) -> str:
        """The same as text."""
        return "\n".join(line.rstrip() for line in self.lines)

    @property
    def as_before(self) -> bool:
        """No region, a cursor that is seen, and nothing of the block."""
        shown = "\n".join(self.screen.display)
        return self.screen.margins is None and not self.screen.cursor.hidden and "machine" not in shown


def block_of(terminal: Terminal) -> list[str]:
    """The lower half of the screen."""
    return [line.rstrip() for line in terminal.screen.display[-(terminal.screen.lines // 2) :]]
