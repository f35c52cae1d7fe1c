"""Tokens are measured, moves are made between them, and an answer that is to be the same again is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.attention.clock import Clock
from hgca_cli.attention.meter import EARLY
from hgca_cli.attention.select.cluster import Cluster
from hgca_cli.attention.select.scan import Scan
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine import mass
from hgca_cli.engine.balance import Balance
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.feedback import TIMED
from hgca_cli.engine.sample import Sample
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Balanced, Done, Event
from tests.tiny_engine import Endless, tiny_loaded

PROMPT = [40 + (7 * n) % 200 for n in range(200)]
DRAWN = SamplingSettings(temperature=1.0, max_tokens=60)
LOWER, FEWER = Balanced("mass", 0.9, 0.6, "rows"), Balanced("threads", 3, 2, "neighbours")


class Scripted:
    """A balance that moves when it is told to, and remembers what it was given."""

    def __init__(self, threads: int, moves: dict[int, Balanced]) -> None:
        self.threads, self.mass = threads, None
        self.moves = moves
        self.samples: list[Sample] = []
        self.texts: list[tuple[float | None, int]] = []
        self.rests = 0

    def new_text(self, quality: float | None, layers: int) -> None:
        self.texts.append((quality, layers))
        self.mass = quality

    def sample(self, sample: Sample) -> list[Balanced]:
        self.samples.append(sample)
        move = self.moves.get(len(self.samples))
        if move is not None:
            setattr(self, move.setting, move.after)
        return [] if move is None else [move]

    def rest(self) -> None:
        self.rests += 1


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = native.threads(), torch.get_num_threads()
    native.set_threads(3)
    yield
    native.set_threads(before[0])
    torch.set_num_threads(before[1])


def made(moves: dict[int, Balanced] | None = None, balance: bool = True, **settings: Any) -> tuple[Engine, Scripted]:
    """An engine whose answers never end by themselves, and what decides in it."""
    loaded = tiny_loaded()
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))
    asked = {"window": 16, "sinks": 2, "context": 512, "select": "scan", "quality": 0.9} | settings
    engine = Engine(loaded, CacheSettings(**asked), prefill_chunk=64, balance=balance)
    scripted = Scripted(3, moves or {})
    if engine._feedback is not None:
        engine._feedback._balance = scripted  # type: ignore[assignment]
    return engine, scripted


def write(engine: Engine, sampling: SamplingSettings = DRAWN, sequence: Sequence | None = None) -> list[Event]:
    sequence = sequence or engine.new_sequence()
    return list(engine.answer(sequence, PROMPT, sampling, threading.Event()))


def aims(sequence: Sequence) -> set[float]:
    selectors = [layer.states[0].selector for layer in sequence.cache.layers]
    return {selector.mass for selector in selectors if isinstance(selector, Scan)}


def test_every_token_is_measured_and_some_are_timed() -> None:
    engine, scripted = made()
    write(engine)
    samples = scripted.samples
    assert len(samples) == 59, "the first token's forward pass was the prompt's"
    assert [sample.rows for sample in samples] == list(range(201, 260)) and all(s.seconds > 0 for s in samples)
    timed = [index for index, sample in enumerate(samples) if sample.waited is not None]
    assert timed == list(range(TIMED - 1, 59, TIMED))
    for sample in (samples[index] for index in timed):
        assert sample.waited is not None and sample.read is not None and sample.share is not None
        assert 0 < sample.waited < sample.seconds and sample.read > 0 and 0 < sample.share <= 1
    kept = [sample.kept for sample in samples if sample.kept is not None]
    assert EARLY + 2 <= len(kept) <= EARLY + 4 and all(0.5 < one <= 1 for one in kept)


def test_rows_that_nobody_chose_are_not_timed_as_read() -> None:
    engine, scripted = made(select="exact", quality=None)
    write(engine)
    assert len(scripted.samples) > TIMED
    assert all(sample.read is sample.share is sample.waited is None for sample in scripted.samples)


def test_a_move_is_made_told_and_over_with_the_answer() -> None:
    engine, scripted = made({20: LOWER, 30: FEWER})
    sequence = engine.new_sequence()
    events = engine.answer(sequence, PROMPT, DRAWN, threading.Event())
    seen = [(event, aims(sequence), native.threads()) for event in events if isinstance(event, Balanced)]
    assert seen == [(LOWER, {0.6}, 3), (FEWER, {0.6}, 2)]
    assert native.threads() == 3 and scripted.rests == 1, "a prompt is read with all threads"
    shares = [sample.share for sample in scripted.samples if sample.share is not None]
    assert max(shares[3:]) < min(shares[:2]), "less was aimed at, and less was read"
    follow = engine.answer(sequence, [77, 78], DRAWN, threading.Event())
    assert not any(isinstance(next(follow), Done) for _ in range(4))
    assert native.threads() == 2 and aims(sequence) == {0.6}, "what was learnt holds in the next answer"
    follow.close()
    assert native.threads() == 3 and scripted.rests == 2


def test_a_text_begins_anew() -> None:
    engine, scripted = made({5: LOWER})
    first = engine.new_sequence()
    write(engine, sequence=first)
    write(engine, replace(DRAWN, max_tokens=3), first)
    assert scripted.texts == [(0.9, 2)]
    write(engine, sequence=engine.new_sequence(CacheSettings(window=16, context=512, select="scan", quality=0.8)))
    first.rewind(0)
    write(engine, sequence=first)
    assert scripted.texts == [(0.9, 2), (0.8, 2), (0.9, 2)]


@pytest.mark.parametrize(
    ("settings", "quality"),
    [
        ({"select": "two-level"}, 0.9),
        ({"select": "exact", "quality": None}, None),
        ({"quality": None, "budget": 0.2}, None),
        ({"quality": 0.9, "budget": 0.2}, None),
        ({"select": "page"}, None),
        ({"select": "window", "quality": None}, None),
    ],
)
def test_only_a_quality_that_was_asked_for_is_aimed_at(settings: dict[str, Any], quality: float | None) -> None:
    engine, scripted = made(**settings)
    write(engine, replace(DRAWN, max_tokens=2))
    assert scripted.texts == [(quality, 2)]


@pytest.mark.parametrize("sampling", [replace(DRAWN, seed=4), replace(DRAWN, temperature=0.0)])
def test_an_answer_that_is_to_be_the_same_is_left_alone(sampling: SamplingSettings) -> None:
    engine, scripted = made({5: LOWER, 6: FEWER})
    plain, _ = made(balance=False)
    sequence, other = engine.new_sequence(), plain.new_sequence()
    write(engine, sequence=sequence)  # moves both
    assert aims(sequence) == {0.6}
    measured = len(scripted.samples)
    sequence.rewind(0)
    with_it, without = write(engine, sampling, sequence), write(plain, sampling, other)
    assert len(scripted.samples) == measured and aims(sequence) == {0.9} and native.threads() == 3
    assert sequence.tokens == other.tokens
    assert isinstance(with_it[-1], Done) and isinstance(without[-1], Done)
    assert with_it[-1].rows.read_share == without[-1].rows.read_share and with_it[-1].text == without[-1].text


def test_without_it_nothing_is_measured() -> None:
    engine, _ = made(balance=False)
    sequence = engine.new_sequence()
    write(engine, sequence=sequence)
    assert not sequence.cache.clock.on and sequence.cache.clock.take() == 0.0


def test_a_gate_follows_the_aim(rng: torch.Generator) -> None:
    engine, _ = made(select="cluster", context=4096)
    sequence = engine.new_sequence()
    cache = sequence.cache
    rows = [(torch.randn(2, 2500, 8, generator=rng), torch.randn(2, 2500, 8, generator=rng)) for _ in range(2)]
    cache.fill(rows, torch.device("cpu"), 500)
    read = []
    for aim in (0.9, 0.3, 0.9):
        cache.aim_at(aim)
        sequence.forward(engine.loaded, torch.tensor([[50]]))
        last = cache.last_reads()
        assert last is not None
        read.append(last[0])
        assert isinstance(cache.layers[0].states[0].selector, Cluster)
    assert read[1] < 0.8 * read[0] and read[2] > read[1]


class FakeEvent:
    """A CUDA event on a device whose time is a number."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream == "the device's"
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1000


def test_a_gpu_waits_between_its_own_part_and_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the device's")
    clock, gpu = Clock(), torch.device("cuda", 0)
    for on, layers in ((False, 2), (True, 2), (True, 5), (True, 1)):
        clock.on = on
        for layer in range(layers):
            clock.start(gpu)
            FakeEvent.now += 1.0
            clock.begin(gpu)
            FakeEvent.now += 0.25 * layer
            clock.end(gpu)
        assert clock.take() == pytest.approx(sum(0.25 * layer for layer in range(layers)) if on else 0.0)
        assert clock.last == (pytest.approx((1.0 * layers, 0.25 * sum(range(layers)))) if on else None)
    clock.start(gpu)
    clock.begin(gpu)  # a forward pass that was interrupted
    assert clock.take() == 0.0
    assert len(clock._events) == 5, "events are made once"


@pytest.mark.gpu
def test_a_real_gpu_waits() -> None:
    clock, gpu = Clock(), torch.device("cuda", 0)
    clock.on = True
    clock.start(gpu)
    torch.zeros(8, device=gpu)
    clock.begin(gpu)
    torch.cuda.synchronize()
    threading.Event().wait(0.05)
    clock.end(gpu)
    assert clock.take() > 0.04


def test_what_a_real_meter_finds_to_spare_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mass, "WORTH", 0.0)  # a tiny model reads next to nothing
    monkeypatch.setattr(mass, "IDLE", 0.0)
    engine, _ = made(quality=0.4)
    assert engine._feedback is not None
    engine._feedback._balance = Balance(1)
    sequence = engine.new_sequence()
    events = write(engine, replace(DRAWN, max_tokens=300), sequence)
    moves = [event for event in events if isinstance(event, Balanced)]
    done = events[-1]
    assert moves and moves[0].before == 0.4 > moves[0].after, "the 64 rows that are always read keep more than 40 %"
    assert all(0.1 <= move.after <= 0.4 and "of the attention was kept" in move.reason for move in moves)
    assert aims(sequence) == {moves[-1].after} and isinstance(done, Done)
    assert done.rows.quality is not None and done.rows.quality > 0.4 - 0.03, "the aim gives way a little around it"
