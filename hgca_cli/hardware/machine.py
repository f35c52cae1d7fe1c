"""What a plan is made for: processors, memory and GPUs, as plain numbers (bytes)."""

from __future__ import annotations

from dataclasses import dataclass

from hgca_cli.errors import ModelError


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


def choose_device(name: str | None, gpus: tuple[Gpu, ...]) -> str:
    """A torch device for `--device`: "auto" and "cuda" take the GPU with most free memory, "auto" else the CPU.

    Raises ModelError for a device that is not there: what was asked for by name is never replaced silently.
    """
    best = max(gpus, key=lambda gpu: gpu.free, default=None)
    if name == "cpu" or (best is None and name in (None, "auto")):
        return "cpu"
    if best is not None and name in (None, "auto", "cuda"):
        return f"cuda:{best.index}"
    if any(name == f"cuda:{gpu.index}" for gpu in gpus):
        return str(name)
    there = ", ".join(["cpu", *(f"cuda:{gpu.index} ({gpu.name})" for gpu in gpus)])
    raise ModelError(f"--device {name}: no such device. There is: {there}.", "Use --device cpu or auto.")
