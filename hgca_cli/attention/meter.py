"""How much of the attention mass a policy kept, measured while decoding: now and then one layer attends exactly too.

One layer-step in every 16 tokens' worth is measured, another layer each time, so at 30 layers the extra reading is a
480th of what exact attention would read. The first eight of an answer come token by token: a short one is not judged by
a single layer, whose heads may be far from what all keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 16  # between two measurements
EARLY = 8  # that are a token apart, at first


class QualityMeter:
    """Shared by the layers of one cache.

    kept   share of the attention mass that was read, summed over measurements; count: how many there were
    early  of these are a token apart
    """

    def __init__(self, layers: int) -> None:
        self.early = EARLY
        self._layers = max(1, layers)
        self._left = self._layers
        self.count = 0
        self.kept = 0.0

    def due(self) -> bool:
        """Called once per layer and token; whether this one is to be measured."""
        self._left -= 1
        if self._left > 0:
            return False
        apart = 1 if self.count < self.early else TOKENS
        self._left = apart * self._layers + 1  # not a multiple of the layers: it moves on by one each time
        return True

    def passes(self, layers: int) -> bool:
        """As `due` once for each of so many layers, if none of them is; False, and nothing was counted, if one is."""
        if not self.is_free(layers):
            return False
        self._left -= layers
        return True

    def is_free(self, layers: int) -> bool:
        """Whether none of the next so many layers is to be measured."""
        return self._left > layers

    def add(self, read: Tensor, store: Tensor, near: Tensor | None) -> None:
        """Log-sum-exps f32 [heads]: of the store's rows read, of all of them, of rows elsewhere (None: there are none)."""
        whole = store if near is None else torch.logaddexp(store, near)
        missed = (torch.exp(store - whole) - torch.exp(read - whole)).clamp(min=0.0)
        self.kept += 1.0 - float(missed.mean())
        self.count += 1

    @property
    def quality(self) -> float | None:
        """Mean share of the mass that was kept; None before the first measurement."""
        return self.kept / self.count if self.count else None

    def reset(self) -> None:
        """Start anew; which layer is next stays as it is."""
        self.count, self.kept = 0, 0.0
        self._left = (self._left - 1) % self._layers + 1  # within a token
