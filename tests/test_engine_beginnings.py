"""Prompts that begin alike have one store: what it takes is counted once, and it stays as long as somebody has it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hgca_cli.config import CacheSettings
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.room import Claim, Room
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv import layout
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.reservation import Reservation
from tests.test_engine_batch import same_text
from tests.tiny_batch import GREEDY, alone, prompts, run
from tests.tiny_engine import tiny_loaded


@pytest.fixture(autouse=True)
def much_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: 2)
    monkeypatch.setattr(layout, "LEAST_SHARED", 4096)


def engine_of(**given: Any) -> Engine:
    return Engine(tiny_loaded(), CacheSettings(window=16, sinks=2, context=2048, **given), prefill_chunk=32)


def room(limit: int, *, shares: bool) -> Room:
    """A byte a token."""
    take = lambda tokens: (tokens,)  # noqa: E731
    return Room((limit,), take, lambda tokens, most: (tokens,), None, take if shares else None)


@pytest.mark.parametrize("select", ["exact", "scan", "two-level", "page"])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_same_answers_from_one_store(
    select: str, kv_dtype: str | None, on_disk: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of rows that are copied: what is shared is bit for bit the same."""
    folder = str(tmp_path) if on_disk else None
    engine = engine_of(select=select, kv_dtype=kv_dtype, store_dir=folder)
    ids = same_text(prompts(20, 90)[7] * 16, 6)
    asked = [Request(at, one, GREEDY) for at, one in enumerate(ids)]
    mapped, original = [0], Reservation.map

    def counting(self: Reservation, offset: int, size: int, file: Any, at: int) -> None:
        mapped[0] += size
        original(self, offset, size, file, at)

    monkeypatch.setattr(Reservation, "map", counting)
    answers = {key: one.text for key, one in run(Batch(engine, 3), asked).items()}
    assert mapped[0] > 0
    monkeypatch.setattr(layout, "LEAST_SHARED", 1 << 40)
    before = mapped[0]
    assert answers == {key: one.text for key, one in run(Batch(engine, 3), asked).items()} and mapped[0] == before


def test_more_rows_run_at_once_where_they_share() -> None:
    engine = engine_of(select="scan")
    ids = same_text(prompts(20, 90)[7] * 16, 12)
    most = len(ids[0]) + GREEDY.max_tokens
    peaks = []
    for shares in (False, True):
        batch = Batch(engine, 12, room(3 * most, shares=shares))
        answers = run(batch, [Request(at, one, GREEDY) for at, one in enumerate(ids)])
        peaks.append(batch.peak)
        assert all(one.error is None for one in answers.values())
        cached = sum(one.done is not None and one.done.cached_tokens > 0 for one in answers.values())
        assert cached == 11 or not shares
    assert peaks == [3, 12]


def test_what_is_in_use_is_not_given_up() -> None:
    """A prompt of its own comes beside those that share: nothing of theirs would become free."""
    engine = engine_of()
    ids = same_text(prompts(20, 90)[7] * 16, 4)
    other = [60 + (11 * at) % 150 for at in range(len(ids[0]))]
    asked = [Request(at, one, GREEDY) for at, one in enumerate([*ids, other, *same_text(ids[0][:-9], 2, 7)])]
    batch = Batch(engine, 8, room(len(ids[0]) * 2 + 5 * 24, shares=True))
    wanted = {one.key: alone(engine, one).text for one in asked}
    held = []
    answers = {}
    for event in batch.run(iter(asked), threading.Event()):
        if isinstance(event, Progress):
            kept = batch._beginnings._kept
            used = [one.beginning.kept for one, _ in batch.members if one.begun and one.beginning.kept is not None]
            assert all(any(one is other for other in kept) for one in used), "counted once, so it must be counted"
            held.append(len(used))
        elif isinstance(event, Answer):
            answers[event.request.key] = event.text
    assert answers == wanted and max(held) >= 3


@pytest.mark.parametrize("every", [3, 7, 20])
def test_memory_that_is_refused_while_rows_share_costs_no_token(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(select="two-level")
    ids = [*same_text(prompts(20, 90)[7] * 16, 5), *same_text(prompts(20, 90)[9] * 12, 4)]
    asked = [Request(at, one, GREEDY) for at, one in enumerate(ids)]
    wanted = {one.key: alone(engine, one).text for one in asked}
    calls = refused = 0
    original, joined = GrowingArray._map, GrowingArray.commit

    def refusing(self: GrowingArray, part: Any) -> None:
        nonlocal calls, refused
        calls += 1
        if calls % every == 0:
            refused += 1
            raise DoesNotFitError("no memory")
        original(self, part)

    def refusing_rows(self: GrowingArray, rows: int, first: int) -> None:
        nonlocal calls, refused
        calls += 1
        if calls % (101 * every) == 0 and sum(one.begun for one, _ in batch.members) > 1:
            refused += 1
            raise DoesNotFitError("no memory")
        joined(self, rows, first)

    monkeypatch.setattr(GrowingArray, "_map", refusing)
    monkeypatch.setattr(GrowingArray, "commit", refusing_rows)
    answers = run(batch := Batch(engine, 4), asked)
    assert {key: one.text for key, one in answers.items()} == wanted and refused >= 2


def test_a_claim_is_less_by_what_is_shared_and_never_less_than_nothing() -> None:
    counted = Room((100,), lambda tokens: (2 * tokens,), lambda tokens, most: (tokens,), None, lambda tokens: (tokens,))
    assert [counted.held(Claim(*one)) for one in ((10, 20), (10, 20, 6), (20, 20, 6), (10, 20, 15))] == [
        (10,), (4,), (34,), (0,)
    ]  # fmt: skip
    assert counted.safe([Claim(10, 50, 10)], [5]) and not counted.safe([Claim(10, 50, 10)], [6])
