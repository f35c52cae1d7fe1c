"""The planner is arithmetic: every rule is a row, no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgca_cli.config import QUALITY
from hgca_cli.errors import DoesNotFitError, ModelError, UsageError
from hgca_cli.hardware.assumed import assume
from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.memory import Model
from hgca_cli.hardware.place import HOST_SHARE, MARGIN, Case
from hgca_cli.hardware.plan import draw_up, make_plan
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.ui.figures import plan_line
from hgca_cli.units import format_bytes

GIB = 1 << 30
LAYOUT = KVLayout(tuple(LayerLayout(32, 8, 128, 128) for _ in range(32)))
BIG = Model(LAYOUT, 8_000_000_000, 131_072, hidden=4096, intermediate=14336, vocabulary=128_256)
FLOATS = replace(BIG, uniform=False)  # some of its numbers are fp32: all are made so
SMALL = replace(BIG, parameters=135_000_000, layout=KVLayout((LayerLayout(9, 3, 64, 64),) * 30), trained_context=8192)
HOST = Machine(processors=8, memory_total=64 * GIB, memory_free=60 * GIB)
GPU = Gpu(0, "card", total=24 * GIB, free=23 * GIB)
WITH_GPU = replace(HOST, gpus=(GPU,))


def plan(model: Model = BIG, machine: Machine = HOST, **wanted: Any) -> Plan:
    return make_plan(model, machine, PlanRequest(**wanted))


def draft(model: Model = BIG, machine: Machine = HOST, **wanted: Any) -> Plan:
    return draw_up(Case(model, machine, PlanRequest(**wanted), assume(machine)))


def test_rows_that_are_rounded_are_told_as_such_whether_the_plan_chooses_among_them_or_not() -> None:
    by_itself, chosen, exact = (plan(SMALL, context=2048, select=select) for select in (None, "scan", "exact"))
    assert by_itself.select == "exact" and (by_itself.kv_dtype, chosen.kv_dtype, exact.kv_dtype) == (
        "bf16",
        "bf16",
        "fp32",
    )
    assert "--exact, or --kv-dtype fp32, rounds nothing" in by_itself.reasons["kv_dtype"]
    assert "a choice of rows" in chosen.reasons["kv_dtype"] and "nothing is rounded" in exact.reasons["kv_dtype"]


def test_what_was_asked_for_is_kept() -> None:
    wanted = {"dtype": "bf16", "kv_dtype": "fp16", "context": 4096, "window": 100, "sinks": 7, "threads": 3}
    made = plan(SMALL, chunk=33, device="cpu", select="window", **wanted)
    assert {name: getattr(made, name) for name in wanted} == wanted
    assert (made.chunk, made.device) == (33, "cpu")
    assert all(made.reasons[name] == "given" for name in wanted)
    settings = made.cache
    assert (settings.window, settings.sinks, settings.context, settings.kv_dtype) == (100, 7, 4096, "fp16")
    assert settings.select == "window"


def test_every_setting_has_a_reason() -> None:
    for made in (plan(SMALL), plan(machine=WITH_GPU)):
        for name in ("device", "dtype", "kv_dtype", "context", "window", "sinks", "threads", "chunk"):
            assert made.reasons[name], name


def test_cpu_takes_fp32_where_it_fits_and_says_why_not() -> None:
    assert plan(SMALL).dtype == "fp32"
    tight = plan(FLOATS)  # 8e9 fp32 weights are 30 GiB of the 48, the KV cache at 131,072 another 32
    assert tight.dtype == tight.kv_dtype == "bf16"
    assert "do not fit" in tight.reasons["dtype"]
    assert plan(FLOATS, context=8192).dtype == "fp32"


def test_sixteen_bits_stay_what_they_are_while_fp32_is_computed() -> None:
    made = plan(context=8192)
    assert (made.dtype, made.quant, made.memory[0].weights) == ("fp32", "none", 2 * BIG.parameters)
    assert plan(FLOATS, context=8192).memory[0].weights == 6 * BIG.parameters  # and once more in 16 bits
    assert plan(replace(BIG, packs=False), context=8192, dtype="fp32").memory[0].weights == 6 * BIG.parameters
    assert plan(context=8192, dtype="bf16").memory[0].weights == 2 * BIG.parameters
    assert plan(replace(BIG, own_dtype="fp32"), context=8192, dtype="fp32").memory[0].weights > 5 * BIG.parameters
    assert (
        made.predicted.step.weights == plan(FLOATS, context=8192).predicted.step.weights
    )  # a token reads 16 bits of either
    assert made.predicted.prefill_seconds > plan(FLOATS, context=8192).predicted.prefill_seconds


def test_context_is_the_trained_one_or_the_largest_that_fits() -> None:
    assert plan(SMALL).context == 8192
    poor = replace(HOST, memory_free=25 * GIB)
    made = plan(machine=poor)
    assert made.fits and 0 < made.context < BIG.trained_context and made.context % 256 == 0
    more = draft(BIG, poor, context=made.context + 256, dtype="bf16", window=1024, chunk=64, select="scan")
    assert not more.fits, "256 tokens more fit too"
    assert "most that fits" in made.reasons["context"]


def test_unknown_trained_length() -> None:
    assert plan(replace(SMALL, trained_context=0)).context == 4096
    assert plan(replace(SMALL, trained_context=0), context=100_000).notices == ()


def test_beyond_the_trained_length_is_announced_unless_stretched() -> None:
    assert any("--yarn" in notice for notice in plan(SMALL, context=8193).notices)
    assert plan(SMALL, context=8192).notices == ()
    assert plan(SMALL, context=8193, yarn=True).notices == ()


def test_gpu_keeps_everything_that_fits() -> None:
    made = plan(machine=WITH_GPU, context=16384)
    assert made.device == "cuda:0" and made.stored_rows == 0
    assert "nothing is offloaded" in made.reasons["window"]
    chosen = plan(machine=WITH_GPU)
    assert chosen.device_codes and chosen.memory[0].store > 0, "codes of what is stored are there, too"
    offloading = plan(machine=WITH_GPU, select="exact")
    assert chosen.window < offloading.window < offloading.context == 131_072
    assert offloading.memory[0].limit == GPU.free - MARGIN
    card = offloading.memory[0]
    assert card.total + 256 * card.window // (offloading.window + offloading.sinks) > card.limit, (
        "a larger window fits too"
    )
    assert offloading.stored_rows == offloading.context - offloading.sinks - offloading.window


def test_gpu_memory_and_ram_limit_cap() -> None:
    whole = plan(machine=WITH_GPU, select="exact")
    capped = plan(machine=WITH_GPU, gpu_memory=20 * GIB, select="exact")
    assert capped.memory[0].limit == 20 * GIB - MARGIN and capped.window < whole.window
    spared = plan(machine=WITH_GPU, gpu_margin=5 * GIB, select="exact")
    assert spared.memory[0].limit == GPU.free - 5 * GIB and spared.window < whole.window
    assert plan(machine=WITH_GPU, gpu_margin=0).memory[0].limit == GPU.free
    assert plan(machine=WITH_GPU, gpu_memory=99 * GIB).memory[0].limit == GPU.free - MARGIN
    assert plan(ram_limit=40 * GIB).memory[0].limit == 40 * GIB
    assert plan().memory[0].limit == int(HOST_SHARE * HOST.memory_free)


def test_a_gpu_too_small_is_left_with_a_notice_but_never_when_named() -> None:
    machine = replace(HOST, gpus=(replace(GPU, free=5 * GIB),))
    auto = plan(machine=machine)
    assert auto.device == "cpu" and any("too small" in notice for notice in auto.notices)
    with pytest.raises(DoesNotFitError, match=r"GPU 0 \(card\) needs .* has 4\.0 GiB.*--device cpu"):
        plan(machine=machine, device="cuda")


def test_weights_pass_through_host_memory_on_their_way_to_the_gpu() -> None:
    few = replace(WITH_GPU, memory_free=16 * GIB)
    with pytest.raises(DoesNotFitError, match="while loading"):
        plan(machine=few, device="cuda", context=4096, quant="none")
    made = plan(machine=few, device="cuda", context=4096)
    assert made.quant == "q8" and "host memory while loading is too small" in made.notices[0]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:9", "mps", "cuda:x"])
def test_a_missing_device_is_refused_and_what_is_there_is_named(device: str) -> None:
    with pytest.raises(ModelError, match=f"{device}: no such device.*cpu.*--device cpu") as caught:
        plan(SMALL, device=device)
    assert caught.value.exit_code == 5


def test_the_gpu_with_most_free_memory() -> None:
    machine = replace(HOST, gpus=(replace(GPU, free=20 * GIB), replace(GPU, index=1)))
    assert plan(SMALL, machine).device == plan(SMALL, machine, device="cuda").device == "cuda:1"
    assert plan(SMALL, machine, device="cuda:0").device == "cuda:0"


def test_threads_are_clamped_with_a_notice() -> None:
    assert plan(SMALL).threads == 8
    made = plan(SMALL, threads=10_000)
    assert made.threads == 8 and "10000" in made.notices[0]


def test_the_chunk_shrinks_before_a_given_context_is_refused() -> None:
    usual = plan(context=40_000, dtype="bf16", select="scan")
    need = usual.memory[0].total
    tight = plan(context=40_000, dtype="bf16", select="scan", ram_limit=need - 1)
    assert tight.chunk < usual.chunk == 256 and "tight" in tight.reasons["chunk"]


def test_hours_of_reading_are_told_as_hours() -> None:
    told = plan(SMALL, device="cpu", context=1 << 18).reasons["chunk"]
    assert re.search(r"\(predicted, 256: \d+:\d\d:\d\d, ", told), told


def test_the_refusal_has_both_figures_and_remedies_that_are_true() -> None:
    poor = replace(HOST, memory_free=32 * GIB)
    with pytest.raises(DoesNotFitError) as caught:
        plan(FLOATS, poor, context=32768, dtype="fp32")
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert re.search(r"host memory needs \d+\.\d GiB .* and has 25\.6 GiB", text)
    assert "--dtype bf16 (fits" in text
    assert plan(FLOATS, poor, context=32768, dtype="bf16").fits
    assert "--kv-dtype bf16 (saves 4.0 GiB, not enough alone)" in text
    assert not draft(FLOATS, poor, context=32768, dtype="fp32", kv_dtype="bf16").fits


def test_the_largest_context_offered_fits_and_the_next_does_not() -> None:
    poor = replace(HOST, memory_free=32 * GIB)
    with pytest.raises(DoesNotFitError) as caught:
        plan(machine=poor, context=1 << 20)
    offered = int(re.search(r"--ctx (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert plan(machine=poor, context=offered).fits
    assert not draft(machine=poor, context=offered + 256).fits


def test_nothing_helps() -> None:
    with pytest.raises(DoesNotFitError, match="choose a smaller model"):
        plan(machine=replace(HOST, memory_free=4 * GIB))


@pytest.mark.parametrize(
    "wanted", [{"context": 0}, {"window": 0}, {"threads": 0}, {"sinks": -1}, {"dtype": "fp8"}, {"ram_limit": -1}]
)
def test_settings_out_of_range(wanted: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        plan(SMALL, **wanted)


def test_kv_bytes_are_the_layouts() -> None:
    wanted = {"context": 8192, "window": 512, "sinks": 4, "dtype": "fp32", "select": "exact"}
    made = plan(SMALL, kv_dtype="bf16", **wanted)
    row = 30 * 3 * 128  # layers, KV heads, key and value
    assert made.memory[0].window == row * 516 * 4  # until the first row leaves, though they are rounded then
    assert plan(SMALL, kv_dtype="fp32", **wanted).memory[0].window == row * 516 * 4
    assert made.memory[0].store == row * (8192 - 516) * 2
    quantised = plan(SMALL, kv_dtype="int8", **wanted)
    assert quantised.memory[0].window == row * 516 * 4
    assert quantised.memory[0].store == 30 * 3 * (128 + 8) * (8192 - 516)  # numbers, and two scales a row
    codes = plan(SMALL, kv_dtype="bf16", **wanted | {"select": "scan"})
    index = 30 * 3 * (32 + 2 + 1)  # 4 bits a number, a scale and a zero per number and block, a mean value per block
    assert codes.memory[0].store - made.memory[0].store == index * (8192 - 516)
    clustered = plan(SMALL, kv_dtype="bf16", **wanted | {"select": "two-level"})
    groups = 30 * 3 * 27  # an order, for 16 rows means and two codes, for 128 these of keys: 26.8, rounded up
    assert clustered.memory[0].store - codes.memory[0].store == groups * (8192 - 516)
    with pytest.raises(UsageError, match="no dtype 'int8'"):
        plan(SMALL, dtype="int8")


def test_the_line_tells_keys_and_values_wherever_they_are() -> None:
    """The index apart: on a disk the store's rows are not in memory, and a GPU's codes are no keys and values."""
    wanted = {"context": 8192, "window": 512, "sinks": 4, "dtype": "fp32", "kv_dtype": "bf16", "select": "scan"}
    row, index = 30 * 3 * 128, 30 * 3 * (32 + 2 + 1)
    rows = row * (516 * 4 + (8192 - 516) * 2)
    for more in ({}, {"disk": Disk("/data", "ext4", 500 << 30)}, {"disk": Disk("/dev/shm", "tmpfs", 500 << 30)}):
        for sequences in (1, 3):
            made = plan(SMALL, sequences=sequences, **wanted | more)
            assert (made.kv_bytes, made.index_bytes) == (sequences * rows, sequences * index * (8192 - 516))
    told = f"| KV {format_bytes(3 * rows)} + index {format_bytes(3 * index * (8192 - 516))} when full (store in bf16)"
    assert told in plan_line(made, "model")
    beside = plan(BIG, WITH_GPU, context=131_072, dtype="bf16", select="scan", window=1024)
    assert beside.device_codes and beside.device_bytes["store"] > 0 and beside.kv_bytes == 131_072 * 32 * 8 * 256 * 2
    whole = plan(SMALL, **wanted | {"select": "exact"})
    assert f"| KV {format_bytes(rows)} when full" in plan_line(whole, "model")


def test_the_policy_follows_the_context() -> None:
    short = plan(SMALL, context=1000, window=996, sinks=4)
    assert short.select == "exact" and short.quality is None and "window" in short.reasons["select"]
    middle = plan(SMALL, context=8192, window=512)
    assert (middle.select, middle.quality, middle.kv_dtype) == ("scan", QUALITY, "bf16")
    assert plan(SMALL, context=65536, window=512, yarn=True).select == "two-level", "scoring every row takes longer"
    assert plan(SMALL, context=65536, window=512, select="scan", yarn=True).reasons["select"] == "given"
    assert plan(SMALL, context=8192, window=512, quality=0.9).cache.quality == 0.9
    fixed = plan(SMALL, context=8192, window=512, budget=0.1)
    assert fixed.quality is None and fixed.cache.budget == 0.1
    exact = plan(SMALL, context=8192, window=512, select="exact")
    assert exact.kv_dtype == exact.dtype == "fp32" and exact.quality is None


@settings(max_examples=60, deadline=None)
@given(
    free=st.integers(1, 100),
    gpu=st.none() | st.integers(1, 80),
    context=st.none() | st.integers(1, 1 << 21),
    window=st.none() | st.integers(1, 1 << 18),
)
def test_a_plan_fits_or_is_refused(free: int, gpu: int | None, context: int | None, window: int | None) -> None:
    gpus = (replace(GPU, free=gpu * GIB),) if gpu else ()
    machine = replace(HOST, memory_free=free * GIB, gpus=gpus)
    try:
        made = plan(machine=machine, context=context, window=window)
    except DoesNotFitError as error:
        assert "needs" in error.message and error.hint
    else:
        assert all(memory.total <= memory.limit for memory in made.memory)
        assert made.window >= 1 and made.context >= 1
        assert context in (None, made.context) and window in (None, made.window)


def test_planning_needs_no_torch() -> None:
    code = "import sys, hgca_cli.hardware.plan; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
