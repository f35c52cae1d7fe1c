"""Float64 references of ten lines; imports nothing from the package."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float = 0.0, lists: list[list[int]] | None = None
) -> tuple[Tensor, Tensor]:
    """query [heads, key_dim] over key, value [kv_heads, rows, dim]; lists of rows serve consecutive query heads."""
    heads, kv_heads = query.shape[0], key.shape[0]
    every: list[slice] = [slice(None)] * kv_heads
    count = kv_heads if lists is None else len(lists)
    out = torch.zeros(heads, value.shape[-1], dtype=torch.float64)
    lse = torch.full((heads,), float("-inf"), dtype=torch.float64)
    for index, chosen in enumerate(every if lists is None else lists):
        served = slice(index * heads // count, (index + 1) * heads // count)
        k, v = (side[index * kv_heads // count].double()[chosen] for side in (key, value))
        score = query[served].double() @ k.T * scale
        score = softcap * torch.tanh(score / softcap) if softcap else score
        nothing = (score == float("-inf")).all(1)  # also over no rows
        lse[served] = torch.logsumexp(score, 1)
        out[served] = torch.where(nothing[:, None], 0.0, torch.softmax(score, 1) @ v)
    return out, lse


def nmse(got: Tensor, want: Tensor) -> float:
    """Mean squared error over mean square."""
    return float((got.double() - want).pow(2).mean() / want.pow(2).mean().clamp(min=1e-300))
