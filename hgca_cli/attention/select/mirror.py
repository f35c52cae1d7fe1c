"""A device's copy of the codes of all layers, so that rows can be scored where the query is (attention/scoring.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli import indexing
from hgca_cli.attention.select.codes import Codes
from hgca_cli.kv.layout import LayerLayout

STAGED = 2  # blocks of every layer that are copied together: what an eviction changes


class Coded(NamedTuple):
    """Of one layer: codes u8 [kv_heads, blocks, bytes] and means bf16 [kv_heads, blocks, value_dim], as of Codes."""

    codes: Tensor
    means: Tensor


class Aside(NamedTuple):
    """Blocks `first` .. of all layers, as they are with so many rows of each: [layers, kv_heads, blocks, ...], pinned for a GPU."""

    first: int
    rows: int
    codes: Tensor
    means: Tensor


class Mirror:
    """Of the layers of one sequence, which are alike, with room for `rows` rows each. layers: on the device."""

    def __init__(self, layout: LayerLayout, layers: int, rows: int, device: torch.device) -> None:
        blocks = -(-rows // indexing.BLOCK)
        sizes = (indexing.block_bytes(layout.key_dim), torch.uint8), (layout.value_dim, torch.bfloat16)
        with torch.inference_mode(False):
            self._whole = [
                torch.zeros(layers, layout.kv_heads, blocks, width, dtype=dtype, device=device)
                for width, dtype in sizes
            ]
            self._staged = [
                torch.zeros(
                    layers * layout.kv_heads * STAGED * width,
                    dtype=dtype,
                    pin_memory=device.type == "cuda",
                    device="cpu",
                )
                for width, dtype in sizes
            ]
        self.layers = [Coded(*parts) for parts in zip(*self._whole, strict=True)]
        self._of: list[Codes] = []

    def follow(self, codes: Sequence[Codes], aside: Aside | None = None) -> None:
        """Copy what changed since the last time, of every layer. There is room for it; the device is done with the last copy.

        aside  what changed in one piece, if all that did is in it
        """
        same = len(codes) == len(self._of) and all(a is b for a, b in zip(codes, self._of, strict=True))
        first = min(one.kept for one in codes) if same else 0
        end = -(-codes[0].rows // indexing.BLOCK)
        if first >= end:
            return
        ready = None
        if same and aside is not None and all((one.kept, one.rows) == (aside.first, aside.rows) for one in codes):
            ready = aside.codes, aside.means
        for at, source in enumerate(([one.whole for one in codes], [one.means for one in codes])):
            if ready is not None:
                self._whole[at][:, :, first:end].copy_(ready[at], non_blocking=True)
                continue
            if end - first > STAGED:
                for to, one in zip(self._whole[at], source, strict=True):
                    to[:, first:end].copy_(one[:, first:end])
                continue
            to_be = self._whole[at][:, :, first:end]
            # in one piece: else it goes through pageable memory
            staged = self._staged[at][: to_be.numel()].view(to_be.shape)
            for to, one in zip(staged, source, strict=True):
                to.copy_(one[:, first:end])
            to_be.copy_(staged, non_blocking=True)
        self._of = list(codes)
        for layer in codes:
            layer.kept = end
