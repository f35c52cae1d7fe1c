"""A token as a CUDA graph takes it: the logits of one operation after another, and the same rows at the same places.

On the CPU nothing is captured, but the same code runs: relays, slots in use, what is prepared before and counted after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.recorded import Recorder
from hgca_cli.attention.slots import SlotAttention, trouble
from hgca_cli.attention.tables import placed
from hgca_cli.config import CacheSettings
from hgca_cli.errors import NativeError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.load import forward
from tests.test_hf_families import TOKENS, ids, tiny

PROMPT = 40
SETTINGS = CacheSettings(window=16, sinks=2, context=TOKENS)
POLICIES: dict[str, dict[str, Any]] = {
    "exact": {},
    "scan": {"select": "scan", "quality": 0.9},
    "all of scan": {"select": "scan", "quality": 1.0},
    "scan, there": {"select": "scan", "quality": 0.9, "device_codes": True},
    "all of scan, there": {"select": "scan", "quality": 1.0, "device_codes": True},
    "two of three layers, there": {"select": "scan", "quality": 0.9, "dense_layers": 1, "device_codes": True},
    "cluster": {"select": "cluster", "quality": 0.9},
    "page": {"select": "page", "quality": 0.9},
    "window": {"select": "window"},
    "two of three layers": {"select": "scan", "quality": 0.9, "dense_layers": 1},
    "int8": {"kv_dtype": "int8"},
}


def filled(model: Any, settings: CacheSettings, tokens: Tensor) -> HybridCache:
    cache = HybridCache(model.config, settings)
    cache.expect(PROMPT)
    with torch.inference_mode():
        forward(model, tokens[:, :PROMPT], cache)
    cache.expect(0)
    return cache


def as_on_a_device(cache: HybridCache) -> HybridCache:
    """The window is not the C library's to read, so what it held a token ago tells a policy what it may leave out."""
    for layer in cache.layers:
        layer.states[0].window.read = None
    return cache


def stepwise(model: Any, cache: HybridCache, tokens: Tensor) -> Iterator[Tensor]:
    for at in range(cache.get_seq_length(), tokens.shape[1]):
        with torch.inference_mode():
            logits = forward(model, tokens[:, at : at + 1], cache, logits_to_keep=1).logits[0, -1]
        yield logits


def recorded(step: GraphStep, cache: HybridCache, tokens: Tensor) -> Iterator[Tensor]:
    for at in range(cache.get_seq_length(), tokens.shape[1]):
        with torch.inference_mode():
            logits = step.step(tokens[:, at : at + 1])[0]
        yield logits


def test_layers_are_alike_after_a_chunk_that_only_one_of_them_took(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny("llama"), ids()
    model.set_attn_implementation("hgca")
    append = LayerState.append_chunk

    def cut_short() -> HybridCache:
        cache = filled(model, SETTINGS, tokens)

        def refuse(state: LayerState, key: Tensor, value: Tensor) -> None:
            if state is not cache.layers[0].states[0]:
                raise torch.OutOfMemoryError
            append(state, key, value)

        with monkeypatch.context() as broken, pytest.raises(torch.OutOfMemoryError), torch.inference_mode():
            broken.setattr(LayerState, "append_chunk", refuse)
            forward(model, tokens[:, PROMPT : PROMPT + 16], cache)
        assert cache.rewind(PROMPT)
        return cache

    layerwise, cache = cut_short(), cut_short()
    assert GraphStep.serves(cache)
    for one, other in zip(
        stepwise(model, as_on_a_device(layerwise), tokens),
        recorded(GraphStep(model, cache), cache, tokens),
        strict=True,
    ):
        assert (one - other).abs().max() <= 1e-4


def test_layers_that_are_not_alike_are_not_recorded() -> None:
    model, tokens = tiny("llama"), ids()
    model.set_attn_implementation("hgca")
    cache = filled(model, SETTINGS, tokens)
    assert GraphStep.serves(cache)
    cache.layers[1].states[0].window.drop_oldest(1)
    assert not GraphStep.serves(cache)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "llama, no groups", "qwen3", "phi3"])
def test_the_logits_are_those_of_operation_by_operation(family: str, policy: str) -> None:
    model = tiny(family)
    model.set_attn_implementation("hgca")
    settings = CacheSettings(**vars(SETTINGS) | POLICIES[policy])
    tokens = ids()
    one, other = as_on_a_device(filled(model, settings, tokens)), filled(model, settings, tokens)
    assert GraphStep.serves(other)
    step = GraphStep(model, other)
    # the device chooses by means of a group's weights and leaves less to estimates than the C library, and rounds no queries
    rounds = settings.device_codes and settings.quality != 1.0
    for wanted, got in zip(stepwise(model, one, tokens), recorded(step, other, tokens), strict=True):
        if rounds:
            assert (wanted - got).pow(2).mean() <= 1e-2 * wanted.pow(2).mean()
        else:
            assert (wanted - got).abs().max() <= 2e-5
    assert one.get_seq_length() == other.get_seq_length() == TOKENS
    for mine, its in zip(one.every_row() or [], other.every_row() or [], strict=True):
        for a, b in zip(mine, its, strict=True):
            assert (a - b).pow(2).mean() <= 1e-2 * a.pow(2).mean() if rounds else (a - b).abs().max() <= 1e-5
    assert one.rows().read_share == pytest.approx(other.rows().read_share, abs=0.1 if rounds else 0.02)
    for mine, its in zip(one.layers, other.layers, strict=True):
        a, b = mine.states[0].reads, its.states[0].reads
        if a.last is not None and b.last is not None:
            assert (
                b.last.reads.read
                == int(b.last.rows_read.sum())
                == pytest.approx(a.last.reads.read, abs=40 if rounds else 8)
            )
            assert b.share_bytes == pytest.approx(a.share_bytes, rel=0.3 if rounds else 0.15)


def test_it_starts_with_an_empty_store_and_goes_on_after_rewinding() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    tokens = ids()
    settings = CacheSettings(window=60, sinks=2, context=TOKENS)
    one, other = filled(model, settings, tokens), filled(model, settings, tokens)
    step = GraphStep(model, other)
    seen = []
    for wanted, got in zip(stepwise(model, one, tokens), recorded(step, other, tokens), strict=True):
        assert (wanted - got).abs().max() <= 2e-5
        seen.append(step.recorder.stored)
    assert not seen[0] and seen[-1], "rows went to the store on the way"
    for cache in (one, other):
        assert cache.rewind(70)
    for wanted, got in zip(stepwise(model, one, tokens), recorded(step, other, tokens), strict=True):
        assert (wanted - got).abs().max() <= 2e-5
    assert step.of(other)
    other.reset()
    assert not step.of(other)


def test_what_is_not_served_is_said_so() -> None:
    tokens = ids()
    for family, changes in (("gemma3", {}), ("llama", {"select": "moving-average"})):
        model = tiny(family)
        model.set_attn_implementation("hgca")
        cache = filled(model, CacheSettings(**vars(SETTINGS) | changes), tokens)
        assert not GraphStep.serves(cache), "layers slide, or a policy looks at weights"
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    cache = filled(model, SETTINGS, tokens)
    cache.expect(5)
    assert not GraphStep.serves(cache), "more of a prompt is to come"


def test_a_failing_relay_is_an_error_after_the_step() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    cache = filled(model, SETTINGS, ids())
    step = GraphStep(model, cache)
    with torch.inference_mode():
        step.step(ids()[:, PROMPT : PROMPT + 1])
    step.recorder.relays[1].described.far.dtype = 77
    with torch.inference_mode(), pytest.raises(NativeError):
        step.step(ids()[:, PROMPT + 1 : PROMPT + 2])
    assert cache.rewind(PROMPT + 1)


def test_what_comes_between_a_graph_and_its_answers_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    cache = filled(model, SETTINGS, ids())
    step = GraphStep(model, cache)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with torch.inference_mode():
        step.step(ids()[:, PROMPT : PROMPT + 1])
        monkeypatch.setattr(step, "_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step.step(ids()[:, PROMPT + 1 : PROMPT + 2])
    answered = step.recorder._signals.answered
    assert answered[:, 0].eq(step.recorder._serial).all() and step.recorder._serial == 2


def test_the_meter_measures_what_a_relay_left_out() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    cache = filled(model, CacheSettings(**vars(SETTINGS) | POLICIES["scan"]), ids())
    for _ in recorded(GraphStep(model, cache), cache, ids()):
        pass
    quality = cache.rows().quality
    assert quality is not None and 0.85 < quality <= 1.0


def test_a_policy_can_be_left_aside() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    settings = CacheSettings(**vars(SETTINGS) | {"select": "window"})
    exact, other = filled(model, SETTINGS, ids()), filled(model, settings, ids())
    other.set_read_all(True)
    for wanted, got in zip(stepwise(model, exact, ids()), recorded(GraphStep(model, other), other, ids()), strict=True):
        assert (wanted - got).abs().max() <= 2e-5


def test_the_librarys_time_is_told_to_who_asks() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    cache = filled(model, SETTINGS, ids())
    step = GraphStep(model, cache)
    for on in (False, True):
        cache.clock.on = on
        at = cache.get_seq_length()
        with torch.inference_mode():
            step.step(ids()[:, at : at + 1])
        assert (cache.clock.take() > 0.0) == on and cache.clock.take() == 0.0
    assert cache.clock.last is not None and cache.clock.last[0] is None and cache.clock.last[1] > 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_gives_the_same(dtype: torch.dtype, policy: str) -> None:
    model = tiny("qwen3").to("cuda", dtype)
    model.set_attn_implementation("hgca")
    settings = CacheSettings(**vars(SETTINGS) | POLICIES[policy])
    tokens = ids().cuda()
    one, other = filled(model, settings, tokens), filled(model, settings, tokens)
    assert GraphStep.serves(other)
    step = GraphStep(model, other)
    for wanted, got in zip(stepwise(model, one, tokens), recorded(step, other, tokens), strict=True):
        if dtype == torch.float32 and not settings.device_codes:
            assert (wanted - got).abs().max() <= 1e-3
        else:
            assert ((wanted - got).float().pow(2).mean() / wanted.float().pow(2).mean()) < 1e-2
    assert step.failed is None and step.captured
    assert any(relay.scores for relay in step.recorder.relays) == settings.device_codes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(8, 2), (9, 3), (4, 4), (64, 2)])
@pytest.mark.parametrize("spans", [(0, 5, 0, 0), (0, 700, 0, 0), (0, 40, 100, 700), (0, 4, 50, 333)])
def test_slots_on_a_gpu_are_attended_to_as_on_the_cpu(
    dtype: torch.dtype, heads: tuple[int, int], spans: tuple[int, ...], rng: torch.Generator
) -> None:
    query = torch.randn(heads[0], 64, generator=rng).to(dtype)
    keys, values = torch.randn(2, heads[1], 700, 64, generator=rng).to(dtype)
    for softcap in (0.0, 5.0):
        results = []
        for device in ("cpu", "cuda"):
            slots = SlotAttention(torch.tensor([(-1, *spans)], device=device), heads[0], 700, 64)
            there = (one.to(device) for one in (query.float() if device == "cpu" else query, keys, values))
            q, k, v = (one.float() if device == "cpu" else one for one in there)
            near_lse = torch.zeros(1, heads[0], device=device)
            near = slots.near(q[None], placed([(k, v)]), scale=0.125, softcap=softcap)
            whole = near.finish(None, near_lse)
            assert torch.equal(whole.lse, near_lse)
            results.append((whole.out.float().cpu(), near_lse.cpu()))
        off = 1e-5 if dtype == torch.float32 else 2e-2
        assert (results[0][0] - results[1][0]).abs().max() <= off
        assert (results[0][1] - results[1][1]).abs().max() <= 1e-4


@pytest.mark.gpu
def test_the_kernels_work_on_this_gpu() -> None:
    assert trouble(torch.device("cuda", 0)) is None


def test_kernels_that_do_not_work_are_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trouble(torch.device("cpu")) is None
    told = trouble(torch.device("cuda", 7))  # there is none, or Triton is not
    assert told is not None and told.startswith("Triton: ") and "\n" not in told


def test_layers_must_be_alike() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    layers = [layer.states[0] for layer in filled(model, SETTINGS, ids()).layers]
    assert Recorder.serves(layers)
    layers[0].selector.watches = True  # type: ignore[misc]
    assert not Recorder.serves(layers)
