"""What is typed while an answer is written: it waits for the next prompt, and does not get into the answer's lines."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from hgca_cli.ui.style import is_terminal


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """The terminal does not show what is typed, until this is left. Ctrl-C and Ctrl-Z do what they always do."""
    before = _echo_off()
    if before is None:
        yield
        return

    def again(number: int, frame: FrameType | None) -> None:
        """The program goes on after Ctrl-Z: the shell had its own settings meanwhile."""
        _echo_off()

    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCONT, again) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGCONT, signal.SIG_DFL if handler is None else handler)  # None: not Python's
        _restore(before)


def _echo_off() -> list[Any] | None:
    """Returns the settings there were; None where there is no terminal of ours, or it shows nothing anyway."""
    if not is_terminal(sys.stdin):
        return None
    try:
        import termios
    except ImportError:  # Windows
        return None
    try:
        file = sys.stdin.fileno()
        if os.tcgetpgrp(file) != os.getpgrp():  # in the background: changing it would stop us
            return None
        before = termios.tcgetattr(file)
        if not before[3] & termios.ECHO:
            return None
        quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(file, termios.TCSADRAIN, quiet)
    except (termios.error, OSError, ValueError):
        return None
    return before


def _restore(before: list[Any]) -> None:
    import termios

    with contextlib.suppress(termios.error, OSError, ValueError):
        if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
