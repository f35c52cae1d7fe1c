"""What the worker threads cost: to start a job, to start it and wait for it, to lie idle; and what a second one brings.

    python benchmarks/pool.py [--times 400] [--record]

Latencies are of a tiny job (one KV head, 16 rows), microseconds, median and 95th percentile, from Python: `call` is the
C function through cffi with a description that is ready, `python` is native.start with its checks and tensors. *Hot*:
the threads are awake, as between two layers of a decode step; *parked*: they sleep, as between two questions. The gaps
are times the caller spends elsewhere between two jobs, as a layer does. GB/s and the ceiling are as in hgca bench attention. Beside
busy neighbours a second thread brings nothing: see load_average.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from hgca_cli import native
from hgca_cli.hardware.timing import ReadProbe, bandwidths, interleave
from hgca_cli.measure.machine import where_and_when
from hgca_cli.native import ffi, lib

RESULTS = Path(__file__).parent / "results" / "pool.jsonl"
GAPS = (0.2, 0.5, 1.0, 1.5, 3.0, 10.0)  # ms
PARKED = 10.0  # ms without work: far more than a thread stays awake
ROWS, HEADS, KV_HEADS, DIM = 32768, 32, 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=400)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.share_openmp(False)
    torch.set_num_threads(1)
    usable = native.usable_processors()
    native.set_threads(usable)
    load = {"load_average": os.getloadavg()[0]}
    results = load | latencies(options.times) | {"idle_share": idle_share()} | scaling(usable)
    for name, value in results.items():
        print(f"{name:28}{value:>10.4g}" if isinstance(value, float) else f"{name:28}{value}")
    if options.record:
        record(usable, results)


def latencies(times: int) -> dict[str, Any]:
    """Microseconds, [median, 95th percentile]."""
    job = native.Attention(torch.randn(1, DIM), *torch.randn(2, 1, 16, DIM).unbind(), DIM**-0.5)
    with described(job) as call:
        call()
        results = {}
        for name, gap in (("hot", 0.1), ("parked", PARKED)):
            few = times if gap < 1 else min(times, 100)
            start, both = call_times(call, gap, few)
            results |= {f"call_start_{name}_us": start, f"call_start_wait_{name}_us": both}
            start, both = python_times(job, gap, few)
            results |= {f"python_start_{name}_us": start, f"python_start_wait_{name}_us": both}
        for gap in GAPS:
            results[f"start_wait_gap_{gap:g}ms_us"] = woken(gap, min(times, 100))
    return results


@contextmanager
def described(job: native.Attention) -> Iterator[Callable[[], tuple[float, float]]]:
    """Starts the job and waits for it without anything of Python's around; returns seconds of both."""
    jobs = ffi.new("hgca_attention[1]")
    ticket = ffi.new("int64_t *")
    result = native._describe(job, jobs[0])

    def call() -> tuple[float, float]:
        began = time.perf_counter()
        lib.hgca_start(jobs, 1, ticket)
        started = time.perf_counter()
        lib.hgca_wait(ticket[0])
        return started - began, time.perf_counter() - began

    yield call
    del result


def python_times(job: native.Attention, gap: float, times: int) -> tuple[list[float], list[float]]:
    def call() -> tuple[float, float]:
        began = time.perf_counter()
        pending = native.start([job])
        started = time.perf_counter()
        pending.wait()
        return started - began, time.perf_counter() - began

    return call_times(call, gap, times)


def call_times(call: Callable[[], tuple[float, float]], gap: float, times: int) -> tuple[list[float], list[float]]:
    taken = []
    for _ in range(times):
        elsewhere(gap)
        taken.append(call())
    starts, both = zip(*taken, strict=True)
    return summary(starts), summary(both)


def woken(gap: float, times: int) -> list[float]:
    """A job of 4 MiB, big enough that a worker which comes late shows: microseconds as above."""
    key, value = torch.randn(2, KV_HEADS, 512, DIM).unbind()
    job = native.Attention(torch.randn(KV_HEADS, DIM), key, value, DIM**-0.5)
    with described(job) as call:
        return call_times(call, gap, times)[1]


def elsewhere(milliseconds: float) -> None:
    """The caller stays awake, as it does in torch's code."""
    until = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < until:
        pass


def summary(seconds: tuple[float, ...]) -> list[float]:
    return [round(1e6 * one, 2) for one in (median(seconds), quantiles(seconds, n=20)[-1])]


def idle_share() -> float:
    """CPU seconds per second of the process in the second after the pool's last job."""
    native.attend(native.Attention(torch.randn(8, DIM), *torch.randn(2, 8, 4096, DIM).unbind(), DIM**-0.5))
    before, began = time.process_time(), time.perf_counter()
    time.sleep(1)
    return (time.process_time() - before) / (time.perf_counter() - began)


def scaling(usable: int) -> dict[str, Any]:
    """The same job with 1, 2 and all threads, alternating, beside what the same number of threads can read.

    `ms` are medians; GB/s and what follows are of the best run, as the ceiling is.
    """
    together = torch.randn(KV_HEADS, ROWS, 2 * DIM).to(torch.bfloat16)
    job = native.Attention(torch.randn(HEADS, DIM), together[..., :DIM], together[..., DIM:], DIM**-0.5)
    counts = sorted({1, min(2, usable), usable})
    taken: dict[int, list[float]] = {count: [] for count in counts}
    ceiling = dict.fromkeys(counts, 0.0)
    for turn in range(30):
        for count in counts:
            native.set_threads(count)
            native.attend(job)  # its threads are there and awake
            began = time.perf_counter()
            native.attend(job)
            taken[count].append(time.perf_counter() - began)
            if turn % 10 == 0:
                ceiling[count] = max(ceiling[count], read_bandwidth(count))
    size = together.numel() * together.element_size()
    rate = {count: size / min(values) / 1e9 for count, values in taken.items()}
    return {
        "ms": {str(c): round(1e3 * median(values), 3) for c, values in taken.items()},
        "gb_s": {str(c): round(gb, 2) for c, gb in rate.items()},
        "ceiling_gb_s": {str(c): round(gb, 2) for c, gb in ceiling.items()},
        "speed_up": {str(c): round(gb / rate[1], 3) for c, gb in rate.items()},
        "ceiling_speed_up": {str(c): round(gb / ceiling[1], 3) for c, gb in ceiling.items()},
    }


def read_bandwidth(threads: int) -> float:
    """GB/s of reading memory, best of several."""
    probe = ReadProbe(threads)
    return bandwidths(probe.rates(interleave(probe.sides(), 3)))[-1].best_gb_s


def record(threads: int, results: dict[str, Any]) -> None:
    """Append one JSON line with where and when."""
    line = {
        "benchmark": "pool",
        **where_and_when(threads),
        "results": results,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
