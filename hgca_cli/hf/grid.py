"""Weights in fewer bytes, exactly: what a GGUF file held is found again in the numbers that were made from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32  # numbers of a row that share a scale
ROWS_AT_ONCE = 4096  # of a matrix, while its grid is looked for: bounds the memory that takes


class Grid(NamedTuple):
    """Weights as whole numbers times a scale, blocks of 32 along a row: w = scale * q + smallest.

    numbers  8 bits: int8 [outputs, inputs]; 4 bits: uint8 [outputs, inputs / 2], of a block's 16 bytes the lower halves
             are its numbers 0 .. 15, the upper ones 16 .. 31
    factors  f32 [outputs, inputs / 32] scales; 4 bits: [outputs, 2, inputs / 32], scales and smallest numbers
    """

    numbers: Tensor
    factors: Tensor


def find_grid(weight: Tensor) -> Grid | None:
    """The grid on which every number of a weight [outputs, inputs] stands exactly, None if there is none.

    What is looked for are GGUF's Q8_0 and Q4_1 (and Q4_0): scales are fp16 numbers, and each block has one of the
    grid's outermost numbers in it, as the formats' quantisers see to.
    """
    if weight.dtype != torch.float32 or weight.shape[1] % BLOCK:
        return None
    for on_grid in (_on_grid4, _on_grid8):
        parts = []
        for piece in weight.split(ROWS_AT_ONCE):
            found = on_grid(piece.detach().unflatten(1, (-1, BLOCK)))
            if found is None:
                break
            parts.append(found)
        else:
            return Grid(torch.cat([part.numbers for part in parts]), torch.cat([part.factors for part in parts]))
    return None


def find_halves(weight: Tensor) -> tuple[Tensor] | None:
    """float32 weights as bf16 or f16, if those hold every number exactly; None if not."""
    if weight.dtype != torch.float32:
        return None
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(piece.to(dtype).float(), piece) for piece in weight.detach().split(ROWS_AT_ONCE)):
            return (weight.detach().to(dtype),)
    return None


def _on_grid4(blocks: Tensor) -> Grid | None:
    """blocks f32 [outputs, blocks, 32]."""
    smallest, largest = blocks.aminmax(dim=-1, keepdim=True)
    scale = ((largest - smallest) / 15).half().float()
    numbers = _numbers(blocks - smallest, scale)
    if not torch.equal(numbers * scale + smallest, blocks) or bool((numbers > 15).any()):
        return None
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return Grid((low | high << 4).flatten(1), torch.stack([scale, smallest], dim=1).flatten(2))


def _on_grid8(blocks: Tensor) -> Grid | None:
    """blocks f32 [outputs, blocks, 32]."""
    scale = (blocks.abs().amax(dim=-1, keepdim=True) / 127).half().float()
    numbers = _numbers(blocks, scale)
    if not torch.equal(numbers * scale, blocks) or bool((numbers.abs() > 127).any()):
        return None
    return Grid(numbers.to(torch.int8).flatten(1), scale.flatten(1))


def _numbers(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / torch.where(scale == 0, 1.0, scale)).round_()
