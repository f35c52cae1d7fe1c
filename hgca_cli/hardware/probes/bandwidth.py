"""Read bandwidth of memory by number of threads: numbers summed by torch, in a buffer larger than any cache."""

from __future__ import annotations

from statistics import median

from hgca_cli.hardware.timing import ReadProbe, interleave


def read_gb_s(counts: list[int], times: int) -> tuple[dict[int, float], float]:
    """GB/s by number of threads, best of the turns; and by which share the median turn of all threads was below the best.

    counts  of threads, the last is set again afterwards

    Raises DoesNotFitError without memory for the buffer.
    """
    probe = ReadProbe(counts[-1], counts=counts)
    rates = probe.rates(interleave(probe.sides(), times))
    all_threads = rates[counts[-1]]
    return {count: max(kept) for count, kept in rates.items()}, 1.0 - median(all_threads) / max(all_threads)


def thread_counts(usable: int) -> list[int]:
    """Numbers of threads worth measuring: 1, 2, 4, 8, ... and all."""
    return sorted({usable, *(1 << k for k in range(usable.bit_length()) if 1 << k < usable)})
