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


def decode(codes: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes u8 [heads, blocks, bytes]: numbers 0 .. 15 [heads, blocks, 128, dim], scales and zeros [heads, blocks, 1, dim]."""
    heads, blocks, _ = codes.shape
    width = -(-dim // 8) * 8
    scales = codes[..., : 4 * width].contiguous().view(torch.bfloat16).double().view(heads, blocks, 2, 1, width)
    packed = codes[..., 4 * width :].reshape(heads, blocks, 8, width // 8, 16, 1, 4)
    both = torch.cat([packed & 15, packed >> 4], 5).permute(0, 1, 2, 4, 3, 5, 6)
    numbers = both.reshape(heads, blocks, 128, width).double()
    return numbers[..., :dim], scales[:, :, 0, :, :dim], scales[:, :, 1, :, :dim]


def score_codes(query: Tensor, codes: Tensor, scale: float, softcap: float = 0.0) -> Tensor:
    """Scores f64 [heads, positions] as hgca chooses by them: per block, query times scales is rounded to 8 bits."""
    heads, dim = query.shape
    numbers, scales, zeros = (x.repeat_interleave(heads // codes.shape[0], 0) for x in decode(codes, dim))
    q = (query.double() * scale)[:, None, None]
    scaled = q * scales
    top = scaled.abs().amax(-1, keepdim=True) / 127
    rounded = torch.where(top > 0, scaled / top, 0.0).round()
    score = ((rounded * numbers).sum(-1) * top[..., 0] + (q * zeros).sum(-1)).reshape(heads, -1)
    return softcap * torch.tanh(score / softcap) if softcap else score


def left_out(weight: Tensor, alike: float, most: float) -> float:
    """How much of everything weights count for that are left out, and estimated: of rows 50 and 8, of groups 8 and 4; 0 and 1 else."""
    return float((alike * weight.square().sum() + (weight.sum() / most) ** 2).sqrt())
