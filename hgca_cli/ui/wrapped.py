"""Lines for a terminal that is narrower than they are: broken between words, and indented where they go on."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TextIO

NARROWEST = 20  # columns: below them a line is left to the terminal
COPIED = "  flags: "  # a line that is there to be copied stays one
_COLOR = re.compile(r"\x1b\[[\d;]*m")  # takes no column
_BESIDE = re.compile(r"( *)(?:\S.*?  +(?=\S))?")  # an indent, and a name with what is said about it beside it


def columns_of(stream: TextIO) -> int | None:
    """How wide the terminal is that a stream goes to; None if it is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
    except (OSError, ValueError, AttributeError):
        return None


def wrapped(text: str, columns: int | None) -> str:
    """The text with no line longer than so many columns, where words allow; None: as it is.

    What goes on stands below what it belongs to: `  /help   this list` goes on under `this`, another line two columns
    further in than it began, one that begins at the margin there. A word that is too long by itself stays whole.
    """
    if columns is None or columns < NARROWEST:
        return text
    return "\n".join(_broken(line, columns) for line in text.split("\n"))


def _broken(line: str, columns: int) -> str:
    if line.startswith(COPIED) or _width(line) <= columns:
        return line
    begins = _BESIDE.match(line)
    assert begins is not None  # nothing is a match, too
    hang = _width(begins[0]) if begins[0].strip() else len(begins[1]) + 2 * bool(begins[1])
    hang = hang if hang <= columns // 2 else len(begins[1]) + 2  # no room beside a name: below it
    done: list[str] = []
    now = begins[0].rstrip(" ") if begins[0].strip() else begins[1][:-1]
    gap = begins[0][len(now) :]
    for word in line[len(begins[0]) :].split(" "):
        more = gap + word
        if now.strip() and _width(now + more) > columns:
            done.append(now)
            now = " " * hang + word
        else:
            now += more
        gap = " "
    return "\n".join([*done, now])


def _width(text: str) -> int:
    text = _COLOR.sub("", text)
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in ("W", "F")) for one in text
    )
