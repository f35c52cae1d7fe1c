"""The next token, from one row of logits.

Own code rather than transformers' processors: the engine does not know transformers, and theirs take
milliseconds per token (torch sorts slowly on the CPU). That ours draw from the same distribution is tested.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor

from hgca_cli.config import SamplingSettings
from hgca_cli.errors import ModelError

COLDEST = 1e-30  # a temperature below would be 0 in float32; this one is greedy already


class Sampler:
    """Draws tokens for one answer. The same settings, seed and logits give the same tokens.

    seed  the one in use: the settings', or one drawn now
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**31)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._marked = 0  # how many of the seen ids are in the mask
        self._mask: Tensor | None = None
        self._counted = 0  # how many of the seen ids are counted, or of the prompt
        self._counts: Tensor | None = None

    def __call__(self, logits: Tensor, seen: list[int]) -> int:
        """One token id for logits [vocabulary], any device.

        seen  ids of prompt and answer so far, growing from call to call: what the repetition penalty looks at; those for
              presence and frequency at what came after the first call

        Raises ModelError for NaN, +inf, or logits that leave no token to choose.
        """
        settings = self.settings
        logits = logits.float()
        if settings.repetition_penalty != 1.0:
            logits = penalise(logits, self._seen(logits, seen), settings.repetition_penalty)
        if settings.presence_penalty or settings.frequency_penalty:
            counts = self._written(logits, seen)
            logits = logits - settings.frequency_penalty * counts - settings.presence_penalty * (counts > 0)
        first, peak = largest(logits)  # NaN and +inf show in the maximum, and so does a row of nothing but -inf
        if not math.isfinite(peak):
            raise ModelError(
                "the model computed logits that are not finite.",
                "Its weights are damaged or its dtype overflows: try --dtype fp32.",
            )
        if settings.temperature == 0.0:
            return first
        share, ids = candidates(logits - peak, settings)
        return int(ids[draw(share, self._generator)])

    def _seen(self, logits: Tensor, seen: list[int]) -> Tensor:
        if self._mask is None:
            self._mask = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if fresh := seen[self._marked :]:
            self._mask[torch.tensor(fresh, device=logits.device)] = True
            self._marked = len(seen)
        return self._mask

    def _written(self, logits: Tensor, seen: list[int]) -> Tensor:
        """How often each id is in the answer, f32 [vocabulary]."""
        if self._counts is None:
            self._counts, self._counted = torch.zeros_like(logits), len(seen)
        if fresh := seen[self._counted :]:
            ids = torch.tensor(fresh, device=logits.device)
            self._counts.index_add_(0, ids, torch.ones(len(fresh), device=logits.device))
            self._counted = len(seen)
        return self._counts


def largest(row: Tensor) -> tuple[int, float]:
    """Where the largest number of a row [n] is, of equals the first, and what it is; a NaN counts as largest.

    numpy looks on this thread: torch wakes its own for 49,152 floats, which then spin beside the library's for milliseconds.
    """
    if row.device.type != "cpu":
        top, first = row.max(0)
        return int(first), float(top)
    numbers = row.numpy()
    at = int(numbers.argmax())
    return at, float(numbers[at])


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of seen ids divided by the penalty if positive, multiplied if not. Source: CTRL, arXiv:1909.05858.

    seen  bool [vocabulary]
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """What may be drawn: temperature, then top-k, top-p and min-p on what is left. At least one token stays.

    logits   f32 [vocabulary], the largest of them 0
    returns  shares f32 [n] that sum to 1, and their ids [n], ascending; on the CPU

    Each filter keeps the tokens above some logit, so together they are one threshold; equals of the last one kept stay.
    """
    scaled = logits / max(settings.temperature, COLDEST)
    least = float("-inf")
    if 0 < settings.top_k < len(scaled) or settings.top_p < 1.0:
        ordered = descending(scaled)
        if 0 < settings.top_k < len(scaled):
            least = float(ordered[settings.top_k - 1])
            ordered = ordered[: int((ordered >= least).sum())]
        if settings.top_p < 1.0:
            least = nucleus(ordered, settings.top_p)
    if settings.min_p > 0.0:
        least = max(least, math.log(settings.min_p))  # the largest is exp(0)
    if least == float("-inf"):
        return torch.softmax(scaled.cpu(), 0), torch.arange(len(scaled))
    ids = (scaled >= least).nonzero().flatten()
    return torch.softmax(scaled[ids].cpu(), 0), ids.cpu()


def descending(row: Tensor) -> Tensor:
    """Sorted, largest first. numpy sorts with SIMD: 0.13 ms against torch's 2.9 for 49,152 floats (one thread)."""
    if row.device.type != "cpu":
        return torch.sort(row, descending=True).values
    return torch.from_numpy(np.sort(row.numpy())).flip(0)


def nucleus(ordered: Tensor, mass: float) -> float:
    """The smallest logit of the fewest tokens that hold `mass`. Source: Holtzman et al., arXiv:1904.09751.

    ordered  logits, largest first
    """
    reached = torch.softmax(ordered, 0).cumsum(0)
    missing = int((reached < mass).sum())  # tokens that do not hold it yet; one more does
    return float(ordered[min(missing, len(ordered) - 1)])


def draw(share: Tensor, generator: torch.Generator) -> int:
    """An index with the probability it has: one random number against the running sum.

    torch.multinomial draws one number per token of the vocabulary: 1.1 ms against 0.2 for 49,152 tokens (one thread).
    """
    reached = share.double().cumsum(0)
    mark = torch.rand(1, dtype=torch.float64, generator=generator) * reached[-1]
    index = int(torch.searchsorted(reached, mark, right=True))
    return index if index < len(share) else int(share.argmax())  # the product was rounded up to the whole sum
