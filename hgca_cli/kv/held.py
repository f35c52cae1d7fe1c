"""Rows of one layer by position, wherever they are: taken out as they are held, and put back bit for bit.

A row that was in the window keeps the device's numbers on its way out; put where the store begins later, it is rounded
as eviction would have rounded it. So a piece never has to be written anew because its rows moved on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli.kv.store import Store, unscaled
from hgca_cli.kv.window import Window


class Piece(NamedTuple):
    """Rows at positions first .. first + n - 1, in the window's dtype or in the store's.

    keys, values  [kv_heads, n, dim]; scales f32 [kv_heads, n, 2] of int8 rows
    """

    first: int
    keys: Tensor
    values: Tensor
    scales: Tensor | None = None

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.first + self.keys.shape[1]

    def part(self, first: int, end: int) -> Piece:
        """The rows at positions first .. end - 1."""
        rows = slice(first - self.first, end - self.first)
        scales = None if self.scales is None else self.scales[:, rows]
        return Piece(first, self.keys[:, rows], self.values[:, rows], scales)


def held(window: Window, store: Store | None, first: int, end: int) -> Iterator[Piece]:
    """Views of the rows at positions first .. end - 1, in order; a sliding layer's that are gone are left out.

    Nothing may be on its way to the store.
    """
    assert end <= window.end and (store is None or store.rows == max(0, window.start - window.sinks))
    if (sink_end := min(end, window.sinks)) > first:
        yield Piece(first, window.keys[:, first:sink_end], window.values[:, first:sink_end])
    if store is not None:
        begin, stop = max(first, window.sinks), min(end, window.start)
        if begin < stop:
            rows = slice(begin - window.sinks, stop - window.sinks)
            scales = None if store.scales is None else store.scales[:, rows]
            yield Piece(begin, store.keys[:, rows], store.values[:, rows], scales)
    begin = max(first, window.start)
    for slots in window.slices(begin, end - begin):
        yield Piece(begin, window.keys[:, slots], window.values[:, slots])
        begin += slots.stop - slots.start


def natural_start(window: Window, rows: int, block: int) -> int:
    """Where the ring would begin after a prompt of so many rows was read. block: of the settings; 0: nothing is evicted."""
    in_ring = max(0, rows - window.sinks)
    if in_ring >= window.ring:
        in_ring = window.ring - block
    return max(window.sinks, rows - in_ring)


class Refill:
    """Puts the first `rows` rows back into an empty window and store, the ring beginning at position `start`."""

    def __init__(self, window: Window, store: Store | None, rows: int, start: int) -> None:
        assert window.end == 0 and (start - window.sinks >= 0 or rows <= window.sinks)
        self._window, self._store = window, store
        self._rows, self._start = rows, start

    def begin_as(self, store: Store | None) -> int:
        """Take the rows that are to be in the store from another one that begins alike; how many there were. Raises DoesNotFitError."""
        if store is None or self._store is None:
            return 0
        rows = min(store.rows, max(0, self._start - self._window.sinks))
        self._store.begin_as(store, rows)
        return rows

    def put(self, piece: Piece) -> None:
        """The next rows; those of no use (of a sliding layer, beyond the end, or in the store already) are passed over. Raises
        DoesNotFitError.
        """
        window = self._window
        if self._store is not None and piece.first >= window.sinks:
            there = window.sinks + self._store.rows
            piece = piece.part(min(piece.end, max(there, piece.first)), piece.end)
        for begin, stop, stored in (
            (0, window.sinks, False),
            (window.sinks, self._start, True),
            (self._start, self._rows, False),
        ):
            first, end = max(begin, piece.first), min(stop, piece.end, self._rows)
            if first >= end:
                continue
            if not stored:
                if window.ring_rows == 0 and window.end < first:
                    window.skip(first - window.end)
                part = piece.part(first, end)
                device, dtype = window.keys.device, window.keys.dtype
                window.append(*(one.to(device, dtype) for one in unscaled(part.keys, part.values, part.scales)))
            elif self._store is not None:
                part = piece.part(first, end)
                if part.scales is None:
                    self._store.append(part.keys, part.values)
                else:
                    self._store.append_scaled(part.keys, part.values, part.scales)

    def finish(self) -> bool:
        """Whether all rows have come."""
        window, store = self._window, self._store
        if store is not None and store.rows != max(0, self._start - window.sinks):
            return False
        if window.end < self._start <= self._rows and window.end >= window.sinks:  # an empty ring
            window.skip(self._start - window.end)
        return window.end == self._rows and (window.start == self._start or self._rows <= window.sinks)


def only_copy(tensor: Tensor) -> Tensor:
    """A tensor in CPU memory whose numbers lie one behind the other."""
    return tensor.to(torch.device("cpu")).contiguous()
