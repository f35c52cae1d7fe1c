"""Attention over rows that torch can see, with its log-sum-exp.

torch's own flash kernels return the log-sum-exp below the public API; where they do not apply (softcap, keys and values
of different width, other devices) plain matrix products do the same in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli.attention import cudnn
from hgca_cli.attention.merge import Partial

SCORE_BYTES = 64 << 20  # scores held at once by the plain path


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    causal: bool = False,
    planned: bool = False,
) -> Partial:
    """Softmax attention of every query over every row of its head.

    query   [heads, queries, key_dim]; key [heads, rows, key_dim]; value [heads, rows, value_dim]
    bias    added to the scores: [rows], or [n, rows] where the n-th query's is the first one's again, and so on (queries of a
            group, folded); -inf hides a row. Every query must see one: torch's flash kernels answer NaN otherwise
    causal  query i sees rows 0 .. i only (as many rows as queries)
    planned  where cudnn.pays: so many rows come again and again
    returns out [heads, queries, value_dim], f32 or, on a GPU, in the query's dtype; lse f32 [heads, queries]; zeros and -inf
            over no rows
    """
    heads, queries, _ = query.shape
    rows = key.shape[1]
    if rows == 0 or queries == 0:  # torch's CPU kernel divides by zero here
        out = torch.zeros(heads, queries, value.shape[-1], device=query.device)
        return Partial(out, torch.full((heads, queries), float("-inf"), device=query.device))
    if planned and rows in cudnn.BLOCKS and bias is None and _flash_takes(query, key, value, softcap):
        return cudnn.attend(query, key, value, scale=scale, causal=causal)
    if _flash_takes(query, key, value, softcap):
        if query.device.type == "cpu":
            return _flash_cpu(query, key, value, scale, bias, causal)
        if query.device.type == "cuda" and bias is None and _cuda_flash_takes(query):
            return _flash_cuda(query, key, value, scale=scale, causal=causal)
    return _plain(query, key, value, scale, softcap, bias, causal)


def attend_causal(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float = 0.0, planned: bool = False
) -> Partial:
    """Each token of a chunk over those up to itself. As attend, of the query heads of all KV heads, a group after the other.

    query   [heads, n, key_dim]; key [kv_heads, n, key_dim]; value [kv_heads, n, value_dim]
    """
    group = query.shape[0] // key.shape[0]
    if query.device.type == "cuda" and _flash_takes(query, key, value, softcap) and _cuda_flash_takes(query):
        kernel = cudnn.attend if planned else _flash_cuda  # heads of a group read the same rows in both
        return kernel(query, key, value, scale=scale, causal=True)
    if query.device.type != "cpu" or not _flash_takes(query, key, value, softcap):
        wide = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        return attend(query, *wide, scale=scale, softcap=softcap, causal=True)
    # KV heads are a batch of the kernel's, and what a group shares is not copied for it
    shared = (rows.unsqueeze(1).expand(-1, group, -1, -1) for rows in (key, value))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.unflatten(0, (-1, group)), *shared, 0.0, True, scale=scale
    )
    return Partial(out.flatten(0, 1).float(), lse.flatten(0, 1).float())


def scores(query: Tensor, key: Tensor, *, scale: float, softcap: float = 0.0) -> Tensor:
    """Scaled, capped scores f32 [heads, queries, rows]."""
    raw = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    return softcap * torch.tanh(raw / softcap) if softcap > 0.0 else raw


def _flash_takes(query: Tensor, key: Tensor, value: Tensor, softcap: float) -> bool:
    return softcap == 0.0 and key.shape[-1] == value.shape[-1] and query.dtype == key.dtype


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, causal: bool) -> Partial:
    again = 1 if bias is None or bias.dim() == 1 else query.shape[1] // bias.shape[0]
    mask = None if bias is None else bias.to(query.dtype).expand(1, 1, query.shape[1] // again, key.shape[1])
    # heads are a batch of the kernel's, whose heads share rows and mask
    shared = (rows.unsqueeze(1).expand(-1, again, -1, -1) for rows in (key, value))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.unflatten(1, (again, -1)), *shared, 0.0, causal, attn_mask=mask, scale=scale
    )
    return Partial(out.flatten(1, 2).float(), lse.flatten(1, 2).float())


def _cuda_flash_takes(query: Tensor) -> bool:
    return query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool) -> Partial:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query[None], key[None], value[None], 0.0, causal, scale=scale
    )
    return Partial(out[0], lse[0])


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float,
    bias: Tensor | None,
    causal: bool,
) -> Partial:
    heads, queries, _ = query.shape
    rows = key.shape[1]
    step = max(1, SCORE_BYTES // (4 * heads * rows))
    outs, lses = [], []
    for first in range(0, queries, step):
        part = slice(first, min(first + step, queries))
        score = scores(query[:, part], key, scale=scale, softcap=softcap)
        if bias is not None:
            its = torch.arange(part.start, part.stop, device=bias.device) % len(bias)
            score += bias if bias.dim() == 1 else bias[its]
        if causal:
            seen = torch.arange(part.start, part.stop, device=query.device)[:, None]
            score.masked_fill_(torch.arange(rows, device=query.device) > seen, float("-inf"))
        lse = torch.logsumexp(score, dim=-1)
        weight = torch.exp(score - lse.masked_fill(lse.isneginf(), 0.0).unsqueeze(-1))
        outs.append(torch.matmul(weight, value.float()))
        lses.append(lse)
    return Partial(torch.cat(outs, dim=1), torch.cat(lses, dim=1))
