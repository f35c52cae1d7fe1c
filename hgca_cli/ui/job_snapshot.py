"""What the dashboard of a job shows at one moment."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hgca_cli.metrics import Metrics, Slot, Used
from hgca_cli.ui.snapshot import HISTORY, Rates, Snapshot

IDLE = 5.0  # seconds after which nobody reads a prompt any more


@dataclass(frozen=True)
class JobSnapshot:
    """One moment of a job.

    now      of all sequences together; its rate: tokens written in a second
    rows, done, failed  of the job; left: seconds; None: not known yet
    reading  prompt tokens read in a second; None: nobody reads
    slots    of those that run, named; most: that may run at once
    """

    now: Snapshot
    rows: int
    done: int
    failed: int
    left: float | None
    reading: float | None
    slots: tuple[tuple[str, Slot], ...]
    most: int


class JobWatcher:
    """Takes a snapshot of a job when it is asked to.

    read, slots, used  give readings, from any thread; tally: of batch/tally.py
    name               of a slot, by its key
    """

    def __init__(
        self,
        read: Callable[[], Metrics | None],
        slots: Callable[[], tuple[Slot, ...]],
        used: Callable[[], Used],
        tally: Any,
        name: Callable[[Any], str],
        *,
        plan: Any,
        model: str,
        most: int,
    ) -> None:
        self._read, self._slots, self._used = read, slots, used
        self._tally, self._name = tally, name
        self._plan, self._model, self.most = plan, model, most
        self._written, self._prompts = Rates(), Rates()
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._read_before, self._read_at = 0, 0.0

    def sample(self) -> JobSnapshot:
        """Now. Not by two threads at a time."""
        tally, now = self._tally, time.monotonic()
        metrics = self._read()
        evicted = 0 if metrics is None else metrics.evicted or 0
        written = self._written.add(now, tally.written, evicted)
        if written is not None:
            self._history.append(written[0])
        moment = Snapshot(
            self._model,
            self._plan,
            "writing",
            None if written is None else written[0],
            tuple(self._history),
            None,
            None,
            None,
            metrics,
            self._used(),
            (),
            None if written is None else max(0.0, written[1]),
        )
        slots = tuple((self._name(slot.key), slot) for slot in self._slots())
        return JobSnapshot(
            moment, tally.rows, tally.done, tally.failed, tally.left, self._reading(now), slots, self.most
        )

    def _reading(self, now: float) -> float | None:
        read = self._tally.read
        if read != self._read_before:
            self._read_before, self._read_at = read, now
        found = self._prompts.add(now, read)
        return None if found is None or now - self._read_at > IDLE else found[0]
