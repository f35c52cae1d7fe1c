"""The GPU's kernels that score rows by their 4-bit codes, for attention/scoring_triton.py. Importing this needs Triton.

`_fold` multiplies a query by a block's steps, so that what is left to do for each row is a product of whole numbers: codes by a
query of 16 bits, which is two bytes. `_score` has the matrix units do it, whose order of rows and numbers is that of
attention/products_triton.py.

A query's 16 bits move a score by a ten-thousandth of the scores' spread, as 8 bits would by a fiftieth (docs/log.md).
"""

from __future__ import annotations

import functools

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from hgca_cli import indexing
from hgca_cli.attention.products_triton import multiply
from hgca_cli.attention.scoring import decoded
from hgca_cli.attention.select.mirror import Coded
from hgca_cli.attention.tables import CODES, FIELDS, UNIT, placed
from hgca_cli.kv.layout import LayerLayout

AT_ONCE = 4  # blocks, of a warp each
MOST_SETS = 2  # of 4 query heads, of a program; codes are read once more for others
LARGEST = tl.constexpr(127.0 * 256 + 127)  # of a query's numbers, whose bytes are -128 .. 127
ROUND = tl.constexpr(1.5 * 2**23)  # an f32 of this size has no fraction, and zeros for its 16 last bits
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _fold(  # type: ignore[no-untyped-def]
    query, steps, table, limits, limits_next, folded, lines, blocks, scale,
    GROUPED: tl.constexpr, BATCHES: tl.constexpr, SETS: tl.constexpr, KEY: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr, CODES: tl.constexpr, FIELDS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Queries times steps of blocks, as bytes in the order in which `_score` multiplies them; a score is sum * factor + base.

    For a set of 4 heads, 64 numbers, a column (a head's high bytes, its low ones) and c: numbers 8 c .. 8 c + 7 and 32 more.
    """
    own, batch = tl.program_id(0) // BATCHES, tl.program_id(0) % BATCHES
    part, sequence = tl.program_id(1), tl.program_id(2)
    head = sequence * (tl.num_programs(0) // BATCHES) + own
    rows = tl.load(limits + sequence * limits_next)
    field = table + sequence * FIELDS + CODES
    steps += (tl.load(field) + own * tl.load(field + 1)) * (UNIT // 2)
    block = (part * AT_ONCE + tl.arange(0, AT_ONCE))[:, None, None]
    group, number, copy = tl.arange(0, 4 * SETS)[None, :, None], tl.arange(0, PADDED)[None, None, :], tl.arange(0, 4)
    asks = batch * (4 * SETS) + group
    there = block * BLOCK < rows
    mask = there & (asks < GROUPED) & (number < KEY)
    # for each head anew, as queries for each block: all lies alike then
    at = steps + block * (34 * KEY) + number + group * 0
    step = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    zero = tl.load(at + KEY, mask=mask, other=0.0).to(tl.float32)
    at = query + (head * GROUPED + asks) * KEY + number + block * 0
    asked = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    product = asked * step
    base = tl.sum(asked * zero + 0.0 * product, 2, keep_dims=True)  # no number, or none so large, stays none
    large = tl.max(tl.abs(product), 2, keep_dims=True)
    large = tl.where((large > 1e-30) & (large < 1e38), large, 1.0)
    bits = (product * (LARGEST / large) + ROUND).to(tl.int32, bitcast=True)  # low bits are the nearest whole number
    store = (head.to(tl.int64) * BATCHES + batch) * blocks + block
    at = folded + store * (SETS * 8 * PADDED) + group // 4 * (8 * PADDED) + group % 4 * 128
    at += number // 64 * 512 + number // 8 % 4 * 16 + number // 32 % 2 * 8 + number % 8
    tl.store(at, ((bits + 128) >> 8).to(tl.int8), mask=there)
    tl.store(at + 64, bits.to(tl.int8), mask=there)
    at = lines + store * (SETS * 32) + group // 4 * 16 + group % 4 * 4 + copy[None, None, :]
    tl.store(at, tl.broadcast_to(large * (scale / LARGEST), [AT_ONCE, 4 * SETS, 4]), mask=there)
    tl.store(at + SETS * 16, tl.broadcast_to(base * scale, [AT_ONCE, 4 * SETS, 4]), mask=there)


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    words, table, limits, limits_next, folded, lines, scores, tops, sums, softcap, blocks, room, each,
    GROUPED: tl.constexpr, BATCHES: tl.constexpr, SETS: tl.constexpr, KEY: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr, CAPPED: tl.constexpr, CODES: tl.constexpr, FIELDS: tl.constexpr, UNIT: tl.constexpr, MATRIX: tl.constexpr,
):  # fmt: skip
    """Scores of a part's rows, and of each query head the largest and the sum of exponentials below it; a warp has a block."""
    own, batch = tl.program_id(0) // BATCHES, tl.program_id(0) % BATCHES
    part, parts, sequence = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    head = sequence * (tl.num_programs(0) // BATCHES) + own
    rows = tl.load(limits + sequence * limits_next)
    field = table + sequence * FIELDS + CODES
    words += (tl.load(field) + own * tl.load(field + 1)) * (UNIT // 4) + KEY
    store = (head.to(tl.int64) * BATCHES + batch) * blocks
    folded += store * (SETS * 2 * PADDED)
    lines += store * (SETS * 32)
    scores += head.to(tl.int64) * (GROUPED * room)
    element, set = tl.arange(0, 128)[None, None, :], tl.arange(0, SETS)[None, :, None]
    row, word = element // 16 * 4 + element % 4, element // 4 % 4
    group = (batch * SETS + set) * 4 + word
    at_word = element // 64 * (2 * KEY) + word * 16 + (element // 16 % 4 * 4 + element % 4)
    most = tl.full([AT_ONCE, SETS, 128], LOWEST, tl.float32)
    total = tl.zeros([AT_ONCE, SETS, 128], tl.float32)
    first = part * each
    end = tl.minimum(first + each, rows)
    for start in range(first, end, AT_ONCE * BLOCK):
        block = start // BLOCK + tl.arange(0, AT_ONCE)[:, None, None]
        there = block * BLOCK < end
        at = words + block * (17 * KEY) + at_word
        code = ()
        for step in tl.static_range(BLOCK // 32 * (PADDED // 32)):
            tile, step = step // (PADDED // 32), step % (PADDED // 32)
            mask = there & (step * 4 + word < KEY // 8)
            code += (tl.load(at + (tile * (4 * KEY) + step * 64), mask=mask, other=0),)  # type: ignore[assignment]
        query = ()
        for step in tl.static_range(PADDED // 64):
            one = folded + block * (SETS * 2 * PADDED) + set * (2 * PADDED) + step * 128 + element
            query += (tl.load(one, mask=there, other=0),)  # type: ignore[assignment]
        line = lines + block * (SETS * 32) + set * 16 + element % 16
        factor = tl.load(line, mask=there, other=0.0)
        base = tl.load(line + SETS * 16, mask=there, other=0.0)
        score = ()
        higher = most
        for tile in tl.static_range(BLOCK // 32):
            high, low = tl.zeros([AT_ONCE, SETS, 128], tl.int32), tl.zeros([AT_ONCE, SETS, 128], tl.int32)
            for step in tl.static_range(PADDED // 64):
                high, low = multiply(
                    code[2 * (tile * (PADDED // 64) + step)], code[2 * (tile * (PADDED // 64) + step) + 1], query[step],
                    high, low, MATRIX,
                )  # fmt: skip
            one = (high * 256 + low).to(tl.float32) * factor + base
            if CAPPED:
                one = softcap * (1.0 - 2.0 / (tl.exp(2.0 * one / softcap) + 1.0))  # tanh
            at_row = block * BLOCK + tile * 32 + row
            one = tl.where(at_row < end, one, float("-inf"))
            tl.store(scores + group * room + at_row, one, mask=there & (group < GROUPED))
            higher = tl.maximum(higher, one)
            score += (one,)  # type: ignore[assignment]
        total = total * tl.exp(most - higher)
        for tile in tl.static_range(BLOCK // 32):
            total += tl.exp(score[tile] - higher)
        most = higher
    most = tl.reshape(most, [AT_ONCE, SETS, 8, 4, 4])
    top = tl.max(tl.max(tl.max(most, 4), 2), 0)
    total = tl.reshape(total, [AT_ONCE, SETS, 8, 4, 4]) * tl.exp(most - top[None, :, None, :, None])
    total = tl.sum(tl.sum(tl.sum(total, 4), 2), 0)
    group = (batch * SETS + tl.arange(0, SETS))[:, None] * 4 + tl.arange(0, 4)[None, :]
    line = (head * GROUPED + group) * parts + part
    tl.store(tops + line, tl.where(first < rows, top, float("-inf")), mask=group < GROUPED)
    tl.store(sums + line, total, mask=group < GROUPED)


class Scores:
    """Of up to so many sequences of layers of one shape, with room for so many rows each, whole parts.

    Queries times steps take 8 bytes of a block, number and 4 query heads: 1 KiB of a block of 32 / 8 / 128 and KV head, an eighth
    of its codes. It is written and read again within a layer; layers use the same memory. matrix: on matrix units, None: where they
    do it right. Without them it takes a GPU many times as long.
    """

    def __init__(
        self, layout: LayerLayout, sequences: int, room: int, device: torch.device, *, matrix: bool | None = None
    ) -> None:
        self._group = layout.heads // layout.kv_heads
        self._sets = min(MOST_SETS, triton.cdiv(self._group, 4))
        self._batches = triton.cdiv(self._group, 4 * self._sets)
        self._layout, self._blocks, self._room = layout, room // indexing.BLOCK, room
        self._padded = max(64, triton.next_power_of_2(layout.key_dim))
        count = sequences, layout.kv_heads, self._batches, self._blocks, self._sets
        self._folded = torch.empty(*count, 8 * self._padded, dtype=torch.int8, device=device)
        self._lines = torch.empty(*count, 32, device=device)  # factors and bases of 4 heads, each 4 times
        self.memory = self._folded, self._lines
        self.matrix = matrix_units(self._group, layout.key_dim, device) if matrix is None else matrix

    def make(
        self,
        query: Tensor,
        codes: Tensor,
        table: Tensor,
        limits: Tensor,
        scores: Tensor,
        tops: Tensor,
        sums: Tensor,
        *,
        each: int,
        scale: float,
        softcap: float,
        part: slice,
    ) -> None:
        """Write scores f32 [sequences, heads, room] of rows that are there, and of each part of `each` rows and head, f32
        [sequences, heads, parts], the largest and the sum of exponentials below it. codes: the tables' anchor; part: which of all
        sequences these are.
        """
        folded, lines, heads = self._folded[part], self._lines[part], self._layout.kv_heads * self._batches
        shape = {
            "GROUPED": self._group, "BATCHES": self._batches, "SETS": self._sets, "KEY": self._layout.key_dim,
            "PADDED": self._padded, "AT_ONCE": AT_ONCE, "BLOCK": indexing.BLOCK,
            "CODES": CODES, "FIELDS": FIELDS, "UNIT": UNIT, "num_warps": AT_ONCE,
        }  # fmt: skip
        after, count = limits.stride(0), len(limits)
        _fold[(heads, triton.cdiv(self._blocks, AT_ONCE), count)](
            query.contiguous(), codes.view(torch.bfloat16), table, limits, after, folded, lines, self._blocks, scale, **shape
        )  # fmt: skip
        _score[(heads, tops.shape[2], count)](
            codes.view(torch.int32), table, limits, after, folded.view(torch.int32), lines, scores, tops, sums, softcap or 1.0,
            self._blocks, self._room, each, CAPPED=softcap > 0.0, MATRIX=self.matrix, **shape,
        )  # fmt: skip


@functools.cache
def matrix_units(group: int, dim: int, device: torch.device) -> bool:
    """Whether a GPU has the matrix units and Triton lays out what they are to multiply as they want it, found by trying."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    rng, rows = torch.Generator().manual_seed(0), AT_ONCE * indexing.BLOCK
    codes = torch.randint(256, (1, AT_ONCE, indexing.block_bytes(dim)), dtype=torch.uint8, generator=rng)
    codes[..., : 4 * dim] = torch.rand(1, AT_ONCE, 2 * dim, generator=rng).bfloat16().view(torch.uint8)
    query = torch.randn(1, group, dim, generator=rng)
    wanted = query[0] @ decoded(codes, dim)[0].mT
    means = torch.zeros(1, AT_ONCE, 32, dtype=torch.bfloat16, device=device)
    there = codes.to(device)
    window = torch.zeros(1, 1, 64, device=device)
    places = placed([(window, window)], [Coded(there, means)])
    limits = torch.tensor([[rows, 0, 0, 0, 0]], device=device)
    scores, tops = torch.zeros(1, group, rows, device=device), torch.zeros(2, 1, group, 1, device=device)
    trial = Scores(LayerLayout(group, 1, dim, dim), 1, rows, device, matrix=True)
    asked = query.to(device), places.codes, places.table, limits, scores, tops[0], tops[1]
    trial.make(*asked, each=rows, scale=1.0, softcap=0.0, part=slice(None))
    return bool((scores[0].cpu() - wanted).abs().max() <= 1e-3 * wanted.abs().max())
