"""Bytes of a KV cache, from the model's shape alone (no torch: the planner counts with this before anything loads)."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass

from hgca_cli.config import FOLLOWING

PIECE_NUMBERS = 1 << 22  # of a store that are converted at once: 8 MB of bf16, which a processor's caches still hold
GPU_PIECE_NUMBERS = 1 << 24  # on a GPU: what is merged once a piece is a tenth of what is computed for one
COPYING = 8  # threads at most that copy a piece into pinned memory
LEAST_SHARED = 1 << 16  # bytes of a KV head that sequences beginning alike have in common: fewer are copied as fast
IN_MEMORY = hasattr(os, "memfd_create")  # a file in memory, which is what they have in common
UNSETTLED = 4096  # rows: two segments of clusters.py
PIECE_ROWS = 1024  # a piece has fewer KV heads before it has fewer rows than this


@dataclass(frozen=True)
class LayerLayout:
    """Rows of one layer.

    heads      query heads, a multiple of kv_heads
    key_dim    width of a key row; value_dim of a value row
    sliding    newest rows a query of this layer may see; None for all. A sliding layer keeps just those, on the device
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    sliding: int | None = None

    def index_parts(self, policy: str) -> list[float]:
        """Bytes per token and KV head of the arrays a policy's index of the older rows is made of (attention/select)."""
        if policy == "page":  # two bounds of 16 bits a number for 16 rows
            return [self.key_dim / 4]
        if policy not in FOLLOWING:
            return []
        wide = -(-self.key_dim // 8) * 8
        # 4 bits a number and scales; a mean value a block
        codes = [wide / 2 + 4 * wide / 128, 2 * self.value_dim / 128]
        if policy == "scan":
            return codes
        # order, mean key and value and the codes of mean key and spread for 16 rows, and whether they are like no others
        groups = [4, 2 * (self.key_dim + self.value_dim) / 16, *[(wide / 2 + wide / 32) / 16] * 2, 1 / 16]
        if policy == "two-level":  # mean key and variances of 128 rows, and their codes
            groups += [4 * self.key_dim / 128, *[(wide / 2 + wide / 32) / 128] * 2]
        return codes + groups

    def index_bytes(self, policy: str) -> int:
        """Bytes of a policy's index per token, rounded up."""
        return self.kv_heads * math.ceil(sum(self.index_parts(policy)))

    def piece(self, rows: int, *, gpu: bool = False) -> tuple[int, int]:
        """KV heads and rows of a store of so many rows that prefill has before it at once (kv/pieces.py)."""
        width, numbers = self.key_dim + self.value_dim, GPU_PIECE_NUMBERS if gpu else PIECE_NUMBERS
        most = max(min(rows, PIECE_ROWS), numbers // (self.kv_heads * width))
        heads = max(1, min(self.kv_heads, numbers // (width * min(rows, most) or 1)))
        return heads, max(1, min(rows, most))

    @property
    def in_graph(self) -> bool:
        """Whether a CUDA graph can hold its attention: it sees everything, and its rows are as wide as the kernels take."""
        wide = all(dim >= 16 and dim.bit_count() == 1 for dim in (self.key_dim, self.value_dim))
        return self.sliding is None and wide

    @property
    def row_elements(self) -> int:
        """Numbers one token adds to the layer: a key and a value for every KV head."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class KVLayout:
    """All layers, and their bytes.

    device_itemsize, store_itemsize  of a number on the device (window) and in CPU memory (store)
    store_scales                     beside each row of each KV head in the store
    index                            the policy whose index stands beside the rows
    """

    layers: tuple[LayerLayout, ...]
    device_itemsize: int = 4
    store_itemsize: int = 4
    store_scales: int = 0
    index: str = "exact"

    @property
    def row_bytes(self) -> int:
        """Bytes one token adds to the store and its index, over all layers that see everything."""
        full = [layer for layer in self.layers if layer.sliding is None]
        numbers, rows = sum(layer.row_elements for layer in full), sum(layer.kv_heads for layer in full)
        return numbers * self.store_itemsize + rows * self.store_scales + self.index_row_bytes

    @property
    def index_row_bytes(self) -> int:
        """Of these, the index's, which is in memory wherever the rows are."""
        return sum(layer.index_bytes(self.index) for layer in self.layers if layer.sliding is None)

    @property
    def pair_operations(self) -> int:
        """Products and sums of one query token with one row before it, over all layers that see everything."""
        full = [layer for layer in self.layers if layer.sliding is None]
        return sum(2 * layer.heads * (layer.key_dim + layer.value_dim) for layer in full)

    def window_bytes(self, window: int, sinks: int, context: int) -> int:
        """Device bytes of the windows: preallocated, so this is what a sequence takes however short it is; half of them are free
        again where its rows are rounded (`as_in_store`).
        """
        slots = sum(layer.row_elements * window_slots(layer, window, sinks, context) for layer in self.layers)
        return slots * self.device_itemsize

    def store_bytes(self, context: int, window: int, sinks: int) -> int:
        """CPU bytes of the stores at a context of so many rows."""
        return max(0, context - sinks - window) * self.row_bytes

    def shared_bytes(self, rows: int) -> tuple[int, int]:
        """Of stores of so many rows, and of their index, what others that begin with them have in common with them (kv/shared.py).

        What is indexed last is still to be clustered, and so to be written to.
        """
        if not IN_MEMORY:
            return 0, 0
        settled = max(0, rows - UNSETTLED)
        stores = indexes = 0
        for layer in self.layers:
            if layer.sliding is None:
                parts = [(layer.key_dim + layer.value_dim) * self.store_itemsize, self.store_scales]
                stores += layer.kv_heads * sum(in_common(part * rows) for part in parts)
                indexes += layer.kv_heads * sum(in_common(part * settled) for part in layer.index_parts(self.index))
        return stores, indexes

    def staging_bytes(self, rows: int) -> int:
        """Host bytes of `rows` rows per layer on their way from the windows to the stores (a prefill chunk's worth)."""
        full = sum(layer.row_elements for layer in self.layers if layer.sliding is None)
        return full * rows * self.device_itemsize


def in_common(size: float) -> int:
    """Of so many bytes of a KV head those that others begin with: whole pages, if there are enough."""
    pages = whole_pages(int(size))
    return pages if pages >= LEAST_SHARED else 0


def whole_pages(size: int) -> int:
    """Of so many bytes those that fill pages."""
    return size // mmap.PAGESIZE * mmap.PAGESIZE


def as_in_store(layer: LayerLayout, itemsize: int, store_itemsize: int) -> bool:
    """Whether a window in the store's memory, the CPU's, has its rows in the store's dtype once one leaves it: half the bytes are
    read, and no row changes when it is evicted. Until then all are as the model made them. Rows of a sliding layer are never
    rounded, and whole numbers (int8) are too rough for rows that are all read.
    """
    return layer.sliding is None and 2 <= store_itemsize < itemsize


def window_slots(layer: LayerLayout, window: int, sinks: int, context: int) -> int:
    """Device rows a layer has room for: sinks and window, or all that a sliding layer may see."""
    return min(context, sinks + window if layer.sliding is None else layer.sliding)


def copying_threads(processors: int) -> int:
    """How many threads copy a store's rows into pinned memory (kv/lane.py): a quarter of the processors, as others code rows that
    left the window meanwhile.
    """
    return max(1, min(COPYING, processors // 4))
