"""Weights in fewer bytes: exactly, where what a GGUF file held is found again in the numbers that were made from it, or rounded."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hgca_cli import native

BLOCK = 32  # numbers of a row that share a scale
TILE = 16  # rows that lie together
ROWS_AT_ONCE = 4096  # of a matrix, whole tiles, while it is made floats or halves of: bounds the memory that takes
FLOATS4 = 5  # in place of a grid's bits: floats of 4 bits (hf/float4.py)
BYTES = {8: 34, 4: 20, FLOATS4: 18}  # of a row's block
TWICE = (0, 1, 2, 3, 4, 6, 8, 12)  # what a float of 4 bits is, by its code; from code 8 on it is less than 0
AT_ONCE = 1 << 19  # numbers of a matrix while its grid is looked for (docs/log.md)


class Grid(NamedTuple):
    """Weights as whole numbers times a scale, blocks of 32 along a row: w = scale * q + smallest.

    tiles  uint8 [outputs / 16 rounded up, inputs / 32, bytes], as native/hgca.h has them under hgca_linear: 16 rows
           together, of each block their fp16 scales, with 4 bits also their smallest numbers, then their codes
    bits   8 or 4, of a code; FLOATS4: of 4 bits, which are a float
    """

    tiles: Tensor
    bits: int


def find_grid(weight: Tensor) -> Grid | None:
    """The grid on which every number of a weight [outputs, inputs] stands exactly, None if there is none.

    What is looked for are GGUF's Q8_0 and Q4_1 (and Q4_0): scales are fp16 numbers, and each block has one of the
    grid's outermost numbers in it, as the formats' quantisers see to.
    """
    if weight.dtype != torch.float32 or weight.shape[1] % BLOCK:
        return None
    rows = max(TILE, AT_ONCE // max(1, weight.shape[1]) // TILE * TILE)
    for bits, on_grid in ((4, _on_grid4), (8, _on_grid8)):
        parts = []
        for piece in weight.split(rows):
            found = on_grid(piece.detach().unflatten(1, (-1, BLOCK)))
            if found is None:
                break
            parts.append(found)
        else:
            return Grid(torch.cat(parts), bits)
    return None


def readable(weight: Tensor) -> bool:
    """Whether a weight [outputs, inputs] is of a kind and in a place the C library reads."""
    return (
        weight.dim() == 2
        and weight.is_cpu
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and weight.numel() > 0
        and weight.stride(1) == 1
    )


def takes(weight: Tensor) -> bool:
    """Whether a weight [outputs, inputs] can be rounded onto a grid."""
    return readable(weight) and weight.shape[1] % BLOCK == 0


def tiles_shape(weight: Tensor, bits: int) -> tuple[int, int, int]:
    """The shape of a grid's tiles for a weight [outputs, inputs]."""
    outputs, inputs = weight.shape
    return -(-outputs // TILE), inputs // BLOCK, TILE * BYTES[bits]


def round_to_grid(weight: Tensor, bits: int, tiles: Tensor) -> float:
    """Round a weight that this module `takes` onto a grid, into `tiles` (uint8, of `tiles_shape`); how: native/hgca_model.h.

    Returns what that took, of a tile's norm, where most; infinity, and the tiles mean nothing, if a number is not finite
    or too large (beyond 65504 times its largest code).
    """
    assert takes(weight) and tiles.is_contiguous() and tiles.shape == tiles_shape(weight, bits)
    described, lost = native.ffi.new("hgca_weights *"), native.ffi.new("float *")
    described.weight, described.row_bytes = native.address(weight), weight.stride(0) * weight.element_size()
    described.outputs, described.inputs = weight.shape
    described.kind = native.DTYPES[weight.dtype]
    kind = native.lib.HGCA_GRID4 if bits == 4 else native.lib.HGCA_GRID8
    native.check(native.lib.hgca_pack(described, kind, tiles.data_ptr(), lost))
    return math.sqrt(lost[0])


def floats(grid: Grid, rows: Tensor) -> Tensor:
    """The numbers of some rows of a grid, f32 [rows, inputs]; rows: their places, i64 [rows]."""
    count = 2 if grid.bits == 4 else 1
    factors, codes = grid.tiles.split([2 * TILE * count, grid.tiles.shape[2] - 2 * TILE * count], dim=2)
    tile, place = rows // TILE, rows % TILE
    scale, *smallest = (
        part[tile, :, place].view(torch.float16).float() for part in factors.unflatten(2, (count, TILE, 2)).unbind(2)
    )
    lines = codes.unflatten(2, (-1, TILE, 4))[tile, :, :, place]  # row, block, line, byte
    numbers = lines.view(torch.int8) if grid.bits == 8 else torch.stack([lines & 15, lines >> 4], dim=3)
    if grid.bits == FLOATS4:
        numbers = torch.tensor([*TWICE, *(-one for one in TWICE)])[numbers.int()]
    numbers = numbers.flatten(2).float() * scale
    return (numbers + smallest[0] if smallest else numbers).flatten(1)


def find_halves(weight: Tensor) -> Tensor | None:
    """float32 weights as bf16 or f16, if those hold every number exactly; None if not."""
    if weight.dtype != torch.float32:
        return None
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(piece.to(dtype).float(), piece) for piece in weight.detach().split(ROWS_AT_ONCE)):
            return weight.detach().to(dtype)
    return None


def float4_tiles(scale: Tensor, codes: Tensor) -> Tensor:
    """Tiles of floats of 4 bits: scale f32 [outputs, blocks, 1] of twice their values, codes uint8 [outputs, blocks, 32]."""
    return _tiles([scale], _halves(codes))


def _on_grid4(blocks: Tensor) -> Tensor | None:
    """blocks f32 [outputs, blocks, 32] -> tiles."""
    smallest, largest = blocks.aminmax(dim=-1, keepdim=True)
    scale = ((largest - smallest) / 15).half().float()
    numbers = _numbers(blocks - smallest, scale)
    if not torch.equal(numbers * scale + smallest, blocks) or bool((numbers > 15).any()):
        return None
    if not torch.equal(smallest.half().float(), smallest):
        return None
    return _tiles([scale, smallest], _halves(numbers.to(torch.uint8)))


def _halves(codes: Tensor) -> Tensor:
    """[outputs, blocks, 32] -> lines of tiles, two codes a byte."""
    parts = _by_tiles(codes).unflatten(3, (4, 2, 4))  # line, half, byte
    return (parts[..., 0, :] | parts[..., 1, :] << 4).transpose(2, 3)


def _on_grid8(blocks: Tensor) -> Tensor | None:
    """blocks f32 [outputs, blocks, 32] -> tiles."""
    scale = (blocks.abs().amax(dim=-1, keepdim=True) / 127).half().float()
    numbers = _numbers(blocks, scale)
    if not torch.equal(numbers * scale, blocks) or bool((numbers.abs() > 127).any()):
        return None
    codes = _by_tiles(numbers.to(torch.int8).view(torch.uint8)).unflatten(3, (8, 4))  # line, byte
    return _tiles([scale], codes.transpose(2, 3))


def _numbers(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / torch.where(scale == 0, 1.0, scale)).round_()


def _by_tiles(blocks: Tensor) -> Tensor:
    """[outputs, blocks, any] -> [tiles, blocks, 16, any], rows of zeros at the end."""
    padded = nn.functional.pad(blocks, (0, 0, 0, 0, 0, -len(blocks) % TILE))
    return padded.unflatten(0, (-1, TILE)).transpose(1, 2)


def _tiles(factors: list[Tensor], codes: Tensor) -> Tensor:
    """factors [outputs, blocks, 1]; codes [tiles, blocks, ...] -> [tiles, blocks, bytes]."""
    halves = [_by_tiles(factor).half().view(torch.uint8).flatten(2) for factor in factors]
    return torch.cat([*halves, codes.flatten(2)], dim=2)
