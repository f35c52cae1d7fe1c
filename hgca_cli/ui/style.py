"""What the terminal can show, and may: colours, a cursor that moves."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

from hgca_cli.errors import UsageError

CHOICES = ("auto", "always", "never")


@dataclass(frozen=True)
class Style:
    """color: escape codes for colours on stderr; bar: a progress bar that redraws itself there."""

    color: bool
    bar: bool


def style_of(color: str, *, plain: bool, stream: TextIO | None = None) -> Style:
    """The style for `--color` and `--plain`, as far as the stream (default: stderr) allows. Raises UsageError for another word.

    auto honours NO_COLOR and FORCE_COLOR (no-color.org, force-color.org) and TERM=dumb.
    """
    if color not in CHOICES:
        raise UsageError(f"--color: no such choice {color!r}.", f"Choose from {', '.join(CHOICES)}.")
    lively = is_terminal(sys.stderr if stream is None else stream) and os.environ.get("TERM") != "dumb"
    if color == "auto":
        forced = bool(os.environ.get("FORCE_COLOR"))
        colored = not plain and not os.environ.get("NO_COLOR") and (lively or forced)
    else:
        colored = color == "always"
    return Style(color=colored, bar=lively and not plain)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at a stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
