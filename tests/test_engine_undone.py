"""What an undone forward pass, or a step back, leaves behind: nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import DeviceFullError, Sequence
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.evict import evict_oldest
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from tests.tiny_engine import tiny_loaded

GREEDY = SamplingSettings(temperature=0, max_tokens=8)
PROMPT = [20 + 7 * n % 200 for n in range(200)]


class Memory:
    """So many older rows of all layers together have memory; None: all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: int | None = None
        held: dict[int, int] = {}
        commit = GrowingArray.commit

        def bounded(array: GrowingArray, rows: int, first: int) -> None:
            held[id(array)] = max(rows, held.get(id(array), 0))
            if self.rows is not None and sum(held.values()) > self.rows:
                raise DoesNotFitError(f"no memory for {rows} rows", "")
            commit(array, rows, first)

        monkeypatch.setattr(GrowingArray, "commit", bounded)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def engine_of(chunk: int = 40, **settings: Any) -> Engine:
    return Engine(
        tiny_loaded(), CacheSettings(**({"window": 16, "sinks": 2, "context": 600} | settings)), prefill_chunk=chunk
    )


def states(sequence: Sequence) -> list[LayerState]:
    return [layer.states[0] for layer in sequence.cache.layers]


def whole(sequence: Sequence) -> bool:
    """Whether every layer has a row of the same tokens, in one place each."""
    return all(
        state.length == sequence.cached
        and state.store is not None
        and state.evictor is not None
        and state.window.rows + state.store.rows + state.evictor.pending == state.length
        for state in states(sequence)
    )


def answer(engine: Engine, sequence: Sequence, new: list[int]) -> list[int]:
    list(engine.answer(sequence, new, GREEDY, threading.Event()))
    return sequence.tokens[:]


def on_their_way(engine: Engine) -> Sequence:
    """A sequence of 98 tokens, some of whose rows are on their way to the stores."""
    sequence = engine.new_sequence()
    sequence.tokens += PROMPT[:98]
    for first in (0, 49):
        sequence.forward(engine.loaded, torch.tensor([PROMPT[first : first + 49]]))
    assert all(state.evictor is not None and state.evictor.pending >= 33 for state in states(sequence))
    return sequence


@pytest.mark.parametrize("rows", [40, 78, 100, 118, 130, 170, 200, 238])
def test_layers_stay_equally_long_where_undoing_a_chunk_finds_no_memory(rows: int, memory: Memory) -> None:
    engine = engine_of()
    sequence, memory.rows = engine.new_sequence(), rows
    with pytest.raises(DoesNotFitError, match="no memory"):
        answer(engine, sequence, PROMPT)
    assert whole(sequence) and sequence.tokens == PROMPT[: sequence.cached] and sequence.cached % 40 == 0
    assert not any(state.prompt_left for state in states(sequence))
    read, memory.rows = sequence.tokens[:], None
    got = answer(engine, sequence, PROMPT[len(read) :])
    assert got == answer(engine, engine.new_sequence(), PROMPT) and whole(sequence)
    assert len(sequence.cache.held(0, 200)) > 2  # as saving takes rows out


def test_a_step_back_needs_no_memory(memory: Memory) -> None:
    engine = engine_of()
    sequence = on_their_way(engine)
    memory.rows = 0
    for length in (84, 83, 50, 10, 1):
        assert sequence.rewind(length) and sequence.tokens == PROMPT[:length] and whole(sequence)
    memory.rows = None
    assert answer(engine, sequence, PROMPT[1:]) == answer(engine, engine.new_sequence(), PROMPT)


def test_a_turn_that_cannot_begin_leaves_what_was_there(memory: Memory) -> None:
    engine = engine_of()
    sequence = on_their_way(engine)
    memory.rows = 0
    with pytest.raises(DoesNotFitError):
        answer(engine, sequence, PROMPT[98:])
    assert sequence.tokens == PROMPT[:98] and whole(sequence)
    memory.rows = None
    assert answer(engine, sequence, PROMPT[98:]) == answer(engine, engine.new_sequence(), PROMPT)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_everything_is_read_again_where_a_layer_cannot_go_back(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    sequence = engine.new_sequence()
    answer(engine, sequence, PROMPT[:98])
    tokens, rewind = sequence.tokens[:], LayerState.rewind

    def refuse(state: LayerState, *_: Any) -> None:
        if state is states(sequence)[1]:
            raise error
        rewind(state, *_)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as broken:
        broken.setattr(LayerState, "rewind", refuse)
        with pytest.raises(error):
            sequence.rewind(50)
        assert sequence.cached == 0 and sequence.tokens == tokens
        sequence.forward(engine.loaded, torch.tensor([tokens]))
        broken.setattr(LayerState, "append_chunk", full)
        with pytest.raises(DeviceFullError if error is MemoryError else error):
            sequence.forward(engine.loaded, torch.tensor([PROMPT[:9]]))
        assert sequence.cached == 0 and sequence.waiting == tokens
    assert answer(engine, sequence, PROMPT[:9]) == answer(engine, engine.new_sequence(), tokens + PROMPT[:9])


def refused(engine: Engine, sequence: Sequence, new: list[int], layer: int, *, settled: bool = False) -> None:
    """A pass of these tokens for whose rows one layer has no memory. settled: what the first layer has let go is in its store then."""
    append, settle = LayerState.append_chunk, LayerState.settle
    calls = [0]

    def full(state: LayerState, *rows: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] > layer:
            if settled:
                settle(states(sequence)[0])
            raise torch.OutOfMemoryError
        append(state, *rows)

    with pytest.MonkeyPatch.context() as broken, pytest.raises(DeviceFullError):
        broken.setattr(LayerState, "append_chunk", full)
        sequence.forward(engine.loaded, torch.tensor([new]))


def rows_of(sequence: Sequence) -> list[tuple[Any, ...]]:
    """Of each layer: where its ring begins and ends, and what is where."""
    found = []
    for state in states(sequence):
        window, store = state.window, state.store
        assert store is not None and state.evictor is not None
        ring = [rows.clone() for piece in window.oldest(window.ring_rows) for rows in piece]
        found.append(
            (
                window.start,
                window.end,
                store.rows + state.evictor.pending,
                window.keys[:, : min(window.end, 2)].clone(),
                *ring,
            )
        )
    return found


@pytest.mark.parametrize("kv_dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("read", [1, 7, 40])
@pytest.mark.parametrize("more", [7, 12, 16, 17, 60])
def test_an_undone_chunk_gives_back_the_rows_it_let_go(kv_dtype: str, read: int, more: int) -> None:
    engine = engine_of(kv_dtype=kv_dtype)
    one, other = engine.new_sequence(), engine.new_sequence()
    for sequence in (one, other):
        sequence.forward(engine.loaded, torch.tensor([PROMPT[:read]]))
        for state in states(sequence):
            state.settle()  # as the next pass does first of all
    before = rows_of(one)
    refused(engine, one, PROMPT[read : read + more], 1)
    for mine, theirs in zip(rows_of(one), before, strict=True):
        assert mine[:3] == theirs[:3] and all(torch.equal(a, b) for a, b in zip(mine[3:], theirs[3:], strict=True))
    for first, end in ((read, read + more), *((at, at + 1) for at in range(read + more, read + more + 12))):
        got, wanted = (each.forward(engine.loaded, torch.tensor([PROMPT[first:end]])) for each in (one, other))
        assert torch.equal(got, wanted), (first, end)


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8"])
def test_rows_come_back_from_the_store_where_they_had_arrived(kv_dtype: str) -> None:
    engine = engine_of(kv_dtype=kv_dtype, select="scan", quality=1.0)
    one, other = engine.new_sequence(), engine.new_sequence()
    for sequence in (one, other):
        sequence.forward(engine.loaded, torch.tensor([PROMPT[:40]]))
    refused(engine, one, PROMPT[40:70], 1, settled=True)
    assert [mine[:3] for mine in rows_of(one)] == [theirs[:3] for theirs in rows_of(other)]
    for first in range(40, 90):
        got, wanted = (each.forward(engine.loaded, torch.tensor([[PROMPT[first]]])) for each in (one, other))
        assert (got - wanted).abs().max() <= (1e-5 if kv_dtype == "fp32" else 0.1), first


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("more", [16, 40])
def test_a_policy_that_watches_goes_on_as_if_an_undone_chunk_had_not_been(layer: int, more: int) -> None:
    engine = engine_of(select="moving-average", budget=1.0)
    one, other = engine.new_sequence(), engine.new_sequence()
    for sequence in (one, other):
        sequence.tokens += PROMPT[:60]
        sequence.forward(engine.loaded, torch.tensor([PROMPT[:60]]))
    one.cache.expect(more)
    refused(engine, one, PROMPT[60 : 60 + more], layer)
    other.cache.expect(more)
    one.cache.expect(more)
    for first, end in ((60, 60 + more), *((at, at + 1) for at in range(60 + more, 140))):
        got, wanted = (each.forward(engine.loaded, torch.tensor([PROMPT[first:end]])) for each in (one, other))
        assert torch.equal(got, wanted), (first, end)
    for state in states(one):
        assert state.store is not None and isinstance(state.selector, MovingAverage)
        rows = state.selector.learned()["rows"].view(2, -1)
        assert rows.shape[1] >= state.store.rows and all(len(set(each.tolist())) == len(each) for each in rows)


def test_a_policy_that_watched_is_read_to_again_where_other_rows_are_in_the_window() -> None:
    engine = engine_of(select="moving-average")
    sequence = engine.new_sequence()
    sequence.tokens += PROMPT[:60]
    sequence.forward(engine.loaded, torch.tensor([PROMPT[:60]]))
    mark = sequence.mark()
    state = states(sequence)[0]
    assert state.evictor is not None
    state.selector.leave(1, state.length)
    evict_oldest(state.window, state.evictor, 1)
    sequence.forget_beyond(mark)
    assert sequence.cached == 0 and sequence.waiting == PROMPT[:60]


def test_averages_stay_with_their_rows_where_some_come_back(rng: torch.Generator) -> None:
    policy = MovingAverage(LayerLayout(2, 1, 8, 8), 8)
    policy.see_step(torch.rand(2, 8, generator=rng))
    before = policy.average.clone()
    policy.leave(3, 8)
    policy.truncate(1, 6)  # two of the three are in the window again, and the newest token is gone
    assert policy.average.shape == (2, 6) and not policy.average[:, :2].any()
    assert torch.equal(policy.average[:, 2:], before[:, 3:7])


@pytest.mark.parametrize("select", ["exact", "moving-average"])
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp16"])
def test_an_undone_token_leaves_a_window_unrounded_that_rows_were_to_leave(kv_dtype: str, select: str) -> None:
    engine = engine_of(kv_dtype=kv_dtype, select=select)
    one, other = engine.new_sequence(), engine.new_sequence()
    for sequence in (one, other):
        sequence.forward(engine.loaded, torch.tensor([PROMPT[:17]]))
    evict = LayerState.evict_overflow

    def full(state: Any, *tokens: int) -> None:
        if state is states(one)[1] or not isinstance(state, LayerState):
            raise torch.OutOfMemoryError
        evict(state, *tokens)

    with pytest.MonkeyPatch.context() as broken, pytest.raises(DeviceFullError):
        broken.setattr(LayerState, "evict_overflow", full)
        one.forward(engine.loaded, torch.tensor([[PROMPT[17]]]))
    assert {state.window.keys.dtype for state in states(one)} == {torch.float32}
    for first in range(17, 40):
        if first == 18:  # now they are rounded
            with pytest.MonkeyPatch.context() as broken, pytest.raises(DeviceFullError):
                broken.setattr(states(one)[1].window, "hold_as", full)
                one.forward(engine.loaded, torch.tensor([[PROMPT[first]]]))
            assert len({state.window.keys.dtype for state in states(one)}) == 2
        got, wanted = (each.forward(engine.loaded, torch.tensor([[PROMPT[first]]])) for each in (one, other))
        assert torch.equal(got, wanted), first
    assert torch.float32 not in {state.window.keys.dtype for state in states(one)}
