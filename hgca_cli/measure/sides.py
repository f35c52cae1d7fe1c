"""The sides of a comparison: each a call that attends to the rows of every layer and returns the last one's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hgca_cli import native
from hgca_cli.hardware.timing import reserve
from hgca_cli.measure.llama_cpp import FlashAttention, Ggml
from hgca_cli.measure.rows import RowLists, StoreRows, store_rows

HGCA = "hgca"
SDPA_GQA = "sdpa gqa"  # torch, heads of a group share keys (enable_gqa=True)
SDPA_FOLDED = "sdpa folded"  # torch, heads of a group as tokens of one head
MATMUL = "matmul folded"  # torch, the same as two matrix products with a softmax in float32 between
LLAMA_CPP = "llama.cpp"
DENSE = "hgca dense"  # ours, over all rows, where rows are chosen
BF16 = "hgca bf16"  # ours, where rows are int8
ONLY_READ = "reading alone"  # the same rows, by the same threads, and nothing done with them: what memory allows
ONE_TOKEN = "hgca one token"  # ours, the first of several tokens alone

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}

Side = Callable[[], Tensor]  # returns [tokens, heads, head_dim]
Keys = Sequence[tuple[Tensor, Tensor]]  # per layer: keys, values [kv_heads, rows, head_dim]


@contextmanager
def build_sides(
    numbers: Tensor,
    query: Tensor,
    dtype: torch.dtype,
    lists: RowLists | None,
    layers: int,
    threads: int,
    ggml: Ggml | None,
) -> Iterator[tuple[dict[str, Side], list[Tensor]]]:
    """The sides by name, and the memory ours reads, as f32 numbers. llama.cpp's is given back at the end.

    numbers  f32 [kv_heads, rows, 2 * head_dim]: [key | value] of every layer
    query    f32 [tokens, heads, head_dim]

    Torch has no attention over int8 rows: its sides then have bf16 ones. llama.cpp's have fp16 ones. Where rows are
    chosen, torch gathers them first, and llama.cpp, whose operator reads all rows, stays away.
    Raises DoesNotFitError if memory is refused.
    """
    floating = torch.bfloat16 if dtype == torch.int8 else dtype
    rows = [store_rows(numbers, dtype) for _ in range(layers)]
    sides: dict[str, Side] = {HGCA: _ours(rows, query, lists)}
    apart = _apart(numbers, floating, layers)
    sides[SDPA_GQA] = _gqa(apart, query.to(floating), lists)
    sides[SDPA_FOLDED] = _folded(apart, query.to(floating), lists, scaled_dot_product_attention)
    sides[MATMUL] = _folded(apart, query.to(floating), lists, _matmul_attention)
    if lists is not None:
        sides[ONLY_READ] = _ours(rows, query[:1], lists, only_read=True)
        sides[DENSE] = _ours(rows, query, None)
    if dtype == torch.int8:
        sides[BF16] = _ours([store_rows(numbers, torch.bfloat16) for _ in range(layers)], query, lists)
    if len(query) > 1:
        sides[ONE_TOKEN] = _ours(rows, query[:1], lists)
    flash = None
    if ggml is not None and lists is None:
        key, value = numbers.chunk(2, dim=-1)
        flash = FlashAttention(ggml, [(key, value)] * layers, query, threads)
        sides[LLAMA_CPP] = flash.attend
    try:
        yield sides, [one.memory for one in rows]
    finally:
        if flash is not None:
            flash.close()


def _ours(rows: Sequence[StoreRows], query: Tensor, lists: RowLists | None, *, only_read: bool = False) -> Side:
    jobs = [
        native.Attention(
            query,
            one.key,
            one.value,
            query.shape[-1] ** -0.5,
            row_start=lists.row_start if lists else None,
            row=lists.row if lists else None,
            run=lists.run if lists else None,
            key_scale=one.key_scale,
            value_scale=one.value_scale,
            only_read=only_read,
        )
        for one in rows
    ]

    def attend() -> Tensor:
        for job in jobs:
            out = native.attend(job).out
        return out

    return attend


def _apart(numbers: Tensor, dtype: torch.dtype, layers: int) -> Keys:
    """Keys and values as torch likes them: each contiguous."""
    kv_heads, rows, width = numbers.shape
    shape, dim = (kv_heads, rows, width // 2), width // 2
    size = kv_heads * rows * dim * dtype.itemsize
    made = []
    for _ in range(layers):
        pair = [reserve(size, dtype, shape, (rows * dim, dim, 1)).copy_(part) for part in numbers.chunk(2, dim=-1)]
        made.append((pair[0], pair[1]))
    return made


def _gqa(layers: Keys, query: Tensor, lists: RowLists | None) -> Side:
    one = query.transpose(0, 1).unsqueeze(0)  # [1, heads, tokens, dim]
    pick = _picker(lists)

    def attend() -> Tensor:
        for key, value in layers:
            out = scaled_dot_product_attention(one, pick(key), pick(value), enable_gqa=True)
        return out[0].transpose(0, 1)

    return attend


def _folded(
    layers: Keys, query: Tensor, lists: RowLists | None, function: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Side:
    tokens, heads, dim = query.shape
    kv_heads = len(layers[0][0])
    one = query.transpose(0, 1).reshape(1, kv_heads, -1, dim)  # [1, kv_heads, group * tokens, dim]
    pick = _picker(lists)

    def attend() -> Tensor:
        for key, value in layers:
            out = function(one, pick(key), pick(value))
        return out.reshape(heads, tokens, dim).transpose(0, 1)

    return attend


def _matmul_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of query [.., n, dim] to keys and values [.., rows, dim]: [.., n, dim]."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    return scores.softmax(-1).to(value.dtype) @ value


def _picker(lists: RowLists | None) -> Callable[[Tensor], Tensor]:
    """From [kv_heads, rows, dim] to [1, kv_heads, chosen, dim]."""
    if lists is None:
        return lambda part: part.unsqueeze(0)
    kv_heads = len(lists.index)
    first = torch.arange(kv_heads).unsqueeze(-1)

    def pick(part: Tensor) -> Tensor:
        _, rows, dim = part.shape
        flat = (lists.index + first * rows).flatten()
        return part.view(-1, dim).index_select(0, flat).view(1, kv_heads, -1, dim)

    return pick
