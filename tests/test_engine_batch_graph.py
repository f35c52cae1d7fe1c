"""A batch on a device whose token of all is one graph: answers as of each by itself. The CPU stands in for it, and captures nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hgca_cli.config import CacheSettings
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.joint_graph import JointGraphs, graphs_of
from tests.tiny_batch import alone, prompts, requests, run
from tests.tiny_engine import tiny_engine, tiny_loaded


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each step had."""
    counts: list[int] = []
    step = GraphStep.step

    def counting(self: GraphStep, ids: torch.Tensor) -> torch.Tensor:
        counts.append(len(ids))
        return step(self, ids)

    monkeypatch.setattr(GraphStep, "step", counting)
    monkeypatch.setattr(together, "graphs_of", lambda loaded: JointGraphs(loaded.model))
    return counts


@pytest.mark.parametrize("select", ["exact", "scan", "window"])
def test_answers_are_those_of_one_by_one(select: str, counted: list[int]) -> None:
    scans = (
        select == "scan"
    )  # everything: what windows held a token ago is known here, and what they hold now is known there
    more = {"quality": 1.0 if scans else None, "device_codes": scans}
    settings = CacheSettings(window=16, sinks=2, context=512, select=select, **more)
    engine = Engine(tiny_loaded(), settings, prefill_chunk=8)
    asked = requests(prompts(12, longest=200))
    batch = Batch(engine, 5)
    answers = run(batch, asked)
    assert set(counted) >= {2, 3} and batch.peak == 5
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
    graphs = batch._together._graphs
    assert graphs is not None and len(graphs._steps) <= 3
    relays = [relay for step in graphs._steps.values() for relay in step.recorder.relays]
    assert relays and all(relay.layer is None for relay in relays), "nobody's memory is held"


@pytest.mark.parametrize(("sliding", "select"), [(24, "exact"), (None, "moving-average")])
def test_what_cannot_be_captured_goes_on_one_by_one(sliding: int | None, select: str, counted: list[int]) -> None:
    settings = CacheSettings(window=16, sinks=2, context=512, select=select)
    engine = Engine(tiny_loaded(sliding=sliding), settings, prefill_chunk=8)
    asked = requests(prompts(6))
    answers = run(Batch(engine, 3), asked)
    assert not counted
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]


def test_graphs_that_cannot_be_made_are_not_tried_again(monkeypatch: pytest.MonkeyPatch, counted: list[int]) -> None:
    counting = GraphStep.step

    def failing(self: GraphStep, ids: torch.Tensor) -> torch.Tensor:
        self.failed = "it looks at its numbers"
        return counting(self, ids)

    monkeypatch.setattr(GraphStep, "step", failing)
    engine = tiny_engine()
    asked = requests(prompts(6))
    answers = run(batch := Batch(engine, 3), asked)
    assert len(counted) == 1 and batch._together._graphs is None
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]


@pytest.mark.parametrize("call", [1, 4, 9])
def test_memory_that_runs_out_holds_nobody_up_for_ever(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    asked = requests(prompts(8))
    wanted = [alone(engine, one).text for one in asked]
    calls = 0
    step = JointGraphs.step

    def full(self: JointGraphs, joint: Any, tokens: list[int]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= call and len(tokens) > 2:
            step(self, joint, tokens)  # some rows are in
            raise torch.OutOfMemoryError("no memory")
        return step(self, joint, tokens)

    monkeypatch.setattr(JointGraphs, "step", full)
    answers = run(Batch(engine, 4), asked)
    assert [answers[one.key].text for one in asked] == wanted and calls >= call


def test_a_cpu_has_none() -> None:
    assert graphs_of(tiny_loaded()) is None


@pytest.mark.gpu
@pytest.mark.parametrize("select", ["exact", "scan"])
def test_prompts_that_begin_alike_on_a_gpu(select: str, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have in common is read once, and its rows are shared: memory that no copy of the device is registered for."""
    monkeypatch.setattr(together, "graphs_of", graphs_of)
    loaded = tiny_loaded()
    torch.manual_seed(11)
    config = LlamaConfig(**loaded.model.config.to_dict() | {"head_dim": 16})  # as wide as graphs hold
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(4.0)
    loaded = replace(loaded, model=model.to("cuda"), device=torch.device("cuda:0"))
    scans = select == "scan"
    settings = CacheSettings(
        window=32, sinks=2, context=1024, select=select, quality=1.0 if scans else None, device_codes=scans
    )
    engine = Engine(loaded, settings, prefill_chunk=32)
    beginning = [40 + 7 * n % 200 for n in range(400)]
    asked = requests([[*beginning, *(90 + (3 * n + 17 * at) % 160 for n in range(9))] for at in range(6)])
    answers = run(Batch(engine, 3), asked)
    assert max(counted) == 3
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
    cached = [answers[one.key].done.cached_tokens for one in asked]  # type: ignore[union-attr]
    assert cached[0] == 0 and min(cached[1:]) >= 384
