"""Lines that stay at the lower end of a terminal while all else scrolls above them.

The terminal itself does the scrolling: its scroll region ends above the block, so whatever is printed meanwhile, by whomever,
wraps and scrolls as it always does and goes to the scrollback. A redraw is one write: it hides the cursor, puts down the lines
that changed, and takes the cursor back to where it was. A terminal that was resized has no region any more; what is below the
cursor, which is just the old block, is wiped and the block is put down anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.style import Style

from hgca_cli.ui.inert import inert
from hgca_cli.ui.style import is_terminal

SAVE, BACK = "\x1b7", "\x1b8"
BEGIN, END = (
    "\x1b[?2026h\x1b[?25l",
    "\x1b[?7h\x1b[?25h\x1b[?2026l",
)  # one update; a cursor that is seen, lines that wrap
ALL, WIPE, DOWN = "\x1b[r", "\x1b[J", "\x1bD"
CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")

Line = list[tuple[str, str]]


class Pinned:
    """A block under what is printed to standard output and standard error, on the terminal that standard error is.

    rows  of a block, by the terminal's columns and rows; 0: none

    `lock` is to be held by whoever prints something in several pieces.
    """

    def __init__(self, rows: Callable[[int, int], int], *, color: bool) -> None:
        self.lock = threading.RLock()
        self._rows_of = rows
        self._color = color
        self._file = sys.stderr.fileno()
        self._size: tuple[int, int] | None = None  # of the terminal the block is laid out for; None: it is not there
        self._rows = 0
        self._shown: list[str] = []
        self._painter: Painter | None = None
        self._streams: tuple[TextIO, TextIO] | None = None
        self._followed = Followed(self.lock)

    def open(self) -> None:
        """From now on it may be drawn. It has to be closed."""
        with self.lock:
            if self._streams is None:
                self._streams = sys.stdout, sys.stderr
                sys.stdout, sys.stderr = (self._followed.stream(one) for one in self._streams)

    def draw(self, make: Callable[[int, int, int], list[Line]]) -> bool:
        """Put down what `make` gives for the terminal's columns and rows, and the block's rows.

        False: not now, as the cursor stands behind the last column, where no terminal finds it again; or it is closed.
        """
        with self.lock:
            size = self._terminal()
            if self._streams is None or size is None or self._followed.at_edge(size[0]):
                return False
            rows = self._rows_of(*size)
            out = ""
            if size != self._size:
                out = self._leave_room(size, rows)
            if rows:
                assert self._painter is not None
                first = size[1] - rows + 1
                lines = [self._painter.paint(line) for line in make(*size, rows)[:rows]]
                changed = [
                    (index, line) for index, line in enumerate(lines) if self._shown[index : index + 1] != [line]
                ]
                drawn = "".join(f"\x1b[{first + index};1H\x1b[2K{line}" for index, line in changed)
                out += f"{SAVE}\x1b[?7l{drawn}{BACK}" if drawn else ""
                self._shown = lines
            if out:
                self._put(f"{BEGIN}{out}{END}")
            return True

    @property
    def rows(self) -> int:
        """Of the block that is there; 0: none."""
        return self._rows

    def hide(self) -> None:
        """Take it away for now: it comes back with the next `draw`."""
        with self.lock:
            if self._size is not None and self._rows:
                first = self._size[1] - self._rows + 1
                self._put(f"{BEGIN}{SAVE}{ALL}\x1b[{first};1H{WIPE}{BACK}{END}")
            self._size, self._rows, self._shown = None, 0, []

    def at_line_start(self) -> None:
        """Somebody else wrote to the terminal, and left the cursor at the beginning of a line."""
        self._followed.begin_line()

    def close(self) -> None:
        """Nothing of it is left: the whole screen scrolls, and the cursor is seen."""
        with self.lock:
            self.hide()
            if self._streams is not None:
                sys.stdout, sys.stderr = self._streams
                self._streams = None

    def _leave_room(self, size: tuple[int, int], rows: int) -> str:
        """What a terminal is told once it has this size."""
        wiped = "" if self._size is None else f"{SAVE}{ALL}{BACK}{WIPE}"
        self._size, self._rows, self._shown = size, rows, []
        self._painter = Painter(size[0], color=self._color)
        if not rows:
            return wiped
        return f"{wiped}{DOWN * rows}\x1b[{rows}A{SAVE}\x1b[1;{size[1] - rows}r{BACK}"

    def _terminal(self) -> tuple[int, int] | None:
        try:
            columns, rows = os.get_terminal_size(self._file)
        except OSError:
            return None
        return (columns, rows) if columns > 0 and rows > 0 else None

    def _put(self, text: str) -> None:
        data = text.encode("utf-8" if (sys.stderr.encoding or "").lower().startswith("utf") else "ascii", "replace")
        with contextlib.suppress(OSError):  # the terminal is gone: nobody sees it
            while data:
                data = data[os.write(self._file, data) :]


class Painter:
    """Lines as a terminal takes them. rich knows its colours and writes the codes; a whole console of it for a line would cost
    ten times as much.
    """

    def __init__(self, columns: int, *, color: bool) -> None:
        self._columns = columns
        self._colors = ColorSystem.STANDARD if color else None
        self._styles: dict[str, Style] = {}

    def paint(self, line: Line) -> str:
        """One line, with codes for its colours, no wider than the terminal."""
        left, painted = self._columns, []
        for text, name in line:
            text = inert(text).replace("\n", " ").replace("\t", " ")
            if (cells := cell_len(text)) > left:
                text, cells = set_cell_size(text, left), left
            left -= cells
            if (style := self._styles.get(name)) is None:
                style = self._styles[name] = Style.parse(name)
            painted.append(style.render(text, color_system=self._colors))
        return "".join(painted)


class Followed:
    """Knows in which column the cursor is, from what is written to terminals."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._column = 0  # of a line without an end

    def stream(self, stream: TextIO) -> TextIO:
        """The same stream; what is written to a terminal is looked at."""
        return Stream(stream, self) if is_terminal(stream) else stream  # type: ignore[return-value]

    def at_edge(self, columns: int) -> bool:
        """Whether a line ends just at the edge of so many columns."""
        return self._column > 0 and self._column % columns == 0

    def begin_line(self) -> None:
        """The cursor is at the beginning of a line."""
        self._column = 0

    def write(self, stream: TextIO, text: str) -> int:
        """Write, and follow the cursor."""
        with self._lock:
            end = max(text.rfind("\n"), text.rfind("\r"))
            if end >= 0:
                self._column = 0
            pieces = CODES.sub("", text[end + 1 :]).split("\t")
            self._column += cell_len(pieces[0])
            for piece in pieces[1:]:
                self._column += 8 - self._column % 8 + cell_len(piece)
            return stream.write(text)


class Stream:
    """A stream in whose place this stands for a while."""

    def __init__(self, stream: TextIO, followed: Followed) -> None:
        self._stream, self._followed = stream, followed

    def write(self, text: str) -> int:
        """As of the stream."""
        return self._followed.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
