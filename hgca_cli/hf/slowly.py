"""How far something is that takes long for a large model."""

from __future__ import annotations

import time
from collections.abc import Callable

from hgca_cli.events import Notice
from hgca_cli.hf.registry import Notify
from hgca_cli.units import format_seconds

EVERY = 10.0  # seconds: what is done in less is not told of


class Slowly:
    """Told of numbers that are done, of `total`, it tells every so often which share that is, and how long the rest takes."""

    def __init__(self, what: str, total: int, notify: Notify, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._notify, self._clock = what, total, notify, clock
        self._done, self._began = 0, clock()
        self._told = self._began

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = self._clock()
        if now - self._told < EVERY or not 0 < self._done < self._total:
            return
        self._told = now
        left = (now - self._began) * (self._total - self._done) / self._done
        self._notify(Notice(f"{self._what}: {self._done / self._total:.0%}, {format_seconds(left)} left"))
