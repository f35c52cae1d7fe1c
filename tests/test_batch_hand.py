"""An engine that is given rows from elsewhere, and who is given what. No cluster."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hgca_cli.batch import hand as hand_module
from hgca_cli.batch.check import Entry, check
from hgca_cli.batch.cluster import MOST_DEATHS, SPARE, Calls, Cluster, Place, Worker
from hgca_cli.batch.hand import Finished, Given, Hand, Ready, Started, Told
from hgca_cli.batch.lines import Lines
from hgca_cli.batch.rows import Reader
from hgca_cli.batch.work import Terms
from hgca_cli.commands.job_cluster import Elsewhere
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.errors import ModelError
from tests.tiny_engine import tiny_engine


def start(beside: int, tell: Any) -> Started:
    tell(f"{beside} beside")
    terms = Terms(SamplingSettings(temperature=0.0, max_tokens=6), "tiny")
    return Started(Batch(tiny_engine(), 2), Reader(), terms, SimpleNamespace(device="cpu"), "f")


def entries(path: Path, *lines: str) -> tuple[Lines, list[Entry]]:
    path.write_text("".join(f"{one}\n" for one in lines))
    opened = Lines(str(path))
    return opened, check(opened, Reader(document=lambda name: (name, "the cat sat"))).entries


def told_until(hand: Hand, count: int) -> tuple[list[Finished], int]:
    found: list[Finished] = []
    written = 0
    until = time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        told = hand.tell(0.1)
        found += told.finished
        written += told.written
    return found, written


def test_rows_that_are_given_while_others_run_are_answered(tmp_path: Path) -> None:
    document = '{"id": "f", "messages": [{"role": "user", "content": [{"file": "a"}]}]}'
    lines, made = entries(
        tmp_path / "in", *(f'"row {at}"' for at in range(5)), document, '{"prompt": "a", "seed": "b"}'
    )
    given = [Given(one, lines.at(one.begin, one.number), {"a": ("a", "the cat sat")}) for one in made]
    hand = Hand(start, 3)
    ready = hand.ready()
    assert (ready.rows, ready.fingerprint, ready.error) == (2, "f", None)
    assert hand.tell(5.0).notices == ("3 beside",)
    hand.give(given[:2])
    hand.give(given[2:])
    found, written = told_until(hand, 7)
    assert sorted(one.name for one in found) == ["f", *(f"line-{at}" for at in (1, 2, 3, 4, 5, 7))]
    assert sum(len(one.answers) for one in found) == 6 and written == 36
    assert {one.name for one in found if not one.answers} == {"line-7"}
    assert hand.tell(0.05) == Told(peak=2)
    hand.give(given[:1])  # after a rest
    assert told_until(hand, 1)[0][0].record["text"] == next(one for one in found if one.name == "line-1").record["text"]


def test_an_engine_that_is_watched_tells_what_its_rows_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_module, "READ_SECONDS", 0.0)
    lines, made = entries(tmp_path / "in", *(f'{{"prompt": "row {at}", "max_tokens": 200}}' for at in range(2)))
    for watched in (False, True):
        given = [Given(one, lines.at(one.begin, one.number), {}) for one in made]
        hand = Hand(lambda beside, tell, watched=watched: replace(start(beside, tell), watched=watched), 1)
        hand.ready()
        hand.give(given)
        seen, finished, until = [], 0, time.monotonic() + 60
        while finished < 2 and time.monotonic() < until:
            told = hand.tell(0.01)
            finished += len(told.finished)
            seen += [] if told.metrics is None else [told]
        assert bool(seen) == watched
        for told in seen:
            assert told.metrics is not None and told.metrics.places.tokens <= told.metrics.tokens < 2 * 512
            assert told.metrics.device == "cpu"
        whole = [told.metrics.places for told in seen if told.metrics is not None and told.metrics.places.tokens]
        assert bool(whole) == watched and all(places.window_bytes > 0 for places in whole)  # not amid a first token
    cluster = SimpleNamespace(metrics=tuple(told.metrics for told in seen[:2]), slots=())
    elsewhere = Elsewhere(SimpleNamespace(), SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
    assert elsewhere._metrics() is None
    elsewhere._cluster = cluster  # type: ignore[assignment]
    both = elsewhere._metrics()
    assert both is not None and both.tokens == sum(one.tokens for one in cluster.metrics)


def test_an_engine_that_cannot_be_says_why() -> None:
    def fails(beside: int, tell: Any) -> Started:
        raise ModelError("no such model.", "Fetch it.")

    assert Hand(fails, 1).ready().error == ("no such model.", "Fetch it.", 5)


class Actor:
    def __init__(self) -> None:
        self.given: list[Given] = []
        self.give = SimpleNamespace(remote=self.given.extend)


@pytest.fixture
def two() -> Cluster:
    cluster = Cluster.__new__(Cluster)
    place = Place("n", False, 1.0, 1)
    cluster._workers = [Worker(place, Actor(), None, Ready(rows=2, plan=None, fingerprint="f")) for _ in range(2)]
    cluster._deaths, cluster._idle_deaths, cluster._tell = __import__("collections").Counter(), 0, lambda text: None
    cluster._ray = SimpleNamespace(kill=lambda actor: None)
    cluster._begin = lambda place: Worker(place, Actor(), None)  # type: ignore[method-assign]
    return cluster


def test_rows_are_pulled_and_those_of_a_slow_engine_are_stolen(two: Cluster) -> None:
    from collections import deque

    made = [Entry(at, at, str(at), "d", 1) for at in range(6)]
    finished: list[str] = []
    lost: list[str] = []
    calls = Calls(
        lambda entry: None if entry.id == "1" else Given(entry, None, {}),  # type: ignore[arg-type]
        lambda one: finished.append(one.name), lambda entry: lost.append(entry.id), lambda ready: None, lambda told: None,
    )  # fmt: skip
    waiting, left = deque(made), {one.id for one in made}
    slow, fast = two._workers
    two._feed(slow, waiting, left, calls)
    assert list(slow.rows) == ["0", "2", "3", "4"] and len(slow.rows) == 2 + SPARE and "1" not in left
    two._feed(fast, waiting, left, calls)
    assert list(fast.rows) == ["5"]
    two._take(fast, Told((Finished("5", {}, 1, ()),)), left, calls)
    two._feed(fast, waiting, left, calls)
    assert list(fast.rows) == ["3", "4"], "the last that were given to the other"
    two._take(fast, Told((Finished("3", {}, 1, ()),)), left, calls)
    two._take(slow, Told((Finished("3", {}, 1, ()), Finished("0", {}, 1, ()))), left, calls)
    assert finished == ["5", "3", "0"] and list(slow.rows) == ["2", "4"]
    two._replace(slow, RuntimeError("gone"), waiting, left, calls)
    assert [one.id for one in waiting] == ["2"], "4 is with the other"
    for _ in range(MOST_DEATHS - 1):
        fresh = two._workers[0]
        fresh.ready = Ready(rows=2)
        two._feed(fresh, waiting, left, calls)
        two._replace(fresh, RuntimeError("gone"), waiting, left, calls)
    assert lost == ["2"] and left == {"4"}
