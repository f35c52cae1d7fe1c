"""How much of the store each KV head of a layer read for the newest token."""

from __future__ import annotations

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select.moving_average import MovingAverage


def head_shares(layer: LayerState) -> tuple[float, ...] | None:
    """Shares of the rows the store held then, one per KV head; None without a store. 0 before a token read any."""
    store, heads = layer.store, layer.layout.kv_heads
    if store is None:
        return None
    if (last := layer.reads.last) is not None:
        rows = max(1, last.rows)
        return tuple(min(1.0, count / rows) for count in last.rows_read.tolist())
    if not layer.reads.steps or not store.rows:
        return (0.0,) * heads
    if isinstance(layer.selector, MovingAverage) and (counts := layer.selector.counts):
        each = len(counts) // heads  # lists of a KV head's query heads
        return tuple(sum(counts[i * each : (i + 1) * each]) / (each * store.rows) for i in range(heads))
    return (layer.reads.share / layer.reads.steps,) * heads  # all of it, or nothing
