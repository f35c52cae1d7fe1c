"""The GPU's kernels that score rows by their 4-bit codes, for attention/scoring_triton.py. Importing this needs Triton.

`_fold` multiplies a query by a block's steps, so that what is left to do for each row is a product of whole numbers: codes by a
query of 16 bits, which is two bytes. `_score` has the matrix units do it: 16 rows by 32 numbers by 8 columns, which are both bytes
of 4 query heads. A product adds its numbers up in any order, so words of codes are passed on by the thread that read them, low
nibbles and high ones, and nothing is moved between threads.

A tile is 32 rows, and thread 4 i + c of a program's only warp has rows 4 i .. 4 i + 3 (of two products, rows i and 8 + i of each)
and every fourth word of each, from word c on. Of the result it has these rows' scores by query head c of 4. So element 16 i + 4 c + j
of a tensor of 128 is of row 4 i + j, and of word c or query head c. The matrix units need a thread to have 4 such elements in a
row, which is how Triton lays them out that are read 16 bytes at a time; nothing but tests on a GPU says that it did.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from hgca_cli import selection
from hgca_cli.attention.tables import CODES, FIELDS, UNIT
from hgca_cli.kv.layout import LayerLayout

AT_ONCE = 4  # blocks, of a warp each
MOST_SETS = 2  # of 4 query heads, of a program; codes are read once more for others
LARGEST = tl.constexpr(127.0 * 256 + 127)  # of a query's numbers, whose bytes are -128 .. 127
ROUND = tl.constexpr(1.5 * 2**23)  # an f32 of this size has no fraction, and zeros for its 16 last bits
LOWEST = tl.constexpr(-3.0e38)

# Two words of each of 4 rows, a set's queries of both, what there is so far: $8 .. $11, $12 .. $15, $16 .. $19, $20 .. $27
MULTIPLY = tl.constexpr("""{
.reg .b32 l<8>, h<8>, c<8>;
and.b32 l0, $8, 0x0f0f0f0f; and.b32 l1, $9, 0x0f0f0f0f; and.b32 l2, $10, 0x0f0f0f0f; and.b32 l3, $11, 0x0f0f0f0f;
and.b32 l4, $12, 0x0f0f0f0f; and.b32 l5, $13, 0x0f0f0f0f; and.b32 l6, $14, 0x0f0f0f0f; and.b32 l7, $15, 0x0f0f0f0f;
shr.u32 h0, $8, 4; shr.u32 h1, $9, 4; shr.u32 h2, $10, 4; shr.u32 h3, $11, 4;
shr.u32 h4, $12, 4; shr.u32 h5, $13, 4; shr.u32 h6, $14, 4; shr.u32 h7, $15, 4;
and.b32 h0, h0, 0x0f0f0f0f; and.b32 h1, h1, 0x0f0f0f0f; and.b32 h2, h2, 0x0f0f0f0f; and.b32 h3, h3, 0x0f0f0f0f;
and.b32 h4, h4, 0x0f0f0f0f; and.b32 h5, h5, 0x0f0f0f0f; and.b32 h6, h6, 0x0f0f0f0f; and.b32 h7, h7, 0x0f0f0f0f;
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {c0, c1, c2, c3}, {l0, l1, h0, h1}, {$16, $17}, {$20, $24, $21, $25};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {c4, c5, c6, c7}, {l2, l3, h2, h3}, {$16, $17}, {$22, $26, $23, $27};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $4, $1, $5}, {l4, l5, h4, h5}, {$18, $19}, {c0, c1, c2, c3};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$2, $6, $3, $7}, {l6, l7, h6, h7}, {$18, $19}, {c4, c5, c6, c7};
}""")
REGISTERS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 20))


@triton.jit
def _multiply(words, more, queries, high, low, MATRIX: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is added to sums of high and low bytes, i32 [blocks, sets, 128] as above; queries: both bytes of 4 heads."""
    if MATRIX:
        high, low = tl.inline_asm_elementwise(
            MULTIPLY, REGISTERS, [words, more, queries, high, low], dtype=(tl.int32, tl.int32), is_pure=True, pack=4
        )
    else:  # the same without matrix units
        BLOCKS: tl.constexpr = queries.shape[0]
        SETS: tl.constexpr = queries.shape[1]
        columns = tl.reshape(queries, [BLOCKS, SETS, 8, 4, 4])  # column, word, step and half
        which = tl.arange(0, 4)[None, None, None, None, :]
        both = tl.zeros([BLOCKS, SETS, 8, 4, 8], tl.int32)  # 4 i + j, column
        for part in tl.static_range(4):
            word = tl.permute(tl.reshape(words if part < 2 else more, [BLOCKS, 1, 8, 4, 4]), [0, 1, 2, 4, 3])
            column = tl.permute(tl.sum(tl.where(which == part, columns, 0), 4), [0, 1, 3, 2])
            for number in tl.static_range(4):
                code = (word >> (8 * number + 4 * (part % 2))) & 15
                byte = (column << (24 - 8 * number)) >> 24
                both += tl.sum(code[:, :, :, :, :, None] * byte[:, :, None, None, :, :], 4)
        bytes = tl.split(tl.permute(tl.reshape(both, [BLOCKS, SETS, 8, 4, 4, 2]), [0, 1, 2, 4, 3, 5]))
        high += tl.reshape(bytes[0], [BLOCKS, SETS, 128])
        low += tl.reshape(bytes[1], [BLOCKS, SETS, 128])
    return high, low


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
    at = (
        steps + block * (34 * KEY) + number + group * 0
    )  # for each head anew, as queries for each block: all lies alike then
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
                high, low = _multiply(
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
    of its codes. It is written and read again within a layer; layers use the same memory.
    """

    def __init__(self, layout: LayerLayout, sequences: int, room: int, device: torch.device) -> None:
        self._group = layout.heads // layout.kv_heads
        self._sets = min(MOST_SETS, triton.cdiv(self._group, 4))
        self._batches = triton.cdiv(self._group, 4 * self._sets)
        self._layout, self._blocks, self._room = layout, room // selection.BLOCK, room
        self._padded = max(64, triton.next_power_of_2(layout.key_dim))
        count = sequences, layout.kv_heads, self._batches, self._blocks, self._sets
        self._folded = torch.empty(*count, 8 * self._padded, dtype=torch.int8, device=device)
        self._lines = torch.empty(*count, 32, device=device)  # factors and bases of 4 heads, each 4 times
        self.memory = self._folded, self._lines
        self._matrix = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

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
            "PADDED": self._padded, "AT_ONCE": AT_ONCE, "BLOCK": selection.BLOCK,
            "CODES": CODES, "FIELDS": FIELDS, "UNIT": UNIT, "num_warps": AT_ONCE,
        }  # fmt: skip
        after, count = limits.stride(0), len(limits)
        _fold[(heads, triton.cdiv(self._blocks, AT_ONCE), count)](
            query.contiguous(), codes.view(torch.bfloat16), table, limits, after, folded, lines, self._blocks, scale, **shape
        )  # fmt: skip
        _score[(heads, self._room // each, count)](
            codes.view(torch.int32), table, limits, after, folded.view(torch.int32), lines, scores, tops, sums, softcap or 1.0,
            self._blocks, self._room, each, CAPPED=softcap > 0.0, MATRIX=self._matrix, **shape,
        )  # fmt: skip
