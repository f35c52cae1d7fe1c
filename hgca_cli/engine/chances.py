"""How likely a token was, and which ones were likelier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chance:
    """Of a token that was written: natural logarithms of the model's own probabilities, before temperature and filters.

    likeliest  ids that were at its place, the likeliest first
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


def chance_of(logits: Tensor, token: int, count: int) -> Chance:
    """logits [vocabulary] that a token was drawn from; count: of the likeliest."""
    known = torch.log_softmax(logits.float(), 0)
    values, ids = known.topk(min(count, len(known)))
    return Chance(token, float(known[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
