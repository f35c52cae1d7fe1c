"""Prompts of several sequences in one pass: each is what it is when it is read by itself."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.config import CacheSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.sequence import Sequence
from hgca_cli.errors import DoesNotFitError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.joint import JointCache, Prompts, joint_forward
from hgca_cli.hf.load import LoadedModel
from tests.tiny_batch import GREEDY, alone, prompts, requests, run
from tests.tiny_grids import grid_loaded

LENGTHS = [3, 70, 1, 150, 33]
pytestmark = pytest.mark.skipif(native.lib.hgca_most_vectors() < 512, reason="floats are faster here")


@pytest.fixture
def loaded(rng: torch.Generator) -> LoadedModel:
    return grid_loaded(rng)


def engine_of(loaded: LoadedModel, chunk: int = 128, **settings: Any) -> Engine:
    given: dict[str, Any] = {"window": 256, "sinks": 2, "context": 512, "select": "scan", "quality": 0.9}
    return Engine(loaded, CacheSettings(**given | settings), prefill_chunk=chunk)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the prompts of every pass."""
    lengths: list[list[int]] = []
    read = Prompts.read

    def counted(self: Prompts, caches: list[HybridCache], prompts: list[list[int]]) -> torch.Tensor:
        lengths.append([len(one) for one in prompts])
        return read(self, caches, prompts)

    monkeypatch.setattr(Prompts, "read", counted)
    return lengths


@pytest.mark.parametrize("known", [0, 5])  # tokens that are in the caches already
@pytest.mark.parametrize("select", ["exact", "scan", "two-level", "page", "window"])
def test_logits_and_rows_are_those_of_each_alone(
    select: str, known: int, loaded: LoadedModel, rng: torch.Generator
) -> None:
    settings = CacheSettings(window=256, sinks=2, context=300, select=select)
    together = [Sequence(HybridCache(loaded.model.config, settings)) for _ in LENGTHS]
    each = [Sequence(HybridCache(loaded.model.config, settings)) for _ in LENGTHS]
    texts = [torch.randint(0, 300, (known + length,), generator=rng).tolist() for length in LENGTHS]
    reader = Prompts(loaded)
    for one, other, text in zip(together, each, texts, strict=True):
        for sequence in (one, other) if known else ():
            sequence.cache.expect(known)
            sequence.forward(loaded, torch.tensor([text[:known]]))
        one.cache.expect(len(text) - known)
        other.cache.expect(len(text) - known)
        assert reader.take(one.cache, len(text) - known)
    with torch.inference_mode():
        got = reader.read([one.cache for one in together], [text[known:] for text in texts])
    want = torch.stack(
        [one.forward(loaded, torch.tensor([text[known:]])) for one, text in zip(each, texts, strict=True)]
    )
    assert got.shape == want.shape and (got - want).norm() < 1e-4 * want.norm()
    for one, other in zip(together, each, strict=True):
        assert one.cached == other.cached
        for layer, of_other in zip(one.cache.layers, other.cache.layers, strict=True):
            state, wanted = layer.states[0], of_other.states[0]
            assert state.prompt_left == wanted.prompt_left == 0
            for rows, expected in zip(state.every_row(), wanted.every_row(), strict=True):
                assert (rows - expected).norm() < 1e-4 * expected.norm()
    got, want = (  # and so is the token that follows
        joint_forward(loaded, JointCache([one.cache for one in of]), [7] * len(of), [one.cached for one in of])
        for of in (together, each)
    )
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("settings", [{"select": "moving-average"}, {"window": 32}, {"context": 60}])
def test_what_is_read_by_itself(settings: dict[str, Any], loaded: LoadedModel) -> None:
    given: dict[str, Any] = {"window": 256, "sinks": 2, "context": 300, "select": "exact"}
    cache = HybridCache(loaded.model.config, CacheSettings(**given | settings))
    cache.expect(70)
    assert not Prompts(loaded).take(cache, 70)
    assert not Prompts(loaded).take(cache, 0)


@pytest.mark.parametrize("window", [256, 24])
@pytest.mark.parametrize("slots", [1, 3, 40])
def test_answers_of_a_batch_are_those_of_one_by_one(
    slots: int, window: int, loaded: LoadedModel, passes: list[list[int]]
) -> None:
    engine = engine_of(loaded, window=window)
    asked = requests(prompts(24, longest=150))
    answers = run(Batch(engine, slots), asked)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
    read = [length for lengths in passes for length in lengths]
    assert all(sum(lengths) <= 128 for lengths in passes) and (slots == 1 or max(map(len, passes)) > 1)
    most = min(128, window + 2)  # longer ones are read in chunks, or leave their window
    assert sorted(read) == sorted(len(one.ids) for one in asked if len(one.ids) <= most)


def test_a_beginning_that_is_shared_is_read_once(loaded: LoadedModel, passes: list[list[int]]) -> None:
    engine = engine_of(loaded, chunk=256)
    shared = [40 + (7 * n) % 200 for n in range(150)]
    asked = [Request(at, [*shared, 50 + at, 60], GREEDY) for at in range(5)]
    answers = run(Batch(engine, 5), asked)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
    assert [done.cached_tokens for one in asked if (done := answers[one.key].done)] == [0, 150, 150, 150, 150]
    assert passes == [[2, 2, 2, 2]]


def test_memory_that_is_refused_to_a_pass_costs_nobody_anything(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(loaded)
    asked = requests(prompts(12))
    wanted = {one.key: alone(engine, one).text for one in asked}
    read, calls = Prompts.read, 0

    def failing(self: Prompts, caches: list[HybridCache], prompts: list[list[int]]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = read(self, caches, prompts)  # rows were taken in already
        if calls % 2:
            raise DoesNotFitError("no memory.")
        return logits

    monkeypatch.setattr(Prompts, "read", failing)
    answers = run(Batch(engine, 12), asked)
    assert calls > 1 and {key: one.text for key, one in answers.items()} == wanted


def test_a_prompt_that_took_too_long_ends_and_the_others_go_on(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    asked = [
        Request(at, [50 + at, 51], replace(GREEDY, max_tokens=5), seconds=0.0 if at == 1 else None) for at in range(3)
    ]
    answers = run(Batch(engine, 3), asked)
    assert answers[1].error is not None and answers[1].error.code == "timeout"
    assert [answers[at].text for at in (0, 2)] == [alone(engine, asked[at]).text for at in (0, 2)]


def test_a_batch_stops_between_passes(loaded: LoadedModel, passes: list[list[int]]) -> None:
    engine = engine_of(loaded)
    stop = threading.Event()
    events = Batch(engine, 24).run(iter(requests(prompts(24))), stop)
    next(event for event in events if not isinstance(event, Answer))
    stop.set()
    assert list(events) == [] and len(passes) < 4


def test_a_pass_that_is_undone_gives_back_the_rows_it_let_go(
    loaded: LoadedModel, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CacheSettings(window=64, sinks=2, context=300)
    one, other = (Sequence(HybridCache(loaded.model.config, settings)) for _ in range(2))
    text = torch.randint(0, 300, (66,), generator=rng).tolist()  # as many as there is room for
    for sequence in (one, other):
        sequence.forward(loaded, torch.tensor([text[:20]]))
    evict, mark = LayerState.evict_overflow, one.mark()

    def refuse(state: LayerState, *tokens: int) -> None:
        if state is one.cache.layers[1].states[0]:
            raise torch.OutOfMemoryError
        evict(state, *tokens)

    reader = Prompts(loaded)
    assert reader.take(one.cache, 46)
    with monkeypatch.context() as broken, pytest.raises(torch.OutOfMemoryError):
        broken.setattr(LayerState, "evict_overflow", refuse)
        reader.read([one.cache], [text[20:]])
    first = one.cache.layers[0].states[0]
    assert first.evictor is not None and first.evictor.pending
    one.forget_beyond(mark)
    windows = [layer.states[0].window for layer in one.cache.layers]
    assert {(window.start, window.end) for window in windows} == {(2, 20)} and not first.evictor.pending
    got, want = (sequence.forward(loaded, torch.tensor([text[20:]])) for sequence in (one, other))
    assert torch.equal(got, want)
