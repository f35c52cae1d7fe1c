"""What the dashboard shows at one moment, put together from events and readings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hgca_cli.events import Balanced, Done, Event, PrefillProgress, Text
from hgca_cli.metrics import Metrics, Used
from hgca_cli.ui.eta import Eta

SPAN = 3.0  # seconds the rate is of, or as many as two tokens take
HISTORY = 240  # rates that are kept
MOVES = 4


@dataclass(frozen=True)
class Snapshot:
    """One moment of a chat.

    plan      hardware/settings.py Plan
    phase     "reading" a prompt, "writing" an answer, or "waiting" for a question
    rate      tokens a second: of the last seconds, or of the whole answer once it is written; None: not known yet
    history   rates before, oldest first
    ttft      seconds from the question to the first piece of text; None: it has not come
    progress  of the prompt that is read, and left: seconds, as far as they are known
    evicting  bytes of rows a second that leave the GPU
    moves     of settings while running, oldest first
    """

    model: str
    plan: Any
    phase: str
    rate: float | None
    history: tuple[float, ...]
    ttft: float | None
    progress: PrefillProgress | None
    left: float | None
    metrics: Metrics | None
    used: Used | None
    moves: tuple[Balanced, ...]
    evicting: float | None = None


class Rates:
    """How fast a count grows: over the last seconds, or as long as it took to grow twice."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int, int]] = deque()  # time, count, another count

    def add(self, now: float, count: int, beside: int = 0) -> tuple[float, float] | None:
        """How fast both grow at present, in a second; None as long as the first has not grown."""
        counts = self._counts
        counts.append((now, count, beside))
        while len(counts) > 2 and now - counts[1][0] >= SPAN and counts[1][1] < count:
            counts.popleft()
        then, before, evicted = counts[0]
        if count <= before or now <= then:
            return None
        return (count - before) / (now - then), (beside - evicted) / (now - then)


class Watcher:
    """Hears what happens, and takes a snapshot when it is asked to.

    read, used  give readings, from any thread
    """

    def __init__(self, read: Callable[[], Metrics | None], used: Callable[[], Used], plan: Any, model: str) -> None:
        self._read, self._used = read, used
        self._plan, self._model = plan, model
        self._phase = "waiting"
        self._began = 0.0
        self._ttft: float | None = None
        self._rate: float | None = None
        self._progress: PrefillProgress | None = None
        self._left: float | None = None
        self._eta = Eta()
        self._counts = Rates()
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._moves: deque[Balanced] = deque(maxlen=MOVES)

    def begin(self) -> None:
        """A question was asked."""
        self._began = time.monotonic()
        self._ttft = self._rate = self._progress = self._left = None
        self._counts = Rates()

    def see(self, event: Event) -> None:
        """One event of an answer."""
        if isinstance(event, PrefillProgress):
            self._left = self._eta.add(event)
            self._progress = event
            self._phase = "reading" if event.processed < event.total else "writing"
        elif isinstance(event, Text):
            self._phase = "writing"
            if self._ttft is None:
                self._ttft = time.monotonic() - self._began
        elif isinstance(event, Balanced):
            self._moves.append(event)
        elif isinstance(event, Done):
            self._phase = "waiting"
            self._ttft = event.ttft_seconds if event.completion_tokens else None
            self._rate = event.tokens_per_second or None

    def end(self) -> None:
        """The turn is over, however it ended."""
        self._phase = "waiting"

    def sample(self) -> Snapshot:
        """Now. Not by two threads at a time."""
        metrics, evicting = self._read(), None
        if self._phase == "writing" and metrics is not None:
            evicting = self._count(time.monotonic(), metrics)
        return Snapshot(
            self._model,
            self._plan,
            self._phase,
            self._rate,
            tuple(self._history),
            self._ttft,
            self._progress,
            self._left,
            metrics,
            self._used(),
            tuple(self._moves),
            evicting,
        )

    def _count(self, now: float, metrics: Metrics) -> float | None:
        """Take the number of tokens in; bytes evicted a second."""
        found = self._counts.add(now, metrics.tokens, metrics.evicted or 0)
        if found is None:
            return None
        self._rate, evicting = found
        self._history.append(self._rate)
        return evicting
