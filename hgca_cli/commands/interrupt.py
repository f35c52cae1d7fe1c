"""Ctrl-C while the model works."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TWICE_SECONDS = 2.0


class Twice(KeyboardInterrupt):
    """Ctrl-C while the last one was about to stop the answer: the person wants to leave."""


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
