"""Ctrl-C while the model works, and what ends the process."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

TWICE_SECONDS = 2.0
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_asked: list[int] = []  # signals since `endings` began


class Twice(KeyboardInterrupt):
    """Ctrl-C while the last one was about to stop the answer: the person wants to leave."""


@contextmanager
def endings() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a hangup raise KeyboardInterrupt and SystemExit, and what there is is kept.

    Where they meet a finaliser Python throws them away, and would print a traceback: `end_if_asked` raises them again.
    """
    _asked.clear()
    before = {number: signal.signal(number, _end) for number in ENDING}
    told = sys.unraisablehook

    def tell(lost: Any) -> None:
        if not (_asked and isinstance(lost.exc_value, (KeyboardInterrupt, SystemExit))):
            told(lost)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    _raise(number)


def end_if_asked() -> None:
    """Raise again what a library has caught while it was imported or loaded something: some catch whatever comes, and what is
    raised in a callback is thrown away.
    """
    if _asked:
        _raise(_asked[-1])


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C within two seconds raises Twice."""
    stop = threading.Event()
    pressed = float("-inf")

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal pressed
        now = time.monotonic()
        if now - pressed < TWICE_SECONDS:
            raise Twice
        pressed = now
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
