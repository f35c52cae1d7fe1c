"""Rows on their way from the window to the store: an asynchronous copy, settled before anyone reads the store.

On CUDA the rows are set aside on the device, and copied from there into pinned memory on a stream beside the main one; the host waits
for it only when the layer is next used, one token later. On the CPU setting them aside is all there is.

What the store and its index take can be made before the rows leave (`Ahead`): they are in the window until then, and do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from hgca_cli.kv.store import Store, unscaled
from hgca_cli.kv.window import Window

Pieces = list[tuple[Tensor, Tensor]]  # keys, values [kv_heads, n, dim]


class Ahead(Protocol):
    """Work on the oldest rows of one layer's window, begun while they are in it: copies, and what the store takes of them.

    pieces  the copies, in CPU memory; copied: when they are there, if that is to be waited for
    """

    pieces: Pieces
    copied: torch.cuda.Event | None

    def is_oldest(self, window: Window, count: int) -> bool:
        """Whether it is about just the oldest so many rows of the layer's window."""
        ...

    def arrive(self) -> bool:
        """The work is done, and the rows are the store's; False: they have to be appended as any others. Errors other than
        DoesNotFitError, which whoever appends them gets.
        """
        ...

    def drop(self) -> None:
        """It is not wanted any more, and not at the store any more."""
        ...


class Evictor:
    """Moves rows of one layer and one sequence to its store, in order, in two steps: `start` and `settle`.

    ahead  what was begun for the rows that leave next, or was for those on their way
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._stream = _stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._staged: Pieces = []
        self.ahead: Ahead | None = None

    @property
    def pending(self) -> int:
        """Rows started and not yet in the store."""
        if not self._staged:  # asked of every layer at every token
            return 0
        return sum(key.shape[1] for key, _ in self._staged)

    def start(self, pieces: Pieces) -> None:
        """Begin to copy (keys, values) [kv_heads, n, dim] pieces; the store has them after `settle`.

        The caller may overwrite the source on the device's current stream at once.
        """
        self.stay()
        if self._stream is None:
            self._staged += [(key.clone(), value.clone()) for key, value in pieces]
            return
        main = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            aside = [[one.clone(memory_format=torch.contiguous_format) for one in piece] for piece in pieces]
            done = self._stream.record_event()
            self._staged += [(_pinned_copy(key), _pinned_copy(value)) for key, value in aside]
            self._copied = self._stream.record_event(torch.cuda.Event(blocking=True))  # whoever waits sleeps
        main.wait_event(done)  # a thirtieth of what the copies to the host take: 0.3 ms a layer of 4,096 rows

    def started(self, pieces: Pieces, copied: torch.cuda.Event | None) -> None:
        """As `start`, of what `copy_oldest` copies."""
        self.stay()
        self._staged += pieces
        self._copied = copied

    def leave(self) -> None:
        """What is `ahead` is of rows that are on their way now; none was."""
        assert self.ahead is not None and not self._staged
        self._staged += self.ahead.pieces
        self._copied = self.ahead.copied

    def stay(self) -> None:
        """Rows that were to leave next may be others, or the store: what was begun for them is dropped."""
        if self.ahead is not None and not self._staged:
            self.drop()

    def drop(self) -> None:
        """What is `ahead` is not wanted any more; rows on their way go on as any others."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            ahead.drop()

    def settle(self) -> bool:
        """Wait for the copies and append the rows to the store; whether there were any."""
        if not self._staged:
            return False
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead.arrive():
            del self._staged[: len(ahead.pieces)]
        self._wait()
        while self._staged:  # what memory was refused for comes the next time
            self._store.append(*self._staged[0])
            self._staged.pop(0)
        return True

    def take_back(self, window: Window, start: int, end: int) -> None:
        """Rows at positions start .. end - 1, as far as they left the window, are its oldest again, and neither on their way nor in the
        store; nor are later ones. Where they are stored already the window gets them as they are there.
        """
        self.drop()
        self._wait()
        store, first, end = self._store, start - window.sinks, min(end, window.start)
        stored = slice(first, store.rows)
        scales = None if store.scales is None else store.scales[:, stored]
        at = window.sinks + min(first, store.rows)
        for key, value in [unscaled(store.keys[:, stored], store.values[:, stored], scales), *self._staged]:
            rows = slice(max(0, start - at), max(0, end - at))
            window.put_back(at + rows.start, key[:, rows], value[:, rows])
            at += key.shape[1]
        store.truncate(first)
        self.cut(first - store.rows)
        window.start = min(start, window.start)

    def cut(self, rows: int) -> None:
        """Of what is on its way only the first so many rows go on."""
        if self.pending <= rows:
            return
        self.drop()
        self._wait()
        staged, self._staged = self._staged, []
        for key, value in staged:
            if rows > 0:
                self._staged.append((key[:, :rows], value[:, :rows]))
            rows -= key.shape[1]

    def _wait(self) -> None:
        """The device is done with the copies."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None


def evict_oldest(window: Window, evictor: Evictor, count: int) -> None:
    """Send the oldest `count` rows of the ring to the store and free their slots."""
    evictor.start(window.oldest(count))
    window.drop_oldest(count)


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all layers: what is set aside by one is in memory that the next one's is in after it."""
    return torch.cuda.Stream(device)


def evict_oldest_together(windows: Sequence[Window], evictors: Sequence[Evictor], count: int) -> None:
    """As evict_oldest of each, of windows of one shape in one state: on a GPU in a few copies for all of them."""
    if all(
        one.ahead is not None and one.ahead.is_oldest(window, count)
        for window, one in zip(windows, evictors, strict=True)
    ):
        for evictor in evictors:
            evictor.leave()
    else:
        copies, copied = copy_oldest(windows, count)
        for evictor, pieces in zip(evictors, copies, strict=True):
            evictor.started(pieces, copied)
    for window in windows:
        window.drop_oldest(count)


def copy_oldest(windows: Sequence[Window], count: int) -> tuple[list[Pieces], torch.cuda.Event | None]:
    """Copies in CPU memory, begun, of the oldest `count` rows of windows of one shape in one state; when they are there."""
    first = windows[0]
    assert all(one.start == first.start and one.end == first.end for one in windows), "layers move together"
    if not first.keys.is_cuda:
        return [[(key.clone(), value.clone()) for key, value in one.oldest(count)] for one in windows], None
    slots = first.slices(first.start, count)
    stream = _stream(first.keys.device)
    keys, values = (
        [torch.stack([rows[:, piece] for rows in of]) for piece in slots]
        for of in ([one.keys for one in windows], [one.values for one in windows])
    )
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        staged = [(_pinned_copy(key), _pinned_copy(value)) for key, value in zip(keys, values, strict=True)]
        for one in (*keys, *values):
            one.record_stream(stream)
        copied = stream.record_event(torch.cuda.Event(blocking=True))  # whoever waits sleeps
    return [[(key[index], value[index]) for key, value in staged] for index in range(len(windows))], copied


def _pinned_copy(source: Tensor) -> Tensor:
    # torch caches pinned blocks, so this allocates only the first times
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return target.copy_(source, non_blocking=True)
