"""The store comes to where the model computes piece by piece: rows of some KV heads, in buffers that are used again and again.

HeadInfer's idea (arXiv:2502.12574): what the device must hold beside weights and windows is bounded, however long the
text. On a GPU there are two buffers: while one piece is attended to, the next one is on its way (kv/lane.py). On the CPU rows of the
model's dtype are read where they are, and others are converted into one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli.kv.lane import SIDES, Lane
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
        self._lane: Lane | None = None

    def apart(self, device: torch.device) -> bool:
        """Whether rows are copied to a device."""
        return device.type != "cpu" if self._apart is None else self._apart

    def of(
        self,
        store: Store,
        layout: LayerLayout,
        device: torch.device,
        dtype: torch.dtype,
        beside: Callable[[float], None] = lambda share: None,
    ) -> Iterator[Piece]:
        """Every row of a store, on a device and in a dtype, oldest first. What is copied sets out at once.

        beside  called before a piece is waited for, with the share of the pieces that have come then: what the device can do meanwhile
        """
        if not self.apart(device):
            return self._here(store, layout, dtype)
        self._lane = self._lane or Lane(device)
        pieces = list(cut(store, layout, gpu=device.type == "cuda"))
        coming = [self._send(store, piece, number, device, self._lane) for number, piece in enumerate(pieces[:SIDES])]
        return self._copied(store, pieces, coming, layout, device, dtype, beside)

    def _here(self, store: Store, layout: LayerLayout, dtype: torch.dtype) -> Iterator[Piece]:
        """Rows in the processor's own memory."""
        if store.dtype == dtype:
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

    def _copied(
        self,
        store: Store,
        pieces: list[tuple[slice, slice]],
        coming: list[tuple[Tensor, Tensor | None]],
        layout: LayerLayout,
        device: torch.device,
        dtype: torch.dtype,
        beside: Callable[[float], None],
    ) -> Iterator[Piece]:
        """Two pieces at a time: the next is on its way while one is used."""
        lane = self._lane
        assert lane is not None
        for number, (heads, _) in enumerate(pieces):
            side = number % SIDES
            beside((number + 1) / len(pieces))
            lane.arrive(side)
            packed, scales = coming.pop(0)
            if store.dtype == dtype:
                yield Piece(heads, packed[..., : layout.key_dim], packed[..., layout.key_dim :])
            else:
                yield self._converted(packed, scales, heads, layout, dtype)
            lane.used(side)
            if number + SIDES < len(pieces):
                coming.append(self._send(store, pieces[number + SIDES], side, device, lane))

    def _send(
        self, store: Store, piece: tuple[slice, slice], side: int, device: torch.device, lane: Lane
    ) -> tuple[Tensor, Tensor | None]:
        """Start a piece on its way; where its rows and their scales will be."""
        lane.still(side)
        rows = piece[1]
        source = store.packed[piece]
        there = self._room("rows", source, side, device)
        runs = store.registered(rows)
        direct = list(_runs(source, there, runs, rows.start))
        done = runs[-1].stop // source.shape[-1] - rows.start if runs else 0
        copies = []
        if done < source.shape[1]:
            copies.append(self._staged("rows", source[:, done:], there[:, done:], side, lane))
        scales, of_scales = _scales(store, *piece), None
        if scales is not None:
            of_scales = self._room("scales", scales, side, device)
            copies.append(self._staged("scales", scales, of_scales, side, lane))
        trouble = lane.send(side, copies, direct)
        if trouble is not None and store.pinning is not None:
            store.pinning.refuse(trouble, copies=True)
        return there, of_scales

    def _room(self, name: str, source: Tensor, side: int, device: torch.device) -> Tensor:
        """Room for it on the device."""
        return _as(source, self._buffer(name, side, device, source.numel() * source.dtype.itemsize))

    def _staged(self, name: str, source: Tensor, there: Tensor, side: int, lane: Lane) -> tuple[Tensor, Tensor, Tensor]:
        """A source, room for it in pinned memory, and where it goes."""
        size = source.numel() * source.dtype.itemsize
        host = self._buffer(f"pinned {name}", side, torch.device("cpu"), size, pinned=lane.pins)
        return source, _as(source, host), there

    def _buffer(self, name: str, side: int, device: torch.device, size: int, *, pinned: bool = False) -> Tensor:
        """At least so many bytes; memory that was too small is given back first. Nothing may be on its way on that side."""
        held = self.buffers.get((name, side, device))
        if held is None or held.numel() < size:
            self.buffers.pop((name, side, device), None)
            del held
            with torch.inference_mode(False):
                held = torch.empty(-(-size // 16) * 16, dtype=torch.uint8, device=device, pin_memory=pinned)
            self.buffers[name, side, device] = held
            if self._lane is not None:
                self._lane.made(side, held)
        return held


def cut(store: Store, layout: LayerLayout, *, gpu: bool = False) -> Iterator[tuple[slice, slice]]:
    """Heads and rows of each piece: one group of heads after the other, oldest rows first."""
    heads, rows = layout.piece(store.rows, gpu=gpu)
    for head in range(0, layout.kv_heads, heads):
        for first in range(0, store.rows, rows):
            yield slice(head, min(head + heads, layout.kv_heads)), slice(first, min(first + rows, store.rows))


def _as(source: Tensor, buffer: Tensor) -> Tensor:
    return buffer.view(source.dtype)[: source.numel()].view(source.shape)


def _runs(source: Tensor, there: Tensor, runs: list[slice], first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each head of a piece [heads, n, width], whose first row is that of the store, the numbers of each run, and where they go."""
    begin = first * source.shape[-1]
    for head in range(source.shape[0]):
        for run in runs:
            part = slice(run.start - begin, run.stop - begin)
            yield source[head].view(-1)[part], there[head].view(-1)[part]


def _scales(store: Store, heads: slice, rows: slice) -> Tensor | None:
    return None if store.scales is None else store.scales[heads, rows]
