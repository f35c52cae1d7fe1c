"""Rows that leave next are made ready beside the tokens before: nothing else is than without, whatever comes between."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli.attention import column
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.leaving import Leaving, LeavingRows
from hgca_cli.attention.select.scan import Scan
from hgca_cli.config import CacheSettings
from hgca_cli.errors import DoesNotFitError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.joint import JointCache
from hgca_cli.hf.load import forward
from hgca_cli.kv.evict import evict_oldest_together
from hgca_cli.kv.growing import GrowingArray
from tests.test_attention_recorded import POLICIES
from tests.test_attention_together import model_of, read, some_tokens

LENGTHS = [150, 61, 97]  # codes of the first's store fill a block, and begin another, on the way
STEPS = 40
SETTINGS = CacheSettings(window=32, sinks=2, context=256)
Between = Callable[[int, list[HybridCache]], object]


class Run:
    """Some tokens of some sequences, as one step each: `logits` of each, and `caches` as they are after."""

    def __init__(self, policy: str, sequences: int, between: Between | None = None) -> None:
        model = model_of("qwen3")  # whose rows are wide enough to be chosen on the device
        settings = CacheSettings(**vars(SETTINGS) | POLICIES[policy])
        draw = torch.Generator().manual_seed(5)
        prompts = [torch.randint(model.config.vocab_size, (1, length), generator=draw) for length in LENGTHS]
        self.caches = [read(model, ids, settings) for ids in prompts[:sequences]]
        self.step = GraphStep(model, JointCache(self.caches))
        self.logits: list[Tensor] = []
        self.starts: list[list[int]] = []
        for at in range(STEPS):
            self.token = some_tokens(model, sequences, at)
            if between is not None:
                between(at, self.caches)
            self.logits.append(self.one_more())
            self.starts.append([cache.ring_start for cache in self.caches])

    def one_more(self) -> Tensor:
        with torch.inference_mode():
            try:
                return self.step.step(self.token)
            except DoesNotFitError:  # as an engine does: all go back, and try again
                self.refused = True
                for cache, length in zip(self.caches, self.lengths, strict=True):
                    assert cache.rewind(length)
                return self.step.step(self.token)
            finally:
                self.lengths = [cache.get_seq_length() for cache in self.caches]

    refused = False

    def states(self) -> Iterator[LayerState]:
        for cache in self.caches:
            for layer in cache.layers:
                yield layer.states[0]


def without(monkeypatch: pytest.MonkeyPatch, *args: Any) -> Run:
    with monkeypatch.context() as patch:
        patch.setattr(column, "prepare", lambda *_: False)
        return Run(*args)


def same(one: Run, other: Run) -> None:
    assert one.starts == other.starts, "rows leave at the same tokens"
    for at, (a, b) in enumerate(zip(one.logits, other.logits, strict=True)):
        assert torch.equal(a, b), at
    for mine, its in zip(one.states(), other.states(), strict=True):
        mine.settle(), its.settle()
        assert mine.store is not None and its.store is not None and mine.store.rows == its.store.rows
        rows = mine.store.rows
        assert torch.equal(mine.store.packed[:, :rows], its.store.packed[:, :rows])
        if mine.store.scales is not None and its.store.scales is not None:
            assert torch.equal(mine.store.scales[:, :rows], its.store.scales[:, :rows])
        if isinstance(mine.selector, Scan) and isinstance(its.selector, Scan):
            a, b = mine.selector.codes, its.selector.codes
            blocks = -(-a.rows // 128)
            assert a.rows == b.rows
            assert torch.equal(a.whole[:, :blocks], b.whole[:, :blocks])
            assert torch.equal(a.means[:, :blocks], b.means[:, :blocks])


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Layers whose rows arrived as they were made before."""
    seen: list[object] = []
    arrive = Leaving.arrived
    monkeypatch.setattr(Leaving, "arrived", lambda self: (seen.append(self), arrive(self))[1])
    return seen


def ahead(cache: HybridCache) -> list[LeavingRows | None]:
    return [layer.states[0].evictor.ahead for layer in cache.layers]  # type: ignore[union-attr, misc]


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_else_is_than_without(
    policy: str, sequences: int, monkeypatch: pytest.MonkeyPatch, arrived: list[object]
) -> None:
    same(Run(policy, sequences), without(monkeypatch, policy, sequences))
    known = policy not in ("cluster", "page")  # an index that is more than codes
    assert bool(arrived) == known
    assert not known or len(arrived) >= 3 * sequences * (STEPS // 8 - 1), "nearly all rows that left, of three layers"


def test_the_device_gets_codes_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = Run("scan, there", 1), without(monkeypatch, "scan, there", 1)
    mirrors = [one.caches[0].layers[0].states[0].mirror for one in (run, other)]
    assert mirrors[0] is not None and mirrors[1] is not None
    blocks = -(-run.caches[0].rows().store // 128)
    for a, b in zip(mirrors[0].layers, mirrors[1].layers, strict=True):
        assert torch.equal(a.codes[:, : blocks - 1], b.codes[:, : blocks - 1])
        assert torch.equal(a.means[:, : blocks - 1], b.means[:, : blocks - 1])


@pytest.mark.parametrize("back", [1, 3, 25])  # the last: what was to leave are other rows then, or is in the store
@pytest.mark.parametrize("policy", ["exact", "scan", "scan, there"])
def test_going_back_is_as_without(
    policy: str, back: int, monkeypatch: pytest.MonkeyPatch, arrived: list[object]
) -> None:
    met = set()

    def between(at: int, caches: list[HybridCache]) -> None:
        for cache in caches:
            state = cache.layers[0].states[0]
            if at % 5 == 4 and (back < 5 or 5 < at < 20):  # rows leave every eighth token
                met.add((state.evictor.ahead is not None, state.evictor.pending > 0))  # type: ignore[union-attr]
                assert cache.rewind(cache.get_seq_length() - back)
                assert cache.layers[0].states[0].evictor.ahead is None or state.evictor.pending  # type: ignore[union-attr]

    same(Run(policy, 3, between), without(monkeypatch, policy, 3, between))
    assert (True, False) in met
    assert arrived


@pytest.mark.parametrize("policy", ["exact", "scan, there"])
def test_every_token_taken_back_once_is_as_without(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def between(at: int, caches: list[HybridCache]) -> None:
        if at:
            for cache in caches:
                assert cache.rewind(cache.get_seq_length() - (at % 2))

    same(Run(policy, 1, between), without(monkeypatch, policy, 1, between))


def put_away(caches: list[HybridCache]) -> None:
    for cache in caches:
        cache.put_away()
        cache.bring_back()


def share(caches: list[HybridCache]) -> None:
    for cache in caches:
        cache.share()


def a_turn(caches: list[HybridCache]) -> None:
    model = model_of("qwen3")
    for cache in caches:
        cache.expect(3)
        with torch.inference_mode():
            forward(model, some_tokens(model, 1, 7).expand(1, 3), cache)
        cache.expect(0)


@pytest.mark.parametrize("policy", ["exact", "scan, there"])
@pytest.mark.parametrize("what", [put_away, share, a_turn])
def test_whoever_else_is_at_the_store_comes_first(
    what: Callable[[list[HybridCache]], None], policy: str, monkeypatch: pytest.MonkeyPatch, arrived: list[object]
) -> None:
    left = []

    def between(at: int, caches: list[HybridCache]) -> None:
        if at % 3 == 2:
            what(caches)
            left.extend(one for cache in caches for one in ahead(cache) if not cache.layers[0].states[0].unsettled)

    same(Run(policy, 2, between), without(monkeypatch, policy, 2, between))
    assert left and not any(left), "what was begun is dropped"
    assert arrived, "and begun anew"


def test_rows_wait_for_what_is_made_of_them(monkeypatch: pytest.MonkeyPatch, arrived: list[object]) -> None:
    make = LeavingRows.make
    monkeypatch.setattr(LeavingRows, "make", lambda self: (time.sleep(0.05), make(self))[1])
    same(Run("scan, there", 1), without(monkeypatch, "scan, there", 1))
    assert len(arrived) >= 3 * (STEPS // 8 - 1)


def no_memory(*_: object) -> None:
    raise DoesNotFitError("no memory for older rows.", "Lower --ctx.")


def test_rows_for_which_there_was_no_memory_at_first_arrive(
    monkeypatch: pytest.MonkeyPatch, arrived: list[object]
) -> None:
    monkeypatch.setattr(LeavingRows, "make", no_memory)
    same(Run("scan, there", 2), without(monkeypatch, "scan, there", 2))
    assert not arrived


@pytest.mark.parametrize("policy", ["exact", "scan, there"])
def test_rows_for_which_there_is_no_memory_wait_in_the_window(
    policy: str, monkeypatch: pytest.MonkeyPatch, arrived: list[object]
) -> None:
    commit = GrowingArray.commit

    def refused(self: GrowingArray, rows: int, first: int) -> None:
        if lacking and rows > first:
            lacking.append(rows)
            if threading.current_thread() is threading.main_thread() and len(lacking) > 2:
                lacking.clear()  # the next time there is some
            no_memory()
        commit(self, rows, first)

    lacking: list[int] = []

    def between(at: int, caches: list[HybridCache]) -> None:
        if at == 20:
            for cache in caches:
                for layer in cache.layers:
                    layer.states[0].stay()  # what was made before there was none
        lacking[:] = [0, 0] if at == 20 else lacking

    monkeypatch.setattr(GrowingArray, "commit", refused)
    one, other = Run(policy, 1, between), without(monkeypatch, policy, 1, between)
    assert one.refused and other.refused
    same(one, other)
    assert arrived


def begin_anew(run: Run) -> None:
    for state in run.states():
        state.settle()
        state.stay()
    run.one_more()


def test_a_closed_sequence_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("scan, there", 1)
    opened, begun, made = threading.Event(), threading.Event(), []
    make = LeavingRows.make

    def slow(self: LeavingRows) -> None:
        begun.set()
        assert opened.wait(10)
        make(self)
        made.append(1)

    monkeypatch.setattr(LeavingRows, "make", slow)
    while not any(ahead(run.caches[0])) or not begun.is_set():
        begin_anew(run)
        begun.wait(1)
    stores = [weakref.ref(state.store) for state in run.states()]
    threading.Timer(0.1, opened.set).start()
    run.step.let_go()
    run.caches[0].close()
    assert made == [1], "it ended with the layer it was at"
    del run
    gc.collect()
    assert not any(store() for store in stores)


def test_a_sequence_nobody_has_any_more_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("exact", 1)
    opened, made = threading.Event(), []
    make = LeavingRows.make
    monkeypatch.setattr(LeavingRows, "make", lambda self: (opened.wait(10), make(self), made.append(1))[0])
    begin_anew(run)
    jobs = [one.sequence._job for one in ahead(run.caches[0]) if one is not None]
    stores = [weakref.ref(state.store) for state in run.states()]
    assert jobs
    del run
    gc.collect()
    opened.set()
    jobs[0].result(10)
    assert len(made) == 3
    gc.collect()
    assert not any(store() for store in stores)


def test_other_rows_than_were_made_ready_leave_as_ever() -> None:
    run = Run("exact", 1)
    begin_anew(run)
    states = list(run.states())
    assert all(ahead(run.caches[0]))
    before = [state.every_row() for state in states]
    evict_oldest_together([one.window for one in states], [one.evictor for one in states if one.evictor], 3)
    assert not any(ahead(run.caches[0]))
    for state, rows in zip(states, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state.every_row(), rows, strict=True))
