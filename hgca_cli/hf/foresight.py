"""The query of a layer, foreseen while the layer before has still its MLP to compute: rows of the store are chosen by it.

What one MLP adds to the residual stream changes the next layer's query little, so the query made of the stream without it finds
nearly the rows the true one finds (InfiniGen, arXiv:2406.19707, foresees by the stream before the whole layer; docs/log.md has what
either loses). Rows are attended to by the true query: what is foreseen only chooses.

Which models' queries can be foreseen is found by trying: names and parts first, then what layers hand to their attention for
random numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hgca_cli.hf.probe import Probe

FIRST = 2  # the first layers, and the last one, differ too much from the one before: measured, docs/log.md
ANGLE = 0.3
TOLERANCE = 2e-2  # of the norm: 16 bits, added up in another order

Tell = Callable[[int, Callable[[], Tensor]], None]


class Foresight:
    """Of a model's layers. indexes: those whose query is foreseen."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self.indexes = [i for i in range(FIRST, len(layers) - 1) if self._tried(i)]
        self._turns: tuple[Tensor, Tensor] | None = None

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

    @contextmanager
    def telling(self, tell: Tell) -> Iterator[None]:
        """While the model computes a token, `tell` is called with a layer's index and what makes its queries [sequences, heads,
        key_dim], as soon as these can be made.
        """

        def note_turns(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._turns = named.get("position_embeddings")

        def note_stream(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def note(_: nn.Module, args: tuple[Any, ...]) -> None:
                turns, stream = self._turns, args[0]
                if turns is not None:
                    tell(index, lambda: self._query(index, stream, turns))

            return note

        with ExitStack() as hooks:
            first = self._layers[0].register_forward_pre_hook(note_turns, with_kwargs=True)
            hooks.callback(first.remove)
            for index in self.indexes:
                norm = self._layers[index - 1].post_attention_layernorm
                hooks.callback(norm.register_forward_pre_hook(note_stream(index)).remove)
            yield
        self._turns = None

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
        """Whether a layer's query is made as here, and what goes into the second norm of the layer before is its residual stream."""
        before, layer = self._layers[index - 1], self._layers[index]
        attention = layer.self_attn
        weight = next(attention.parameters(), None)
        if weight is None:
            return False
        width = layer.config.hidden_size if hasattr(layer, "config") else attention.config.hidden_size
        like = {"device": weight.device, "dtype": before.input_layernorm.weight.dtype}
        draw = torch.Generator().manual_seed(index)

        def random(*shape: int) -> Tensor:
            return torch.randn(1, 1, *shape, generator=draw).to(**like)

        x, angle = random(width), ANGLE * torch.randn(1, 1, attention.head_dim // 2, generator=draw)
        angle = torch.cat([angle, angle], -1)
        turns = angle.cos().to(**like), angle.sin().to(**like)
        named = {"attention_mask": None, "position_ids": None, "position_embeddings": turns, "use_cache": False}
        seen: list[Tensor] = []
        listens = before.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.inference_mode():
                with Probe(before.self_attn) as probe:
                    probe.answer = random(before.self_attn.o_proj.in_features // attention.head_dim, attention.head_dim)
                    before(x, **named)
                stream = x + before.self_attn.o_proj(probe.answer.reshape(1, 1, -1))
                with Probe(attention) as probe:
                    probe.answer = random(attention.o_proj.in_features // attention.head_dim, attention.head_dim)
                    layer(x, **named)
                assert probe.given is not None
                wanted = [probe.given[0][:, :, 0], stream]
                got = [self._query(index, x, turns), *seen]
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            listens.remove()
        return len(got) == len(wanted) and all(map(_alike, got, wanted))


_known: WeakKeyDictionary[nn.Module, Foresight | None] = WeakKeyDictionary()


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = (one.float() - other.float()).norm()
    return bool(difference <= TOLERANCE * other.float().norm())


def _has_parts(layer: nn.Module) -> bool:
    attention: Any = layer._modules["self_attn"]
    return (
        {"input_layernorm", "post_attention_layernorm", "mlp"} <= layer._modules.keys()
        and {"q_proj", "o_proj"} <= attention._modules.keys()
        and all(isinstance(getattr(attention, name, None), int) for name in ("head_dim", "layer_idx"))
        and hasattr(attention, "config")
        and hasattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb")
    )
