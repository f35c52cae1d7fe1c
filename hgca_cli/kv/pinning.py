"""Page-locked memory of rows: a GPU copies what is registered with its driver from where it is, without a processor's help.

Only ranges that are full of rows are registered, so nothing takes memory that rows did not take, and no page is registered that is
still to be moved (growing.py joins pages before they are full). What is not registered is staged (lane.py), and so is
everything from the first refusal on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from typing import Protocol

import torch

STEP = 4 << 20  # bytes of a head that are registered at once, or a quarter of what is already, up to MOST_AT_ONCE
MOST_AT_ONCE = 64 << 20
PORTABLE = 1  # cudaHostRegisterPortable: for all devices


class Driver(Protocol):
    """What registers ranges of memory. Statuses are 0, or an error's number."""

    def register(self, at: int, size: int) -> int:
        """Lock a range's pages."""

    def unregister(self, at: int) -> int:
        """Let go of the range that begins there."""

    def wait(self) -> None:
        """The device has done all it was asked for. Never raises."""


class Cuda:
    """The driver of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, at: int, size: int) -> int:
        """As of Driver."""
        return self._call("cudaHostRegister", at, size, PORTABLE)

    def unregister(self, at: int) -> int:
        """As of Driver."""
        return self._call("cudaHostUnregister", at)

    def wait(self) -> None:
        """As of Driver."""
        with contextlib.suppress(Exception):
            torch.cuda.synchronize(self._device)

    def _call(self, name: str, *arguments: int) -> int:
        try:
            with torch.cuda.device(self._device):
                status = int(getattr(torch.cuda.cudart(), name)(*arguments))
                if status:  # it would be taken for the next kernel's: a kernel's launch asks for it, and forgets it
                    with contextlib.suppress(RuntimeError):
                        torch.ones(1, device=self._device)
                return status
        except Exception:  # no such function in this build, or no device any more
            return -1


class Pinning:
    """What was registered with one driver: shared by stores, none of which registers any more once it refused.

    refused         why; None: it did not
    refused_copies  nothing is copied from where it is, though registered: a copy went wrong
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.refused: str | None = None
        self.refused_copies = False

    @staticmethod
    def of(device: torch.device) -> Pinning | None:
        """The one of a device; None where there is nothing to register with."""
        return _of(device) if device.type == "cuda" else None

    def refuse(self, why: str, *, copies: bool = False) -> None:
        """Nothing more is registered, nor, if it was a copy, copied from where it is."""
        self.refused = self.refused or why
        self.refused_copies |= copies


class Registered:
    """Ranges of one array's memory: the same ones of every head.

    ends  bytes of a head up to which each of its ranges goes, in order; the first begins at 0
    """

    def __init__(self, pinning: Pinning) -> None:
        self.pinning = pinning
        self.ends: list[int] = []
        self._ranges: list[int] = []  # addresses
        self._process = os.getpid()

    def grow(self, heads: list[int], full: int) -> None:
        """Of heads at these addresses so many bytes are full of rows, in huge pages."""
        begun = self.ends[-1] if self.ends else 0
        size = min(max(STEP, begun // 4 // STEP * STEP), MOST_AT_ONCE)
        while self.pinning.refused is None and begun + size <= full:
            if not self._register([head + begun for head in heads], size):
                return
            begun += size
            self.ends.append(begun)

    def _register(self, ranges: list[int], size: int) -> bool:
        """All of them or none."""
        for count, at in enumerate(ranges):
            status = self.pinning.driver.register(at, size)
            if status:
                self.pinning.refuse(f"error {status} of {size * len(ranges) >> 20} MiB")
                for done in ranges[:count]:  # nobody copies from there
                    self.pinning.driver.unregister(done)
                return False
        self._ranges += ranges
        return True

    def close(self) -> None:
        """Nothing is registered any more: called before the memory goes. Raises nothing."""
        ranges, self._ranges = self._ranges, []
        self.ends = []
        if not ranges or self._process != os.getpid() or sys.is_finalizing():
            return  # a forked child has no device, and with the process everything goes
        self.pinning.driver.wait()  # copies from there, which nobody may have waited for
        for at in ranges:
            self.pinning.driver.unregister(at)


@lru_cache
def _of(device: torch.device) -> Pinning:
    return Pinning(Cuda(device))
