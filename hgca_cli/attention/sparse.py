"""Attention over rows in CPU memory: started before the device's work, awaited after it. The C library's threads do it.

Where the device is the CPU, the window's rows are in its memory too: they are read in the same call, and the two parts
are merged there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial


class HostAttention:
    """Work on its way in the C library; `wait` gives one partial per sequence, None where nothing was to be read."""

    def __init__(self, pending: native.Pending | None, result: list[int | None]) -> None:
        self._pending = pending
        self._result = result  # which job's partial is a sequence's

    def wait(self) -> list[Partial | None]:
        """The partials, on the CPU: out f32 [heads, value_dim], lse f32 [heads]."""
        done = self._pending.wait() if self._pending is not None else []
        return [None if index is None else Partial(*done[index]) for index in self._result]


def start_host_attention(query: Tensor, layers: Sequence[LayerState], *, scale: float, softcap: float) -> HostAttention:
    """Start one token's attention of each sequence over the rows its policy chooses, and a CPU device's window.

    query  [sequences, heads, key_dim], any device and dtype
    """
    jobs: list[native.Attention | native.Step] = []
    result: list[int | None] = []
    host: Tensor | None = None
    for index, layer in enumerate(layers):
        first = len(jobs)
        store = layer.store
        if host is None and (layer.window.read is not None or (store is not None and store.rows > 0)):
            host = query.to("cpu", torch.float32).contiguous()
        if host is not None and layer.window.read is not None:
            jobs.append(_window_job(host[index], layer, scale, softcap))
        if host is not None and store is not None and store.rows > 0:
            chosen = layer.selector.choose(host[index], store)
            layer.steps += 1
            if chosen is not None:
                layer.share_read += chosen.share
                lists = None if chosen.row_start is None else native.Lists(chosen.row_start, chosen.row)
                joins = len(jobs) > first
                jobs.append(native.Step(host[index], store.read, store.rows, scale, softcap, lists, joins))
        result.append(first if len(jobs) > first else None)
    return HostAttention(native.start(jobs) if jobs else None, result)


def _window_job(query: Tensor, layer: LayerState, scale: float, softcap: float) -> native.Step:
    window = layer.window
    assert window.read is not None
    runs = window.runs()
    if len(runs) == 1 and runs[0][0] == 0:
        return native.Step(query, window.read, runs[0][1], scale, softcap)
    lists = _as_lists(layer.layout.kv_heads, runs)
    return native.Step(query, window.read, window.read.capacity, scale, softcap, lists)


@lru_cache(maxsize=16)  # the layers of a model ask for the same runs, one after another
def _as_lists(kv_heads: int, runs: tuple[tuple[int, int], ...]) -> native.Lists:
    """The same runs of every KV head's rows."""
    first, count = torch.tensor(runs, dtype=torch.int32).T.repeat(1, kv_heads).contiguous()
    return native.Lists(torch.arange(kv_heads + 1, dtype=torch.int64) * len(runs), first, count)
