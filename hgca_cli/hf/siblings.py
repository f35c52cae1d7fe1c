"""Layers that share a vector (query, key and value; gate and up), computed by one call: starting threads takes as long as a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.hf.linear import QuickLinear, Weights, described_all, multiply


def join(layers: list[QuickLinear]) -> None:
    """Let layers that are given the same vector one after the other be computed together."""
    kinds = {(layer.in_features, layer.quick.dtype) for layer in layers}
    if len(layers) < 2 or len(kinds) > 1 or any(layer.siblings is not None for layer in layers):
        return
    siblings = Siblings([layer.quick for layer in layers])
    for rank, layer in enumerate(layers):
        layer.siblings, layer.rank = siblings, rank


class Siblings:
    """Layers that are given one vector one after the other: the first computes all, the others take theirs.

    Nothing is assumed of who calls: a result is only given for the very bytes it was computed from, once. A layer that is
    asked something else computes that alone; if results are left behind again and again, every layer does.
    """

    PATIENCE = 4  # times that results were left behind

    __slots__ = ("_described", "_found", "_left_behind", "_sizes", "_weights")

    def __init__(self, weights: list[Weights]) -> None:
        self._weights = weights
        self._described = described_all(weights)
        self._sizes = [one.outputs for one in weights]
        self._found: tuple[Tensor, dict[int, Tensor]] | None = None  # a copy of the vector, results nobody took yet
        self._left_behind = 0

    def product(self, rank: int, vector: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] of the layer of that rank. Only if its weights serve."""
        if rank and (found := self._found) is not None:
            copy, left = found
            if copy.shape == vector.shape and native.lib.hgca_same(
                copy.data_ptr(), vector.data_ptr(), copy.numel() * copy.element_size()
            ):
                out = left.pop(rank, None)  # once, as who has it may write into it
                if not left:  # vectors of a prompt are many
                    self._found = None
                if out is not None:
                    return out
        if rank or self._left_behind >= self.PATIENCE:
            return self._weights[rank].product(vector)
        return self._all(vector)

    def _all(self, vector: Tensor) -> Tensor:
        if self._found is not None and self._found[1]:
            self._left_behind += 1
        inputs = self._weights[0].inputs
        vectors = vector.numel() // inputs
        out = torch.empty(vectors * sum(self._sizes), dtype=vector.dtype)
        multiply(self._described, len(self._sizes), vector, inputs, out)
        parts = out.split([vectors * size for size in self._sizes])
        first, *others = (part.view(*vector.shape[:-1], size) for part, size in zip(parts, self._sizes, strict=True))
        self._found = vector.clone(), dict(enumerate(others, 1))
        return first
