"""The next token, from one row of logits."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from hgca_cli.config import SamplingSettings
from hgca_cli.errors import ModelError


class Sampler:
    """Draws tokens for one answer. The same settings, seed and logits give the same tokens.

    seed  the one in use: the settings', or one drawn now
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**31)
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: Tensor, seen: list[int]) -> int:
        """One token id for logits [vocabulary], any device.

        seen  ids of prompt and answer so far: what the repetition penalty looks at

        Raises ModelError for NaN, +inf, or logits that leave no token to choose.
        """
        settings = self.settings
        logits = logits.float()
        top = float(logits.max())  # NaN and +inf show in the maximum
        if not top < float("inf") or top == float("-inf"):
            raise ModelError(
                "the model computed logits that are not numbers.", "Its weights or its dtype overflow: try --dtype fp32."
            )
        if settings.repetition_penalty != 1.0 and seen:
            logits = penalise(logits, torch.tensor(seen, device=logits.device), settings.repetition_penalty)
        if settings.temperature == 0.0:
            return int(logits.argmax())
        return draw(probabilities(logits.cpu(), settings), self._generator)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of seen ids divided by the penalty if positive, multiplied if not. Source: CTRL, arXiv:1909.05858."""
    seen = seen.unique()
    score = logits[seen]
    return logits.scatter(0, seen, torch.where(score > 0, score / penalty, score * penalty))


def probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """What to draw from: temperature, then top-k, top-p and min-p on what is left, renormalised. f32 [vocabulary].

    The most likely token always stays. Same order and rules as transformers' warpers.
    """
    # subtracting the maximum first keeps a temperature of 1e-9 finite
    scaled = (logits - logits.max()) / settings.temperature
    if 0 < settings.top_k < len(scaled):
        least = torch.topk(scaled, settings.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    if settings.top_p < 1.0:
        ordered, index = torch.sort(scaled, descending=True)
        share = torch.softmax(ordered, 0)
        beyond = share.cumsum(0) - share >= settings.top_p  # what comes before already has the mass
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(0, index, beyond), float("-inf"))
    share = torch.softmax(scaled, 0)
    if settings.min_p > 0.0:
        share = torch.where(share < settings.min_p * share.max(), 0.0, share)
    return share / share.sum()


def draw(share: Tensor, generator: torch.Generator) -> int:
    """An index with the probability it has."""
    return int(torch.multinomial(share, 1, generator=generator))
