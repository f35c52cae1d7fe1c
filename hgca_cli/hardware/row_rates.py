"""What reading or scoring one row takes, for a shape that was not measured: from the shapes that were.

A row costs its bytes or its arithmetic, whichever is slower, so what counts of a shape is products per byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from hgca_cli.hardware.memory import SCALES
from hgca_cli.hardware.rates import HostRates, RowRate
from hgca_cli.hardware.weights import ITEMSIZE
from hgca_cli.kv.layout import LayerLayout

SHARE = {"dense": 0.8, "runs": 0.7, "rows": 0.55, "scan": 0.7}  # of the read bandwidth, where nothing was measured


def row_ns(host: HostRates, how: str, dtype: str, layer: LayerLayout) -> float:
    """Nanoseconds a row of one KV head takes on all threads."""
    size, work = row_bytes(how, dtype, layer), row_work(how, layer)
    points = [one for one in host.rows if one.how == how and one.dtype == dtype]
    points = points or [one for one in host.rows if one.how == how and one.dtype == "bf16"]  # whose arithmetic is alike
    if not points:
        return size / (host.best_read_gb_s * SHARE[how])
    points = [one for one in points if one.head_dim == layer.key_dim] or points
    known = sorted((work_of / size_of, one.ns / size_of) for one in points for size_of, work_of in [_measured(one)])
    return size * between(known, work / size)


def row_bytes(how: str, dtype: str, layer: LayerLayout) -> float:
    """Bytes of a row of one KV head: key and value with their scales, or its code."""
    if how == "scan":
        return layer.index_bytes("scan") / layer.kv_heads
    return (layer.key_dim + layer.value_dim) * ITEMSIZE[dtype] + SCALES.get(dtype, 0)


def row_work(how: str, layer: LayerLayout) -> float:
    """Products of a row with all query heads of its group."""
    group = layer.heads / layer.kv_heads
    return group * (layer.key_dim if how == "scan" else layer.key_dim + layer.value_dim)


def between(known: Sequence[tuple[float, float]], ratio: float) -> float:
    """Time per byte at so many products a byte, between measured ones by line.

    known  (products per byte, time per byte), rising; below the first a row is all memory, beyond the last all arithmetic
    """
    first, last = known[0], known[-1]
    if ratio <= first[0]:
        return first[1]
    if ratio >= last[0]:
        return last[1] * ratio / last[0] if len(known) > 1 else last[1]
    above = next(i for i, (at, _) in enumerate(known) if at >= ratio)
    (x, low), (y, high) = known[above - 1], known[above]
    return low + (high - low) * (ratio - x) / (y - x) if y > x else high


def thread_factor(host: HostRates, threads: int) -> float:
    """How many times as long reading takes with so many threads as with those the rates were measured with."""
    known = host.attention_gb_s or host.read_gb_s
    most = max(known)
    return known[most] / rate_at(known, threads)


def rate_at(known: dict[int, float], threads: int) -> float:
    """A rate by number of threads, between measured numbers by line; beyond the largest as there, below in proportion."""
    if threads in known:
        return known[threads]
    below = max((count for count in known if count < threads), default=None)
    above = min((count for count in known if count > threads), default=None)
    if above is None:
        assert below is not None
        return known[below]
    if below is None:
        return known[above] * threads / above
    return known[below] + (known[above] - known[below]) * (threads - below) / (above - below)


def _measured(one: RowRate) -> tuple[float, float]:
    layer = LayerLayout(one.heads, one.kv_heads, one.head_dim, one.head_dim)
    return row_bytes(one.how, one.dtype, layer), row_work(one.how, layer)
