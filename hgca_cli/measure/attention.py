"""Attention of one decode step on the CPU: our kernel beside torch's and llama.cpp's, on the same numbers, in turns.

A step reads the rows of several layers, enough that none is in the cache when its turn comes: a model's decode step
finds them in memory, too. A turn is several steps if these are short, as its threads have to be woken first, which a model's
are once for all layers. Times are per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from hgca_cli.errors import NativeError
from hgca_cli.hardware.timing import Bandwidth, ReadProbe, bandwidths, interleave
from hgca_cli.measure.case import Case
from hgca_cli.measure.llama_cpp import Ggml
from hgca_cli.measure.rows import random_rows, row_lists
from hgca_cli.measure.sides import DENSE, DTYPES, HGCA, ONE_TOKEN, ONLY_READ, SDPA_FOLDED, build_sides

TOLERANCE = 5e-2  # of numbers around 1; bf16 and int8 round by up to 1e-2


@dataclass(frozen=True)
class Result:
    """What one case took, per layer.

    bytes    unique keys and values that were read
    seconds  medians over the turns, by side (measure/sides.py); fastest: those of the fastest turn
    rates    GB/s at which the same memory was read in each turn, by number of threads, the largest last
    gb_s     bytes over our median; share: of the read bandwidth, median over turns; share_of_best: of the best turn's
    over     how many times as long as ours the other sides took
    cost_over_one_token  how many times as long as for one token, None for one token
    max_difference       largest difference to torch's output
    """

    case: Case
    layers: int
    bytes: int
    seconds: dict[str, float]
    fastest: dict[str, float]
    rates: dict[int, list[float]]
    gb_s: float
    share: float
    share_of_best: float
    over: dict[str, float]
    cost_over_one_token: float | None
    max_difference: float

    @property
    def read(self) -> Bandwidth:
        """The read bandwidth of all threads."""
        return bandwidths(self.rates)[-1]


def measure(case: Case, *, times: int, layers: int, threads: int, ggml: Ggml | None) -> Result:
    """Time a case, `times` turns. ggml: compare with llama.cpp, too (dense rows only).

    Raises DoesNotFitError if memory is refused, NativeError if the sides do not compute the same.
    """
    generator = torch.Generator().manual_seed(20250703)
    numbers = random_rows(case.kv_heads, case.rows, case.head_dim, generator)
    query = torch.randn(case.tokens, case.heads, case.head_dim, generator=generator)
    if case.dtype != "int8":
        query = query.to(DTYPES[case.dtype]).float()  # as a model of that dtype asks; torch's sides get no other
    lists = row_lists(case.pattern, case.kv_heads, case.rows, generator)
    with build_sides(numbers, query, DTYPES[case.dtype], lists, layers, threads, ggml) as (sides, memory):
        difference = _max_difference({name: run() for name, run in sides.items()})
        probe = ReadProbe(threads, memory)
        others = {name: run for name, run in sides.items() if name != HGCA}
        # what is put beside each other, reading and ours, comes after our rows were read: after torch's products, which pack
        # rows into memory of their own and give it back, ours took a quarter more
        *_, settle = probe.sides().values()
        passes = case.passes(layers)
        turns = {name: partial(_repeat, run, passes) for name, run in {HGCA: sides[HGCA], **others}.items()}
        taken = interleave({"": settle, **probe.sides(), **turns}, times)
        taken |= {name: [one / passes for one in taken[name]] for name in turns}
    read = case.bytes_of(case.rows if lists is None else lists.index.shape[1])
    return result_of(case, layers, read, {name: taken[name] for name in sides}, probe.rates(taken), difference)


def result_of(
    case: Case,
    layers: int,
    read: int,
    taken: Mapping[str, list[float]],
    rates: Mapping[int, list[float]],
    difference: float,
) -> Result:
    """The figures of one case.

    read   unique key and value bytes one layer's attention reads
    taken  seconds of the turns over all layers, by side
    rates  GB/s at which our memory was read in the same turns, by number of threads, the largest last
    """
    seconds = {name: median(values) / layers for name, values in taken.items()}
    *_, widest = rates.values()
    shares = [read * layers / one / 1e9 / rate for one, rate in zip(taken[HGCA], widest, strict=True)]
    rate = read / seconds[HGCA] / 1e9
    over = {name: one / seconds[HGCA] for name, one in seconds.items() if name not in (HGCA, ONE_TOKEN)}
    return Result(
        case,
        layers,
        read,
        seconds,
        {name: min(values) / layers for name, values in taken.items()},
        dict(rates),
        rate,
        median(shares),
        rate / max(widest),
        over,
        seconds[HGCA] / seconds[ONE_TOKEN] if ONE_TOKEN in seconds else None,
        difference,
    )


def _repeat(run: Callable[[], Tensor], passes: int) -> None:
    for _ in range(passes):
        run()


def _max_difference(outputs: Mapping[str, Tensor]) -> float:
    """Largest difference of a side's output, [tokens, heads, head_dim], to torch's."""
    wanted = outputs[SDPA_FOLDED].float()
    worst = 0.0
    for name, out in outputs.items():
        if name not in (DENSE, ONLY_READ):  # other rows; nothing
            one = (out.float() - wanted[: len(out)]).abs().max().item()
            worst = max(worst, one)
            if not one < TOLERANCE:
                raise NativeError(f"{name} computes something else than torch: outputs differ by {one:.3g}.")
    return worst
