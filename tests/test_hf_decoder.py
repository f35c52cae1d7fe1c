"""Whole layers of one token in one call: the model's own logits, and only where a layer's own forward says the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.errors import NativeError
from hgca_cli.hf import decoder, stack
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.decoder import QuickDecoder, quicken_decoder
from hgca_cli.hf.load import forward, with_cache
from hgca_cli.hf.quicken import quicken
from tests.test_hf_families import FAMILIES, SMALL, TOKENS, ids, logits_of, tiny

QUICK = ("llama", "llama, no groups", "qwen2", "qwen3", "mistral, sliding")
STEPS = [40, *[1] * (TOKENS - 40)]


def layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.model.layers)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often layers were one call, or two, and how often all of them were one."""
    counts = Counter(one=0, two=0, all=0)
    run, begin = decoder.Parts.run, decoder.Reading.begin

    def counted(self: Any, *arguments: Any) -> Any:
        counts["two"] += 1
        return run(self, *arguments)

    def begun(self: Any, layer: Any) -> Any:
        described = begin(self, layer)
        if described is not None:
            counts["one"], counts["two"] = counts["one"] + 1, counts["two"] - 1
        return described

    def together(self: Any, *arguments: Any) -> Any:
        out = stacked(self, *arguments)
        if out is not None:
            counts["one"], counts["two"], counts["all"] = (
                counts["one"] + len(self._parts),
                counts["two"] - 1,
                counts["all"] + 1,
            )
        return out

    stacked = stack.Stack.run
    monkeypatch.setattr(stack.Stack, "run", together)
    monkeypatch.setattr(decoder.Parts, "run", counted)
    monkeypatch.setattr(decoder.Reading, "begin", begun)
    return counts


def cache_of(model: PreTrainedModel, **settings: Any) -> HybridCache:
    return HybridCache(model.config, CacheSettings(**{"window": 16, "sinks": 2, "context": TOKENS} | settings))


@pytest.mark.parametrize("window", [1, 16, 200])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name: str, window: int, calls: dict[str, int]) -> None:
    model, tokens = tiny(name), ids()
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    quicken(model)
    assert all(isinstance(layer, QuickDecoder) == (name in QUICK) for layer in layers(model))
    model.set_attn_implementation("hgca")
    got = logits_of(model, tokens, cache_of(model, window=window), STEPS)
    assert (got - wanted).abs().max() <= 1e-4
    steps = TOKENS - 40 if name in QUICK else 0
    assert calls == {"one": 3 * steps, "two": 0, "all": max(0, steps - 1)}  # the first one layer by layer


@pytest.mark.parametrize("select", ["scan", "two-level", "page", "window", "moving-average"])
def test_policies_read_the_same(select: str, calls: dict[str, int]) -> None:
    model, tokens = tiny("llama"), ids()
    settings = {"select": select, "quality": None if select == "page" else 0.9, "budget": None}
    model.set_attn_implementation("hgca")
    before = cache_of(model, **settings)
    wanted = logits_of(model, tokens, before, STEPS)
    quicken(model)
    cache = cache_of(model, **settings)
    got = logits_of(model, tokens, cache, STEPS)
    assert (got - wanted).abs().max() <= 1e-4
    by_library = {"one": 180, "two": 0, "all": 59}
    assert calls == ({"one": 0, "two": 180, "all": 0} if select == "moving-average" else by_library)
    for layer, other in zip(cache.layers, before.layers, strict=True):
        assert layer.states[0].reads.steps == other.states[0].reads.steps > 0
        assert layer.states[0].reads.share == pytest.approx(other.states[0].reads.share, rel=0.02)
    assert cache.meter.count == before.meter.count
    if cache.meter.quality is not None:
        assert cache.meter.quality == pytest.approx(before.meter.quality, abs=1e-4)


def test_the_meter_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny("llama"), ids()
    model.set_attn_implementation("hgca")
    quality = []
    for quick in (False, True):
        if quick:
            quicken(model)
        cache = cache_of(model, select="scan", quality=0.5)
        monkeypatch.setattr(cache.meter, "due", lambda *_: True)
        logits_of(model, tokens, cache, STEPS)
        assert cache.meter.count == 3 * (TOKENS - 40)
        quality.append(cache.meter.quality)
    assert 0.3 < quality[0] < 0.999 and quality[1] == pytest.approx(quality[0], abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, sliding"])
def test_generate_gives_the_same_tokens(name: str) -> None:
    model, tokens = tiny(name), ids()[:, :40]
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(tokens, **options)
    quicken(model)
    assert model.generate(tokens, **options).tolist() == wanted.tolist()  # with its own attention and cache
    model.set_attn_implementation("hgca")
    assert model.generate(tokens, **with_cache(model, cache_of(model)), **options).tolist() == wanted.tolist()


def test_a_rewound_cache_and_a_prompt_of_single_tokens(calls: dict[str, int]) -> None:
    model, tokens = tiny("llama"), ids()
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    quicken(model)
    model.set_attn_implementation("hgca")
    cache = cache_of(model)
    logits_of(model, tokens, cache, [80])
    assert cache.rewind(30)
    assert (logits_of(model, tokens[:, 30:], cache, [1] * 70) - wanted[:, 30:]).abs().max() <= 1e-4
    assert calls == {"one": 210, "two": 0, "all": 69}
    cache = cache_of(model)
    with torch.inference_mode():
        cache.expect(5)
        got = [forward(model, tokens[:, i : i + 1], cache).logits[:, 0] for i in range(10)]
    assert (torch.stack(got, 1) - wanted[:, :10]).abs().max() <= 1e-4
    assert calls == {"one": 225, "two": 15, "all": 74}  # prompts are attended to exactly


class Scaled(LlamaDecoderLayer):
    """As Granite: what a layer adds is multiplied."""

    def forward(self, hidden_states: Tensor, **more: Any) -> Tensor:
        return hidden_states + 0.9 * (super().forward(hidden_states, **more) - hidden_states)


class Turned(LlamaAttention):
    def forward(self, hidden_states: Tensor, **more: Any) -> Any:
        cosine, sine = more.pop("position_embeddings")
        return super().forward(hidden_states, position_embeddings=(cosine, -sine), **more)


def quick_layer(change: Callable[[Any], None] = lambda _: None) -> Any:
    """A layer whose parts are quick, changed before anyone looks at it as a whole."""
    torch.manual_seed(3)
    config = LlamaConfig(**SMALL)
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    change(layer)
    quicken(layer)
    return layer


def of_class(part: str | None, kind: type[nn.Module]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        (layer if part is None else layer._modules[part]).__class__ = kind

    return change


def with_more(layer: Any) -> None:
    layer.self_attn.gate_proj = nn.Linear(48, 48)


def with_parameter(layer: Any) -> None:
    layer.self_attn.warmth = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("change", [of_class(None, Scaled), of_class("self_attn", Turned), with_more, with_parameter])
def test_a_layer_that_does_something_else_is_left_alone(change: Callable[[Any], None]) -> None:
    layer = quick_layer(change)
    assert not isinstance(layer, QuickDecoder)
    assert layer.self_attn.config._attn_implementation == "eager"  # as it was before the trial
    assert isinstance(quick_layer(), QuickDecoder)
    assert not quicken_decoder(quick_layer())  # once


def hook(model: Any) -> None:
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: None)


def other_weight(model: Any) -> None:
    projection = model.model.layers[1].self_attn.k_proj
    projection.weight = nn.Parameter(projection.weight.detach().clone())


def other_part(model: Any) -> None:
    own = model.model.layers[1].mlp
    model.model.layers[1].mlp = nn.Sequential(own)


@pytest.mark.parametrize("change", [hook, other_weight, other_part])
@torch.inference_mode()
def test_a_layer_that_was_changed_is_its_own_again(change: Callable[[Any], None], calls: dict[str, int]) -> None:
    model, tokens = tiny("llama"), ids()
    wanted = model(input_ids=tokens, use_cache=False).logits
    quicken(model)
    change(model)
    model.set_attn_implementation("hgca")
    assert (logits_of(model, tokens, cache_of(model), STEPS) - wanted).abs().max() <= 1e-4
    assert calls == {"one": 120, "two": 0, "all": 0}  # of two layers


def test_all_else_is_the_layers_own(calls: dict[str, int]) -> None:
    model, tokens = tiny("llama"), ids(batch=2)
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    quicken(model)
    own = DynamicCache()
    with torch.inference_mode():
        for i in range(10):
            logits = forward(model, tokens[:1, i : i + 1], own).logits
    assert (logits[:, 0] - wanted[:1, 9]).abs().max() <= 1e-4
    model.set_attn_implementation("hgca")
    assert (logits_of(model, tokens, cache_of(model), STEPS) - wanted).abs().max() <= 1e-4  # two texts at once
    assert calls == {"one": 0, "two": 0, "all": 0}


def test_what_does_not_fit_together_is_refused() -> None:
    parts = quick_layer().parts
    lib, described = native.lib, parts.described
    vector = torch.zeros(256)
    at = vector.data_ptr()
    with pytest.raises(NativeError):
        native.check(lib.hgca_before_attention(native.ffi.NULL, at, at, at, at))
    with pytest.raises(NativeError):
        native.check(lib.hgca_before_attention(described, at, 0, at, at))
    with pytest.raises(NativeError):
        native.check(lib.hgca_decode_layer(described, native.ffi.new("hgca_reading *"), at, at, at, at))
    one, none = native.ffi.new("hgca_layer *[]", [described]), native.ffi.new("hgca_reading *[]", 1)
    for layers_, readings, count in (
        (one, none, 1),
        (one, none, 0),
        (native.ffi.NULL, none, 1),
        (one, native.ffi.NULL, 1),
    ):
        assert lib.hgca_decode_layers(layers_, readings, count, at, at, at, at) == lib.HGCA_BAD_ARGUMENT
    for name, wrong in (("heads", 5), ("dim", 7), ("rotated", 7), ("rotated", 10), ("kv_heads", 0)):
        before = getattr(described, name)
        setattr(described, name, wrong)
        assert lib.hgca_before_attention(described, at, at, at, at) == lib.HGCA_BAD_ARGUMENT
        assert lib.hgca_after_attention(described, at, at, at) == lib.HGCA_BAD_ARGUMENT
        setattr(described, name, before)
    assert lib.hgca_after_attention(described, at, at, at) == lib.HGCA_OK
