"""Times of several ways to do one thing, taken in turns, and what reading memory costs meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.reservation import Reservation
from hgca_cli.units import format_bytes

PROBE_BYTES = 1 << 30
REST_SECONDS = 0.02  # OpenMP threads of the side before spin for some milliseconds before they sleep

Run = Callable[[], object]


@dataclass(frozen=True)
class Bandwidth:
    """Rate at which memory was read. best: what the machine can do; median: what it gave while others ran. GB/s."""

    threads: int
    best_gb_s: float
    median_gb_s: float


class ReadProbe:
    """Sums numbers in memory, by as many torch threads as asked for.

    A machine reads one stretch of its memory faster than another (measured: 33 and 54 GB/s by two threads of a virtual
    machine, the same within a process, another in the next): what is to be compared with it reads the same stretch.
    """

    def __init__(self, threads: int, data: Sequence[Tensor] = (), counts: Sequence[int] = ()) -> None:
        """threads: all there are to use; data: f32, what is read, else a buffer of its own; counts: of threads, to be
        compared, else one and all. Raises DoesNotFitError.
        """
        self.threads = threads
        self._data = list(data)
        if not data:
            self._data = [reserve(PROBE_BYTES, torch.float32, (PROBE_BYTES // 4,), (1,)).fill_(1.0)]
        self._size = sum(one.numel() * 4 for one in self._data)
        self._counts = sorted(counts or {1, threads})

    def sides(self) -> dict[str, Run]:
        """One side per number of threads, to be timed in turns with others: name -> run."""
        return {f"read by {count}": partial(self._read, count) for count in self._counts}

    def rates(self, seconds: Mapping[str, list[float]]) -> dict[int, list[float]]:
        """GB/s of every turn by number of threads, one thread first, from what `interleave` returned."""
        return {count: [self._size / one / 1e9 for one in seconds[f"read by {count}"]] for count in self._counts}

    def _read(self, threads: int) -> None:
        torch.set_num_threads(threads)
        for one in self._data:
            one.sum()
        torch.set_num_threads(self.threads)


def bandwidths(rates: Mapping[int, list[float]]) -> list[Bandwidth]:
    """What `ReadProbe.rates` say in short."""
    return [Bandwidth(count, max(kept), median(kept)) for count, kept in rates.items()]


def typical(seconds: Sequence[float]) -> float:
    """The lower quartile of times: what something takes while nobody else is at work, and no lucky moment."""
    return sorted(seconds)[len(seconds) // 4]


def repeat(run: Run, times: int, *, before: Run | None = None, after: Run | None = None, warm: int = 1) -> list[float]:
    """Seconds of `times` runs after `warm` ones that are not kept. before: not timed; after: timed, as waiting for a GPU is."""
    taken = []
    for turn in range(times + warm):
        if before is not None:
            before()
        began = time.perf_counter()
        run()
        if after is not None:
            after()
        if turn >= warm:
            taken.append(time.perf_counter() - began)
    return taken


def rest() -> None:
    """Until torch's threads, which spin for some milliseconds, sleep."""
    time.sleep(REST_SECONDS)


def interleave(sides: Mapping[str, Run], times: int) -> dict[str, list[float]]:
    """Seconds of each side's runs, name -> [times].

    The sides take turns, so that a slow moment of the machine hits all of them. The first turn warms up and is not
    kept.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(times + 1):
        for name, run in sides.items():
            rest()
            began = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return taken


def reserve(size: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """Memory as the store takes it (huge pages where the system has them). size: bytes; strides: numbers.

    Raises DoesNotFitError if memory is refused.
    """
    try:
        memory = Reservation(size)
        memory.commit(0, size)
    except native.OutOfMemoryError as error:
        raise DoesNotFitError(f"no memory for {format_bytes(size)} to measure on.", "Give fewer --rows.") from error
    return memory.tensor(dtype, shape, strides, 0)
