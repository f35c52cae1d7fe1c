"""Rows of the store chosen on the device, by its copy of their codes: the CPU is told which rows to read, and scores none.

As `scan` chooses (docs/selection.md), but for two things: scores by 4-bit codes, weights as the mean of a KV head's group, rows by
weight until what is left holds no more than the mass target allows, and block means alone for what is left. On a GPU Triton kernels;
elsewhere torch does the same, for tests and as the definition. Weights are counted in eighths of an octave, each bin's by its middle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hgca_cli import indexing, native
from hgca_cli.attention.merge import Partial
from hgca_cli.attention.select.mirror import Coded
from hgca_cli.attention.tables import Places
from hgca_cli.config import LEFT_AHEAD
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.selection import Selection

BINS = 256  # of weights, eighths of an octave below 1; the last one is of those never read
ROWS, LEAST, MOST, LIGHTEST, LEFT = range(5)  # of `limits`
LIMITS = 5
TURNS = 2  # layers whose rows are named at a time: one's are chosen, one's are read
WHOLE = 1 << 40  # the mass of everything, where it is a whole number


class Guessed(NamedTuple):
    """What was scored and is not read, as partials of parts of the store."""

    out: Tensor  # f32 [sequences, heads, parts, value_dim]
    lse: Tensor  # f32 [sequences, heads, parts]


class Scoring:
    """For layers of one shape, one after another; all of them use the same memory.

    limits  i64 [sequences, 5] on the device: rows stored (0: this sequence's are not chosen here), rows to read at least and at
            most, the first bin that is not read, and the mass that may be left out, of 2^40; whoever has a step made brings them
            there, as `wanted`
    rows    a sequence may have
    row     i32 [2, sequences, kv_heads * rows], what is to be read, in memory both see, of layers in turns: one's are chosen while
            those of the layer before are read. `row_start` of a layer says whose is which. `named`: the same for the C library
    ahead   by foreseen queries, for most layers: less is left out, and nothing is guessed of it
    """

    def __init__(self, layout: LayerLayout, rows: int, limits: Tensor, *, ahead: bool = False) -> None:
        self.layout, self.limits, self._ahead = layout, limits, ahead
        self.rows = max(1, -(-rows // indexing.BLOCK)) * indexing.BLOCK
        device = limits.device
        with torch.inference_mode(False):
            self.row = torch.zeros(
                TURNS, len(limits), layout.kv_heads * self.rows, dtype=torch.int32, pin_memory=device.type == "cuda"
            )
            shape = len(limits), layout.heads, 1
            self._guessed = Guessed(torch.zeros(*shape, layout.value_dim), torch.zeros(shape))
        self.named = [[native.address(own, "int32_t *") for own in turn] for turn in self.row]
        self._block = layout.kv_heads * (indexing.block_bytes(layout.key_dim) + 2 * layout.value_dim)
        self._kernels = None
        if device.type == "cuda":
            from hgca_cli.attention import scoring_triton

            self._kernels = scoring_triton.Kernels(self)

    def fits(self, chosen: Selection) -> bool:
        """Whether there is room for the rows, and every one of them has a code."""
        return chosen.rows <= self.rows and chosen.job.indexed == chosen.rows

    def wanted(self, chosen: Selection) -> list[int]:
        """What a sequence's choice is to be like, as of `limits`."""
        job = chosen.job
        left = (1.0 - job.mass) * (LEFT_AHEAD if self._ahead else 1.0)
        lightest = max(2.0**-31, left / 2 / max(1, job.indexed))  # all of these hold half of what may be left out
        first = min(BINS - 1, max(1, int(-8.0 * math.log2(lightest))))
        return [job.indexed, job.least, job.most, first, int(left * WHOLE)]

    def bytes_scored(self, rows: int) -> int:
        """Bytes of codes and means of so many rows that a token of a layer reads on the device."""
        return -(-rows // indexing.BLOCK) * self._block

    def choose(
        self,
        query: Tensor,
        places: Places,
        beside: Tensor,
        row_start: Tensor,
        *,
        turn: int,
        scale: float,
        softcap: float,
        part: slice = slice(None),
    ) -> Guessed:
        """Write row[turn] and row_start i64 [sequences, kv_heads + 1], in memory both see, for a part of the sequences. Returns what is
        guessed of the parts chosen so far, in memory where the next layer's will be.

        query   [sequences, heads, key_dim], any dtype; beside f32 [sequences, heads], log-sum-exp of rows that are read elsewhere
        """
        if self._kernels is not None:
            row = self.row[turn]
            return self._kernels.choose(query, places, beside, row, row_start, scale=scale, softcap=softcap, part=part)
        for index in range(*part.indices(len(query))):
            of = query[index], places.coded[index], beside[index], self.row[turn, index], row_start[index]
            for to, own in zip(self._guessed, self._choose(index, *of, scale=scale, softcap=softcap), strict=True):
                to[index] = own
        return Guessed(*(one.clone() for one in self._guessed))

    def _choose(
        self,
        index: int,
        query: Tensor,
        coded: Coded | None,
        beside: Tensor,
        row: Tensor,
        row_start: Tensor,
        *,
        scale: float,
        softcap: float,
    ) -> Guessed:
        """Of one sequence."""
        shape = self.layout
        rows, least, most, lightest, left = self.limits[index].tolist()
        if not rows or coded is None:
            row_start.zero_()
            return Guessed(torch.zeros(shape.heads, 1, shape.value_dim), torch.full((shape.heads, 1), float("-inf")))
        asked = query.float().view(shape.kv_heads, -1, shape.key_dim)
        score = asked @ decoded(coded.codes, shape.key_dim)[:, :rows].mT * scale
        score = softcap * torch.tanh(score / softcap) if softcap else score
        whole = torch.logaddexp(score.logsumexp(-1), beside.view(shape.kv_heads, -1))
        weight = torch.exp(score - whole.unsqueeze(-1))  # [kv_heads, group, rows], of everything
        bins = (-8.0 * torch.log2(weight.mean(1))).nan_to_num(BINS - 1, BINS - 1, 0).clamp(0, BINS - 1).int()
        taken = torch.stack(
            [
                _taken(own, left / WHOLE, least, most, lightest) | bool(one.isnan().any())
                for own, one in zip(bins, whole, strict=True)
            ]
        )
        row_start[0] = 0
        torch.cumsum(taken.sum(1), 0, out=row_start[1:])
        named = taken.nonzero()[:, 1].int()
        row[: len(named)] = named
        rest = weight.masked_fill(taken.unsqueeze(1), 0.0)
        blocks = -(-rows // indexing.BLOCK)
        rest = torch.nn.functional.pad(rest, (0, blocks * indexing.BLOCK - rows)).unflatten(-1, (blocks, -1)).sum(-1)
        held = rest.sum(-1, keepdim=True)
        out = torch.where(held > 0, rest @ coded.means[:, :blocks].float() / held, 0.0)
        lse = torch.where(held > 0, held.log() + whole.unsqueeze(-1), float("-inf"))
        return Guessed(out.view(shape.heads, 1, -1), lse.view(shape.heads, 1))


def _taken(bins: Tensor, left: float, least: int, most: int, lightest: int) -> Tensor:
    """Which rows of a head are read, by their bins [rows]."""
    count = torch.bincount(bins, minlength=BINS)
    count[BINS - 1] = 0
    mass = count * torch.exp2(-(torch.arange(BINS) + 0.5) / 8.0)
    held, rows = mass.cumsum(0), count.cumsum(0)
    enough = ((held >= mass.sum() - left) & (rows >= least)) | (rows >= most)
    enough[lightest - 1 :] = True
    edge = int(enough.int().argmax())
    room = most - int(rows[edge] - count[edge])
    at_edge = bins == edge
    return (bins < edge) | (at_edge & (at_edge.cumsum(0) <= room))


def decoded(codes: Tensor, dim: int) -> Tensor:
    """Keys f32 [kv_heads, blocks * 128, dim] that codes u8 [kv_heads, blocks, bytes] stand for."""
    wide = -(-dim // 8) * 8
    heads, blocks, _ = codes.shape
    step, zero = (
        codes[..., : 4 * wide].contiguous().view(torch.bfloat16).float().view(heads, blocks, 2, 1, wide).unbind(2)
    )
    packed = codes[..., 4 * wide :].reshape(heads, blocks, 8, wide // 8, 16, 4)  # lanes, chunks, positions, numbers
    both = torch.stack([packed & 15, packed >> 4], dim=-2)  # of a chunk: 4 low halves, 4 high ones
    whole = both.permute(0, 1, 2, 4, 3, 5, 6).reshape(heads, blocks, indexing.BLOCK, wide)
    return (whole * step + zero).reshape(heads, -1, wide)[..., :dim]


def merged(guessed: Guessed) -> Partial:
    """One partial of the parts."""
    lse = guessed.lse.logsumexp(-1)
    share = torch.exp(guessed.lse - lse.unsqueeze(-1)).nan_to_num(0.0)
    return Partial((guessed.out * share.unsqueeze(-1)).sum(-2), lse)
