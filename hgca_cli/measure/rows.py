"""Rows to measure on: made up, laid out as the store has them, and lists of the rows that are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hgca_cli.hardware.timing import reserve
from hgca_cli.measure.case import PATTERNS, SHARE


@dataclass(frozen=True)
class StoreRows:
    """Rows of one layer as the store has them: [key | value] together.

    key, value              [kv_heads, rows, head_dim], views of one memory
    memory                  the same bytes as f32 numbers, flat: for who only reads them
    key_scale, value_scale  f32 [kv_heads, rows] for int8 rows, else None
    """

    key: Tensor
    value: Tensor
    memory: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


@dataclass(frozen=True)
class RowLists:
    """The rows each KV head reads: runs of rows chosen at random, sorted; as many of every head.

    row_start  i64 [kv_heads + 1]; row, run  i32: where runs begin and how long they are; run is None for single rows
    index      i64 [kv_heads, chosen]: the same rows, one by one
    """

    row_start: Tensor
    row: Tensor
    run: Tensor | None
    index: Tensor


def random_rows(kv_heads: int, rows: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """Keys and values, f32 [kv_heads, rows, 2 * head_dim], normal."""
    return torch.randn(kv_heads, rows, 2 * head_dim, generator=generator)


def store_rows(numbers: Tensor, dtype: torch.dtype) -> StoreRows:
    """Rows of one layer from numbers f32 [kv_heads, rows, 2 * head_dim]. Raises DoesNotFitError."""
    kv_heads, rows, width = numbers.shape
    together = reserve(numbers.numel() * dtype.itemsize, dtype, (kv_heads, rows, width), (rows * width, width, 1))
    dim = width // 2
    key, value = together[..., :dim], together[..., dim:]
    memory = together.view(-1).view(torch.uint8)
    memory = memory[: memory.numel() // 4 * 4].view(torch.float32)
    if dtype != torch.int8:
        together.copy_(numbers)
        return StoreRows(key, value, memory)
    scales = []
    for place, part in ((key, numbers[..., :dim]), (value, numbers[..., dim:])):
        scale = part.abs().amax(-1) / 127
        place.copy_((part / scale.clamp_min(1e-30).unsqueeze(-1)).round_())
        scales.append(scale)
    return StoreRows(key, value, memory, *scales)


def row_lists(pattern: str, kv_heads: int, rows: int, generator: torch.Generator) -> RowLists | None:
    """A tenth of the rows for each KV head, in runs as long as the pattern says; None if it is dense."""
    length = min(PATTERNS[pattern], rows)
    if length == 0:
        return None
    blocks = rows // length
    chosen = max(1, blocks // SHARE)
    starts = torch.stack([torch.randperm(blocks, generator=generator)[:chosen].sort().values for _ in range(kv_heads)])
    starts = starts * length
    index = (starts.unsqueeze(-1) + torch.arange(length)).flatten(1)
    run = torch.full((kv_heads * chosen,), length, dtype=torch.int32) if length > 1 else None
    row_start = torch.arange(kv_heads + 1, dtype=torch.int64) * chosen
    return RowLists(row_start, starts.flatten().to(torch.int32), run, index)
