"""Attention over the store: started before the device's work, awaited after it. The C library's threads do it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial


class StoreAttention:
    """Work on its way in the C library; `wait` gives one partial per sequence, None where nothing was to be read."""

    def __init__(self, pending: native.Pending | None, started: list[bool]) -> None:
        self._pending = pending
        self._started = started

    def wait(self) -> list[Partial | None]:
        """The partials, on the CPU: out f32 [heads, value_dim], lse f32 [heads]."""
        if self._pending is None:
            return [None] * len(self._started)
        done = iter(self._pending.wait())
        return [Partial(*next(done)) if started else None for started in self._started]


def start_store_attention(
    query: Tensor, layers: Sequence[LayerState], *, scale: float, softcap: float
) -> StoreAttention:
    """Start one token's attention of each sequence over the rows its policy chooses.

    query  [sequences, heads, key_dim], any device and dtype
    """
    jobs: list[native.Attention] = []
    started = []
    host: Tensor | None = None
    for index, layer in enumerate(layers):
        chosen = None
        store = layer.store
        if store is not None and store.rows > 0:
            if host is None:
                host = query.to("cpu", torch.float32).contiguous()
            chosen = layer.selector.choose(host[index], store)
            layer.steps += 1
        started.append(chosen is not None)
        if chosen is None or store is None or host is None:
            continue
        layer.share_read += chosen.share
        scales = None if store.scales is None else store.scales[:, : store.rows]
        jobs.append(
            native.Attention(
                query=host[index],
                key=store.keys[:, : store.rows],
                value=store.values[:, : store.rows],
                scale=scale,
                softcap=softcap,
                row_start=chosen.row_start,
                row=chosen.row,
                key_scale=None if scales is None else scales[..., 0],
                value_scale=None if scales is None else scales[..., 1],
            )
        )
    return StoreAttention(native.start(jobs) if jobs else None, started)
