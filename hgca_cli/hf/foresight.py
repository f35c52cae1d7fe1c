"""The query of a layer, foreseen before the layer before it is computed: rows of the store are chosen by it.

What one layer adds to the residual stream changes the next layer's query little, and much of that is the same for token after token:
the query made of the stream before it, and what it added to the latest tokens on average, finds nearly the rows the true one finds
(InfiniGen, arXiv:2406.19707, takes the stream alone; docs/log.md has what either loses). Rows are attended to by the true query: what
is foreseen only chooses.

Which models' queries can be foreseen is found by trying: names and parts first, then what layers hand to their attention for
random numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hgca_cli.hf.probe import Probe

FIRST = 2  # the first layers differ too much from the one before: measured, docs/log.md
SHARE = 0.1  # of the latest token in an average of what a layer adds
ANGLE = 0.3
TOLERANCE = 2e-2  # of the norm: 16 bits, added up in another order

Tell = Callable[[int, Callable[[], Tensor]], None]


class Drift:
    """What the layer before each layer added to the residual stream of each sequence's latest tokens, on average.

    mean    [layers, sequences, 1, width] of the dtype of a norm's weights; zeros as long as nothing is known
    tokens  f32 [sequences, 1, 1], averaged so far; share: of the latest one in the average, of the dtype of mean
    """

    def __init__(self, layers: int, sequences: int, like: Tensor) -> None:
        with torch.inference_mode(False):
            self.mean = torch.zeros(layers, sequences, 1, len(like), dtype=like.dtype, device=like.device)
            self.tokens = torch.zeros(sequences, 1, 1, device=like.device)
            self.share = torch.ones_like(self.tokens, dtype=like.dtype)

    def move(self, came: Sequence[int | None]) -> None:
        """The first sequences are those that were at these places. None: another one; as long as nothing is known of it, what layers
        add to the tokens of one that is known is the best guess, and its own first token counts whole.
        """
        known = next((at for at in came if at is not None), None)
        order = list(range(len(self.tokens)))
        for place, at in enumerate(came):
            order[place] = at if at is not None else known if known is not None else place
        self.mean.copy_(self.mean[:, order].nan_to_num(0.0, 0.0, 0.0))
        self.tokens.copy_(self.tokens[order])
        for place, at in enumerate(came):
            if at is None:
                self.tokens[place] = 0.0

    def token(self) -> None:
        """One more."""
        self.tokens += 1.0
        self.share.copy_(self.tokens.reciprocal().clamp(SHARE, 1.0))

    def add(self, layer: int, added: Tensor) -> None:
        """What the layer before this one added to the present token [sequences, 1, width]."""
        self.mean[layer].lerp_(added, self.share)


class Foresight:
    """Of a model's layers. indexes: those whose query is foreseen."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self.indexes = [i for i in range(FIRST, len(layers)) if self._tried(i)]

    @staticmethod
    def of(model: nn.Module, count: int) -> Foresight | None:
        """Of a model with so many layers that see a cache, tried once; None where queries are made in another way."""
        if model not in _known:
            _known[model] = Foresight._found(model, count)
        return _known[model]

    @staticmethod
    def _found(model: nn.Module, count: int) -> Foresight | None:
        found: dict[int, nn.Module] = {
            attention.layer_idx: one  # type: ignore[misc]
            for one in model.modules()
            if isinstance(attention := one._modules.get("self_attn"), nn.Module) and hasattr(attention, "layer_idx")
        }
        if found.keys() != set(range(count)) or not all(map(_has_parts, found.values())):
            return None
        made = Foresight([found[i] for i in range(count)])
        return made if made.indexes else None

    def drift(self, sequences: int) -> Drift:
        """Of so many, nothing known."""
        weight = self._layers[0].input_layernorm.weight
        return Drift(len(self._layers), sequences, weight)

    @contextmanager
    def telling(self, tell: Tell, drift: Drift) -> Iterator[None]:
        """While the model computes a token, `tell` is called with a layer's index and what makes its queries [sequences, heads,
        key_dim], as soon as these can be made: when the layer before it begins. They are made in the order of the layers, if at all:
        what layers add is noted then.
        """
        streams: dict[int, Tensor] = {}
        last = len(self._layers) - 1

        def note_stream(index: int) -> Callable[..., None]:
            def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                turns, stream = named.get("position_embeddings"), args[0] if args else named["hidden_states"]
                if index == self.indexes[0]:
                    drift.token()
                before = streams.pop(index - 2, None)
                streams[index - 1] = stream
                if turns is not None:
                    tell(index, lambda: self._foreseen(index, before, stream, turns, drift))

            return note

        def note_last(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], __: Any) -> None:
            drift.add(last, (args[0] if args else named["hidden_states"]) - streams.pop(last - 1))

        with ExitStack() as hooks:
            for index in self.indexes:
                before = self._layers[index - 1]
                hooks.callback(before.register_forward_pre_hook(note_stream(index), with_kwargs=True).remove)
            if last in self.indexes:
                hooks.callback(self._layers[last].register_forward_hook(note_last, with_kwargs=True).remove)
            yield

    def _foreseen(
        self, index: int, before: Tensor | None, stream: Tensor, turns: tuple[Tensor, Tensor], drift: Drift
    ) -> Tensor:
        """A layer's queries by the stream in front of the layer before it; before: in front of the layer before that one."""
        if before is not None:
            drift.add(index - 1, stream - before)
        return self._query(index, stream + drift.mean[index], turns)

    def _query(self, index: int, stream: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """[sequences, heads, key_dim] of a residual stream [sequences, 1, width]."""
        layer = self._layers[index]
        attention = layer.self_attn
        query = attention.q_proj(layer.input_layernorm(stream)).unflatten(-1, (-1, attention.head_dim))
        if "q_norm" in attention._modules:
            query = attention.q_norm(query)
        query = query.transpose(1, 2)
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        turned: Tensor = rotate(query, query[:, :1], *turns)[0]
        return turned[:, :, 0]

    def _tried(self, index: int) -> bool:
        """Whether a layer's query is made of its input as here."""
        layer = self._layers[index]
        attention = layer.self_attn
        weight = next(attention.parameters(), None)
        if weight is None:
            return False
        width = layer.config.hidden_size if hasattr(layer, "config") else attention.config.hidden_size
        like = {"device": weight.device, "dtype": layer.input_layernorm.weight.dtype}
        draw = torch.Generator().manual_seed(index)

        def random(*shape: int) -> Tensor:
            return torch.randn(1, 1, *shape, generator=draw).to(**like)

        x, angle = random(width), ANGLE * torch.randn(1, 1, attention.head_dim // 2, generator=draw)
        angle = torch.cat([angle, angle], -1)
        turns = angle.cos().to(**like), angle.sin().to(**like)
        named = {"attention_mask": None, "position_ids": None, "position_embeddings": turns, "use_cache": False}
        try:
            with torch.inference_mode():
                with Probe(attention) as probe:
                    probe.answer = random(attention.o_proj.in_features // attention.head_dim, attention.head_dim)
                    layer(x, **named)
                assert probe.given is not None
                return _alike(self._query(index, x, turns), probe.given[0][:, :, 0])
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False


_known: WeakKeyDictionary[nn.Module, Foresight | None] = WeakKeyDictionary()


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = (one.float() - other.float()).norm()
    return bool(difference <= TOLERANCE * other.float().norm())


def _has_parts(layer: nn.Module) -> bool:
    attention: Any = layer._modules["self_attn"]
    return (
        "input_layernorm" in layer._modules
        and {"q_proj", "o_proj"} <= attention._modules.keys()
        and all(isinstance(getattr(attention, name, None), int) for name in ("head_dim", "layer_idx"))
        and hasattr(attention, "config")
        and hasattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb")
    )
