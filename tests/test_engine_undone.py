"""What an undone forward pass, or a step back, leaves behind: nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import DeviceFullError, Sequence
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.growing import GrowingArray
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
