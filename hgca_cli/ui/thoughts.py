"""What a model thinks before it answers, dimmed on stderr: the answer alone is on stdout."""

from __future__ import annotations

import sys

from hgca_cli.ui.inert import inert


class ThoughtLines:
    """Thoughts as they come, or only that there are some.

    color  they are dimmed; else a word tells them from the answer
    """

    def __init__(self, *, color: bool, hidden: bool) -> None:
        self._color, self._hidden = color, hidden
        self._open = False

    def push(self, text: str) -> None:
        """One more piece of a thought."""
        if not self._open:
            self._write("thinking ..." if self._hidden else "" if self._color else "thinking: ")
        self._open = True
        if not self._hidden:
            self._write(inert(text))

    def end(self) -> None:
        """The answer begins, or something else is shown."""
        if self._open:
            self._open = False
            self._write("\n" if self._hidden else "\n\n")

    def _write(self, text: str) -> None:
        if text:
            sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if self._color and text.strip() else text)
            sys.stderr.flush()
