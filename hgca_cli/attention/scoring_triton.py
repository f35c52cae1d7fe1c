"""The GPU's kernels of attention/scoring.py: five launches a layer, integers where order could matter. Importing this needs Triton.

Each program has a KV head of a sequence and a part of its rows; what a head needs of all parts is made by the next launch. Codes are
read once (attention/scores_triton.py), scores stay in the device's caches. Where a sequence's codes are stands in a table
(attention/tables.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from hgca_cli import indexing
from hgca_cli.attention import scores_triton, scoring
from hgca_cli.attention.tables import FIELDS, MEANS, UNIT, Places

if TYPE_CHECKING:
    from hgca_cli.attention.scoring import Guessed, Scoring

PART = 512  # rows of a part, at least
MOST_PARTS = 128
SCORED = 1024  # of a KV head, parts that are scored and query heads: what a program that weighs looks at first
WEIGHED = 4096  # rows and query heads that are weighed at a time
TILE = 128  # parts that are added up at a time
ALL = 1 << 20  # an edge beyond all bins: every row is read


@triton.jit
def _weigh(  # type: ignore[no-untyped-def]
    scores, tops, sums, beside, limits, limits_next, wholes, bins, counts, scored, parts, room, each,
    GROUPED: tl.constexpr, PADDED: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """The bin of each row's weight, how many a part has of each, and what all rows hold, of the store and beside it."""
    part, sequence = tl.program_id(1), tl.program_id(2)
    head = sequence * tl.num_programs(0) + tl.program_id(0)
    rows = tl.load(limits + sequence * limits_next)
    scores += head.to(tl.int64) * (GROUPED * room)
    bins += head.to(tl.int64) * room
    group, some, row, bin = tl.arange(0, PADDED), tl.arange(0, SCORED), tl.arange(0, BLOCK), tl.arange(0, BINS)
    real = group < GROUPED
    line = head * GROUPED + group
    there = real[:, None] & (some < scored)[None, :]
    top = tl.load(tops + line[:, None] * scored + some[None, :], mask=there, other=float("-inf"))
    total = tl.load(sums + line[:, None] * scored + some[None, :], mask=there, other=0.0)
    besides = tl.load(beside + line, mask=real, other=0.0)
    most = tl.where(real, tl.maximum(tl.max(top, 1), besides), 0.0)
    whole = most + tl.log(tl.sum(total * tl.exp(top - most[:, None]), 1) + tl.exp(besides - most))
    if part == 0:
        tl.store(wholes + line, whole, mask=real)
    count = tl.zeros([BINS], tl.int32)
    first = part * each
    end = tl.minimum(first + each, rows)
    for start in range(first, end, BLOCK):
        place = start + row
        mine = place < end
        score = tl.load(
            scores + group[:, None] * room + place[None, :], mask=real[:, None] & mine[None, :], other=float("-inf")
        )
        weight = tl.sum(tl.exp(score - whole[:, None]), 0) / GROUPED
        which = tl.where(weight > 0.0, -8.0 * tl.log2(tl.where(weight > 0.0, weight, 1.0)), BINS - 1.0)
        which = tl.minimum(tl.maximum(which, 0.0), BINS - 1.0).to(tl.int32)
        tl.store(bins + place, which.to(tl.uint8), mask=mine)
        count += tl.histogram(which, BINS)
    tl.store(counts + (head * parts + part) * BINS + bin, count)


@triton.jit
def _edge(  # type: ignore[no-untyped-def]
    counts, wholes, limits, limits_next, edges, taken, offsets, rooms, parts, each,
    GROUPED: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr, ALL: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The last bin of which a head reads rows, and where each part's begin; the choice of scoring._taken."""
    sequence = tl.program_id(1)
    head = sequence * tl.num_programs(0) + tl.program_id(0)
    limits += sequence * limits_next
    rows, least, most, lightest = tl.load(limits), tl.load(limits + 1), tl.load(limits + 2), tl.load(limits + 3)
    left = tl.load(limits + 4).to(tl.float32) / WHOLE
    bin, some, group = tl.arange(0, BINS), tl.arange(0, TILE), tl.arange(0, PADDED)
    whole = tl.load(wholes + head * GROUPED + group, mask=group < GROUPED, other=0.0)
    strange = tl.sum((whole != whole).to(tl.int32), 0) > 0
    count = tl.zeros([BINS], tl.int32)
    for start in range(0, parts, TILE):
        at = counts + (head * parts + start + some)[:, None] * BINS + bin[None, :]
        count += tl.sum(tl.load(at, mask=(start + some < parts)[:, None], other=0), 0)
    count = tl.where(bin == BINS - 1, 0, count)
    mass = count.to(tl.float32) * tl.exp2(-(bin.to(tl.float32) + 0.5) / 8.0)
    held, row = tl.cumsum(mass, 0), tl.cumsum(count, 0)
    enough = (held >= tl.sum(mass, 0) - left) & (row >= least)
    enough = enough | (row >= most) | (bin >= lightest - 1)
    edge = tl.min(tl.where(enough, bin, BINS - 1), 0)
    room = most - tl.sum(tl.where(bin < edge, count, 0), 0)
    edge = tl.where(strange, ALL, edge)
    before = rows * 0
    for start in range(0, parts, TILE):
        part = start + some
        at = counts + (head * parts + part)[:, None] * BINS + bin[None, :]
        own = tl.load(at, mask=(part < parts)[:, None], other=0)
        sure = tl.sum(tl.where((bin < edge)[None, :], own, 0), 1).to(tl.int64)
        at_edge = tl.sum(tl.where((bin == edge)[None, :], own, 0), 1).to(tl.int64)
        mine = tl.maximum(room - (tl.cumsum(at_edge, 0) - at_edge), 0)
        mine = tl.minimum(mine, at_edge)
        every = tl.minimum(tl.maximum(rows - part * each, 0), each)
        takes = tl.where(strange, every, sure + mine)
        tl.store(offsets + head * parts + part, before + tl.cumsum(takes, 0) - takes, mask=part < parts)
        tl.store(rooms + head * parts + part, mine, mask=part < parts)
        before += tl.sum(takes, 0)
        room -= tl.sum(at_edge, 0)
    tl.store(edges + head, edge)
    tl.store(taken + head, before)


@triton.jit
def _name(  # type: ignore[no-untyped-def]
    scores, wholes, bins, limits, limits_next, edges, taken, offsets, rooms, means, table, row_start, named, named_next, outs, lses,
    room, each,
    HEADS: tl.constexpr, SOME: tl.constexpr, GROUPED: tl.constexpr, PADDED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, MEANS: tl.constexpr, FIELDS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A part's rows to be read, in order; and its other rows' weights with the mean values of their blocks."""
    own, part, parts, sequence = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    head = sequence * HEADS + own
    rows = tl.load(limits + sequence * limits_next)
    field = table + sequence * FIELDS + MEANS
    means += (tl.load(field) + own * tl.load(field + 1)) * (UNIT // 2)
    scores += head.to(tl.int64) * (GROUPED * room)
    bins += head.to(tl.int64) * room
    row_start += sequence * (HEADS + 1)
    named += sequence.to(tl.int64) * named_next
    group, row, number, other = tl.arange(0, PADDED), tl.arange(0, BLOCK), tl.arange(0, VALUE), tl.arange(0, SOME)
    real = group < GROUPED
    line = head * GROUPED + group
    count = tl.load(taken + sequence * HEADS + other, mask=other < HEADS, other=0)
    if (part == 0) & (own == 0):
        tl.store(row_start + 1 + other, tl.cumsum(count, 0), mask=other < HEADS)
        tl.store(row_start, rows * 0)
    place = tl.sum(tl.where(other < own, count, 0), 0) + tl.load(offsets + head * parts + part)
    left = tl.minimum(tl.load(rooms + head * parts + part), 1 << 30).to(tl.int32)
    edge = tl.load(edges + head)
    whole = tl.load(wholes + line, mask=real, other=0.0)
    out = tl.zeros([PADDED, VALUE], tl.float32)
    held = tl.zeros([PADDED], tl.float32)
    first = part * each
    for start in range(first, tl.minimum(first + each, rows), BLOCK):
        at = start + row
        inside = at < rows
        bin = tl.load(bins + at).to(tl.int32)
        at_edge = (inside & (bin == edge)).to(tl.int32)
        take = inside & ((bin < edge) | ((at_edge > 0) & (tl.cumsum(at_edge, 0) <= left)))
        left -= tl.sum(at_edge, 0)
        one = take.to(tl.int32)
        tl.store(named + place + tl.cumsum(one, 0) - one, at.to(tl.int32), mask=take)
        place += tl.sum(one, 0)
        score = tl.load(scores + group[:, None] * room + at[None, :], mask=real[:, None], other=float("-inf"))
        weight = tl.where((inside & (take == 0))[None, :], tl.exp(score - whole[:, None]), 0.0)
        rest = tl.sum(weight, 1)
        mean = tl.load(means + start // BLOCK * VALUE + number).to(tl.float32)
        out += rest[:, None] * mean[None, :]
        held += rest
    some = tl.where(held > 0.0, held, 1.0)
    lse = tl.where(held > 0.0, tl.log(some) + whole, float("-inf"))
    tl.store(lses + line * parts + part, lse, mask=real)
    tl.store(outs + (line * parts + part)[:, None] * VALUE + number[None, :], out / some[:, None], mask=real[:, None])


class Kernels:
    """For a Scoring; memory between the launches is used again by each layer."""

    def __init__(self, of: Scoring) -> None:
        shape, device = of.layout, of.limits.device
        # not `of`, which holds this
        self.layout, self.limits, self.group = shape, of.limits, shape.heads // shape.kv_heads
        self.each = -(-max(PART, -(-of.rows // MOST_PARTS)) // indexing.BLOCK) * indexing.BLOCK
        self.parts = -(-of.rows // self.each)
        room = self.parts * self.each
        self.scorer = scores_triton.Scores(shape, len(of.limits), room, device)
        once, most = scores_triton.AT_ONCE * indexing.BLOCK, max(32, SCORED // triton.next_power_of_2(self.group))
        self.scored_each = triton.cdiv(of.rows, once * most) * once

        def memory(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        count, heads, kv_heads = len(of.limits), shape.heads, shape.kv_heads
        self.scores, self.bins = memory(count, heads, room), memory(count, kv_heads, room, dtype=torch.uint8)
        self.tops, self.sums = memory(2, count, heads, triton.cdiv(of.rows, self.scored_each))
        self.lses = memory(count, heads, self.parts)
        self.wholes, self.outs = memory(count, heads), memory(count, heads, self.parts, shape.value_dim)
        self.counts = memory(count, kv_heads, self.parts, scoring.BINS, dtype=torch.int32)
        self.edges = memory(count, kv_heads, dtype=torch.int32)
        self.taken = memory(count, kv_heads, dtype=torch.int64)
        self.offsets, self.rooms = memory(2, count, kv_heads, self.parts, dtype=torch.int64)
        self.memory = (
            self.scores, self.bins, self.tops, self.sums, self.lses, self.wholes, self.outs, self.counts, self.edges, self.taken,
            self.offsets, self.rooms,
        )  # fmt: skip

    def choose(
        self,
        query: Tensor,
        places: Places,
        beside: Tensor,
        row: Tensor,
        row_start: Tensor,
        *,
        scale: float,
        softcap: float,
        part: slice = slice(None),
    ) -> Guessed:
        """As Scoring.choose; row i32 [sequences, kv_heads * rows] of this layer's turn."""
        shape, room, each, parts = self.layout, self.scores.shape[2], self.each, self.parts
        limits, row, table, query, beside, row_start = (
            one[part] for one in (self.limits, row, places.table, query, beside, row_start)
        )
        scores, bins, tops, sums, lses, wholes, outs, counts, edges, taken, offsets, rooms = (
            one[part] for one in self.memory
        )
        heads, group, count, after = shape.kv_heads, self.group, len(limits), limits.stride(0)
        grid, padded = (heads, parts, count), triton.next_power_of_2(group)
        means, block, most = places.codes.view(torch.bfloat16), indexing.BLOCK, scoring.BINS
        self.scorer.make(
            query, places.codes, table, limits, scores, tops, sums,
            each=self.scored_each, scale=scale, softcap=softcap, part=part,
        )  # fmt: skip
        _weigh[grid](
            scores, tops, sums, beside, limits, after, wholes, bins, counts, tops.shape[2], parts, room, each,
            GROUPED=group, PADDED=padded, SCORED=triton.next_power_of_2(tops.shape[2]),
            BLOCK=max(block, min(triton.next_power_of_2(each), WEIGHED // padded)), BINS=most,
        )  # fmt: skip
        _edge[(heads, count)](
            counts, wholes, limits, after, edges, taken, offsets, rooms, parts, each,
            GROUPED=group, PADDED=padded, TILE=TILE, BINS=most, ALL=ALL, WHOLE=scoring.WHOLE, num_warps=16,
        )  # fmt: skip
        _name[grid](
            scores, wholes, bins, limits, after, edges, taken, offsets, rooms, means, table, row_start, row, row.stride(0),
            outs, lses, room, each,
            HEADS=heads, SOME=triton.next_power_of_2(heads), GROUPED=group, PADDED=padded, VALUE=shape.value_dim,
            BLOCK=block, MEANS=MEANS, FIELDS=FIELDS, UNIT=UNIT,
        )  # fmt: skip
        return scoring.Guessed(self.outs, self.lses)
