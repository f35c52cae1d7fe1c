"""A block that a thread of its own draws again and again under what is printed meanwhile (ui/pinned.py)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hgca_cli.ui.dashboard import block_rows
from hgca_cli.ui.pinned import Line, Pinned

SECONDS = 0.25  # between two drawings, or more: reading and drawing take at most
SHARE = 0.004  # of one processor's time

Make = Callable[[int, int, int], list[Line]]  # the lines for a terminal's columns and rows, and the block's rows


class Drawing:
    """A block, from `open` to `close`.

    take   reads what is shown at a moment; called by the drawing's thread
    share  of one processor's time that reading and drawing may take
    drawn  told how many rows the block has, after it was drawn

    computed  seconds its thread computed
    failed    what ended it early, in words; "": nothing did
    """

    def __init__(
        self,
        take: Callable[[], Make],
        *,
        color: bool,
        share: float = SHARE,
        drawn: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.computed = 0.0
        self.failed = ""
        self._take, self._drawn, self._share = take, drawn, share
        self._pinned = Pinned(block_rows, color=color)
        self._thread = threading.Thread(target=self._draw_on, name="hgca-dashboard", daemon=True)
        self._wake = threading.Event()
        self._ended = False
        self._handlers: dict[int, Any] = {}

    def open(self) -> None:
        """From now on it is drawn."""
        self._pinned.open()
        if threading.current_thread() is threading.main_thread():
            for name, handler in (("SIGWINCH", self._resized), ("SIGTSTP", self._stopped)):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._handlers[number] = signal.signal(number, handler)
        self._thread.start()

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """Inside, something is printed above it in several pieces."""
        with self._pinned.lock:
            yield

    def close(self) -> None:
        """The block is taken away first: whatever interrupts the rest, the terminal is as it was."""
        self._ended = True
        self._pinned.close()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        for number, before in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not Python's
        self._handlers.clear()

    def wait(self, seconds: float) -> None:
        """Until its thread has ended by itself."""
        self._thread.join(seconds)

    def _draw_on(self) -> None:
        """Its own thread."""
        try:
            while not self._ended:
                began = time.thread_time()
                drawn = self._pinned.draw(self._take())
                self._drawn(self._pinned.rows)
                spent = time.thread_time() - began
                self.computed += spent
                pause = max(SECONDS, spent / self._share) if drawn else SECONDS / 2
                if self._wake.wait(pause) and not self._ended:
                    self._wake.clear()
        except Exception as error:  # what is done is worth more than its figures
            self.failed = f"{type(error).__name__}: {error}"
            self._pinned.close()

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self._wake.set()

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its whole screen, and the block comes back with the program."""
        self._pinned.hide()
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), number)  # it stops here, and goes on here
        signal.signal(number, self._stopped)
        self._pinned.at_line_start()
        self._wake.set()
