"""A token of each of several sequences as one CUDA graph takes it: what each gives by itself, and the same rows at the same places.

On the CPU nothing is captured, but the same code runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.meter import EARLY, QualityMeter
from hgca_cli.attention.recorded import Recorder
from hgca_cli.attention.relay import Relay
from hgca_cli.config import CacheSettings
from hgca_cli.errors import NativeError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.joint import JointCache
from hgca_cli.hf.load import forward
from hgca_cli.kv.evict import Evictor, evict_oldest, evict_oldest_together
from tests.test_attention_recorded import POLICIES
from tests.test_hf_families import tiny

LENGTHS = [40, 9, 25, 61]  # nothing is in the second's store at first, and the third's first row leaves on the way
STEPS = 24
SETTINGS = CacheSettings(window=16, sinks=2, context=96)


def model_of(family: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    model = tiny(family).to(device, dtype)
    model.set_attn_implementation("hgca")
    return model


def prompts(model: Any, device: str = "cpu") -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    vocabulary = model.config.vocab_size
    return [torch.randint(vocabulary, (1, length), generator=draw).to(device) for length in LENGTHS]


def read(model: Any, ids: Tensor, settings: CacheSettings) -> HybridCache:
    cache = HybridCache(model.config, settings)
    cache.expect(ids.shape[1])
    with torch.inference_mode():
        forward(model, ids, cache)
    cache.expect(0)
    return cache


@torch.inference_mode()
def alone(model: Any, caches: list[HybridCache], token: Tensor, steps: list[GraphStep]) -> Tensor:
    """Logits [sequences, vocabulary], each sequence's by itself."""
    return torch.cat([step.step(one[None]) for step, one in zip(steps, token, strict=True)])


def some_tokens(model: Any, count: int, at: int, device: str = "cpu") -> Tensor:
    draw = torch.Generator().manual_seed(100 + at)
    return torch.randint(model.config.vocab_size, (count, 1), generator=draw).to(device)


def same(one: HybridCache, other: HybridCache, off: float) -> None:
    assert one.get_seq_length() == other.get_seq_length()
    for mine, its in zip(one.every_row() or [], other.every_row() or [], strict=True):
        for a, b in zip(mine, its, strict=True):
            assert (a - b).abs().max() <= off
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.states[0].reads.steps == b.states[0].reads.steps
    assert one.rows().read_share == pytest.approx(other.rows().read_share, abs=1e-6)
    assert one.rows().bytes_share == pytest.approx(other.rows().bytes_share, abs=1e-6)
    assert (one.meter.count > 0) == (other.meter.count > 0)


AHEAD = {"ahead": POLICIES["scan, there"] | {"look_ahead": True}}


@pytest.mark.parametrize("policy", POLICIES | AHEAD)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_together_as_alone(family: str, policy: str) -> None:
    model = model_of(family)
    settings = CacheSettings(**vars(SETTINGS) | (POLICIES | AHEAD)[policy])
    by_itself, together = ([read(model, one, settings) for one in prompts(model)] for _ in range(2))
    steps = [GraphStep(model, cache) for cache in by_itself]
    joint = GraphStep(model, JointCache(together), places=5)
    kinds = set()
    for at in range(STEPS):
        token = some_tokens(model, len(LENGTHS), at)
        wanted = alone(model, by_itself, token, steps)
        with torch.inference_mode():
            got = joint.step(token)
        assert (wanted - got).abs().max() <= 1e-4
        kinds.add(joint.recorder.kind)
    for one, other in zip(by_itself, together, strict=True):
        same(one, other, 1e-4)
    assert together[1].rows().store > 0 and len(kinds) <= 2, "a graph or two"
    if settings.device_codes and family == "qwen3":  # whose rows are wide enough
        assert any(relay.scores for relay in joint.recorder.relays)


@pytest.mark.parametrize("policy", ["scan, there", "ahead"])
def test_sequences_join_and_leave_and_go_on_alone(policy: str) -> None:
    model = model_of("qwen3")
    settings = CacheSettings(**vars(SETTINGS) | (POLICIES | AHEAD)[policy])
    by_itself, together = ([read(model, one, settings) for one in prompts(model)] for _ in range(2))
    steps = [GraphStep(model, cache) for cache in by_itself]
    single = [GraphStep(model, cache) for cache in together]
    joint = GraphStep(model, JointCache(together), places=4)
    recorder = joint.recorder
    for at, there in enumerate([[0, 1, 2], [0, 1, 2], [3, 0, 2], [2, 3], [1], [0, 1, 2, 3], [3, 2, 1, 0]] * 3):
        token = some_tokens(model, len(there), at)
        wanted = alone(model, by_itself, token, [steps[one] for one in there])
        cache = JointCache([together[one] for one in there])
        with torch.inference_mode():
            if len(there) == 1:
                joint.let_go()
                got = single[there[0]].step(token)
            else:
                assert joint.of(cache) or joint.bind(cache)
                assert joint.of(cache)
                got = joint.step(token)
        assert (wanted - got).abs().max() <= 1e-4
    assert joint.recorder is recorder
    for one, other in zip(by_itself, together, strict=True):
        same(one, other, 1e-4)


def test_a_sequence_goes_back_while_others_go_on() -> None:
    model = model_of("qwen3")
    settings = CacheSettings(**vars(SETTINGS) | POLICIES["scan, there"])
    caches = [read(model, one, settings) for one in prompts(model)]
    joint = GraphStep(model, JointCache(caches))
    other = [read(model, one, settings) for one in prompts(model)]
    steps = [GraphStep(model, cache) for cache in other]
    for at in range(12):
        token = some_tokens(model, len(LENGTHS), at)
        if at in (4, 9):
            for cache in (caches[0], other[0]):
                assert cache.rewind(cache.get_seq_length() - 3)
            for cache in (*caches, *other):
                cache.aim_at(0.8)
        with torch.inference_mode():
            got = joint.step(token)
        assert (alone(model, other, token, steps) - got).abs().max() <= 1e-4


def test_what_no_place_has_room_for_is_said_so() -> None:
    model = model_of("qwen3")
    read_all = [read(model, one, SETTINGS) for one in prompts(model)]
    joint = GraphStep(model, JointCache(read_all[:2]), places=3)
    assert not joint.bind(JointCache(read_all)), "four"
    wide = read(model, prompts(model)[0], CacheSettings(window=40, sinks=2, context=96))
    assert not joint.bind(JointCache([wide])), "a larger window"
    longer = read(model, prompts(model)[0], CacheSettings(window=16, sinks=2, context=300))
    assert not joint.bind(JointCache([longer])), "a longer store"
    assert joint.bind(JointCache(read_all[1:]))
    joint.let_go()
    assert all(relay.layer is None for relay in joint.recorder.relays)


def test_who_fails_is_told_and_all_can_go_back() -> None:
    model = model_of("qwen3")
    caches = [read(model, one, SETTINGS) for one in prompts(model)]
    joint = GraphStep(model, JointCache(caches))
    with torch.inference_mode():
        joint.step(some_tokens(model, 4, 0))
    relay = joint.recorder.layers[1].each[3]
    relay.described.far.dtype = 77
    with torch.inference_mode(), pytest.raises(NativeError):
        joint.step(some_tokens(model, 4, 1))
    assert relay.described.status and not joint.recorder.layers[1].each[0].described.status
    for cache, length in zip(caches, LENGTHS, strict=True):
        assert cache.rewind(length + 1)


@pytest.mark.parametrize("policy", ["scan", "scan, there"])
@pytest.mark.parametrize("sequences", [1, 4])
def test_the_more_sequences_the_more_seldom_each_is_measured(
    sequences: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no layer is looked at for that which brought nothing new."""
    model = model_of("qwen3")
    monkeypatch.setattr(QualityMeter, "due", None)  # the tokens of a step are asked for together
    settings = CacheSettings(**vars(SETTINGS) | POLICIES[policy] | {"window": 30, "context": 400})
    caches = [read(model, prompts(model)[3], settings) for _ in range(sequences)]
    step = GraphStep(model, JointCache(caches), places=4)
    looked, layers, steps = [0], len(caches[0].layers), 2 * EARLY * sequences
    begin = Relay.begin
    monkeypatch.setattr(Relay, "begin", lambda relay: looked.__setitem__(0, looked[0] + 1) or begin(relay))
    measured = []
    for at in range(steps):
        before = [cache.meter.count for cache in caches]
        with torch.inference_mode():
            step.step(some_tokens(model, sequences, at))
        measured.append(sum(cache.meter.count for cache in caches) - sum(before))
    early = -(-(layers + (EARLY - 1) * (sequences * layers + 1)) // layers)  # steps until each had its early ones
    assert sum(measured[:early]) == EARLY * sequences and sum(measured[early:]) <= sequences
    left = sum(-(-cache.layers[0].states[0].store.rows // settings.block) + 1 for cache in caches)
    assert looked[0] <= layers * left
    turns = {layer.states[0].measured for layer in caches[0].layers}
    assert None not in turns and len(turns) > 1
    assert all(0.5 < (cache.meter.quality or 0.0) <= 1.0 for cache in caches)


def test_a_token_that_brings_nothing_new_is_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3")
    settings = CacheSettings(**vars(SETTINGS) | POLICIES["scan, there"] | {"window": 32})
    caches = [read(model, one, settings) for one in prompts(model)]
    joint = GraphStep(model, JointCache(caches))
    looked = []
    for column in joint.recorder._columns:
        begin = column.relays[0].begin
        monkeypatch.setattr(column.relays[0], "begin", lambda begin=begin: looked.append(1) or begin())
    with torch.inference_mode():
        for at in range(STEPS):
            joint.step(some_tokens(model, len(LENGTHS), at))
    assert len(LENGTHS) <= len(looked) < STEPS * len(LENGTHS)


def test_a_model_of_one_sequence_takes_one() -> None:
    model = model_of("qwen3")
    layers = [layer.states[0] for layer in read(model, prompts(model)[0], SETTINGS).layers]
    recorder = Recorder([layers])
    assert len(recorder.numbers) == 1 and recorder.of([layers]) and not recorder.of([layers[:1]])


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["exact", "scan", "scan, there", "two of three layers, there", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_of_several_gives_the_same(dtype: torch.dtype, policy: str) -> None:
    model = model_of("qwen3", "cuda", dtype)
    settings = CacheSettings(**vars(SETTINGS) | POLICIES[policy])
    by_itself, together = ([read(model, one, settings) for one in prompts(model, "cuda")] for _ in range(2))
    steps = [GraphStep(model, cache) for cache in by_itself]
    joint = GraphStep(model, JointCache(together), places=5)
    for at in range(STEPS):
        order = [3, 1, 0, 2] if at % 8 > 5 else [0, 1, 2, 3]
        cache = JointCache([together[one] for one in order])
        assert joint.of(cache) or joint.bind(cache)
        token = some_tokens(model, len(LENGTHS), at, "cuda")
        wanted = alone(model, by_itself, token, [steps[one] for one in order])
        with torch.inference_mode():
            got = joint.step(token)
        if dtype == torch.float32 and not settings.device_codes:
            assert (wanted - got).abs().max() <= 1e-3
        else:
            assert (wanted - got).float().pow(2).mean() <= 1e-2 * wanted.float().pow(2).mean()
    assert joint.failed is None and 1 <= len(joint.captured) <= 2
    if settings.device_codes:
        assert any(relay.scores for relay in joint.recorder.relays)


def test_rows_of_all_seldom_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    settings = CacheSettings(window=128, sinks=2, context=400)
    ids = some_tokens(model, 140, 0).T
    alike = [read(model, ids, settings) for _ in range(4)]
    joint = GraphStep(model, JointCache(alike))
    other = read(model, ids, settings)
    step = GraphStep(model, other)
    left, starts = [], [alike[0].layers[0].states[0].window.start] * 4
    for at in range(80):
        token = some_tokens(model, 1, at)
        with torch.inference_mode():
            got, wanted = joint.step(token.expand(4, 1)), step.step(token)
        assert (got - wanted).abs().max() <= 1e-4
        now = [cache.layers[0].states[0].window.start for cache in alike]
        assert all(len({layer.states[0].window.start for layer in cache.layers}) == 1 for cache in alike)
        left.append(sum(a != b for a, b in zip(now, starts, strict=True)))
        starts = now
    assert sum(left) >= 8 and max(left) == 1, "one sequence a step"
    assert all(128 - 32 - 4 <= cache.layers[0].states[0].window.ring_rows <= 128 for cache in alike)


@pytest.mark.gpu
def test_rows_of_all_layers_leave_together_as_one_by_one() -> None:
    model = model_of("qwen3", "cuda")
    one, other = (read(model, prompts(model, "cuda")[0], SETTINGS) for _ in "ab")
    for _ in range(8):  # pieces from the end of the ring to its beginning, too
        states = [layer.states[0] for layer in one.layers]
        evict_oldest_together([state.window for state in states], [evictor(state) for state in states], 3)
        for layer in other.layers:
            evict_oldest(layer.states[0].window, evictor(layer.states[0]), 3)
        for cache in (one, other):
            for layer in cache.layers:
                layer.states[0].settle()
        token = some_tokens(model, 1, 0, "cuda")
        for cache in (one, other):
            with torch.inference_mode():
                for _ in range(3):
                    forward(model, token, cache)
        same(one, other, 1e-6)


def evictor(state: LayerState) -> Evictor:
    assert state.evictor is not None
    return state.evictor
