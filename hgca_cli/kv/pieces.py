"""The store comes to where the model computes piece by piece: rows of some KV heads, in buffers that are used again and again.

HeadInfer's idea (arXiv:2502.12574): what the device must hold beside weights and windows is bounded, however long the
text. On a GPU there are two buffers: while one piece is attended to, the next one is copied, on a stream of its own out of
pinned memory. On the CPU rows of the model's dtype are read where they are, and others are converted into one buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store


class Piece(NamedTuple):
    """Rows of some KV heads, valid until the next piece is asked for."""

    heads: slice
    key: Tensor  # [heads, n, key_dim], where the model computes and in its dtype
    value: Tensor  # [heads, n, value_dim]


class Pieces:
    """The buffers, for all layers of a cache: one layer is read at a time.

    buffers  by what they are for, side and device
    apart    rows are copied as to a GPU, though the device may be the CPU; None: where the device is none
    """

    def __init__(self, *, apart: bool | None = None) -> None:
        self._apart = apart
        self.buffers: dict[tuple[str, int, torch.device], Tensor] = {}
        self._lane: _Lane | None = None

    def of(self, store: Store, layout: LayerLayout, device: torch.device, dtype: torch.dtype) -> Iterator[Piece]:
        """Every row of a store, on a device and in a dtype, oldest first."""
        if device.type != "cpu" if self._apart is None else self._apart:
            yield from self._copied(store, layout, device, dtype)
        elif store.dtype == dtype:
            if store.rows:
                yield Piece(slice(None), store.keys[:, : store.rows], store.values[:, : store.rows])
        else:
            for heads, rows in cut(store, layout):
                yield self._converted(store.packed[heads, rows], _scales(store, heads, rows), heads, layout, dtype)

    def _converted(
        self, packed: Tensor, scales: Tensor | None, heads: slice, layout: LayerLayout, dtype: torch.dtype
    ) -> Piece:
        """Rows [key | value], and the scales of int8 ones, where they are to be used, in another dtype."""
        made = self._buffer("converted", 0, packed.device, packed.numel() * dtype.itemsize).view(dtype)
        made = made[: packed.numel()].view(packed.shape)
        key, value = made[..., : layout.key_dim], made[..., layout.key_dim :]
        made.copy_(packed)
        if scales is not None:  # multiplied in float32 and rounded once
            key.mul_(scales[..., :1])
            value.mul_(scales[..., 1:])
        return Piece(heads, key, value)

    def _copied(self, store: Store, layout: LayerLayout, device: torch.device, dtype: torch.dtype) -> Iterator[Piece]:
        """Two pieces at a time: the next is on its way while one is used."""
        lane = self._lane = self._lane or _Lane(device)
        pieces = list(cut(store, layout, gpu=device.type == "cuda"))
        coming = [self._send(store, piece, 0, device, lane) for piece in pieces[:1]]
        for number, (heads, _) in enumerate(pieces):
            if number + 1 < len(pieces):
                coming.append(self._send(store, pieces[number + 1], (number + 1) % 2, device, lane))
            lane.arrive(number % 2)
            packed, scales = coming.pop(0)
            if store.dtype == dtype:
                yield Piece(heads, packed[..., : layout.key_dim], packed[..., layout.key_dim :])
            else:
                yield self._converted(packed, scales, heads, layout, dtype)
            lane.used(number % 2)

    def _send(
        self, store: Store, piece: tuple[slice, slice], side: int, device: torch.device, lane: _Lane
    ) -> tuple[Tensor, Tensor | None]:
        """Start a piece on its way: into pinned memory by the processor, from there by the device."""
        lane.free(side)
        rows = self._copy("rows", store.packed[piece], side, device, lane)
        scales = _scales(store, *piece)
        there = None if scales is None else self._copy("scales", scales, side, device, lane)
        lane.sent(side)
        return rows, there

    def _copy(self, name: str, source: Tensor, side: int, device: torch.device, lane: _Lane) -> Tensor:
        size = source.numel() * source.dtype.itemsize
        host = self._buffer(f"pinned {name}", side, torch.device("cpu"), size, pinned=lane.pins)
        staged, there = (
            buffer.view(source.dtype)[: source.numel()].view(source.shape)
            for buffer in (host, self._buffer(name, side, device, size))
        )
        staged.copy_(source)
        lane.copy(there, staged)
        return there

    def _buffer(self, name: str, side: int, device: torch.device, size: int, *, pinned: bool = False) -> Tensor:
        """At least so many bytes; memory that was too small is given back first."""
        held = self.buffers.get((name, side, device))
        if held is None or held.numel() < size:
            self.buffers.pop((name, side, device), None)
            del held
            with torch.inference_mode(False):
                held = torch.empty(-(-size // 16) * 16, dtype=torch.uint8, device=device, pin_memory=pinned)
            self.buffers[name, side, device] = held
            if self._lane is not None:
                self._lane.made()
        return held


class _Lane:
    """The order of copies and use. side: of the two buffers. Without a GPU everything happens when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.pins = device.type == "cuda"
        self._device = device
        self._stream = torch.cuda.Stream(device) if self.pins else None
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None, None]

    def made(self) -> None:
        """A buffer is new: its memory may be another tensor's of before, which the main stream is not done with."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def free(self, side: int) -> None:
        """The pinned buffer was read, and the device's is free once what used it is done."""
        sent, used = self._sent[side], self._used[side]
        if sent is not None:
            sent.synchronize()
        if self._stream is not None and used is not None:
            self._stream.wait_event(used)

    def copy(self, target: Tensor, staged: Tensor) -> None:
        """On the side stream."""
        if self._stream is None:
            target.copy_(staged)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(staged, non_blocking=True)

    def sent(self, side: int) -> None:
        """All copies of a piece are asked for."""
        if self._stream is not None:
            self._sent[side] = self._stream.record_event()

    def arrive(self, side: int) -> None:
        """What comes next on the main stream waits for the piece."""
        sent = self._sent[side]
        if sent is not None:
            torch.cuda.current_stream(self._device).wait_event(sent)

    def used(self, side: int) -> None:
        """What used the piece has been asked for."""
        if self._stream is not None:
            self._used[side] = torch.cuda.current_stream(self._device).record_event()


def cut(store: Store, layout: LayerLayout, *, gpu: bool = False) -> Iterator[tuple[slice, slice]]:
    """Heads and rows of each piece: one group of heads after the other, oldest rows first."""
    heads, rows = layout.piece(store.rows, gpu=gpu)
    for head in range(0, layout.kv_heads, heads):
        for first in range(0, store.rows, rows):
            yield slice(head, min(head + heads, layout.kv_heads)), slice(first, min(first + rows, store.rows))


def _scales(store: Store, heads: slice, rows: slice) -> Tensor | None:
    return None if store.scales is None else store.scales[heads, rows]
