"""Float64 references of ten lines; imports nothing from the package."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float = 0.0, lists: list[list[int]] | None = None
) -> tuple[Tensor, Tensor]:
    """query [heads, key_dim] over key, value [kv_heads, rows, dim]; lists of rows serve consecutive query heads."""
    heads, kv_heads = query.shape[0], key.shape[0]
    out = torch.zeros(heads, value.shape[-1], dtype=torch.float64)
    lse = torch.full((heads,), float("-inf"), dtype=torch.float64)
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        k, v = key[kv_head].double(), value[kv_head].double()
        if lists is not None:
            rows = lists[head // (heads // len(lists))]
            k, v = k[rows], v[rows]
        score = k @ query[head].double() * scale
        score = softcap * torch.tanh(score / softcap) if softcap else score
        if len(score) and not bool((score == float("-inf")).all()):
            lse[head] = torch.logsumexp(score, 0)
            out[head] = torch.softmax(score, 0) @ v
    return out, lse


def nmse(got: Tensor, want: Tensor) -> float:
    """Mean squared error over mean square."""
    return float((got.double() - want).pow(2).mean() / want.pow(2).mean().clamp(min=1e-300))
