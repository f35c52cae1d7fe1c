"""4-bit codes of a store's keys, block by block as rows arrive (native/hgca.h, hgca_codes)."""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli import indexing
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store


class Codes:
    """Codes of the first `rows` rows of one layer.

    whole  u8 [kv_heads, blocks, bytes], for the whole capacity; so much of it is written as there are rows
    means  bf16 [kv_heads, blocks, value_dim], mean value of each block, likewise
    kept   blocks that have not changed since who copies them set it
    """

    def __init__(self, layout: LayerLayout, capacity: int) -> None:
        self.rows = self.kept = 0
        blocks = -(-capacity // indexing.BLOCK)
        width = indexing.block_bytes(layout.key_dim)
        self._memory = GrowingArray(layout.kv_heads, blocks, width, torch.uint8, "the index of older rows")
        self.whole = self._memory.whole
        self._means = GrowingArray(layout.kv_heads, blocks, layout.value_dim, torch.bfloat16, "the index of older rows")
        self.means = self._means.whole

    def extend(self, store: Store) -> None:
        """Bring the codes up to the rows of the store; the block that was not full is written anew."""
        if self.rows == store.rows:
            return
        blocks = self.not_full(store.rows)
        for array in (self._memory, self._means):
            array.commit(blocks.stop, blocks.start)
        there = slice(blocks.start, blocks.stop)
        _write(store, blocks.start * indexing.BLOCK, store.rows, self.whole[:, there], self.means[:, there])
        self.rows = store.rows
        self.kept = min(self.kept, blocks.start)

    def not_full(self, rows: int) -> range:
        """Blocks that so many rows change: from the one that is not full on."""
        return range(self.rows // indexing.BLOCK, -(-rows // indexing.BLOCK))

    def extend_aside(self, store: Store, rows: int, codes: Tensor, means: Tensor) -> None:
        """What `extend` will write once rows behind the store's are its, so many with them: [kv_heads, blocks, ...] of the blocks that
        change. One of which nothing is in use is written to its place, too. What anybody reads stays as it is. Errors as of `extend`.
        """
        blocks = self.not_full(rows)
        unused = -(-self.rows // indexing.BLOCK)
        for array in (self._memory, self._means):
            array.commit(blocks.stop, unused)
        _write(store, blocks.start * indexing.BLOCK, rows, codes, means)
        self.whole[:, unused : blocks.stop] = codes[:, unused - blocks.start :]
        self.means[:, unused : blocks.stop] = means[:, unused - blocks.start :]

    def take_aside(self, rows: int, codes: Tensor, means: Tensor) -> None:
        """The store has so many rows now: what `extend_aside` wrote is in use."""
        first = self.rows // indexing.BLOCK
        if self.rows % indexing.BLOCK:
            self.whole[:, first].copy_(codes[:, 0])
            self.means[:, first].copy_(means[:, 0])
        self.rows = rows
        self.kept = min(self.kept, first)

    def share(self, files: SharedFiles) -> None:
        """As of GrowingArray.share."""
        blocks = -(-self.rows // indexing.BLOCK)
        for array in (self._memory, self._means):
            array.share(files, blocks)

    def begin_as(self, other: Codes) -> None:
        """These are another's, as far as there is room for them."""
        blocks = min(-(-other.rows // indexing.BLOCK), self.whole.shape[1])
        self._memory.begin_as(other._memory, blocks)
        self._means.begin_as(other._means, blocks)
        self.rows = min(other.rows, blocks * indexing.BLOCK)

    def reorder(self, first: int, codes: Tensor, means: Tensor) -> None:
        """Whole blocks from position `first` on are in another order now: u8 [kv_heads, blocks, bytes] and their means."""
        blocks = slice(first // indexing.BLOCK, first // indexing.BLOCK + codes.shape[1])
        for array in (self._memory, self._means):
            array.commit(blocks.stop, blocks.start)
        self.whole[:, blocks] = codes
        self.means[:, blocks] = means
        self.kept = min(self.kept, blocks.start)

    def truncate(self, rows: int) -> None:
        """Forget what is beyond, whole blocks: a block's mean value and scales would still tell of rows that are gone."""
        if rows < self.rows:
            self.rows = rows // indexing.BLOCK * indexing.BLOCK


def _write(store: Store, first: int, rows: int, codes: Tensor, means: Tensor) -> None:
    """Codes and means of the store's rows first .. rows - 1, which begin a block: [kv_heads, blocks, ...]."""
    scales = (None, None) if store.scales is None else store.scales[:, first:rows].unbind(-1)
    indexing.encode(store.keys[:, first:rows], codes, 0, scale=scales[0])
    indexing.average(store.values[:, first:rows], means, 0, each=indexing.BLOCK, scale=scales[1])
