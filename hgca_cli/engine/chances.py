"""How likely a token was, and which ones were likelier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgca_cli.engine.sampling import as_row


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
    row = as_row(logits)
    peak = row.max()
    total = peak + np.log(np.exp(row - peak).sum(dtype=np.float64))
    most = min(count, len(row))
    ids = np.argpartition(row, len(row) - most)[len(row) - most :] if most else np.empty(0, dtype=np.int64)
    ids = ids[np.lexsort((ids, -row[ids]))]
    return Chance(token, float(row[token] - total), tuple((int(one), float(row[one] - total)) for one in ids))
