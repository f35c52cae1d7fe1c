"""The GPU's kernels of attention/slots.py. Importing this needs Triton.

The last dimension of every launch are the sequences; where their rows are stands in a table (attention/tables.py).
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from hgca_cli.attention.merge import Partial
from hgca_cli.attention.scoring import Guessed
from hgca_cli.attention.tables import FIELDS, UNIT, Places

BLOCK = 64  # slots at a time
MOST_SPLITS = 64  # parts of the slots; each is one program for each KV head
LEAST = 256  # slots of a part
GROUP = 16  # query heads of a KV head are padded to a multiple of this: the least a matrix unit takes


@triton.jit
def _put(  # type: ignore[no-untyped-def]
    key, value, rows, table, taken, taken_next, key_next, key_head, value_next, value_head,
    KEY: tl.constexpr, VALUE: tl.constexpr, UNIT: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """A new row of a sequence's KV head into its slot; the table's fields are those of attention/tables.py, in their order."""
    head, sequence, at, to = tl.program_id(0), tl.program_id(1), tl.arange(0, KEY), tl.arange(0, VALUE)
    slot = tl.load(taken + sequence * taken_next)
    if slot >= 0:
        line = table + sequence * FIELDS
        keys = rows + (tl.load(line) + head * tl.load(line + 2)) * UNIT + slot * KEY
        values = rows + (tl.load(line + 1) + head * tl.load(line + 3)) * UNIT + slot * VALUE
        tl.store(keys + at, tl.load(key + sequence * key_next + head * key_head + at).to(rows.dtype.element_ty))
        tl.store(values + to, tl.load(value + sequence * value_next + head * value_head + to).to(rows.dtype.element_ty))


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    query, rows, table, taken, taken_next, outs, lses, scale, softcap, each,
    GROUPED: tl.constexpr, PADDED: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, SLOTS: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """One part of the slots, for the query heads of one KV head: out f32 and lse of the part, zeros and -inf over none."""
    own, part, parts, sequence = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    spans, line = taken + sequence * taken_next + 1, table + sequence * FIELDS
    a, b, c, d = tl.load(spans), tl.load(spans + 1), tl.load(spans + 2), tl.load(spans + 3)
    key_at = rows + (tl.load(line) + own * tl.load(line + 2)) * UNIT
    value_at = rows + (tl.load(line + 1) + own * tl.load(line + 3)) * UNIT
    head = sequence * tl.num_programs(0) + own
    group, at, to, some = tl.arange(0, PADDED), tl.arange(0, KEY), tl.arange(0, VALUE), tl.arange(0, SLOTS)
    real = group < GROUPED
    asked = tl.load(query + (head * GROUPED + group)[:, None] * KEY + at[None, :], mask=real[:, None], other=0.0)
    most = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    out = tl.zeros([PADDED, VALUE], tl.float32)
    first = part * each
    end = tl.minimum(first + each, tl.maximum(b, d))
    for start in range(first, end, SLOTS):
        slot = start + some
        used = ((slot >= a) & (slot < b)) | ((slot >= c) & (slot < d))
        used = used & (slot < end)
        key = tl.load(key_at + slot[None, :] * KEY + at[:, None], mask=used[None, :], other=0.0)
        score = tl.dot(asked, key, input_precision=PRECISION) * scale
        if CAPPED:
            folded = 1.0 - 2.0 / (tl.exp(2.0 * score / softcap) + 1.0)  # tanh
            score = softcap * folded
        score = tl.where(used[None, :], score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing yet: -inf - -inf
        weight = tl.exp(score - base[:, None])
        fade = tl.exp(most - base)
        value = tl.load(value_at + slot[:, None] * VALUE + to[None, :], mask=used[:, None], other=0.0)
        out = out * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        total = total * fade + tl.sum(weight, 1)
        most = higher
    lse = tl.where(total > 0.0, most + tl.log(tl.where(total > 0.0, total, 1.0)), float("-inf"))
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    line = (head * GROUPED + group) * parts + part
    tl.store(lses + line, lse, mask=real)
    tl.store(outs + line[:, None] * VALUE + to[None, :], out, mask=real[:, None])


@triton.jit
def _merged(  # type: ignore[no-untyped-def]
    outs, lses, far, guessed, guessed_lses, result, near_lse, told, whole_lse, parts, more,
    HEADS: tl.constexpr, PARTS: tl.constexpr, VALUE: tl.constexpr, FAR: tl.constexpr, MORE: tl.constexpr, TOLD: tl.constexpr,
):  # fmt: skip
    """The parts of one query head, the store's if FAR, and `more` parts that are guessed if MORE, by log-sum-exp."""
    own, sequence, to = tl.program_id(0), tl.program_id(1), tl.arange(0, VALUE)
    head = sequence * HEADS + own
    base, total, out = _added(outs, lses, head, parts, PARTS, VALUE)
    near = base + tl.log(total)
    tl.store(near_lse + head, near)
    if TOLD:
        tl.store(told + head, near)
    if FAR:
        far = far + sequence * (HEADS * (VALUE + 1))
        far_lse = tl.load(far + HEADS * VALUE + own)
        top = tl.maximum(base, far_lse)
        mine, other = tl.exp(base - top), tl.exp(far_lse - top)
        out = out * mine + tl.load(far + own * VALUE + to) * other
        total = total * mine + other
        base = top
    if MORE:
        its_base, its_total, its_out = _added(guessed, guessed_lses, head, more, MORE, VALUE)
        top = tl.maximum(base, its_base)
        mine, other = tl.exp(base - top), tl.where(its_total > 0.0, tl.exp(its_base - top), 0.0)
        out = out * mine + its_out * other
        total = total * mine + its_total * other
        base = top
    tl.store(whole_lse + head, base + tl.log(total))
    tl.store(result + head * VALUE + to, out / tl.where(total > 0.0, total, 1.0))


@triton.jit
def _added(outs, lses, head, parts, PARTS: tl.constexpr, VALUE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Parts of a head as base, total, out: they hold e^base * total, and out is not divided by total yet. Of none: total 0."""
    some, to = tl.arange(0, PARTS), tl.arange(0, VALUE)
    here = some < parts
    lse = tl.load(lses + head * parts + some, mask=here, other=float("-inf"))
    most = tl.max(lse, 0)
    base = tl.where(most == float("-inf"), 0.0, most)
    share = tl.exp(lse - base)
    out = tl.load(outs + (head * parts + some)[:, None] * VALUE + to[None, :], mask=here[:, None], other=0.0)
    return base, tl.sum(share, 0), tl.sum(out * share[:, None], 0)


class Kernels:
    """For layers of one shape; the memory for parts is used again by each."""

    def __init__(self, sequences: int, heads: int, slots: int, value_dim: int, device: torch.device) -> None:
        self.each = -(-max(LEAST, -(-slots // MOST_SPLITS)) // BLOCK) * BLOCK
        self.parts = -(-slots // self.each)
        self.outs = torch.empty(sequences, heads, self.parts, value_dim, device=device)
        self.lses = torch.empty(sequences, heads, self.parts, device=device)

    def put(self, key: Tensor, value: Tensor, places: Places, taken: Tensor) -> None:
        """As SlotAttention.put."""
        sequences, kv_heads, _, key_dim = key.shape
        key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (key, value))
        _put[(kv_heads, sequences)](
            key, value, places.rows, places.table, taken, taken.stride(0), key.stride(0), key.stride(1), value.stride(0),
            value.stride(1), KEY=key_dim, VALUE=value.shape[-1], UNIT=_unit(places), FIELDS=FIELDS, num_warps=1,
        )  # fmt: skip

    def near(self, query: Tensor, places: Places, taken: Tensor, *, scale: float, softcap: float) -> Launched:
        """Start the parts; arguments as of SlotAttention.near."""
        sequences, heads, key_dim = query.shape
        kv_heads, value_dim = places.kv_heads, self.outs.shape[-1]
        group = heads // kv_heads
        exact = query.dtype == torch.float32
        _part[(kv_heads, self.parts, sequences)](
            query.contiguous(), places.rows, places.table, taken, taken.stride(0), self.outs, self.lses, scale,
            softcap or 1.0, self.each,
            GROUPED=group, PADDED=max(GROUP, triton.next_power_of_2(group)), KEY=key_dim, VALUE=value_dim,
            SLOTS=BLOCK // 2 if exact else BLOCK, CAPPED=softcap > 0.0, PRECISION="ieee" if exact else "tf32",
            UNIT=_unit(places), FIELDS=FIELDS,
        )  # fmt: skip
        return Launched(self, query.dtype)


def _unit(places: Places) -> int:
    """Numbers of a window in what tables count in."""
    return UNIT // places.rows.element_size()


class Launched:
    """Parts on their way; see slots.Near."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype) -> None:
        self._kernels, self._dtype = kernels, dtype

    def finish(
        self, far: Partial | None, near_lse: Tensor, guessed: Guessed | None = None, told: Tensor | None = None
    ) -> Partial:
        """As slots.Near.finish; a sequence's `far` is out with lse right behind it in memory. Out is in the query's dtype."""
        kernels, device = self._kernels, self._kernels.outs.device
        sequences, heads, parts, value_dim = kernels.outs.shape
        out = torch.empty(sequences, heads, value_dim, device=device, dtype=self._dtype)
        whole = torch.empty(sequences, heads, device=device)
        answered: Any = kernels.lses if far is None else far.out
        more = 0 if guessed is None else guessed.lse.shape[2]
        guess, its_lse = (kernels.outs, kernels.lses) if guessed is None else guessed
        padded = triton.next_power_of_2(more) if more else 0
        _merged[(heads, sequences)](
            kernels.outs, kernels.lses, answered, guess, its_lse, out, near_lse, near_lse if told is None else told, whole,
            parts, more,
            HEADS=heads, PARTS=triton.next_power_of_2(parts), VALUE=value_dim, FAR=far is not None, MORE=padded,
            TOLD=told is not None, num_warps=8 if padded > 32 else 4,
        )  # fmt: skip
        return Partial(out, whole)
