"""The GPU's kernels of hf/grid_gpu.py: weights on a grid (hf/grid.py) times a few vectors, or as numbers of 16 bits.

A token's product waits for the weights, so each is read once, as it lies: a program's 16 rows are words of 4 bytes, of 8 or 4 numbers
of a row, one row's behind the other's. A thread takes four rows' words for the same numbers of the vector. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from hgca_cli.hf.grid import BLOCK, TILE, Grid

MOST = 4  # vectors of a program
# of a program: lines of words at once, for which each thread reads two of four words, and no vector passes through shared memory
AT_ONCE, WARPS = 128, 8
ROWS = 4  # of a program that makes numbers, whose columns are COLUMNS
COLUMNS = 512


@triton.jit
def _added(total, words, scale, smallest, x, line, lines, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a vector's products with words [lines, rows], whose numbers are scale * code, with 4 bits + smallest.

    A code is made a float by putting it into one's digits: 128 + code, or of 8 bits 256 + 128 + code. That is taken off again.
    """
    EACH: tl.constexpr = 32 // BITS
    PLACE: tl.constexpr = 16 if BITS == 4 else 15  # of a code's lowest bit in a float's digits
    part = tl.zeros(words.shape, dtype=tl.float32)
    whole = tl.zeros(line.shape, dtype=tl.float32)
    for i in tl.static_range(EACH):
        at = 8 * (i % 4) + 4 * (i // 4)
        number = tl.load(x + line * EACH + i, mask=line < lines, other=0.0).to(tl.float32)
        whole += number
        if at > PLACE:
            moved = words >> (at - PLACE)
        else:
            moved = words << (PLACE - at)
        if BITS == 4:
            code = (moved & 0x000F0000) | 0x43000000
        else:
            code = (moved & 0x007F8000) | 0x43800000
        part += code.to(tl.float32, bitcast=True) * number[:, None]
    wide = whole[:, None]
    product = (part - wide * (128.0 if BITS == 4 else 384.0)) * scale
    if BITS == 4:
        product += wide * smallest
    return total + product


@triton.jit
def _store(sums, to, vector, output, outputs, vectors):  # type: ignore[no-untyped-def]
    mask = output < tl.where(vector < vectors, outputs, 0)
    tl.store(to + (vector.to(tl.int64) * outputs + output), sums.to(to.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["vectors"])
def _product(  # type: ignore[no-untyped-def]
    x, tiles, bias, to, inputs, outputs, vectors,
    BITS: tl.constexpr, VECTORS: tl.constexpr, AT_ONCE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """16 outputs of up to VECTORS vectors; AT_ONCE lines of words in turn.

    A block's bytes: fp16 scales of 16 rows, with 4 bits their smallest numbers, BITS lines of a word of each row.
    """
    FACTORS: tl.constexpr = 16 if BITS == 4 else 8  # words of a block before its codes
    WORDS: tl.constexpr = FACTORS + 16 * BITS
    tile, first = tl.program_id(0), tl.program_id(1) * VECTORS
    lines = inputs // 32 * BITS
    own = tiles + tile.to(tl.int64) * (inputs // 32 * WORDS)
    halves = own.to(tl.pointer_type(tl.float16), bitcast=True)
    row = tl.arange(0, 16)[None, :]
    x += first.to(tl.int64) * inputs
    left = vectors - first
    sum0 = tl.zeros([AT_ONCE, 16], dtype=tl.float32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    for start in range(0, lines, AT_ONCE):
        line = start + tl.arange(0, AT_ONCE)
        lined = line[:, None]
        there, block = lined < lines, lined // BITS
        words = tl.load(own + (block * FACTORS + FACTORS + lined * 16 + row), mask=there, other=0)
        scales = halves + (block * (2 * WORDS) + row)
        scale = tl.load(scales, mask=there, other=0.0).to(tl.float32)
        smallest = scale
        if BITS == 4:
            smallest = tl.load(scales + 16, mask=there, other=0.0).to(tl.float32)
        else:
            words ^= -2139062144  # 0x80 in each byte: signed codes are 128 more then
        sum0 = _added(sum0, words, scale, smallest, x, line, lines, BITS)
        if VECTORS > 1:
            sum1 = _added(sum1, words, scale, smallest, x + inputs, line, tl.where(left > 1, lines, 0), BITS)
        if VECTORS > 2:
            sum2 = _added(sum2, words, scale, smallest, x + 2 * inputs, line, tl.where(left > 2, lines, 0), BITS)
            sum3 = _added(sum3, words, scale, smallest, x + 3 * inputs, line, tl.where(left > 3, lines, 0), BITS)
    output = tile * 16 + tl.arange(0, 16)
    more = tl.zeros([16], dtype=tl.float32)
    if BIAS:
        more = tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)
    _store(tl.sum(sum0, 0) + more, to, first, output, outputs, vectors)
    if VECTORS > 1:
        _store(tl.sum(sum1, 0) + more, to, first + 1, output, outputs, vectors)
    if VECTORS > 2:
        _store(tl.sum(sum2, 0) + more, to, first + 2, output, outputs, vectors)
        _store(tl.sum(sum3, 0) + more, to, first + 3, output, outputs, vectors)


@triton.jit
def _widen(  # type: ignore[no-untyped-def]
    tiles, to, inputs, first, rows, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Numbers of ROWS rows from `first` on, in COLUMNS columns."""
    FACTORS: tl.constexpr = 64 if BITS == 4 else 32  # bytes
    SIZE: tl.constexpr = 320 if BITS == 4 else 544
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (place < rows)[:, None] & (column < inputs)[None, :]
    row = (first + place).to(tl.int64)[:, None]
    block = (row // 16) * (inputs // 32) + (column // 32)[None, :]
    own, number = tiles + block * SIZE, (column % 32)[None, :]
    scales = own.to(tl.pointer_type(tl.float16), bitcast=True) + row % 16
    scale = tl.load(scales, mask=mask, other=0.0).to(tl.float32)
    codes = own + FACTORS + row % 16 * 4 + number % 4
    if BITS == 4:
        code = tl.load(codes + number // 8 * 64, mask=mask, other=0)
        wide = ((code >> (number % 8 // 4 * 4)) & 15).to(tl.float32) * scale
        wide += tl.load(scales + 16, mask=mask, other=0.0).to(tl.float32)
    else:
        wide = tl.load(codes + number // 4 * 64, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.float32) * scale
    tl.store(to + place.to(tl.int64)[:, None] * inputs + column[None, :], wide.to(to.dtype.element_ty), mask=mask)


def product(grid: Grid, outputs: int, x: Tensor, bias: Tensor | None) -> Tensor:
    """x [vectors, inputs], packed -> [vectors, outputs] of its dtype; sums are float32. bias: [outputs]."""
    vectors, inputs = x.shape
    to = torch.empty(vectors, outputs, dtype=x.dtype, device=x.device)
    at_once = min(MOST, triton.next_power_of_2(vectors))
    with torch.cuda.device_of(x):
        _product[(len(grid.tiles), triton.cdiv(vectors, at_once))](
            x, grid.tiles.view(torch.int32), x if bias is None else bias, to, inputs, outputs, vectors,
            BITS=grid.bits, VECTORS=at_once, AT_ONCE=AT_ONCE, BIAS=bias is not None, num_warps=WARPS,
        )  # fmt: skip
    return to


def widen(grid: Grid, first: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Numbers [rows, inputs] of rows `first` ..., which must be there."""
    inputs = grid.tiles.shape[1] * BLOCK
    assert first >= 0 and first + rows <= len(grid.tiles) * TILE
    to = torch.empty(rows, inputs, dtype=dtype, device=grid.tiles.device)
    with torch.cuda.device_of(to):
        _widen[(triton.cdiv(rows, ROWS), triton.cdiv(inputs, COLUMNS))](
            grid.tiles, to, inputs, first, rows, BITS=grid.bits, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
        )
    return to
