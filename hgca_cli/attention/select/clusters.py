"""Groups of 16 rows with like keys, segment by segment, made beside the decoding.

A segment of 2,048 rows is clustered by a thread of the process while the model goes on (of half as many as there are
processors: layers are clustered side by side, the rest has the model). It is used from the first step
at which 256 more rows are in the store, however long the thread took: the same tokens give the same bytes.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli import indexing, native
from hgca_cli.attention.select.codes import Codes
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store
from hgca_cli.kv.worker import worker

SEGMENT = 2048  # rows clustered together
PATIENCE = 256  # rows after a segment until it is used
GROUPS = SEGMENT // indexing.GROUP
BLOCKS = SEGMENT // indexing.BLOCK


class Segment(NamedTuple):
    """One segment, clustered; positions count from its first row."""

    order: Tensor  # i32 [kv_heads, 2048], rows of the store
    codes: Tensor  # u8 [kv_heads, 16, bytes], of the keys in that order; but for rows like no others they share their scales
    block_means: Tensor  # bf16 [kv_heads, 16, value_dim]
    group_codes: Tensor  # u8 [kv_heads, 1, bytes], of the mean keys
    spread_codes: Tensor  # u8 likewise, of the variances of their keys
    means: Tensor  # bf16 [kv_heads, 128, key_dim + value_dim]
    block_keys: (
        Tensor | None
    )  # bf16 [kv_heads, 16, 2, key_dim], mean and variances of a block's keys, if they are wanted


class Clusters:
    """The clustered part of one layer's store: its first `rows` rows, whole segments.

    order, group_codes, spread_codes, means  as in Segment, for the whole capacity
    apart        u8 [kv_heads, groups]: 1 where rows stand that are like no others, so many groups of each segment
    shared       every so many blocks of codes begin with so many that share their scales, as of Selection.cluster
    block_codes  u8 [kv_heads, blocks of 128 blocks, bytes], of the mean keys of blocks of 128 rows, and of their variances;
                 None unless there are to be `blocks`
    """

    def __init__(self, layout: LayerLayout, capacity: int, apart: int, *, blocks: bool) -> None:
        self.rows = 0
        self.shared = BLOCKS, shared_blocks(apart)
        self._layout, self._groups_apart = layout, apart
        self._coming: list[tuple[int, Future[Segment]]] = []
        segments = -(-capacity // SEGMENT)
        heads, width = layout.kv_heads, layout.key_dim + layout.value_dim
        what = "the index of older rows"
        self._order = GrowingArray(heads, segments * SEGMENT, 1, torch.int32, what)
        self._codes = GrowingArray(heads, segments, indexing.block_bytes(layout.key_dim), torch.uint8, what)
        self._spread = GrowingArray(heads, segments, indexing.block_bytes(layout.key_dim), torch.uint8, what)
        self._means = GrowingArray(heads, segments * GROUPS, width, torch.bfloat16, what)
        self.order, self.group_codes, self.means = self._order.whole[..., 0], self._codes.whole, self._means.whole
        self.spread_codes = self._spread.whole
        self._block_keys = GrowingArray(heads, blocks * segments * BLOCKS, 2 * layout.key_dim, torch.bfloat16, what)
        size = (heads, -(-segments * BLOCKS // indexing.BLOCK), indexing.block_bytes(layout.key_dim))
        self._block_codes = [GrowingArray(*size, torch.uint8, what) for _ in range(2 * blocks)]
        self.block_codes = (self._block_codes[0].whole, self._block_codes[1].whole) if blocks else None
        self.apart = torch.zeros(heads, segments, GROUPS, dtype=torch.uint8)
        self.apart[..., GROUPS - apart :] = 1
        self.apart = self.apart.view(heads, -1)

    @property
    def _arrays(self) -> list[tuple[GrowingArray, int]]:
        """Each with how many of its rows are in use."""
        segments = self.rows // SEGMENT
        arrays = [
            (self._order, self.rows),
            (self._codes, segments),
            (self._spread, segments),
            (self._means, segments * GROUPS),
        ]
        if self._block_codes:
            blocks = segments * BLOCKS
            arrays.append((self._block_keys, blocks))
            arrays += [(one, -(-blocks // indexing.BLOCK)) for one in self._block_codes]
        return arrays

    def share(self, files: SharedFiles) -> None:
        """As of GrowingArray.share."""
        for array, rows in self._arrays:
            array.share(files, rows)

    def begin_as(self, other: Clusters) -> None:
        """These are another's, as far as there is room for them."""
        self.rows = min(other.rows, self.order.shape[1])
        for (mine, rows), (theirs, _) in zip(self._arrays, other._arrays, strict=True):
            mine.begin_as(theirs, rows)
        self._coming = [one for one in other._coming if one[0] + SEGMENT <= self.order.shape[1]]

    def extend(self, store: Store) -> None:
        """Begin to cluster segments that have become full."""
        known = self.rows + SEGMENT * len(self._coming)
        for first in range(known, store.rows - SEGMENT + 1, SEGMENT):
            keys, values = store.keys[:, : first + SEGMENT], store.values[:, : first + SEGMENT]
            scales = None if store.scales is None else store.scales[:, : first + SEGMENT]
            given = keys, values, scales, first, self._groups_apart, self.block_codes is not None
            self._coming.append((first, _workers().submit(_cluster, *given)))

    def settle(self, store: Store, codes: Codes, *, wait: bool = True) -> None:
        """Take in the segments that are due; without waiting only those that are made."""
        while self._coming and store.rows >= self._coming[0][0] + SEGMENT + PATIENCE:
            if not wait and not self._coming[0][1].done():
                return
            first, coming = self._coming[0]
            try:
                segment = coming.result()
            except BaseException:
                self._coming.clear()  # `extend` begins again
                raise
            self._take(first, segment, codes)
            self._coming.pop(0)

    def truncate(self, rows: int) -> None:
        """Forget segments that are no longer whole."""
        while self._coming and self._coming[-1][0] + SEGMENT > rows:
            self._coming.pop()[1].exception()  # its thread may still read these rows
        if rows < self.rows:
            self.rows = rows // SEGMENT * SEGMENT
            self._encode_blocks()

    def _take(self, first: int, segment: Segment, codes: Codes) -> None:
        index, end = first // SEGMENT, first + SEGMENT
        arrays = [(self._order, SEGMENT), (self._codes, 1), (self._spread, 1), (self._means, GROUPS)]
        if segment.block_keys is not None:
            arrays.append((self._block_keys, BLOCKS))
        for array, each in arrays:  # before anything is written: memory may be refused, and this be tried again
            array.commit((index + 1) * each, index * each)
        self.order[:, first:end] = segment.order
        self.group_codes[:, index : index + 1] = segment.group_codes
        self.spread_codes[:, index : index + 1] = segment.spread_codes
        self.means[:, index * GROUPS : (index + 1) * GROUPS] = segment.means
        codes.reorder(first, segment.codes, segment.block_means)
        self.rows = end
        if segment.block_keys is not None:
            self._block_keys.whole[:, index * BLOCKS : (index + 1) * BLOCKS] = segment.block_keys.flatten(2)
            self._encode_blocks()

    def _encode_blocks(self) -> None:
        """The last of the blocks' codes anew: 128 blocks, those of eight segments, share their scales."""
        blocks = self.rows // indexing.BLOCK
        of_which = -(-blocks // indexing.BLOCK)
        keys = self._block_keys.whole[:, :blocks].unflatten(2, (2, self._layout.key_dim))
        for which, codes in enumerate(self._block_codes):
            codes.commit(of_which, max(0, of_which - 1))
            indexing.encode(keys[:, :, which], codes.whole, max(0, of_which - 1) * indexing.BLOCK)


def shared_blocks(apart: int) -> int:
    """A segment's first blocks, whose codes share their scales: those of rows like others. apart: groups of the others."""
    return (GROUPS - apart) * indexing.GROUP // indexing.BLOCK


def _workers() -> ThreadPoolExecutor:
    return worker("index", max(1, native.usable_processors() // 2))


def _cluster(keys: Tensor, values: Tensor, scales: Tensor | None, first: int, apart: int, of_blocks: bool) -> Segment:
    """Cluster rows first .. first + 2047, one KV head after another: so little at once stays off the pool's threads."""
    heads, key_dim, value_dim = keys.shape[0], keys.shape[2], values.shape[2]
    width = indexing.block_bytes(key_dim)
    made = Segment(
        torch.empty(heads, SEGMENT, dtype=torch.int32),
        torch.empty(heads, BLOCKS, width, dtype=torch.uint8),
        torch.empty(heads, BLOCKS, value_dim, dtype=torch.bfloat16),
        torch.empty(heads, 1, width, dtype=torch.uint8),
        torch.empty(heads, 1, width, dtype=torch.uint8),
        torch.empty(heads, GROUPS, key_dim + value_dim, dtype=torch.bfloat16),
        torch.empty(heads, BLOCKS, 2, key_dim, dtype=torch.bfloat16) if of_blocks else None,
    )
    for head in range(heads):
        one = slice(head, head + 1)
        key, value, order = keys[one], values[one], made.order[one]
        key_scale, value_scale = (None, None) if scales is None else scales[one].unbind(-1)
        indexing.cluster(key, order, first, apart=apart, scale=key_scale)
        alike = shared_blocks(apart) * indexing.BLOCK
        indexing.encode(key, made.codes[one], 0, scale=key_scale, order=order[:, :alike], shared=BLOCKS)
        indexing.encode(key, made.codes[one], alike, scale=key_scale, order=order)
        indexing.average(value, made.block_means[one], 0, each=indexing.BLOCK, scale=value_scale, order=order)
        for spread, of_block in enumerate(made.block_keys[one].unbind(2) if made.block_keys is not None else ()):
            indexing.average(key, of_block, 0, each=indexing.BLOCK, scale=key_scale, order=order, spread=bool(spread))
        mean_key, mean_value = made.means[one][..., :key_dim], made.means[one][..., key_dim:]
        indexing.average(key, mean_key, 0, each=indexing.GROUP, scale=key_scale, order=order)
        indexing.average(value, mean_value, 0, each=indexing.GROUP, scale=value_scale, order=order)
        indexing.encode(mean_key, made.group_codes[one], 0)
        variances = torch.empty_like(mean_key, memory_format=torch.contiguous_format)
        indexing.average(key, variances, 0, each=indexing.GROUP, scale=key_scale, order=order, spread=True)
        indexing.encode(variances, made.spread_codes[one], 0)
    return made
