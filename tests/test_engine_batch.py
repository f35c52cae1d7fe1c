"""Many requests at once give what each gives by itself, whatever happens to some of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from hgca_cli.config import NO_LIMIT, CacheSettings, SamplingSettings
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.batch_metrics import BatchReadings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.room import Room
from hgca_cli.engine.sequence import Sequence
from tests.tiny_batch import GREEDY, alone, prompts, requests, rooms, run
from tests.tiny_engine import tiny_engine, tiny_loaded


@pytest.fixture(autouse=True)
def always_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: 2)


@pytest.mark.parametrize("sliding", [None, 24])
@pytest.mark.parametrize("slots", [1, 5, 40])
def test_greedy_answers_are_those_of_one_by_one(slots: int, sliding: int | None) -> None:
    engine = tiny_engine(window=16, sliding=sliding)
    asked = requests(prompts(40))
    answers = run(batch := Batch(engine, slots), asked)
    assert batch.peak == min(slots, 40)
    for one in asked:
        found, wanted = answers[one.key].done, alone(engine, one)
        assert found is not None and found.text == wanted.text
        assert (found.finish_reason, found.completion_tokens, found.prompt_tokens) == (
            wanted.finish_reason, wanted.completion_tokens, wanted.prompt_tokens,
        )  # fmt: skip


@pytest.mark.parametrize("select", ["scan", "page", "moving-average", "window"])
def test_every_policy_chooses_for_each_sequence_by_itself(select: str) -> None:
    settings = CacheSettings(window=16, sinks=2, context=512, select=select)
    engine = Engine(tiny_loaded(), settings, prefill_chunk=8)
    asked = requests(prompts(12, longest=200))
    answers = run(Batch(engine, 4), asked)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]


def test_drawn_answers_are_those_of_one_by_one() -> None:
    engine = tiny_engine()
    asked = requests(prompts(12), SamplingSettings(temperature=1.0, top_p=0.9, seed=5, repetition_penalty=1.2))
    answers = run(Batch(engine, 4), asked)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
@pytest.mark.parametrize("least", [2, 99])  # in one pass, and one by one
def test_penalties_are_each_sequences_own(penalty: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: least)
    engine = tiny_engine()
    asked = requests(prompts(8))
    asked = [replace(one, sampling=replace(one.sampling, max_tokens=40)) for one in asked]
    free = {key: one.text for key, one in run(Batch(engine, 8), asked).items()}
    asked = [replace(one, sampling=replace(one.sampling, **{penalty: 1.5})) if one.key % 2 else one for one in asked]
    answers = run(Batch(engine, 8), asked)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
    assert all(answers[key].text == free[key] for key in range(0, 8, 2))
    assert any(answers[key].text != free[key] for key in range(1, 8, 2))


def test_stop_strings_and_empty_answers() -> None:
    engine = tiny_engine()
    whole = alone(engine, Request(0, prompts(6)[5], GREEDY)).text
    word = whole[2:5]
    asked = [
        Request("stop", prompts(6)[5], replace(GREEDY, stop=(word,))),
        Request("none", [50, 51], replace(GREEDY, max_tokens=0)),
    ]
    answers = run(Batch(engine, 2), asked)
    assert answers["stop"].done is not None and answers["stop"].done.finish_reason == "stop"
    assert answers["stop"].text == whole[: whole.index(word)]
    assert answers["none"].done is not None and answers["none"].done.completion_tokens == 0


def test_without_a_limit_an_answer_ends_where_the_context_does() -> None:
    engine = Engine(tiny_loaded(), CacheSettings(window=16, context=128))
    asked = [Request(at, ids, replace(GREEDY, max_tokens=NO_LIMIT)) for at, ids in enumerate(prompts(3))]
    batch = Batch(engine, 3, rooms(1000))
    told: set[int] = set()
    for event in batch.run(iter(asked), threading.Event()):
        told |= {slot.prompt + slot.most for slot in batch.slots_in_use}
        if isinstance(event, Answer):
            assert event.done is not None and event.done.finish_reason == "length"
            assert event.done.prompt_tokens + event.done.completion_tokens == 128
    assert told == {128}, "tokens a row may have, as the dashboard shows them"


def test_a_prompt_that_cannot_be_read_fails_alone() -> None:
    engine = tiny_engine(context=64)
    asked = [
        Request("long", list(range(40, 140)), GREEDY),
        Request("empty", [], GREEDY),
        Request("good", [50, 51, 52], GREEDY),
    ]
    answers = run(Batch(engine, 3), asked)
    assert [answers[key].error is None for key in ("long", "empty", "good")] == [False, False, True]
    assert answers["long"].error is not None and answers["long"].error.code == "context_overflow"


def test_prompts_are_read_between_the_tokens_of_others() -> None:
    engine = tiny_engine(chunk=8)
    asked = [Request("short", [50, 51], replace(GREEDY, max_tokens=30)), Request("long", list(range(40, 200)), GREEDY)]
    seen = [event for event in Batch(engine, 2).run(iter(asked), threading.Event()) if isinstance(event, Progress)]
    both = [event for event in seen if event.read and event.written]
    assert len(both) > 10 and all(event.read <= 16 for event in both)


def test_the_room_bounds_who_runs() -> None:
    engine = tiny_engine()
    room = Room((200, 1000), lambda tokens: (tokens, 2 * tokens))
    asked = [Request(at, list(range(50, 90)), replace(GREEDY, max_tokens=40)) for at in range(6)]
    batch = Batch(engine, 6, room)
    run(batch, asked)
    assert batch.peak == 2
    run(alone_fits := Batch(engine, 6, Room((1,), lambda tokens: (tokens,))), asked[:2])
    assert alone_fits.peak == 1


def test_a_stop_ends_it_and_nothing_is_left_open() -> None:
    engine, stop = tiny_engine(), threading.Event()
    answered = []

    def endless() -> Iterator[Request]:
        while True:
            yield Request(len(answered), [50, 51, 52], GREEDY)

    for event in Batch(engine, 3).run(endless(), stop):
        if isinstance(event, Answer):
            answered.append(event)
            if len(answered) == 4:
                stop.set()
    assert 4 <= len(answered) <= 7


def test_few_sequences_on_a_processor_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: 4)
    sizes = []

    def counted(loaded: Any, joint: Any, tokens: list[int], positions: list[int]) -> torch.Tensor:
        sizes.append(len(tokens))
        return original(loaded, joint, tokens, positions)

    original = together.joint_forward
    monkeypatch.setattr(together, "joint_forward", counted)
    engine = tiny_engine(chunk=256)
    asked = requests(prompts(12))
    answers = run(Batch(engine, 6), asked)
    assert sizes and min(sizes) >= 4
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]


@pytest.mark.parametrize("least", [2, 99])  # in one pass, and one by one
def test_readings_add_up_the_sequences_that_run(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: least)
    loaded = tiny_loaded()
    engine = Engine(loaded, CacheSettings(window=16, sinks=2, context=512, select="scan"), prefill_chunk=64)
    batch = Batch(engine, 4)
    readings = BatchReadings(batch)
    assert readings.take() is None and readings.slots() == ()
    seen, spent = 0, 0
    for event in batch.run(iter(requests(prompts(12))), threading.Event()):
        if not isinstance(event, Progress):
            continue
        found, slots = readings.take(), readings.slots()
        members = [member for member, _ in batch.members]
        assert [slot.key for slot in slots] == [member.request.key for member in members]
        assert all(slot.read == slot.prompt and slot.written <= slot.most for slot in slots[: event.writing])
        if found is None:
            assert not any(member.sequence.cached for member in members)
            continue
        seen += 1
        assert found.tokens == sum(len(member.sequence.tokens) for member in members if member.sequence.cached)
        assert found.places.tokens == sum(member.sequence.cached for member in members)
        assert batch.joint == (event.writing >= least) or not event.writing
        spent += found.spent.attention is not None
        assert 0.0 <= found.read_share <= 1.0 and found.bytes_share >= 0.0
    assert seen > 20 and spent > 5
    assert readings.take() is None and readings.slots() == ()


def test_a_row_that_takes_too_long_ends() -> None:
    engine = tiny_engine()
    asked = [Request("slow", [50, 51], replace(GREEDY, max_tokens=400), seconds=0.0), Request("good", [52, 53], GREEDY)]
    answers = run(Batch(engine, 2), asked)
    assert answers["slow"].error is not None and answers["slow"].error.code == "timeout"
    assert answers["good"].done is not None


@pytest.mark.parametrize("less", [0, 3])
def test_a_row_that_waits_does_not_take_longer(less: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Clock:  # a token of somebody takes a second, whatever the machine does
        perf_counter = staticmethod(lambda: now[0])

    monkeypatch.setattr("hgca_cli.engine.member.time", Clock)
    engine = tiny_engine(chunk=16)
    original, joint = Sequence.forward, together.joint_forward

    def slow(self: Sequence, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0
        return original(self, loaded, ids)

    def slow_together(*given: Any) -> torch.Tensor:
        now[0] += 1.0
        return joint(*given)

    monkeypatch.setattr(Sequence, "forward", slow)
    monkeypatch.setattr(together, "joint_forward", slow_together)
    asked = [Request(at, [50 + at, 60, 70], replace(GREEDY, max_tokens=20), seconds=21.5) for at in range(4)]
    long = replace(GREEDY, max_tokens=3)
    asked.append(Request("long", list(range(40, 200)), long, seconds=14.5))  # ten chunks, then three
    asked = [replace(one, seconds=(one.seconds or 0) - less) for one in asked]
    steps, answers = [0], {}
    batch = Batch(engine, 4, rooms(10_000, lambda: (0,) if 5 < steps[0] < 25 else (10_000,)))
    for event in batch.run(iter(asked), threading.Event()):
        steps[0] += isinstance(event, Progress)
        if isinstance(event, Answer):
            answers[event.request.key] = event
    assert now[0] > 30 and batch.set_aside >= 3 and len(answers) == 5
    assert [one.error is None for one in answers.values()] == [not less] * 5


def same_text(beginning: list[int], count: int, tail: int = 9) -> list[list[int]]:
    return [[*beginning, *((90 + 3 * n + 17 * at) % 200 + 40 for n in range(tail))] for at in range(count)]


@pytest.mark.parametrize(("sliding", "kv_dtype"), [(None, None), (None, "int8"), (24, None)])
def test_what_prompts_begin_with_is_read_once(sliding: int | None, kv_dtype: str | None) -> None:
    settings = CacheSettings(window=16, sinks=2, context=1024, select="scan", kv_dtype=kv_dtype)
    engine = Engine(tiny_loaded(sliding=sliding), settings, prefill_chunk=8)
    ids = same_text(prompts(20, 90)[7] * 8, 6)
    beginning = len(ids[0]) - 9
    assert beginning >= 128
    events = list(
        Batch(engine, 3).run(iter([Request(at, one, GREEDY) for at, one in enumerate(ids)]), threading.Event())
    )
    answers = {event.request.key: event.done for event in events if isinstance(event, Answer)}
    assert sum(event.read for event in events if isinstance(event, Progress)) < beginning + 6 * 20
    for at, one in enumerate(ids):
        found, wanted = answers[at], alone(engine, Request(at, one, GREEDY))
        assert found is not None and found.cached_tokens >= (beginning if at else 0)
        if kv_dtype is None:  # a chunk that begins elsewhere is attended to with other rows rounded
            assert found.text == wanted.text


def test_beginnings_within_beginnings_and_choices_of_one_prompt() -> None:
    engine = tiny_engine(window=16, context=1024, chunk=32)
    system, first, second = ([40 + (k * n) % 200 for n in range(200)] for k in (7, 11, 13))
    ids = [*same_text(system + first, 3), *same_text(system + second, 3)]
    ids += [ids[-1]] * 2
    answers = run(Batch(engine, 2), [Request(at, one, GREEDY) for at, one in enumerate(ids)])
    cached = [answers[at].done.cached_tokens for at in range(8)]  # type: ignore[union-attr]
    assert cached[0] == 0 and cached[1] >= 400 and cached[3] >= 200 and cached[4] >= 400 and cached[7] >= 400
    assert [answers[at].text for at in range(8)] == [
        alone(engine, Request(at, one, GREEDY)).text for at, one in enumerate(ids)
    ]


def test_beginnings_count_as_memory_and_go_when_there_is_none() -> None:
    engine = tiny_engine(window=16, context=1024, chunk=32)
    ids = same_text(prompts(20, 90)[7] * 8, 5)
    most = len(ids[0]) + 12
    room = Room((most,), lambda tokens: (tokens,))
    answers = run(batch := Batch(engine, 4, room), [Request(at, one, GREEDY) for at, one in enumerate(ids)])
    assert batch.peak == 1
    assert [answers[at].done.cached_tokens for at in range(5)] == [0] * 5  # type: ignore[union-attr]
