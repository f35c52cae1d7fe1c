"""The way of a store's rows to a GPU: it copies those in registered memory from where they are (pinning.py); of others, threads copy
them into pinned memory, from where the device fetches them.

The thread that starts the device's work does not copy: one processor moves 7 GB/s, which is less than a prompt wants, and while it
does nothing else is started. Without a GPU the same happens to ordinary memory.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.kv.layout import copying_threads
from hgca_cli.kv.worker import worker

SIDES = 2  # buffers, of which one is used while the other is filled
PART = 4 << 20  # bytes that one thread copies at a time; the device fetches them while it copies the next


class Lane:
    """The order of copies and use, on each side. What a method asks of a device happens on its current stream."""

    def __init__(self, device: torch.device) -> None:
        self.pins = device.type == "cuda"
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(SIDES)] if self.pins else None
        self._sent: list[torch.cuda.Event | None] = [None] * SIDES
        self._used: list[torch.cuda.Event | None] = [None] * SIDES
        self._tasks: list[list[Future[None]]] = [[] for _ in range(SIDES)]
        self._sending = [False] * SIDES
        self._threads = copying_threads(native.usable_processors())

    def made(self, side: int, buffer: Tensor) -> None:
        """A buffer is new: its memory may be another tensor's of before, which the main stream is not done with; and nobody else gets
        it while something is still on its way to it.
        """
        if self._streams is not None:
            if buffer.is_cuda:
                buffer.record_stream(self._streams[side])
            self._streams[side].wait_stream(torch.cuda.current_stream(self._device))

    def send(
        self, side: int, copies: list[tuple[Tensor, Tensor, Tensor]], direct: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> str | None:
        """Start tensors on their way: as soon as what came before was read and used.

        copies   (source, pinned, there) [heads, n, width], which threads copy first
        direct   (source, there), each in memory that is registered: the device copies them from where they are
        returns  what was wrong with these, if anything was; they are on their way then, too
        """
        self.still(side)
        stream, sent, used = None, self._sent[side], self._used[side]
        if self._streams is not None:
            stream = self._streams[side]
            if used is not None:
                stream.wait_event(used)
        self._sending[side] = bool(copies or direct)
        pool = worker("stage", self._threads)
        for copy in copies:
            self._tasks[side] += [pool.submit(_carry, *part, stream, sent) for part in _parts(*copy)]
        return _fetch(direct, stream)

    def arrive(self, side: int) -> None:
        """What comes next on the main stream waits for all of it. Raises what went wrong on the way."""
        tasks = self._tasks[side]
        self.still(side)
        for task in tasks:
            task.result()

    def still(self, side: int) -> None:
        """Nobody is copying on this side, and what comes next on the main stream waits for what was copied."""
        if not self._sending[side]:
            return
        wait(self._tasks[side])
        self._tasks[side] = []
        self._sending[side] = False
        if self._streams is not None:
            sent = self._sent[side] = self._streams[side].record_event(torch.cuda.Event(blocking=True))  # threads sleep
            torch.cuda.current_stream(self._device).wait_event(sent)

    def used(self, side: int) -> None:
        """What used it has been asked for."""
        if self._streams is not None:
            self._used[side] = torch.cuda.current_stream(self._device).record_event()


def _parts(source: Tensor, pinned: Tensor, there: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of one head, whose bytes lie one behind the other."""
    rows = max(1, PART // (source.shape[-1] * source.dtype.itemsize))
    for head in range(source.shape[0]):
        for first in range(0, source.shape[1], rows):
            part = slice(first, first + rows)
            yield source[head, part], pinned[head, part], there[head, part]


@contextlib.contextmanager
def _aside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """On a stream, if there is one; in inference mode, which is a thread's own: views made in it can be written in it alone."""
    with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream), torch.inference_mode():
        yield


def _fetch(direct: Sequence[tuple[Tensor, Tensor]], stream: torch.cuda.Stream | None) -> str | None:
    """Ask the device for copies; why it would not take one, which goes by other memory then."""
    trouble = None
    with _aside(stream):
        for source, there in direct:
            if trouble is None:
                try:
                    there.copy_(source, non_blocking=stream is not None)
                    continue
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    trouble = str(error).splitlines()[0]
            there.copy_(source.clone())
    return trouble


def _carry(
    source: Tensor, pinned: Tensor, there: Tensor, stream: torch.cuda.Stream | None, sent: torch.cuda.Event | None
) -> None:
    """sent: what was in the pinned memory is on the device."""
    if sent is not None:
        sent.synchronize()
    ctypes.memmove(pinned.data_ptr(), source.data_ptr(), source.numel() * source.dtype.itemsize)  # others run meanwhile
    with _aside(stream):
        there.copy_(pinned, non_blocking=stream is not None)
