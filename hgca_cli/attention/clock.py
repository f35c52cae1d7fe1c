"""How long the device had nothing to do but wait for the C library, measured on some of the tokens.

A GPU works on its own part meanwhile, so two events a layer tell when that was done and when the next work came: what lies
between is the wait that nothing hid. A CPU device has nothing to hide behind, and needs no clock.
"""

from __future__ import annotations

from typing import Any

import torch


class Clock:
    """Shared by the layers of one cache.

    on  whether tokens are timed at present
    """

    def __init__(self) -> None:
        self.on = False
        self._events: list[tuple[Any, Any]] = []  # of a GPU: own part done, next work begins
        self._used = 0

    def begin(self, device: torch.device) -> None:
        """A layer's own part was given to the device; the wait begins."""
        if not self.on or device.type == "cpu":
            return
        if self._used == len(self._events):
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self._events[self._used][0].record(torch.cuda.current_stream(device))

    def end(self, device: torch.device) -> None:
        """The library is done, and the device goes on."""
        if not self.on or device.type == "cpu":
            return
        self._events[self._used][1].record(torch.cuda.current_stream(device))
        self._used += 1

    def take(self) -> float:
        """Seconds since it was last asked. What a GPU was given must be done soon: this waits for it."""
        seconds = 0.0
        if self._used:
            self._events[self._used - 1][1].synchronize()
            seconds = sum(own.elapsed_time(then) for own, then in self._events[: self._used]) / 1000
            self._used = 0
        return seconds
