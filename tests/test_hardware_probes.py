"""Probes measure something, and what they find makes a profile. Small sizes: figures are not judged here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.events import Rows
from hgca_cli.hardware import profile as files
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.probes import bandwidth, gpu, layers, products, rows, run
from hgca_cli.hardware.profiles import stale, versions_now
from hgca_cli.hardware.rates import HOW, Profile
from hgca_cli.hardware.timing import ReadProbe, repeat, typical
from hgca_cli.hardware.topology import cores, numa_nodes, processor_name
from hgca_cli.hf.probe_model import ProbeModel, build_without_memory


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe on so little memory that a profile takes a second or two."""
    monkeypatch.setattr("hgca_cli.hardware.timing.PROBE_BYTES", 1 << 20)
    monkeypatch.setattr("hgca_cli.hardware.timing.REST_SECONDS", 0.0)
    for name, value in (("STORE_BYTES", 4 << 20), ("BLOCK", 256), ("FLUSH", 1 << 10)):
        monkeypatch.setattr(rows, name, value)
    for name, value in (("SIDE", 128), ("MATRICES", 2), ("PAST", 256), ("CHUNK", 64)):
        monkeypatch.setattr(products, name, value)
    for name, value in (("MANY", 3), ("FEW", 1), ("ROWS", 64), ("WINDOW", 32)):
        monkeypatch.setattr(layers, name, value)


@pytest.mark.parametrize(
    ("usable", "counts"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (96, [1, 2, 4, 8, 16, 32, 64, 96])],
)
def test_thread_counts(usable: int, counts: list[int]) -> None:
    assert bandwidth.thread_counts(usable) == counts


@pytest.mark.parametrize("quick", [True, False])
def test_a_whole_profile(quick: bool, tmp_path: Path) -> None:
    told: list[str] = []
    before = native.threads()
    try:
        made = run.measure_profile(
            quick=quick, threads=1, tell=lambda what, done, of: told.append(f"{done}/{of} {what}")
        )
    finally:
        native.set_threads(before)
    assert len(told) >= run.PROBES and told[0].startswith("0/8") and told[-1].startswith("7/8")
    assert {one.how for one in made.host.rows} == set(HOW) - ({"runs"} if quick else set())
    assert {one.dtype for one in made.host.rows} == {"bf16", "fp32"} | (set() if quick else {"int8"})
    assert all(0 < one.ns < 1e6 for one in made.host.rows)
    assert set(made.host.linear_gb_s) == {"fp32", "bf16", "grid8", "grid4"}
    assert made.host.prefill_attention_tflop_s > 0 and (made.host.prefill_attention_bf16_tflop_s or 0) > 0
    for rates in (made.host.read_gb_s, made.host.attention_gb_s, made.host.linear_gb_s, made.host.matmul_tflop_s):
        assert rates and all(0 < rate < math.inf for rate in rates.values())
    assert (
        0 <= made.host.noise < 1 and made.host.layer_us >= 0 and made.host.isa == native.isa() and made.quick == quick
    )
    files.write(made, tmp_path / "one.toml")
    again = files.read(tmp_path / "one.toml")
    assert isinstance(again, Profile) and again.versions == versions_now()
    assert stale(again, Machine(1, 1, 1), native.isa(), versions_now()) == ""


def test_rows_of_every_shape_are_read_whole() -> None:
    store = rows.filled(rows.LayerLayout(3, 3, 64, 64), 512, torch.bfloat16)
    assert store.rows == 512 and torch.equal(store.keys[:, :256], store.keys[:, 256:512])
    lists, count = rows._lists(3, 512, 64)
    assert count == 0 or lists is not None
    lists, count = rows._lists(3, 1280, 64)
    assert count == 128


def test_the_read_probe_counts_threads() -> None:
    probe = ReadProbe(1, [torch.ones(1000)], counts=[1])
    assert list(probe.sides()) == ["read by 1"]
    assert probe.rates({"read by 1": [2e-6]}) == {1: [pytest.approx(2.0)]}


def test_typical_is_neither_lucky_nor_disturbed() -> None:
    assert typical([5.0, 1.0, 2.0, 9.0, 3.0, 8.0, 7.0, 6.0]) == 3.0
    assert typical([4.0]) == 4.0


def test_runs_are_repeated_in_order() -> None:
    did: list[str] = []
    steps = {name: (lambda name=name: did.append(name)) for name in ("before", "run", "after")}
    taken = repeat(steps["run"], 2, before=steps["before"], after=steps["after"], warm=2)
    assert len(taken) == 2 and all(one >= 0 for one in taken) and did == ["before", "run", "after"] * 4
    assert len(repeat(lambda: None, 3)) == 3


def test_grids_are_grids() -> None:
    codes = torch.randint(-127, 128, (32, 64))
    for bits in (4, 8):
        grid = products.find_grid(products._on_a_grid(codes, bits))
        assert grid is not None and grid.bits == bits


def test_overhead_tells_layers_from_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("near", 3): 10e-6, ("near", 1): 6e-6, ("store", 3): 16e-6, ("store", 1): 8e-6}

    class Cache:
        def rows(self) -> Rows:
            return Rows(0, 0, read_share=0.5)

    depth = {"layers": 0}
    made = ProbeModel.__init__

    def init(self: ProbeModel, count: int, *args: Any, **named: Any) -> None:
        made(self, count, *args, **named)
        depth.update(layers=count)

    monkeypatch.setattr(layers, "MANY", 3)
    monkeypatch.setattr(layers, "FEW", 1)
    monkeypatch.setattr(ProbeModel, "__init__", init)
    monkeypatch.setattr(ProbeModel, "filled", lambda self, rows, window, select: Cache())
    monkeypatch.setattr(
        layers,
        "_turns",
        lambda model, caches, tokens, graphs: {name: [seconds[name, depth["layers"]]] for name in caches},
    )
    found = layers.overhead(8, layers.TakenOff())
    assert (found.layer_us, found.store_us, found.token_us) == (
        pytest.approx(2.0),
        pytest.approx(2.0),
        pytest.approx(4.0),
    )
    less = layers.overhead(8, layers.TakenOff(near=0.01e-6, scored=0.002e-6, read=0.01e-6))  # 16, 64 and 32 rows
    assert less.layer_us == pytest.approx(2.0 - 0.16) and less.store_us == pytest.approx(2.0 - 0.16 - 0.128 - 0.32)
    assert layers.overhead(8, layers.TakenOff(byte=1.0)) == layers.Overhead(0.0, pytest.approx(2.0), 0.0)


def test_the_probe_model_runs_through_the_hybrid_cache() -> None:
    model = ProbeModel(2)
    cache = model.filled(64, 32, "scan")
    assert cache.get_seq_length() == 64 and cache.rows().store > 0
    token = model.step(cache, 1)
    assert 0 <= token < 1024 and cache.get_seq_length() == 65
    numbers = build_without_memory(model.config)
    assert numbers == pytest.approx(2 * (model.layer_numbers + model.head_numbers), rel=0.01), (
        "two embeddings, two layers"
    )


def test_what_the_system_tells(tmp_path: Path) -> None:
    assert processor_name()
    physical, logical = cores()
    assert 1 <= physical <= logical
    for name in ("node0", "node1", "possible"):
        (tmp_path / name).mkdir()
    assert numa_nodes(tmp_path) == 2 and numa_nodes(tmp_path / "none") == 1


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    from hgca_cli.hardware.probe import probe_gpus
    from hgca_cli.hardware.sheets import below_sheet

    found = gpu.gpu_rates(probe_gpus()[0], 3)
    assert found.memory_gb_s > found.to_device_gb_s > 0 and 0 < found.copy_us < 1000 and found.layer_us > 0
    assert isinstance(below_sheet(found), list)


def test_a_prompts_products_are_those_of_a_models_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner counts with is what a model's layers call (hf/products.py)."""
    asked = []

    def linear(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        asked.append((input.dtype, *input.shape, *weight.shape))
        return torch.nn.functional.linear(input, weight)

    monkeypatch.setattr(products, "linear", linear)
    assert products.matmul_tflop_s(1).keys() == {"fp32", "bf16"}
    shape = products.CHUNK, products.SIDE, products.SIDE, products.SIDE
    assert set(asked) == {(torch.float32, *shape), (torch.bfloat16, *shape)}
