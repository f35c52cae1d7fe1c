"""What is read of a run from beside it is what the run itself counts."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hgca_cli.attention.select.cluster import Cluster
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.metrics import Readings, read_metrics
from hgca_cli.events import Done, Text
from hgca_cli.hardware import usage
from hgca_cli.hardware.usage import MANY_SHARED, Usage
from hgca_cli.metrics import Metrics
from tests.tiny_engine import Endless, tiny_loaded

GREEDY = SamplingSettings(temperature=0.0, max_tokens=30)
PROMPT = [40 + (7 * n) % 200 for n in range(300)]


def engine_of(sliding: int | None = None, **settings: Any) -> Engine:
    loaded = tiny_loaded(sliding=sliding)
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))
    asked = {"window": 32, "sinks": 2, "context": 4096, "select": "scan", "quality": 0.9} | settings
    return Engine(loaded, CacheSettings(**asked), prefill_chunk=64)


def answer(engine: Engine, prompt: list[int] = PROMPT) -> tuple[Metrics, Done, list[Metrics]]:
    """A reading after an answer, its end, and a reading after every piece of text."""
    readings = Readings(engine)
    amid: list[Metrics] = []
    done = None
    for event in engine.answer(engine.new_sequence(), prompt, GREEDY, threading.Event()):
        if isinstance(event, Text):
            taken = readings.take()
            assert taken is not None
            amid.append(taken)
        if isinstance(event, Done):
            done = event
    last = readings.take()
    assert last is not None and done is not None and amid
    return last, done, amid


def states(engine: Engine) -> list[Any]:
    assert engine.sequence is not None
    return [layer.states[0] for layer in engine.sequence.cache.layers]


@pytest.mark.parametrize("select", ["scan", "two-level", "exact", "window", "page", "moving-average"])
def test_every_row_is_somewhere_and_shares_are_the_policys_own(select: str) -> None:
    aims = select in ("scan", "two-level")
    engine = engine_of(select=select, quality=0.9 if aims else None)
    last, done, amid = answer(engine)
    for taken in (last, *amid):
        assert engine.sequence is not None and taken.places.tokens in (taken.tokens, taken.tokens - 1)
        assert taken.places.sinks == 2 and taken.places.window <= 32 and taken.places.store > 0
    assert last.places.tokens == engine.sequence.cached and last.context == 4096
    assert (last.read_share, last.bytes_share) == (done.rows.read_share, done.rows.bytes_share)
    assert last.asked == last.aim == (0.9 if aims else None)
    for state, shares in zip(states(engine), last.heads, strict=True):
        assert shares is not None and len(shares) == 2
        chosen = state.reads.last
        mean = state.reads.share / state.reads.steps if chosen is None else chosen.read / (2 * chosen.rows)
        if select == "moving-average":
            assert 0 < sum(shares) / 2 < 1
        else:
            assert sum(shares) / 2 == pytest.approx(mean)
    store = states(engine)[0].store
    assert last.places.store_bytes == 2 * store.bytes
    assert (last.places.index_bytes > 0) == (select in ("scan", "two-level", "page"))
    row = 2 * 2 * 8 * 4  # KV heads, key and value, numbers, bytes
    held = last.places.sinks + last.places.window
    assert last.places.window_bytes == 2 * held * row and last.places.pending_bytes == 2 * last.places.pending * row
    if select == "exact":
        assert last.read_bytes == 2 * (held * row + store.bytes)
    elif select == "scan":
        touched = sum(state.reads.last.bytes for state in states(engine))
        assert last.read_bytes == 2 * held * row + touched
    assert last.to_host is last.to_device is last.evicted is None, "nothing crosses PCIe on a CPU"


def test_time_is_told_while_somebody_asks_and_not_else() -> None:
    engine = engine_of()
    readings = Readings(engine)
    assert readings.take() is None
    readings.rest()
    last, _, amid = answer(engine)
    assert amid[0].spent.attention is None or amid[0].spent.attention > 0
    spent = last.spent
    assert spent.attention is not None and spent.selection is not None and spent.window is None
    assert spent.attention > 0 and spent.selection > 0 and spent.hidden == 0.0
    took = [state.reading.took for state in states(engine)]
    assert spent.attention + spent.selection == pytest.approx(sum(took))
    readings.rest()
    assert engine.sequence is not None
    engine.sequence.tokens.append(50)
    engine.sequence.forward(engine.loaded, torch.tensor([[50]]))
    assert [state.reading.took for state in states(engine)] == took, "nobody asked"


def test_clustered_rows_and_sliding_layers() -> None:
    engine = engine_of(select="cluster")
    last, _, _ = answer(engine, [40 + (11 * n) % 230 for n in range(2500)])
    selector = states(engine)[0].selector
    assert isinstance(selector, Cluster) and last.places.clustered == selector.clustered == 2048
    sliding = engine_of(sliding=24, quality=0.9)
    last, _, _ = answer(sliding)
    assert last.heads == (None, None) and last.places.store == last.places.pending == last.places.store_bytes == 0
    assert last.read_share == 0.0


def test_no_row_no_reading() -> None:
    engine = engine_of()
    sequence = engine.new_sequence()
    assert read_metrics(sequence) is None
    answer(engine)
    assert engine.sequence is not None
    engine.sequence.close()
    assert Readings(engine).take() is None


def test_what_the_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = [10.0], [1.0]
    monkeypatch.setattr(usage.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Usage, "_seconds", lambda self: seconds[0])
    asked = Usage("cpu")
    assert asked.read().processors is None and asked.read().memory > 10 << 20
    clock[0], seconds[0] = 12.0, 4.0
    assert asked.read().processors == 1.5
    clock[0], seconds[0] = 12.01, 4.01
    assert asked.read().processors == 1.5, "too soon to tell"


def test_a_gpu_that_says_little_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(device: str) -> int:
        asked.append(device)
        raise ModuleNotFoundError("pynvml")

    def refused(device: str) -> tuple[int, int]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "utilization", unknown)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 8 << 30))
    gpu = Usage("cuda:0")
    for _ in range(2):
        taken = gpu.read()
        assert (taken.gpu_memory, taken.gpu_total, taken.gpu_busy) == (5 << 30, 8 << 30, None)
    assert asked == ["cuda:0"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", refused)
    assert gpu.read().gpu_total is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 71)
    assert Usage("cuda:0").read().gpu_busy == 0.71


@pytest.mark.gpu
def test_on_a_gpu_what_crosses_is_counted_and_parts_are_timed() -> None:
    loaded = replace(tiny_loaded(), device=torch.device("cuda", 0))
    loaded.model.to("cuda:0")
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))
    settings = CacheSettings(window=32, sinks=2, context=4096, select="scan", quality=0.9)
    engine = Engine(loaded, settings, prefill_chunk=64, balance=True)
    drawn = SamplingSettings(temperature=1.0, max_tokens=60)
    for _ in engine.answer(engine.new_sequence(), PROMPT, drawn, threading.Event()):
        pass
    last = Readings(engine).take()
    assert last is not None and last.device == "cuda:0"
    assert last.to_host == 2 * 4 * (4 * 8 + 4) and last.to_device == 2 * 4 * 4 * (8 + 1)
    assert last.evicted == 2 * 2 * 2 * 8 * 4 * (last.places.store + last.places.pending)
    assert last.spent.window is not None and last.spent.attention is not None and last.spent.selection is not None
    used = Usage("cuda:0").read()
    assert used.gpu_total is not None and used.gpu_memory is not None and 0 < used.gpu_memory <= used.gpu_total


def test_pages_that_rows_have_in_common_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(rss=5 << 30, shared=MANY_SHARED - 1)
    used = Usage("cpu")
    monkeypatch.setattr(used._process, "memory_info", lambda: told)
    monkeypatch.setattr(used._process, "memory_full_info", lambda: SimpleNamespace(pss=2 << 30))
    assert used.read().memory == 5 << 30
    told.shared = MANY_SHARED
    assert used.read().memory == 2 << 30
