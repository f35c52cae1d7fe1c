"""Attention over the store: started before the device's work, awaited after it. The C library's threads do it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli import native, selection
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial
from hgca_cli.attention.select.contract import Chosen
from hgca_cli.selection import Selection


class StoreAttention:
    """Work on its way in the C library; `wait` gives one partial per sequence, None where nothing was to be read."""

    def __init__(self, sequences: int) -> None:
        self._partials: list[Partial | None] = [None] * sequences
        self._named: list[tuple[int, native.Attention]] = []
        self._chosen: list[tuple[int, selection.Aimed]] = []
        self._layers: dict[int, LayerState] = {}
        self._pending: list[tuple[list[int], native.Pending]] = []

    def name(self, index: int, layer: LayerState, job: native.Attention, share: float) -> None:
        """Sequence `index` reads the rows its policy named."""
        self._named.append((index, job))
        layer.reads.add(share, share)

    def choose(self, index: int, layer: LayerState, job: selection.Aimed) -> None:
        """Sequence `index` reads what the C library chooses."""
        self._chosen.append((index, job))
        self._layers[index] = layer

    def start(self) -> None:
        """Hand everything to the worker threads."""
        if self._named:
            jobs = native.start([job for _, job in self._named])
            self._pending.append(([index for index, _ in self._named], jobs))
        if self._chosen:
            chosen = selection.start([job for _, job in self._chosen])
            self._pending.append(([index for index, _ in self._chosen], chosen))

    def wait(self) -> list[Partial | None]:
        """The partials, on the CPU: out f32 [heads, value_dim], lse f32 [heads]."""
        for indexes, pending in self._pending:
            for index, partial in zip(indexes, pending.wait(), strict=True):
                self._partials[index] = Partial(*partial)
        for index, job in self._chosen:
            _count(self._layers[index], job.selection)
        return self._partials


def start_store_attention(
    query: Tensor, layers: Sequence[LayerState], *, scale: float, softcap: float
) -> StoreAttention:
    """Start one token's attention of each sequence over the rows its policy chooses.

    query  [sequences, heads, key_dim], any device and dtype
    """
    work = StoreAttention(len(layers))
    host: Tensor | None = None
    for index, layer in enumerate(layers):
        store = layer.store
        if store is None or store.rows == 0:
            continue
        if host is None:
            host = query.to("cpu", torch.float32).contiguous()
        chosen = layer.selector.choose(host[index], store)
        if isinstance(chosen, Selection):
            beside = layer.near_lse if layer.near_lse is not None and layer.near_lse.is_cpu else None
            work.choose(index, layer, selection.Aimed(chosen, host[index], scale, softcap, beside))
        elif chosen is not None:
            work.name(index, layer, _attention(host[index], layer, chosen, scale, softcap), chosen.share)
        else:
            layer.reads.add(0.0, 0.0)
    work.start()
    return work


def _attention(query: Tensor, layer: LayerState, chosen: Chosen, scale: float, softcap: float) -> native.Attention:
    store = layer.store
    assert store is not None
    scales = None if store.scales is None else store.scales[:, : store.rows]
    return native.Attention(
        query=query,
        key=store.keys[:, : store.rows],
        value=store.values[:, : store.rows],
        scale=scale,
        softcap=softcap,
        row_start=chosen.row_start,
        row=chosen.row,
        key_scale=None if scales is None else scales[..., 0],
        value_scale=None if scales is None else scales[..., 1],
    )


def _count(layer: LayerState, chosen: Selection) -> None:
    assert layer.store is not None
    reads, rows = chosen.reads, layer.store.rows * chosen.kv_heads
    layer.reads.add(reads.read / rows, reads.bytes / layer.store.bytes, reads)
