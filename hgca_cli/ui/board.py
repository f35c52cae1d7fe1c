"""The dashboard of a chat: a sink that stands before another one and shows, while an answer is written, what goes on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Done, Event, Notice, PrefillProgress
from hgca_cli.ui.console import Sink
from hgca_cli.ui.dashboard import Line, block, block_rows, short, words
from hgca_cli.ui.gauges import glyphs_for
from hgca_cli.ui.snapshot import Snapshot, Watcher
from hgca_cli.ui.style import Style

if TYPE_CHECKING:
    from hgca_cli.ui.pinned import Pinned

MODES = ("line", "full", "off")
SECONDS = 0.25  # between two readings, or more: reading and drawing take at most
SHARE = 0.004  # of one processor's time


class Board:
    """A sink. full: a block of figures under the answer, or the same in words after it where there is no terminal for it;
    line: what the other sink shows; off: not even how far a prompt is read.

    rest    called when nothing is to be read for some time
    as_json the other sink writes for programs: it hears everything
    """

    def __init__(
        self, sink: Sink, watcher: Watcher, rest: Callable[[], None], style: Style, mode: str, *, as_json: bool = False
    ) -> None:
        assert mode in MODES
        self._sink, self._watcher, self._rest = sink, watcher, rest
        self._style, self._as_json = style, as_json
        self._glyphs = glyphs_for(sys.stderr.encoding)
        self._turn = False  # an answer is on its way
        self._pinned: Pinned | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._ended = False
        self._failed = ""
        self._handlers: dict[int, Any] = {}
        self.mode = mode
        self.computed = 0.0  # seconds, by its own thread

    def show(self, event: Event) -> None:
        """One event."""
        if not self._turn and not isinstance(event, Notice):
            self._begin()
        self._watcher.see(event)
        if isinstance(event, Done):
            self._end()
        if (
            isinstance(event, PrefillProgress)
            and (self._pinned is not None or self.mode == "off")
            and not self._as_json
        ):
            return
        with self._printing():
            self._sink.show(event)
        if isinstance(event, Done) and self.mode == "full" and not self._style.bar and not self._as_json:
            self._sink.tell("\n".join(self.words()))

    def plan(self, plan: Any, model: str, *, detailed: bool = False) -> None:
        """As of the other sink."""
        with self._printing():
            self._sink.plan(plan, model, detailed=detailed)

    def attached(self, name: str, tokens: int) -> None:
        """As of the other sink."""
        with self._printing():
            self._sink.attached(name, tokens)

    def tell(self, text: str) -> None:
        """As of the other sink."""
        with self._printing():
            self._sink.tell(text)

    def note(self, text: str) -> None:
        """As of the other sink."""
        with self._printing():
            self._sink.note(text)

    def error(self, error: HgcaError) -> None:
        """As of the other sink."""
        with self._printing():
            self._sink.error(error)

    def render(self, markdown: str) -> None:
        """As of the other sink."""
        self._sink.render(markdown)

    def cover(self, rows: int) -> None:
        """As of the other sink."""
        self._sink.cover(rows)

    def close(self) -> None:
        """The turn is over, however it ended."""
        self._end()
        self._sink.close()

    def switch(self, mode: str) -> None:
        """From the next answer on. Raises UsageError for another word."""
        if mode not in MODES:
            raise UsageError(f"/dashboard: no such choice {mode!r}.", f"Choose from {', '.join(MODES)}.")
        self.mode = mode

    def drawn(self, columns: int, rows: int) -> list[str]:
        """The dashboard as it is now, as lines of text."""
        if not self._style.bar:
            return self.words()
        lines = block(self.snapshot(), max(40, columns - 1), max(12, rows // 2), self._glyphs)
        return ["".join(text for text, _ in line).rstrip() for line in lines]

    def words(self) -> list[str]:
        """The same without bars."""
        return words(self.snapshot())

    def snapshot(self) -> Snapshot:
        """What it shows now."""
        taken = self._watcher.sample()
        if not self._turn:
            self._rest()
        return taken

    @contextlib.contextmanager
    def _printing(self) -> Iterator[None]:
        with self._pinned.lock if self._pinned is not None else contextlib.nullcontext():
            yield

    def _begin(self) -> None:
        self._turn = True
        self._watcher.begin()
        if self.mode != "full" or not self._style.bar or self._as_json:
            return
        from hgca_cli.ui.pinned import Pinned

        self._pinned = Pinned(block_rows, color=self._style.color)
        self._pinned.open()
        self._sink.cover(block_rows(*shutil.get_terminal_size()))  # before it is drawn: an answer may begin first
        self._ended, self._failed = False, ""
        self._wake.clear()
        if threading.current_thread() is threading.main_thread():
            for name, handler in (("SIGWINCH", self._resized), ("SIGTSTP", self._stopped)):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._handlers[number] = signal.signal(number, handler)
        self._thread = threading.Thread(target=self._draw_on, name="hgca-dashboard", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        """The block is taken away first: whatever interrupts the rest, the terminal is as it was."""
        if not self._turn:
            return
        self._turn, self._ended = False, True
        if self._pinned is not None:
            self._pinned.close()
            self._sink.cover(0)
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for number, before in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not Python's
        self._handlers.clear()
        self._pinned = None
        self._watcher.end()
        self._rest()
        if self._failed:
            self._sink.note(f"the dashboard stopped: {self._failed}")

    def _draw_on(self) -> None:
        """The dashboard's own thread."""
        pinned = self._pinned
        assert pinned is not None
        pause = 0.0
        try:
            while not self._ended:
                began = time.thread_time()
                taken = self._watcher.sample()

                def make(columns: int, rows: int, height: int, taken: Snapshot = taken) -> list[Line]:
                    return block(taken, columns, height, self._glyphs) if height > 1 else [short(taken, columns, rows)]

                drawn = pinned.draw(make)
                self._sink.cover(pinned.rows)
                spent = time.thread_time() - began
                self.computed += spent
                pause = max(SECONDS, spent / SHARE) if drawn else SECONDS / 2
                if self._wake.wait(pause) and not self._ended:
                    self._wake.clear()
        except Exception as error:  # an answer is worth more than its figures
            self._failed = f"{type(error).__name__}: {error}"
            pinned.close()

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self._wake.set()

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its whole screen, and the block comes back with the program."""
        if self._pinned is not None:
            self._pinned.hide()
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), number)  # it stops here, and goes on here
        signal.signal(number, self._stopped)
        if self._pinned is not None:
            self._pinned.at_line_start()
        self._wake.set()
