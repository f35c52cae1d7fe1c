"""All decoder layers of a token, or of one of each of several sequences, in one call of the C library: each gets what the one before it
made.

A model's own loop over its layers stays: its first layer then computes all of them, and the others hand on what they get.
That a model has such a loop is seen, not assumed: a token goes layer by layer first, and only if each layer was given the
very result of the one before, and the same positions, are later tokens one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.attention.ahead import Ahead
from hgca_cli.attention.following import Following
from hgca_cli.errors import HgcaError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.watched import Watched

if TYPE_CHECKING:
    from hgca_cli.attention.layer import LayerState
    from hgca_cli.attention.reading import Reading
    from hgca_cli.hf.decoder import Parts


PARTS = 8  # of a model's modules: one is looked at for a token of which nobody but us knows


class Passed(NamedTuple):
    """A token that went through all layers in one call: what the first was given, and what the last made of it."""

    x: Tensor
    turns: Any
    out: Tensor


class Stack:
    """The layers of a model, in their order.

    proven  a token was seen to go through all of them, one after the other
    most    tokens of a call
    last    the token that did so in one call; whoever wants to know of one sets it to None before
    """

    def __init__(self, layers: nn.ModuleList, parts: list[Parts]) -> None:
        self.proven = False
        self.last: Passed | None = None
        self._parts = parts
        self._described = native.ffi.new("hgca_layer *[]", [part.described for part in parts])
        self._watched = Watched([layers, *(inner for part in parts for inner in part.inner)], parts=PARTS)
        self._own = [one.__dict__ for one in layers]
        self.most = min(part.most for part in parts)
        self._passed = 0  # layers of the token at hand, one after the other
        self._at: Tensor | None = None  # what the last of them made
        self._turns: Any = None  # the positions they were given
        self._next = 0  # the layer that hands on next, once all have been computed; 0: none

    def hands_on(self, place: int, x: Tensor) -> bool:
        """Whether the layer at this place has nothing to do but hand x on, as all were computed with the first one."""
        if place == 0 or self._next == 0:
            self._next = 0  # another pass begins, whatever became of the one before
            return False
        if place != self._next or x is not self._at:
            self._next = 0
            raise HgcaError(
                f"layer {place} was given something else than what layer {place - 1} made, as it had been before.",
                "Change what happens between a model's layers before its first token, not after it.",
            )
        self._next = (place + 1) % len(self._parts)
        return True

    def seen(self, place: int, x: Tensor, turns: Any, out: Tensor) -> None:
        """The layer at this place was given x and positions, and made `out` of them, by itself."""
        follows = place == 0 or (place == self._passed and x is self._at and turns is self._turns)
        self._passed = place + 1 if follows else 0
        self._at, self._turns = out, turns
        self.proven |= self._passed == len(self._parts)

    def run(self, x: Tensor, named: dict[str, Any]) -> Tensor | None:
        """A token through all layers, asked by the first: [sequences, 1, width], as of Parts.run. None, and no row was put, where one
        is not like the first. The others hand on what they get.
        """
        out = self._through(x, named) if self._unchanged() else None
        if out is not None:
            self._at, self._next = out, 1
            self.last = Passed(x, named["position_embeddings"], out)
        return out

    def compute(self, x: Tensor, named: dict[str, Any], looked: bool) -> Tensor | None:
        """The same for who asks no layer. None, too, where the layers were never seen to follow each other.

        looked  all were looked at for a token before this one of the same text: now one of PARTS is
        """
        return self._through(x, named) if self._may(x, named, looked) else None

    def follow(self, x: Tensor, named: dict[str, Any], looked: bool) -> Tensor | None:
        """As `compute`, of several tokens [tokens, 1, width] of one sequence, one behind the other: each as it would be by itself.
        None, too, where one of them cannot be read with the others (attention/following.py).
        """
        cache: HybridCache = named["cache"]
        if not self._may(x, named, looked) or (layers := self._readings(cache, 1, x.size(0))) is None:
            return None
        if cache.following is None or not cache.following.of(layers):
            cache.following = Following(layers)
        if (taken := cache.following.take(x.size(0))) is None:
            return None
        out = called(self._several, taken, len(layers) * x.size(0), x, named["position_embeddings"])
        cache.following.end()
        return out

    def _may(self, x: Tensor, named: dict[str, Any], looked: bool) -> bool:
        """Whether who asks no layer may have all of them computed; what some layer was to hand on is forgotten."""
        self._next = 0
        if not (self.proven and self._parts[0].serves(x, named)):
            return False
        return self._watched.partly() if looked else self._unchanged()

    def _readings(self, cache: HybridCache, sequences: int, tokens: int) -> list[tuple[Reading, LayerState]] | None:
        """What so many sequences read in all layers, for so many tokens of one pass; None where the library cannot do it."""
        if len(cache.layers) != len(self._parts) or tokens > self.most:  # a model of fewer layers than there are
            return None
        readings: list[tuple[Reading, LayerState]] = []
        for part in self._parts:
            layer = cache.layers[part.index]
            of_layer = [(one, state) for state in layer.states if (one := part.reading(layer, state)) is not None]
            if len(of_layer) != sequences:
                return None
            readings += of_layer
        return readings

    def _through(self, x: Tensor, named: dict[str, Any]) -> Tensor | None:
        cache: HybridCache = named.get("cache") or named["past_key_values"]
        turns, sequences = named["position_embeddings"], x.size(0)
        call = self._one if sequences == 1 else self._several
        if (ahead := cache.ahead) is not None and (taken := ahead.take()) is not None:
            out = called(call, taken, len(ahead), x, turns)
            ahead.end()
            return out
        if (readings := self._readings(cache, sequences, sequences)) is None:
            return None
        result = through(call, readings, x, turns)
        cache.ahead = None if result is None else Ahead(readings)
        return result

    def _one(self, readings: Any, count: int, *at: int) -> int:
        status: int = native.lib.hgca_decode_layers(self._described, readings, count, *at)
        return status

    def _several(self, readings: Any, count: int, *at: int) -> int:
        depth = len(self._parts)
        status: int = native.lib.hgca_decode_layers_several(self._described, depth, readings, count // depth, *at)
        return status

    def _unchanged(self) -> bool:
        """Whether all parts are as they were found, and nobody listens to what goes from layer to layer."""
        return not any("forward" in own for own in self._own) and self._watched.unchanged()


Call = Callable[
    ..., int
]  # of the library, a layer or several: hgca_readings, how many, where x, cosine, sine and the result are


def through(call: Call, readings: list[tuple[Reading, LayerState]], x: Tensor, turns: Any) -> Tensor | None:
    """A call that does a layer or several, of a token with what each layer or sequence reads; turns: cosine, sine.

    None, and no row was put, if one of them reads rows that Python names.
    """
    if not all(reading.choose(state) for reading, state in readings):
        return None
    taken = native.ffi.new("hgca_reading *[]", [reading.take(state) for reading, state in readings])
    out = called(call, taken, len(readings), x, turns)
    for reading, state in readings:
        reading.end(state)
    return out


def called(call: Call, taken: Any, count: int, x: Tensor, turns: Any) -> Tensor:
    """That call, of readings that were taken."""
    out = torch.empty_like(x)
    if status := call(taken, count, x.data_ptr(), turns[0].data_ptr(), turns[1].data_ptr(), out.data_ptr()):
        native.check(status)
    return out


def stack(model: nn.Module, parts_of: Callable[[nn.Module], Parts | None]) -> None:
    """Join the quick layers of a list that has no others."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        parts = [part for layer in module if (part := parts_of(layer)) is not None]
        if [part.index for part in parts] == list(range(len(module))):
            one = Stack(module, parts)
            for part in parts:
                part.stack = one


def stack_of(layers: nn.Module) -> Stack | None:
    """The stack of a list of layers, once `stack` has made one."""
    parts = getattr(next(iter(layers.children()), None), "parts", None)
    return None if parts is None else parts.stack
