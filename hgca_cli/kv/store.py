"""The older rows of one layer, in CPU memory: append-only, and grown without moving what it holds.

Address space for the whole context is reserved at once and committed as rows come. A row's key and value lie together
([key | value]): a policy that reads single rows then touches one run of memory per row instead of two, which measured
5.6 against 4.3 GB/s on one thread at 2 % of 128k rows, and dense reads lose nothing. An int8 row is to be multiplied
with two scales, of its key and of its value, which lie together too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv import convert
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.pinning import Pinning
from hgca_cli.kv.shared import SharedFiles


class Store:
    """Rows 0 .. rows - 1 of every KV head of one layer and one sequence.

    keys    [kv_heads, capacity, key_dim]; values [kv_heads, capacity, value_dim]: views of the reserved memory, whose
            first `rows` rows may be read. Of int8 rows the numbers alone: `blocks` gives the rows themselves
    packed  both, [kv_heads, capacity, key_dim + value_dim]
    scales  f32 [kv_heads, capacity, 2] of int8 rows: of the key, of the value; None for other dtypes

    folder  where the rows are in files; None: in memory
    pinning what rows may be registered with, for a device to copy them from where they are; scales never are, as they are few bytes
    """

    def __init__(
        self,
        layout: LayerLayout,
        capacity: int,
        dtype: torch.dtype,
        folder: str | None = None,
        pinning: Pinning | None = None,
    ) -> None:
        self.rows = 0
        self.capacity = capacity
        self.dtype = dtype
        self.pinning = pinning if folder is None else None
        width = layout.key_dim + layout.value_dim
        self._parts = [GrowingArray(layout.kv_heads, capacity, width, dtype, folder=folder, pinning=pinning)]
        self.scales: Tensor | None = None
        if dtype == torch.int8:
            self._parts.append(GrowingArray(layout.kv_heads, capacity, 2, torch.float32, folder=folder))
            self.scales = self._parts[1].whole
        self.row_bytes = sum(part.bytes_per_row for part in self._parts)  # of all KV heads
        self.packed = self._parts[0].whole
        self.keys = self.packed[..., : layout.key_dim]
        self.values = self.packed[..., layout.key_dim :]

    @cached_property
    def read(self) -> native.Rows:
        """The same rows as the C library reads them: a layer from whose window nothing leaves is never asked."""
        return native.Rows(self.keys, self.values, *(() if self.scales is None else self.scales.unbind(-1)))

    @property
    def bytes(self) -> int:
        """Bytes of the rows held."""
        return self.rows * self.row_bytes

    def append(self, key: Tensor, value: Tensor) -> None:
        """Take rows [kv_heads, n, dim] from CPU memory, converted to the store's dtype.

        Raises DoesNotFitError if the context is full or memory is refused; nothing was taken then.
        """
        self.place(key, value, self.rows)
        self.rows += key.shape[1]

    def place(self, key: Tensor, value: Tensor, first: int) -> None:
        """As `append`, behind the store's rows, as rows `first` and on: nobody reads them there until `rows` says that they are its."""
        new = self._room(first, key.shape[1])
        key_scale, value_scale = (None, None) if self.scales is None else self.scales[:, new].unbind(-1)
        convert.copy_rows(
            [
                convert.Copy(_packed(key), self.keys[:, new], key_scale),
                convert.Copy(_packed(value), self.values[:, new], value_scale),
            ]
        )

    def append_scaled(self, numbers_of_keys: Tensor, numbers_of_values: Tensor, scales: Tensor) -> None:
        """Take int8 rows [kv_heads, n, dim] with their scales [kv_heads, n, 2], as `blocks` multiplies them: bit for bit.

        Errors as of `append`.
        """
        assert self.scales is not None
        new = self._room(self.rows, scales.shape[1])
        self.keys[:, new], self.values[:, new], self.scales[:, new] = numbers_of_keys, numbers_of_values, scales
        self.rows = new.stop

    def _room(self, first: int, count: int) -> slice:
        """Where so many rows go, with memory behind it; none of them is the store's yet."""
        rows = first + count
        if rows > self.capacity:
            raise DoesNotFitError(f"the context of {self.capacity:,} rows is full.", "Raise --ctx or start a new chat.")
        for part in self._parts:
            part.commit(rows, first)
        return slice(first, rows)

    def expect(self, rows: int) -> None:
        """How many rows there will be when a prompt has been read: as of GrowingArray.expect."""
        for part in self._parts:
            part.expect(min(rows, self.capacity))

    def share(self, files: SharedFiles) -> None:
        """The rows are what others begin with: errors and all else as of GrowingArray.share."""
        for part in self._parts:
            part.share(files, self.rows)

    def begin_as(self, other: Store, rows: int) -> None:
        """Rows 0 .. rows - 1 of this empty store are another's, of the same layout and dtype: as of GrowingArray.begin_as."""
        assert self.rows == 0 and other.dtype == self.dtype and rows <= min(self.capacity, other.rows)
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine.begin_as(theirs, rows)
        self.rows = rows

    def pin(self) -> None:
        """Register what is not yet, where there is enough of it: not on a thread that somebody waits for."""
        self._parts[0].pin(self.rows)

    def registered(self, rows: slice) -> list[slice]:
        """Numbers of a head's packed rows that the device may copy itself, as of GrowingArray.registered."""
        return self._parts[0].registered(rows.start, rows.stop)

    def advise(self, in_order: bool) -> None:
        """How rows in a file will be read next: in order or here and there. Of those in memory nobody asks."""
        for part in self._parts:
            part.advise(in_order)

    def truncate(self, rows: int) -> None:
        """Forget the rows from `rows` on."""
        self.rows = min(self.rows, rows)

    def blocks(self, rows: int, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """(keys, values) [kv_heads, n, dim] of `rows` rows at a time, oldest first, there and in that dtype.

        Views where the store's rows are just that.
        """
        for first in range(0, self.rows, rows):
            piece = slice(first, min(first + rows, self.rows))
            key, value = self.keys[:, piece], self.values[:, piece]
            if self.scales is None:
                yield key.to(device, dtype, non_blocking=True), value.to(device, dtype, non_blocking=True)
            else:
                scales = self.scales[:, piece].to(device)
                yield _scaled(key, scales[..., :1], dtype), _scaled(value, scales[..., 1:], dtype)


def unscaled(keys: Tensor, values: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows as numbers: int8 ones multiplied with their scales [kv_heads, n, 2], others as they are."""
    if scales is None:
        return keys, values
    return _scaled(keys, scales[..., :1], torch.float32), _scaled(values, scales[..., 1:], torch.float32)


def _scaled(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 rows where their scales are; they travel as int8, and are multiplied in float32."""
    return numbers.to(scale.device, non_blocking=True).float().mul_(scale).to(dtype)


def _packed(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()
