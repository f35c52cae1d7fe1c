"""The newest rows of one layer, on the device: a ring of slots behind a few slots that hold the first rows (sinks).

A row keeps its slot until it is evicted: position p >= sinks lives in slot sinks + (p - sinks) % ring. Keys arrive
already rotated, so attention does not care about the order of slots; what is in use are at most two runs of them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.reservation import Reservation
from hgca_cli.units import format_bytes

COMMIT = 1 << 20  # at once: of more the system makes huge pages, given whole to whoever touches their first byte


class Window:
    """Sinks and newest rows of one layer and one sequence.

    slots   rows there is room for, sinks included
    sinks   first positions that never leave
    read    the same rows as the C library reads them; None if the device is not the CPU
    made    how often memory was taken for them: they are elsewhere then

    `start` .. `end` are the positions in the ring; the sinks in use are positions 0 .. min(sinks, end) - 1.
    """

    def __init__(self, layout: LayerLayout, slots: int, sinks: int, device: torch.device, dtype: torch.dtype) -> None:
        self.sinks = min(sinks, slots)
        self.ring = slots - self.sinks
        self.start = self.sinks
        self.end = 0
        self._shape = [(layout.kv_heads, slots, dim) for dim in (layout.key_dim, layout.value_dim)]
        self._device = device
        self._away: list[GrowingArray] = []
        self.made = 0
        self._make(dtype)

    def _make(self, dtype: torch.dtype) -> None:
        # zeros, not empty: a policy that watches looks at every slot and drops the unused ones, which must be finite
        with torch.inference_mode(False):  # the caller may leave inference mode between a prompt and a rewind
            self.keys, self.values = (_zeros(shape, self._device, dtype) for shape in self._shape)
            in_reach = self._device.type == "cpu" and dtype in native.DTYPES
            self.read = native.Rows(self.keys, self.values) if in_reach else None
        self.made += 1

    @property
    def rows(self) -> int:
        """Rows held, sinks included."""
        return min(self.end, self.sinks) + self.ring_rows

    @property
    def ring_rows(self) -> int:
        """Rows in the ring: those that can be evicted."""
        return max(0, self.end - self.start)

    def append(self, key: Tensor, value: Tensor) -> None:
        """Take new rows at positions end .. end + n - 1.

        key    [kv_heads, n, key_dim]; value [kv_heads, n, value_dim]

        The caller made room: sinks left plus free ring slots are at least n.
        """
        rows = key.shape[1]
        if rows == 1 and self.read is not None:  # once per layer and token: what is done here, Python's own time counts
            slot = self.take()
            if not self.read.put(slot, key, value):
                self.keys.select(1, slot).copy_(key.select(1, 0))
                self.values.select(1, slot).copy_(value.select(1, 0))
            return
        done = 0
        while done < rows:
            slot, run = self._run(self.end, rows - done)
            assert self.end + run - self.start <= self.ring, "no room was made"
            target = slice(slot, slot + run)
            self.keys[:, target] = key[:, done : done + run]
            self.values[:, target] = value[:, done : done + run]
            self.end += run
            done += run

    def put_away(self, folder: str | None = None) -> None:
        """Give the device's memory back: the rows go to CPU memory, or to a file in a folder, and stay as they are until
        `bring_back`. On the CPU, without a folder, there is nothing to be had, and nothing happens. Raises DoesNotFitError.
        """
        if self._away or (self._device.type == "cpu" and folder is None):
            return
        dtype = self.keys.dtype
        away = [GrowingArray(*shape, dtype, "a window's rows", folder) for shape in self._shape]
        for array, rows in zip(away, (self.keys, self.values), strict=True):
            array.commit(rows.shape[1], 0)
            array.whole.copy_(rows)
        self._away = away
        self.read = None
        self.keys, self.values = (array.whole for array in away)

    def bring_back(self) -> None:
        """The rows are on the device again. If there is no memory for them they stay away, and whatever it raised is raised."""
        if not self._away:
            return
        self.hold_as(self.keys.dtype)
        self._away = []

    def hold_as(self, dtype: torch.dtype) -> None:
        """The rows are on the device, in memory of their own, of this dtype from now on. If there is no memory for them they stay as
        they are, and whatever it raised is raised.
        """
        keys, values, read = self.keys, self.values, self.read
        try:
            self._make(dtype)
        except BaseException:
            self.keys, self.values, self.read = keys, values, read
            raise
        self.keys.copy_(keys)
        self.values.copy_(values)

    def take(self) -> int:
        """The slot of one more row, which whoever takes it writes. Only where `read` is not None; the caller made room."""
        slot, _ = self._run(self.end, 1)
        assert self.end < self.start + self.ring, "no room was made"
        self.end += 1
        return slot

    def oldest(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Views of the oldest `count` ring rows, in order, as at most two pieces (keys, values) [kv_heads, n, dim]."""
        return [(self.keys[:, piece], self.values[:, piece]) for piece in self.slices(self.start, count)]

    def put_back(self, position: int, key: Tensor, value: Tensor) -> None:
        """Rows [kv_heads, n, dim] that left the ring are in the slots of positions position .. position + n - 1 again."""
        done = 0
        for slots in self.slices(position, key.shape[1]):
            run = slice(done, done + slots.stop - slots.start)
            self.keys[:, slots], self.values[:, slots] = key[:, run], value[:, run]
            done = run.stop

    def drop_oldest(self, count: int) -> None:
        """Forget the oldest `count` ring rows; their slots are free."""
        self.start += count

    def in_order(self, per_slot: Tensor) -> Tensor:
        """Numbers per slot of the view [..., n] -> numbers per ring row, oldest first [..., ring_rows]."""
        pieces = [per_slot[..., piece] for piece in self.slices(self.start, self.ring_rows)]
        return torch.cat(pieces, dim=-1) if pieces else per_slot[..., :0]

    def skip(self, rows: int) -> None:
        """Positions pass that never enter the ring, which must be empty (rows of a long chunk go to the store)."""
        assert self.ring_rows == 0 and self.end >= self.sinks
        self.start = self.end = self.end + rows

    def rewind(self, length: int) -> None:
        """Forget positions `length` and later."""
        self.end = min(length, self.end)
        self.start = max(self.sinks, min(self.start, self.end))

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        """Views of every row held, sinks too, as at most two pieces (keys, values) [kv_heads, n, dim]; in no order."""
        spans = [slice(first, first + count) for first, count in self.runs() if count]
        return [(self.keys[:, span], self.values[:, span]) for span in spans]

    def runs(self) -> tuple[tuple[int, int], ...]:
        """Slots in use, as (first, how many): one run from slot 0 if no free slot lies between, else two."""
        return _runs(self.sinks, self.ring, self.start, self.end)

    def slices(self, position: int, count: int) -> list[slice]:
        """Slots of positions position .. position + count - 1, in order, as at most two runs of the ring."""
        return _slices(self.sinks, self.ring, position, count)

    def _run(self, position: int, count: int) -> tuple[int, int]:
        """Slot of a position, and how many following positions have the following slots."""
        return _run(self.sinks, self.ring, position, count)


@lru_cache(maxsize=16)  # the layers of a model ask for the same runs, one after another
def _runs(sinks: int, ring: int, start: int, end: int) -> tuple[tuple[int, int], ...]:
    if start == sinks and end <= sinks + ring:  # nothing evicted
        return ((0, end),)
    if end - start == ring:
        return ((0, sinks + ring),)
    used = sorted((piece.start, piece.stop) for piece in _slices(sinks, ring, start, max(0, end - start)))
    if used and used[0][0] == sinks:  # the ring's end came round: the sinks are just before it
        used[0] = (0, used[0][1])
    elif sinks:
        used.insert(0, (0, sinks))
    return tuple((first, stop - first) for first, stop in used)


def _slices(sinks: int, ring: int, position: int, count: int) -> list[slice]:
    pieces = []
    while count > 0:
        slot, run = _run(sinks, ring, position, count)
        pieces.append(slice(slot, slot + run))
        position += run
        count -= run
    return pieces


def _run(sinks: int, ring: int, position: int, count: int) -> tuple[int, int]:
    if position < sinks:
        return position, min(count, sinks - position)
    offset = (position - sinks) % ring
    return sinks + offset, min(count, ring - offset)


def _zeros(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On the CPU in pages that take memory as they are touched: a sequence holds what it has, not what it may become.

    Raises DoesNotFitError there, torch.OutOfMemoryError elsewhere.
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    heads, slots, dim = shape
    size = heads * slots * dim * dtype.itemsize
    try:
        memory = Reservation(size)
        for first in range(0, size, COMMIT):
            memory.commit(first, min(COMMIT, size - first))
    except native.OutOfMemoryError as error:
        raise DoesNotFitError(
            f"no memory for {format_bytes(size)} of a window in one layer.", "Lower --window or --ctx."
        ) from error
    return memory.tensor(dtype, shape, (slots * dim, dim, 1), 0)
