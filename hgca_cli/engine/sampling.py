"""The next token, from one row of logits.

Own code rather than transformers' processors: the engine does not know transformers, and theirs take
milliseconds per token (torch sorts slowly on the CPU). That ours draw from the same distribution is tested.

All of it is numpy's, on the thread that asks: torch wakes its own threads for rows as long as a vocabulary, where the
library's still wait for the next layer, and then both wait for each other (docs/log.md).
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgca_cli.config import SamplingSettings
from hgca_cli.errors import ModelError

Row = NDArray[np.float32]

COLDEST = 1e-30  # a temperature below would be 0 in float32; this one is greedy already
BLOCK = 256  # weights that are added up first


class Sampler:
    """Draws tokens for one answer. The same settings, seed and logits give the same tokens.

    seed  the one in use: the settings', or one drawn now
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**31)
        penalties = (settings.repetition_penalty != 1.0, settings.presence_penalty, settings.frequency_penalty)
        self._greedy = settings.temperature == 0.0 and not any(penalties)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._marked = 0  # how many of the seen ids are in the mask
        self._mask: NDArray[np.bool_] | None = None
        self._counted = 0  # how many of the seen ids are counted, or of the prompt
        self._counts: Row | None = None
        self._room = np.empty((2, 0), np.float32)  # kept: the system gets memory of this size back each time otherwise

    def __call__(self, logits: Tensor, seen: list[int]) -> int:
        """One token id for logits [vocabulary], any device.

        seen  ids of prompt and answer so far, growing from call to call: what the repetition penalty looks at; those for
              presence and frequency at what came after the first call

        Raises ModelError for NaN, +inf, or logits that leave no token to choose.
        """
        settings = self.settings
        if self._greedy and logits.device.type != "cpu":
            return largest(logits)
        row = as_row(logits)
        if settings.repetition_penalty != 1.0:
            row = penalise(row, self._seen(row, seen), settings.repetition_penalty)
        if settings.presence_penalty or settings.frequency_penalty:
            counts = self._written(row, seen)
            row = row - settings.frequency_penalty * counts - np.float32(settings.presence_penalty) * (counts > 0)
        first = int(row.argmax())  # of equals the first; NaN and +inf show in it, and so does a row of nothing but -inf
        check_finite(float(row[first]))
        if settings.temperature == 0.0:
            return first
        if self._room.shape[1] != len(row):
            self._room = np.empty((2, len(row)), np.float32)
        weights, ids = candidates(np.subtract(row, row[first], out=self._room[0]), settings, self._room[1])
        at = draw(weights, self._generator)
        return at if ids is None else int(ids[at])

    def _seen(self, row: Row, seen: list[int]) -> NDArray[np.bool_]:
        if self._mask is None:
            self._mask = np.zeros(len(row), dtype=np.bool_)
        self._mask[np.array(seen[self._marked :], dtype=np.int64)] = True
        self._marked = len(seen)
        return self._mask

    def _written(self, row: Row, seen: list[int]) -> Row:
        """How often each id is in the answer, f32 [vocabulary]."""
        if self._counts is None:
            self._counts, self._counted = np.zeros(len(row), dtype=np.float32), len(seen)
        np.add.at(self._counts, np.array(seen[self._counted :], dtype=np.int64), 1)
        self._counted = len(seen)
        return self._counts


def largest(logits: Tensor) -> int:
    """Where the largest of logits [vocabulary] is, found on their device: two numbers come from there. Raises ModelError."""
    top, at = logits.float().max(0)
    check_finite(float(top))
    return int(at)


def check_finite(peak: float) -> None:
    """The largest logit is a number. Raises ModelError."""
    if not math.isfinite(peak):
        raise ModelError(
            "the model computed logits that are not finite.",
            "Its weights are damaged or its dtype overflows: try --dtype fp32.",
        )


def as_row(logits: Tensor) -> Row:
    """Logits [vocabulary] of any dtype and device for numpy, f32; the same memory where they are such. Not to be written to."""
    here = logits.detach().cpu()
    if here.dtype is torch.bfloat16:  # which numpy does not have: a float's upper half
        return (here.contiguous().view(torch.int16).numpy().astype(np.uint32) << 16).view(np.float32)
    row: Row = here.numpy().astype(np.float32, copy=False)
    return row


def penalise(row: Row, seen: NDArray[np.bool_], penalty: float) -> Row:
    """Logits of seen ids divided by the penalty if positive, multiplied if not. Source: CTRL, arXiv:1909.05858.

    seen  [vocabulary]
    """
    row, some = row.copy(), row[seen]
    row[seen] = np.where(some > 0, some / np.float32(penalty), some * np.float32(penalty))
    return row


def candidates(row: Row, settings: SamplingSettings, room: Row) -> tuple[Row, NDArray[Any] | None]:
    """What may be drawn: temperature, then top-k, top-p and min-p on what is left. At least one token stays.

    row      logits [vocabulary], the largest of them 0; they are scaled where they are
    room     as many numbers, that are written over
    returns  weights f32 [n], the largest of them 1, and their ids [n], ascending; None: all

    Each filter keeps the tokens above some logit, so together they are one threshold; equals of the last one kept stay.
    """
    with np.errstate(over="ignore"):  # almost no temperature: everything else is infinitely far below
        scaled = np.divide(row, np.float32(max(settings.temperature, COLDEST)), out=row)
    least = -math.inf
    left = scaled
    if 0 < settings.top_k < len(scaled):
        np.copyto(room, scaled)
        room.partition(-settings.top_k)
        least = float(room[-settings.top_k])
        left = scaled[scaled >= least]
    if settings.top_p < 1.0:
        least = nucleus(left, settings.top_p, room[: len(left)])
    if settings.min_p > 0.0:
        least = max(least, math.log(settings.min_p))  # the largest is exp(0)
    if least == -math.inf:
        return np.exp(scaled, out=room), None
    ids = np.flatnonzero(scaled >= np.float32(least))
    return np.exp(scaled[ids]), ids


def nucleus(row: Row, mass: float, room: Row) -> float:
    """The smallest logit of the fewest tokens that hold `mass`. Source: Holtzman et al., arXiv:1904.09751.

    row   logits, the largest of them 0
    room  as many numbers, that are written over

    Only those are sorted whose weight is more than what all others may lack on average: together these hold more than `mass`.
    """
    weights = np.exp(row, out=room)
    total = float(weights.sum(dtype=np.float64))
    ordered = np.sort(row[weights >= 0.999 * (1.0 - mass) * total / len(row)])[::-1]
    reached = np.cumsum(np.exp(ordered), dtype=np.float64)
    missing = int(np.searchsorted(reached, mass * total))  # tokens that do not hold it yet; one more does
    return float(ordered[min(missing, len(ordered) - 1)])


def draw(weights: Row, generator: torch.Generator) -> int:
    """An index with the probability its weight has: one random number against running sums, of blocks and of the numbers in one.

    torch.multinomial draws one number per token of the vocabulary, which takes milliseconds.
    """
    whole = len(weights) // BLOCK * BLOCK
    blocks = weights[:whole].reshape(-1, BLOCK).sum(axis=1)
    reached = np.cumsum(np.append(blocks, weights[whole:].sum()), dtype=np.float64)
    mark = float(torch.rand(1, dtype=torch.float64, generator=generator)) * reached[-1]
    block = int(np.searchsorted(reached, mark, side="right"))
    if block < len(reached):
        inside = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
        at = int(np.searchsorted(inside, mark - (reached[block - 1] if block else 0.0), side="right"))
        if at < len(inside):
            return block * BLOCK + at
    return int(weights.argmax())  # a product, or a block's sum, was rounded up
