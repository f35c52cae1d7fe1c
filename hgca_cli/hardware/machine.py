"""What a plan is made for: processors, memory and GPUs, as plain numbers (bytes)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. free: bytes that nobody uses now."""

    index: int
    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    processors    logical processors of its affinity mask, a control group's quota counted
    memory_total  bytes of host memory it may hold at most, control groups counted; memory_free: of those, not in use
    """

    processors: int
    memory_total: int
    memory_free: int
    gpus: tuple[Gpu, ...] = ()
