"""Attention over rows in CPU memory: started before the device's work, awaited after it. The C library's threads do it.

Where the device is the CPU, the window's rows are in its memory too: they are read in the same call, and the two parts
are merged there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hgca_cli import native, selection
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial
from hgca_cli.attention.meter import heads_in_turn
from hgca_cli.attention.select.contract import Chosen
from hgca_cli.selection import Aimed, Selection


class HostAttention:
    """Work on its way in the C library; `wait` gives one partial per sequence, None where nothing was to be read."""

    def __init__(self, sequences: int) -> None:
        self._partials: list[Partial | None] = [None] * sequences
        self._named: list[native.Attention | native.Step] = []  # rows that Python names
        self._named_first: list[tuple[int, int]] = []  # of a sequence: the job its partial is, as the others join it
        self._aimed: list[Aimed] = []  # rows that the C library chooses
        self._aimed_layer: list[tuple[int, LayerState]] = []
        self._metered: list[tuple[Selection, Exact]] = []
        self._among = sequences
        self._named_pending: native.Pending | None = None
        self._aimed_pending: native.Pending | None = None

    def name(self, index: int, jobs: list[native.Step]) -> None:
        """Sequence `index` reads these rows."""
        if jobs:
            self._named_first.append((index, len(self._named)))
            self._named += jobs

    def choose(self, index: int, layer: LayerState, job: Aimed) -> None:
        """Sequence `index` reads what the C library chooses."""
        self._aimed_layer.append((index, layer))
        self._aimed.append(job)
        if layer.meter.due(self._among if job.near is None else 1):  # a CPU's steps are as long as there are sequences
            self._metered.append((job.selection, Exact(layer, job.query, job.scale, job.softcap, job.beside)))

    def start(self) -> HostAttention:
        """Hand everything to the worker threads."""
        if self._named:
            self._named_pending = native.start(self._named)
        if self._aimed:
            self._aimed_pending = selection.start(self._aimed)
        return self

    def wait(self) -> list[Partial | None]:
        """The partials, on the CPU: out f32 [heads, value_dim], lse f32 [heads]."""
        if self._named_pending is not None:
            named = self._named_pending.wait()
            for index, job in self._named_first:
                self._partials[index] = Partial(*named[job])
        if self._aimed_pending is not None:
            chosen = self._aimed_pending.wait()
            for (index, layer), aimed, partial in zip(self._aimed_layer, self._aimed, chosen, strict=True):
                self._partials[index] = Partial(*partial)
                count_read(layer, aimed.selection)
        for of, exact in self._metered:
            exact.tell(of.read_lse)
        return self._partials


class Exact:
    """What the meter is told of a token in one layer: attention over all rows, of KV heads whose turn it is and their query heads.

    query   f32 [heads, key_dim], contiguous, in CPU memory
    beside  f32 [heads], log-sum-exp of the window; None: the window is read, too, if it is in CPU memory
    """

    def __init__(
        self, layer: LayerState, query: Tensor, scale: float, softcap: float, beside: Tensor | None = None
    ) -> None:
        store, kv_heads = layer.store, layer.layout.kv_heads
        assert store is not None
        turn = layer.meter.turns if layer.measured is None else layer.measured + 1
        heads, group = heads_in_turn(turn, kv_heads, store.bytes // kv_heads), layer.layout.heads // kv_heads
        layer.measured = turn
        self._layer, self._beside, self._asking = layer, beside, slice(heads.start * group, heads.stop * group)
        asked = query[self._asking]
        jobs = [native.Step(asked, store.read.of_heads(heads), store.rows, scale, softcap)]
        if beside is None and layer.window.read is not None:
            jobs.append(window_job(asked, layer, scale, softcap, heads))
        self._pending = native.start(jobs)

    def tell(self, read_lse: Tensor) -> None:
        """read_lse  f32 [heads], of the rows that were read of the store, once that is known"""
        store, *near = self._pending.wait()
        beside = self._beside if self._beside is None else self._beside[self._asking]
        self._layer.meter.add(read_lse[self._asking], store.lse, near[0].lse if near else beside)


def start_host_attention(query: Tensor, layers: Sequence[LayerState], *, scale: float, softcap: float) -> HostAttention:
    """Start one token's attention of each sequence over the rows its policy chooses, and a CPU device's window.

    query  [sequences, heads, key_dim], any device and dtype
    """
    work = HostAttention(len(layers))
    host: Tensor | None = None
    for index, layer in enumerate(layers):
        store = layer.store
        stored = store is not None and store.rows > 0
        if layer.window.read is None and not stored:
            continue
        if host is None:
            host = query.to("cpu", torch.float32).contiguous()
        near = None if layer.window.read is None else window_job(host[index], layer, scale, softcap)
        if store is None or not stored:
            work.name(index, [] if near is None else [near])
            continue
        chosen = layer.choose(host[index], store)
        if isinstance(chosen, Selection):
            beside = None if layer.near_lse is None else layer.near_lse.cpu()  # a token old: the device is done with it
            work.choose(index, layer, Aimed(chosen, host[index], scale, softcap, near, beside))
            continue
        jobs = [] if near is None else [near]
        if chosen is not None:
            lists = None if chosen.row_start is None else native.Lists(chosen.row_start, chosen.row)
            joins = near is not None
            jobs.append(native.Step(host[index], store.read, store.rows, scale, softcap, lists, joins))
        count_read(layer, chosen)
        work.name(index, jobs)
    return work.start()


def count_read(layer: LayerState, chosen: Chosen | Selection | None) -> None:
    """Count a step of a layer with rows in its store, by what was chosen of them."""
    store = layer.store
    assert store is not None
    if isinstance(chosen, Selection):
        rows = store.rows * chosen.kv_heads
        layer.reads.add(chosen.read / rows, chosen.bytes / (store.rows * store.row_bytes), chosen)
        return
    share = 0.0 if chosen is None else chosen.share
    layer.reads.add(share, share)


def window_job(
    query: Tensor, layer: LayerState, scale: float, softcap: float, heads: slice | None = None
) -> native.Step:
    """One token over the window, which is in CPU memory: query f32 [heads, key_dim], of all KV heads or of some."""
    read = layer.window.read
    assert read is not None
    count = layer.layout.kv_heads if heads is None else heads.stop - heads.start
    rows, lists = slots_in_use(layer, count)
    return native.Step(query, read if heads is None else read.of_heads(heads), rows, scale, softcap, lists)


def slots_in_use(layer: LayerState, kv_heads: int | None = None) -> tuple[int, native.Lists | None]:
    """Of a window that the library reads: the first so many slots are in use; or, of so many, those of lists, one a KV head."""
    window, runs = layer.window, layer.window.runs()
    if len(runs) == 1 and runs[0][0] == 0:
        return runs[0][1], None
    assert window.read is not None
    return window.read.capacity, as_lists(kv_heads or layer.layout.kv_heads, runs)


@lru_cache(maxsize=16)  # the layers of a model ask for the same runs, one after another
def as_lists(kv_heads: int, runs: tuple[tuple[int, int], ...]) -> native.Lists:
    """The same runs of every KV head's rows."""
    first, count = ([run[part] for run in runs] * kv_heads for part in (0, 1))
    both = torch.tensor(first + count, dtype=torch.int32)  # a ring's runs change with every token: few calls of torch
    start = torch.tensor(range(0, len(first) + 1, len(runs)), dtype=torch.int64)
    return native.Lists(start, both[: len(first)], both[len(first) :])
