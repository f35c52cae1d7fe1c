"""What our kernels take for one row: dense, in runs, singly, and scored by codes, on rows in memory.

Two shapes of store serve all: with several numbers of query heads over the same rows, arithmetic per byte varies. Rows are
a random block, repeated: what is timed does not depend on the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hgca_cli import native, selection
from hgca_cli.attention.select.scan import Scan
from hgca_cli.hardware.rates import RowRate
from hgca_cli.hardware.timing import repeat, rest, typical
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
STORES = ((8, 128, (8, 32, 64)), (3, 64, (9,)))  # KV heads, head dimension, query heads
STORE_BYTES = 256 << 20  # of rows: no cache holds them
BLOCK = 4096  # rows that are made up
FLUSH = 48 << 20  # float32 numbers read between runs: the index of a store may fit into a cache
RUN = 64
LISTED = 10  # one row in so many is read where rows are listed


def row_rates(times: int, *, dtypes: tuple[str, ...], runs: bool, tell: Callable[[str], None]) -> list[RowRate]:
    """Nanoseconds a row takes, by way of reading and shape, on the threads that are set; typical of `times` turns.

    Raises DoesNotFitError without memory for the rows.
    """
    found: list[RowRate] = []
    flush = torch.ones(FLUSH)
    for kv_heads, dim, group_heads in STORES:
        for dtype in dtypes:
            tell(f"rows of {dtype}, {kv_heads} KV heads of {dim}")
            layout = LayerLayout(kv_heads, kv_heads, dim, dim)
            rows = STORE_BYTES // (kv_heads * 2 * dim * DTYPES[dtype].itemsize) // BLOCK * BLOCK
            store = filled(layout, rows, DTYPES[dtype])
            heads = group_heads if dtype == "bf16" else tuple(one for one in group_heads if one != kv_heads)
            for one in heads:
                for how, count, seconds in _ways(store, one, times, runs=runs and dtype == "bf16", flush=flush):
                    if dtype == "fp32" and how != "dense":
                        continue
                    found.append(RowRate(how, dtype, one, kv_heads, dim, rows, seconds / (kv_heads * count) * 1e9))
    return found


def attention_gb_s(counts: list[int], times: int) -> dict[int, float]:
    """GB/s of dense bf16 attention of 32/8/128 by number of threads; the last count is set again afterwards."""
    store = filled(LayerLayout(32, 8, 128, 128), STORE_BYTES // (8 * 256 * 2) // BLOCK * BLOCK, torch.bfloat16)
    step = native.Step(_query(32, 128), store.read, store.rows, 128**-0.5)
    rates = {}
    for count in counts:
        native.set_threads(count)
        rates[count] = store.bytes / min(repeat(lambda: native.start([step]).wait(), times)) / 1e9
    return rates


def filled(layout: LayerLayout, rows: int, dtype: torch.dtype) -> Store:
    """A store of so many rows, a multiple of BLOCK."""
    draw = torch.Generator().manual_seed(1)
    store = Store(layout, rows, dtype)
    key, value = torch.randn(2, layout.kv_heads, BLOCK, layout.key_dim, generator=draw)
    for _ in range(rows // BLOCK):
        store.append(key, value)
    return store


def _ways(store: Store, heads: int, times: int, *, runs: bool, flush: torch.Tensor) -> Iterator[tuple[str, int, float]]:
    """(way, rows per KV head, seconds) of each way to read a store."""
    kv_heads, dim = store.keys.shape[0], store.keys.shape[-1]
    query, scale, rows = _query(heads, dim), dim**-0.5, store.rows
    yield (
        "dense",
        rows,
        typical(repeat(lambda: native.start([native.Step(query, store.read, rows, scale)]).wait(), times, before=rest)),
    )
    if store.dtype == torch.float32:
        return
    for how, run in (("rows", 1), ("runs", RUN)):
        if run == 1 or runs:
            lists, count = _lists(kv_heads, rows, run)
            step = native.Step(query, store.read, rows, scale, lists=lists)
            yield how, count, typical(repeat(lambda step=step: native.start([step]).wait(), times, before=rest))  # type: ignore[misc]
    if store.dtype == torch.bfloat16 and heads != kv_heads:
        layout = LayerLayout(heads, kv_heads, dim, dim)
        scan = Scan(layout, rows, mass=0.01)  # just the least number of rows is read
        scan.stored(store)

        def score() -> None:
            chosen = scan.choose(query, store)
            assert chosen is not None
            selection.start([selection.Aimed(chosen, query, scale)]).wait()

        def flushed() -> None:
            flush.sum()
            rest()

        yield "scan", rows, typical(repeat(score, times, before=flushed))


def _lists(kv_heads: int, rows: int, run: int) -> tuple[native.Lists, int]:
    """A tenth of the rows for each KV head, runs of them in rising order; and how many rows that is."""
    draw = torch.Generator().manual_seed(2)
    blocks = rows // run
    chosen = blocks // LISTED
    row = torch.stack([torch.randperm(blocks, generator=draw)[:chosen].sort().values * run for _ in range(kv_heads)])
    length = torch.full((kv_heads * chosen,), run, dtype=torch.int32) if run > 1 else None
    start = torch.arange(kv_heads + 1, dtype=torch.int64) * chosen
    return native.Lists(start, row.flatten().to(torch.int32), length), chosen * run


def _query(heads: int, dim: int) -> torch.Tensor:
    return torch.randn(heads, dim, generator=torch.Generator().manual_seed(3)).bfloat16().float().contiguous()
