"""Rows on their way from the window to the store: an asynchronous copy, settled before anyone reads the store.

On CUDA the rows are set aside on the device, and copied from there into pinned memory on a stream beside the main one; the host waits
for it only when the layer is next used, one token later. On the CPU setting them aside is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hgca_cli.kv.store import Store
from hgca_cli.kv.window import Window


class Evictor:
    """Moves rows of one layer and one sequence to its store, in order, in two steps: `start` and `settle`."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._stream = _stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._staged: list[tuple[Tensor, Tensor]] = []

    @property
    def pending(self) -> int:
        """Rows started and not yet in the store."""
        if not self._staged:  # asked of every layer at every token
            return 0
        return sum(key.shape[1] for key, _ in self._staged)

    def start(self, pieces: list[tuple[Tensor, Tensor]]) -> None:
        """Begin to copy (keys, values) [kv_heads, n, dim] pieces; the store has them after `settle`.

        The caller may overwrite the source on the device's current stream at once.
        """
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

    def start_together(self, others: Sequence[Evictor], keys: list[Tensor], values: list[Tensor]) -> None:
        """As `start` of this one and others, whose pieces lie side by side: [evictors, kv_heads, n, dim] each. Only on a GPU."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            staged = [(_pinned_copy(key), _pinned_copy(value)) for key, value in zip(keys, values, strict=True)]
            for one in (*keys, *values):
                one.record_stream(self._stream)
            copied = self._stream.record_event()
        for index, evictor in enumerate((self, *others)):
            evictor._staged += [(key[index], value[index]) for key, value in staged]
            evictor._copied = copied

    def settle(self) -> bool:
        """Wait for the copies and append the rows to the store; whether there were any."""
        if not self._staged:
            return False
        self._wait()
        while self._staged:  # what memory was refused for comes the next time
            self._store.append(*self._staged[0])
            self._staged.pop(0)
        return True

    def give_up(self) -> None:
        """What is on its way stays where it came from."""
        self._wait()
        self._staged.clear()

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
    first = windows[0]
    assert all(one.start == first.start and one.end == first.end for one in windows), "layers move together"
    if not first.keys.is_cuda:
        for window, evictor in zip(windows, evictors, strict=True):
            evict_oldest(window, evictor, count)
        return
    pieces = first.slices(first.start, count)
    keys, values = (
        [torch.stack([rows[:, piece] for rows in of]) for piece in pieces]
        for of in ([one.keys for one in windows], [one.values for one in windows])
    )
    evictors[0].start_together(evictors[1:], keys, values)
    for window in windows:
        window.drop_oldest(count)


def _pinned_copy(source: Tensor) -> Tensor:
    # torch caches pinned blocks, so this allocates only the first times
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return target.copy_(source, non_blocking=True)
