"""Ctrl-C, SIGTERM and a hangup while a job runs: it ends after the step that is being computed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hgca_cli.commands.interrupt import ENDING, TWICE_SECONDS, Twice


class Ending(threading.Event):
    """Set by a signal. exit_code: what the process then ends with."""

    exit_code = 0


@contextmanager
def ending() -> Iterator[Ending]:
    """An event that these signals set. A second one within two seconds does not wait: it raises Twice or SystemExit."""
    stop = Ending()
    told = float("-inf")

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal told
        now = time.monotonic()
        if stop.is_set() and now - told < TWICE_SECONDS:
            if number == signal.SIGINT:
                raise Twice
            raise SystemExit(128 + number)
        told = now
        stop.exit_code = 128 + number
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in ENDING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
