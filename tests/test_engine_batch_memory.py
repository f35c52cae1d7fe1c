"""Rows that share bounded memory: who waits, who comes back, and that no token is lost."""

from __future__ import annotations

import ctypes
import platform
import threading
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine import batch as batch_module
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.room import Lengths, Room
from hgca_cli.engine.sequence import DeviceFullError, Sequence, memory_ran_out
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.growing import GrowingArray
from tests.tiny_batch import GREEDY, alone, prompts, requests, rooms, run
from tests.tiny_engine import tiny_engine, tiny_loaded


@pytest.fixture(autouse=True)
def always_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: 2)


def policies() -> list[dict[str, Any]]:
    names = ("exact", "scan", "two-level", "page", "window", "moving-average")
    return [{"select": name} for name in names]


@pytest.mark.parametrize("policy", policies(), ids=lambda one: one["select"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_set_aside_write_the_same(
    policy: dict[str, Any], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Lengths, "expected", lambda self, prompt, written, most: prompt + written
    )  # nobody foresees any
    engine = Engine(tiny_loaded(), CacheSettings(window=16, sinks=2, context=512, **policy), prefill_chunk=16)
    sampling = SamplingSettings(temperature=temperature, seed=7, max_tokens=1)
    asked = [Request(at, ids, replace(sampling, max_tokens=60 + 7 * at)) for at, ids in enumerate(prompts(12))]
    free = {key: one.text for key, one in run(Batch(engine, 12), asked).items()}
    limit = 420
    batch = Batch(engine, 12, rooms(limit))
    answers, most = {}, 0
    for event in batch.run(iter(asked), threading.Event()):
        if isinstance(event, Answer):
            answers[event.request.key] = event.text
        elif isinstance(event, Progress):
            most = max(most, event.aside)
            members = [member for member, _ in batch.members]
            assert sum(member.sequence.cached for member in members) <= limit
            assert sum(slot.aside for slot in batch.slots_in_use) == event.aside
            assert event.writing + event.reading + event.aside == len(members)
    assert answers == free and batch.set_aside >= most > 1 and batch.peak > limit // 100


def test_answers_that_end_early_let_more_rows_in() -> None:
    engine = tiny_engine()
    asked = [Request(at, ids, replace(GREEDY, max_tokens=300)) for at, ids in enumerate(prompts(40, 20))]
    stops = {one.key: alone(engine, replace(one, sampling=replace(GREEDY, max_tokens=12))).text for one in asked}
    asked = [replace(one, sampling=replace(one.sampling, stop=(stops[one.key][-4:],))) for one in asked]
    bounded, open_ = Batch(engine, 40, Room((700,), lambda tokens: (tokens,))), Batch(engine, 40, rooms(700))
    assert {key: one.text for key, one in run(bounded, asked).items()} == {
        key: one.text for key, one in run(open_, asked).items()
    }
    assert bounded.peak <= 2 < 4 * bounded.peak < open_.peak


def test_memory_that_others_take_sets_rows_aside_until_they_give_it_back() -> None:
    engine, taken = tiny_engine(), [0]
    asked = [Request(at, [50 + at, 60, 70], replace(GREEDY, max_tokens=80)) for at in range(4)]
    wanted = {one.key: alone(engine, one).text for one in asked}
    batch = Batch(engine, 4, rooms(10_000, lambda: (0,) if taken[0] else (10_000,)))
    answers, seen = {}, []
    for event in batch.run(iter(asked), threading.Event()):
        if isinstance(event, Answer):
            answers[event.request.key] = event.text
        elif isinstance(event, Progress):
            seen.append(event.aside)
            taken[0] = int(20 < len(seen) < 60)
    assert answers == wanted and max(seen[20:60]) == 3 and seen[70] == 0


@pytest.mark.parametrize("policy", policies(), ids=lambda one: one["select"])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_memory_that_is_refused_at_any_moment_loses_no_token(
    policy: dict[str, Any], on_disk: bool, kv_dtype: str | None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path) if on_disk else None
    settings = CacheSettings(window=16, sinks=2, context=512, store_dir=folder, kv_dtype=kv_dtype, **policy)
    engine = Engine(tiny_loaded(), settings, prefill_chunk=16)
    asked = [Request(at, ids, replace(GREEDY, max_tokens=30 + 7 * at)) for at, ids in enumerate(prompts(6))]
    wanted = {one.key: alone(engine, one).text for one in asked}
    calls = refused = 0
    stubborn: dict[int, int] = {}  # how often an array will be refused
    original = GrowingArray.commit

    def refusing(self: GrowingArray, rows: int, first: int) -> None:
        nonlocal calls, refused
        calls += 1
        if calls % 23 == 0:
            stubborn[id(self)] = 6
        if stubborn.get(id(self), 0) and sum(one.begun for one, _ in batch.members) > 1:
            stubborn[id(self)] -= 1
            refused += 1
            raise DoesNotFitError("no memory")
        original(self, rows, first)

    monkeypatch.setattr(GrowingArray, "commit", refusing)
    batch = Batch(engine, 6)
    answers = run(batch, asked)
    assert {key: one.text for key, one in answers.items()} == wanted
    assert refused > 12 and batch.set_aside > 1


def test_memory_that_is_refused_to_the_only_row_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    asked = [Request(at, [50 + at, 60, 70], replace(GREEDY, max_tokens=40)) for at in range(3)]
    wanted = {one.key: alone(engine, one).text for one in asked}
    original = Sequence.forward

    def refusing(self: Sequence, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        if self.tokens[0] == 51 and self.cached > 20:
            raise DoesNotFitError("no memory")
        return original(self, loaded, ids)

    monkeypatch.setattr(Sequence, "forward", refusing)
    monkeypatch.setattr(together, "pays_from", lambda loaded: 99)
    answers = run(Batch(engine, 3), asked)
    assert {key: answers[key].text for key in (0, 2)} == {key: wanted[key] for key in (0, 2)}
    assert answers[1].error is not None and wanted[1].startswith(answers[1].text) and answers[1].text


def test_a_prompt_that_memory_is_refused_for_is_read_when_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    asked = [Request(at, list(range(50 + at, 90 + at)), GREEDY) for at in range(3)]
    wanted = {one.key: alone(engine, one).text for one in asked}
    original, refused = Sequence.forward, 0

    def refusing(self: Sequence, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        nonlocal refused
        if self.tokens[0] == 51 and refused < 3 and self.cached >= 8:
            refused += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(self, loaded, ids)

    monkeypatch.setattr(Sequence, "forward", memory_said_in_words(refusing))
    answers = run(batch := Batch(engine, 3), asked)
    assert {key: one.text for key, one in answers.items()} == wanted and refused == 3 and batch.set_aside


def memory_said_in_words(forward: Any) -> Any:
    """As Sequence.forward tells what torch said."""

    def telling(self: Sequence, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        try:
            return forward(self, loaded, ids)  # type: ignore[no-any-return]
        except RuntimeError as error:
            assert memory_ran_out(error)
            raise DeviceFullError("no memory") from error

    return telling


def test_memory_that_runs_out_costs_only_who_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    asked = requests(prompts(8))
    wanted = {one.key: alone(engine, one).text for one in asked}
    calls = 0

    def failing(loaded: Any, joint: Any, tokens: list[int], positions: list[int]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            original(loaded, joint, tokens, positions)  # rows were taken in already
            raise torch.OutOfMemoryError
        return original(loaded, joint, tokens, positions)

    original = together.joint_forward
    monkeypatch.setattr(together, "joint_forward", failing)
    answers = run(Batch(engine, 8), asked)
    assert calls > 3 and {key: one.text for key, one in answers.items()} == wanted


def test_one_sequence_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    asked = [Request(at, [50 + at, 60, 70], replace(GREEDY, max_tokens=9)) for at in range(4)]
    wanted = {one.key: alone(engine, one).text for one in asked}
    bad = alone(engine, asked[2])
    original = together.joint_forward

    def not_finite(loaded: Any, joint: Any, tokens: list[int], positions: list[int]) -> torch.Tensor:
        logits = original(loaded, joint, tokens, positions).clone()
        if len(tokens) == 4 and positions[0] >= 6:
            logits[2] = float("nan")
        return logits

    monkeypatch.setattr(together, "joint_forward", not_finite)
    answers = run(Batch(engine, 4), asked)
    assert answers[2].error is not None and bad.text.startswith(answers[2].text) and answers[2].text
    assert {key: answers[key].text for key in (0, 1, 3)} == {key: wanted[key] for key in (0, 1, 3)}


@pytest.mark.parametrize(("limit", "seconds", "times"), [(400, 0.0, 2), (400, 1e9, 1), (100_000, 0.0, 0)])
def test_freed_memory_is_given_back_where_there_is_little(
    limit: int, seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then, after prompts were read: what malloc keeps of their work is nobody's room."""
    given = [0]

    def trim() -> None:
        given[0] += 1

    monkeypatch.setattr(batch_module.native, "trim", trim)
    monkeypatch.setattr(batch_module, "TRIM_SECONDS", seconds)
    asked = [Request(at, ids, GREEDY) for at, ids in enumerate(prompts(12))]
    assert len(run(Batch(tiny_engine(), 6, rooms(limit)), asked)) == 12
    assert given[0] == times if times < 2 else given[0] >= times


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what another malloc keeps is not known")
def test_the_system_gets_freed_memory_back() -> None:
    """Of blocks too small for a mapping of their own; the last one, which stays, keeps malloc from giving them back by itself."""
    libc, size, process = ctypes.CDLL(None), 100_000, psutil.Process()
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(size) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(ctypes.c_void_p(block))
    before = process.memory_info().rss
    native.trim()
    assert before - process.memory_info().rss > 50e6
    libc.free(ctypes.c_void_p(blocks[-1]))
