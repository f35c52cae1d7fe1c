"""A decoder layer of one token, or of one of each of several sequences, in one call of the C library; in two, where the attention is
not the library's: of one token, or of a prompt's chunk.

A family's own layer is nine modules and some thirty operations on a few hundred numbers; being called is most of their
time. Which layers are such is found by trying, as for gated blocks (hf/gated.py): names and parts first, then what the
layer's own forward hands to its attention and makes of its result, for random numbers. A layer keeps its own forward without
a HybridCache, for more tokens than its products are served for, and wherever somebody listens to one of its parts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.reading import Reading
from hgca_cli.hf.attention import attend
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.cache_layer import HybridLayer
from hgca_cli.hf.gated import Gated
from hgca_cli.hf.linear import QuickLinear
from hgca_cli.hf.mixture import Mixed
from hgca_cli.hf.norm import QuickNorm
from hgca_cli.hf.probe import Probe
from hgca_cli.hf.stack import Stack, called, through
from hgca_cli.hf.trial import gives_the_same, put_before
from hgca_cli.hf.watched import Watched

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
HEAD_NORMS = ("q_norm", "k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
# what a layer is called with; what else there is may mean something
NAMES = frozenset(
    {"attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "cache_position", "position_embeddings"}
    | {"output_router_logits"}
)
KNOWN = frozenset({"scaling", "softcap", "sliding_window"})  # what a layer may tell its attention
TOLERANCE = 1e-5  # of the norm, float32


class QuickDecoder(nn.Module):
    """What is put before a layer's own class: a token of each sequence, or a chunk of one, is the C library's, all else as before."""

    parts: Parts

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        """[batch, tokens, width] -> [batch, tokens, width]."""
        parts, stack = self.parts, self.parts.stack
        if stack is not None and stack.hands_on(parts.index, hidden_states):
            return hidden_states
        out = parts.run(hidden_states, named) if not args and parts.serves(hidden_states, named) else None
        return out if out is not None else super().forward(hidden_states, *args, **named)


class Parts:
    """The parts of a layer, as they were when it was found.

    index  of the layer in a cache
    inner  the modules whose modules they are
    told   what it tells its attention, but for query, key and value
    most   sequences of which a token each is one call, or tokens of one sequence
    stack  the layers of the model that this is one of, if they may be one call
    """

    def __init__(self, layer: nn.Module, attention: Any) -> None:
        linear: list[Any] = [attention._modules[name] for name in (*PROJECTIONS, "o_proj")]
        norms: list[Any] = [layer._modules[name] for name in NORMS]
        block: Any = layer._modules["mlp"]
        self.index: int = attention.layer_idx
        self.told: dict[str, Any] = {}
        self.stack: Stack | None = None
        self.width, self.dim = linear[0].in_features, attention.head_dim
        self._sizes = [one.out_features for one in linear[:3]]
        self.heads, kv_heads = (size // self.dim for size in self._sizes[:2])
        self.value_dim = self._sizes[2] // kv_heads
        self._shapes = (self.heads, self.dim), (kv_heads, self.dim), (kv_heads, self.value_dim)
        to = self.described = native.ffi.new("hgca_layer *")
        to.heads, to.kv_heads, to.dim, to.rotated = self.heads, kv_heads, self.dim, self.dim
        for i, one in enumerate(linear[:3]):
            to.projection[i] = one.quick.described
        to.out = linear[3].quick.described
        gated = block.gated.layers if isinstance(block, Gated) else []
        for i, one in enumerate(gated):
            to.gated[i] = one.quick.described
        if isinstance(block, Mixed):
            to.mixture = block.mixture.described
        for i, one in enumerate(norms):
            one.scale.describe(to.norm[i])
        for i, name in enumerate(HEAD_NORMS):
            if isinstance(one := attention._modules.get(name), QuickNorm):
                one.scale.describe(to.head_norm[i])
        self.inner = layer, attention, block
        self._watched = Watched(self.inner)
        self.most = min(one.quick.most for one in (*linear, *gated))
        if isinstance(block, Mixed):
            self.most = min(self.most, block.mixture.most)

    def serves(self, x: Tensor, named: dict[str, Any]) -> bool:
        """Whether x is a token of each of some texts in a HybridCache, or several tokens of one, and the parts are still the same and
        nobody listens to them.
        """
        turns = named.get("position_embeddings")
        shape = x.shape[:-1]
        return (
            not torch.is_grad_enabled()
            and named.keys() <= NAMES
            and named.get("attention_mask") is None
            and not named.get("output_router_logits")
            and isinstance(named.get("cache") or named.get("past_key_values"), HybridCache)
            and 1 in shape
            and shape.numel() <= self.most
            and _is_each(x, shape, self.width)
            and turns is not None
            and _is_each(turns[0], shape, self.dim)
            and _is_each(turns[1], shape, self.dim)
            and self._watched.unchanged()
        )

    def run(self, x: Tensor, named: dict[str, Any]) -> Tensor | None:
        """[sequences, 1, width], or [1, tokens, width] -> likewise. Only if it `serves`; None, and nothing was done, where the
        attention of several sequences is not the library's, or all of it is recorded.
        """
        cosine, sine = named["position_embeddings"]
        layer: HybridLayer = (named.get("cache") or named["past_key_values"]).layers[self.index]
        if layer.recorder is not None:  # a graph's: its operations are torch's
            return None
        if layer.several is not None:
            return self._run_prompts(x, named["position_embeddings"], layer, layer.several)
        if x.size(1) > 1:
            return self._run_around(x, cosine, sine, layer)
        proven = self.index == 0 and self.stack is not None and self.stack.proven
        if proven and (out := self.stack.run(x, named)) is not None:  # type: ignore[union-attr]
            return out
        if x.size(0) > 1:
            return self._run_several(x, named["position_embeddings"], layer)
        reading = self.reading(layer, layer.states[0]) if layer.states else None  # empty before its first token
        if reading is not None and (described := reading.begin(layer.states[0])) is not None:
            out = torch.empty_like(x)
            at = x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), out.data_ptr()
            if status := native.lib.hgca_decode_layer(self.described, described, *at):
                native.check(status)
            reading.end(layer.states[0])
            if self.stack is not None:
                self.stack.seen(self.index, x, named["position_embeddings"], out)
            return out
        return self._run_around(x, cosine, sine, layer)

    def _run_around(self, x: Tensor, cosine: Tensor, sine: Tensor, layer: HybridLayer) -> Tensor:
        query, key, value = self.before(x, cosine, sine)
        layer.update(key, value)
        return self.after(x, attend(layer, query, key, value, **self.told))

    def _run_several(self, x: Tensor, turns: Any, layer: HybridLayer) -> Tensor | None:
        if len(layer.states) != x.size(0):
            return None
        readings = [one for state in layer.states if (one := self.reading(layer, state)) is not None]
        if len(readings) < len(layer.states):
            return None
        pairs = list(zip(readings, layer.states, strict=True))
        out = through(partial(native.lib.hgca_decode_layer_several, self.described), pairs, x, turns)
        if self.stack is not None and out is not None:
            self.stack.seen(self.index, x, turns, out)
        return out

    def _run_prompts(self, x: Tensor, turns: Any, layer: HybridLayer, tokens: list[int]) -> Tensor:
        readings = [self._reading(layer, state) for state in layer.states]
        pairs = [(one, state) for one, state in zip(readings, layer.states, strict=True) if one is not None]
        assert len(pairs) == len(tokens), "a sequence does not take its prompt so"  # `takes_prompt` was not asked
        taken = [one.take_tokens(state, count) for (one, state), count in zip(pairs, tokens, strict=True)]
        several = native.ffi.new("hgca_reading *[]", taken)
        out = called(partial(native.lib.hgca_decode_layer_several, self.described), several, len(taken), x, turns)
        for one, state in pairs:
            one.end_tokens(state)
        return out

    def takes_prompt(self, layer: HybridLayer, state: LayerState, tokens: int) -> bool:
        """Whether so many tokens of a prompt can be read into a sequence's layer beside others' (`HybridLayer.several`)."""
        state.settle()
        return state.has_room(tokens) and self._reading(layer, state) is not None

    def reading(self, layer: HybridLayer, state: LayerState) -> Reading | None:
        """What the attention of a sequence's layer reads for a token, if the C library can do all of it."""
        return None if state.prompt_left else self._reading(layer, state)

    def _reading(self, layer: HybridLayer, state: LayerState) -> Reading | None:
        if self.told["sliding_window"] != layer.layout.sliding:
            return None
        if state.reading is None and Reading.serves(state):
            scale = self.told["scaling"]
            state.reading = Reading(state, self.dim**-0.5 if scale is None else scale, self.told["softcap"] or 0.0)
        return state.reading

    def before(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, tokens, width], [1, tokens, dim] -> query [1, heads, tokens, dim], key [1, kv_heads, tokens, dim], value."""
        tokens = x.size(1)
        out = torch.empty(tokens * sum(self._sizes))
        at = x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), out.data_ptr()
        if tokens == 1:
            status = native.lib.hgca_before_attention(self.described, *at)
        else:
            status = native.lib.hgca_before_attention_several(self.described, tokens, *at)
        if status:
            native.check(status)
        parts = out.split([tokens * size for size in self._sizes])
        query, key, value = (
            part.view(1, tokens, *shape).transpose(1, 2) for part, shape in zip(parts, self._shapes, strict=True)
        )
        return query, key, value

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """[1, tokens, width], attention's result [1, tokens, heads, value_dim] -> [1, tokens, width]."""
        attended, out = attended.contiguous(), torch.empty_like(x)
        at, tokens = (x.data_ptr(), attended.data_ptr(), out.data_ptr()), x.size(1)
        if tokens == 1:
            status = native.lib.hgca_after_attention(self.described, *at)
        else:
            status = native.lib.hgca_after_attention_several(self.described, tokens, *at)
        if status:
            native.check(status)
        return out


def _is_each(x: Tensor, shape: torch.Size, width: int) -> bool:
    return x.shape == (*shape, width) and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()


def quicken_decoder(layer: nn.Module) -> bool:
    """Let the library do a layer whose parts are quick, if it does what they do; returns whether it is so."""
    attention = layer._modules.get("self_attn")
    if attention is None or isinstance(layer, QuickDecoder) or not _has_parts(layer, attention):
        return False
    with Probe(attention) as probe:
        parts = _matching(layer, attention, probe)
    if parts is None:
        return False
    put_before(layer, QuickDecoder)
    assert isinstance(layer, QuickDecoder)
    layer.parts = parts
    return True


def parts_of(layer: nn.Module) -> Parts | None:
    """The parts of a layer that the library does."""
    return layer.parts if isinstance(layer, QuickDecoder) else None


def _has_parts(layer: nn.Module, attention: nn.Module) -> bool:
    linear = [attention._modules.get(name) for name in (*PROJECTIONS, "o_proj")]
    norms = [layer._modules.get(name) for name in NORMS]
    heads = [one for name in HEAD_NORMS if (one := attention._modules.get(name)) is not None]
    return (
        layer._modules.keys() == {"self_attn", "mlp", *NORMS}
        and attention._modules.keys() <= {*PROJECTIONS, "o_proj", *HEAD_NORMS}
        and not (layer._parameters or attention._parameters)
        and all(isinstance(one, QuickLinear) and one.quick.dtype is torch.float32 for one in linear)
        and all(isinstance(one, QuickNorm) for one in (*norms, *heads))
        and isinstance(layer._modules["mlp"], Gated | Mixed)
        and all(isinstance(getattr(attention, name, None), int) for name in ("head_dim", "layer_idx"))
        and hasattr(attention, "config")
    )


def _matching(layer: nn.Module, attention: nn.Module, probe: Probe) -> Parts | None:
    """The layer's parts, if what the C library makes of them is what its own forward does."""
    parts = Parts(layer, attention)
    rng = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(1, 1, *shape, generator=rng)

    def own(x: Tensor) -> Tensor:
        out = layer(x, attention_mask=None, position_ids=None, position_embeddings=turns, use_cache=False)
        shapes = [part.shape for part in probe.given or ()]
        if not isinstance(out, Tensor) or shapes != [part.shape for part in parts.before(x, *turns)]:
            raise ValueError
        return torch.cat([*(part.flatten() for part in probe.given or ()), out.flatten()])

    def ours(x: Tensor) -> Tensor:
        return torch.cat(
            [*(part.flatten() for part in parts.before(x, *turns)), parts.after(x, probe.answer).flatten()]
        )

    for size in (0.1, 1.0, 30.0):
        turns = random(parts.dim), random(parts.dim)
        probe.answer = size * random(parts.heads, parts.value_dim)
        if not gives_the_same(own, ours, [size * random(parts.width)], TOLERANCE):
            return None
    if probe.told.keys() - KNOWN:
        return None
    parts.told = {"scaling": None, "softcap": None, "sliding_window": None} | probe.told
    return parts
