"""The dashboard of a chat: a sink that stands before another one and shows, while an answer is written, what goes on."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Done, Event, Notice, PrefillProgress
from hgca_cli.ui.console import Sink
from hgca_cli.ui.dashboard import Line, block, block_rows, short, words
from hgca_cli.ui.gauges import glyphs_for
from hgca_cli.ui.snapshot import Snapshot, Watcher
from hgca_cli.ui.style import Style

if TYPE_CHECKING:
    from hgca_cli.ui.drawing import Drawing, Make

MODES = ("line", "full", "off")


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
        self._drawing: Drawing | None = None
        self.mode = mode
        self.computed = 0.0  # seconds, by the threads that drew

    def show(self, event: Event) -> None:
        """One event."""
        if not self._turn and not isinstance(event, Notice):
            self._begin()
        self._watcher.see(event)
        if isinstance(event, Done):
            self._end()
        if (
            isinstance(event, PrefillProgress)
            and (self._drawing is not None or self.mode == "off")
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
        with self._drawing.printing() if self._drawing is not None else contextlib.nullcontext():
            yield

    def _begin(self) -> None:
        self._turn = True
        self._watcher.begin()
        if self.mode != "full" or not self._style.bar or self._as_json:
            return
        from hgca_cli.ui.drawing import Drawing

        self._drawing = Drawing(self._take, color=self._style.color, drawn=self._sink.cover)
        self._sink.cover(block_rows(*shutil.get_terminal_size()))  # before it is drawn: an answer may begin first
        self._drawing.open()

    def _take(self) -> Make:
        taken = self._watcher.sample()

        def make(columns: int, rows: int, height: int) -> list[Line]:
            return block(taken, columns, height, self._glyphs) if height > 1 else [short(taken, columns, rows)]

        return make

    def _end(self) -> None:
        if not self._turn:
            return
        self._turn = False
        drawing, failed = self._drawing, ""
        if drawing is not None:
            drawing.close()
            self._sink.cover(0)
            self._drawing, failed = None, drawing.failed
            self.computed += drawing.computed
        self._watcher.end()
        self._rest()
        if failed:
            self._sink.note(f"the dashboard stopped: {failed}")
