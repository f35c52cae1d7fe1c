"""How long the device had nothing to do but wait for the C library, measured on some of the tokens.

A GPU works on its own part meanwhile, so two events a layer tell when that was done and when the next work came: what lies
between is the wait that nothing hid. One event before its own part tells how long that took. In a CUDA graph no event can be
read: there the library's time counts whole. A CPU device has nothing to hide behind, and needs no clock.
"""

from __future__ import annotations

from typing import Any

import torch


class Clock:
    """Shared by the layers of one cache.

    on    whether tokens are timed at present
    last  seconds of the token `take` was last asked for: its own part, None if not known, and the wait; None before
    """

    def __init__(self) -> None:
        self.on = False
        self.last: tuple[float | None, float] | None = None
        self._told = 0.0
        self._events: list[tuple[Any, Any, Any]] = []  # of a GPU: own part begins, it is done, next work begins
        self._used = 0

    def start(self, device: torch.device) -> None:
        """A layer's own part is about to be given to the device."""
        if not self.on or device.type == "cpu":
            return
        if self._used == len(self._events):
            self._events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(3)))  # type: ignore[arg-type]
        self._record(0, device)

    def begin(self, device: torch.device) -> None:
        """It was given; the wait begins."""
        if self.on and device.type != "cpu":
            self._record(1, device)

    def end(self, device: torch.device) -> None:
        """The library is done, and the device goes on."""
        if self.on and device.type != "cpu":
            self._record(2, device)
            self._used += 1

    def tell(self, seconds: float) -> None:
        """The library worked so long for a token whose layers are one graph."""
        if self.on:
            self._told += seconds

    def take(self) -> float:
        """Seconds since it was last asked. What a GPU was given must be done soon: this waits for it."""
        seconds, self._told = self._told, 0.0
        if seconds:
            self.last = None, seconds
        if self._used:
            used = self._events[: self._used]
            used[-1][2].synchronize()
            seconds = sum(done.elapsed_time(then) for _, done, then in used) / 1000
            self.last = sum(own.elapsed_time(done) for own, done, _ in used) / 1000, seconds
            self._used = 0
        return seconds

    def _record(self, which: int, device: torch.device) -> None:
        self._events[self._used][which].record(torch.cuda.current_stream(device))
