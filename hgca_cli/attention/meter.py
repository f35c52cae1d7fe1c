"""How much of the attention mass a policy kept, measured while decoding: now and then some heads of a layer attend exactly too.

One layer-step in every 16 tokens' worth is measured, another layer each time, and of a layer one KV head with the query heads
that share its rows, another one each time: at 30 layers of 8 KV heads the extra reading is a 3,840th of what exact attention
would read. Of a store of few bytes several heads are, or all, which tells more and costs as little. The first eight of an answer
come token by token: a short one is not judged by a single layer, whose heads may be far from what all keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 16  # between two measurements
EARLY = 8  # that are a token apart, at first
TOGETHER = 16 << 20  # bytes of rows that are read at once


class QualityMeter:
    """Shared by the layers of one cache.

    kept   share of the attention mass that was read, summed over measurements; count: how many there were
    early  of these are a token apart
    turns  measurements of all answers, counted on: whose turn it is in a layer that was not measured yet
    """

    def __init__(self, layers: int) -> None:
        self.early = EARLY
        self._layers = max(1, layers)
        self._left = self._layers
        self.count = self.turns = 0
        self.kept = 0.0

    def due(self, among: int = 1) -> bool:
        """Called once per layer and token; whether this one is to be measured.

        among  sequences whose tokens are one step: so much more seldom each of them is, as all wait for it
        """
        return self.next_of(1, among) is not None

    def next_of(self, layers: int, among: int = 1) -> int | None:
        """As `due` once for each of so many layers, a token's: which of them is to be measured; None: none is."""
        if self.is_free(layers):
            self._left -= layers
            return None
        at, apart = max(0, self._left - 1), 1 if self.count < self.early else TOKENS
        self._left = apart * among * self._layers + 1  # not a multiple of the layers: it moves on by one each time
        self._left -= layers - 1 - at
        return at

    @property
    def free(self) -> int:
        """So many layers, of the next tokens, are not to be measured."""
        return self._left - 1

    def is_free(self, layers: int) -> bool:
        """Whether none of the next so many layers is to be measured."""
        return layers <= self.free

    def add(self, read: Tensor, store: Tensor, near: Tensor | None) -> None:
        """Log-sum-exps f32 [heads]: of the store's rows read, of all of them, of rows elsewhere (None: there are none)."""
        whole = store if near is None else torch.logaddexp(store, near)
        missed = (torch.exp(store - whole) - torch.exp(read - whole)).clamp(min=0.0)
        self.kept += 1.0 - float(missed.mean())
        self.count += 1
        self.turns += 1

    @property
    def quality(self) -> float | None:
        """Mean share of the mass that was kept; None before the first measurement."""
        return self.kept / self.count if self.count else None

    def reset(self, tokens: int = 0) -> None:
        """Start anew; which layer is next stays as it is. Before the first measurement of all a text's tokens say which it is, so that
        those of many short texts, of which each has a meter, are not all of the same layers.
        """
        if not self.turns:
            self.turns, self._left = divmod(tokens, self._layers)
        self.count, self.kept = 0, 0.0
        self._left = (self._left - 1) % self._layers + 1  # within a token


def heads_in_turn(turn: int, kv_heads: int, head_bytes: int) -> slice:
    """KV heads that are measured in a layer's so many-th turn, each of which has so many bytes of rows: as many as are read at once,
    at least one. All are in as many turns.
    """
    most = max(1, TOGETHER // max(1, head_bytes))
    together = max(one for one in range(1, kv_heads + 1) if kv_heads % one == 0 and one <= most)
    first = turn % (kv_heads // together) * together
    return slice(first, first + together)
