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
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.memory import Model
from hgca_cli.hardware.packing import rounded_by
from hgca_cli.hardware.place import HOST_SHARE, MARGIN, Case
from hgca_cli.hardware.plan import draw_up, make_plan, shared
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.kv.layout import KVLayout, LayerLayout

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


def test_a_gpu_too_small_for_16_bits_has_the_most_that_fit() -> None:
    for free, wanted in ((20, "none"), (11, "q8"), (8, "q4")):
        machine = replace(HOST, gpus=(replace(GPU, free=free * GIB),))
        made = plan(machine=machine)
        assert (made.device, made.dtype, made.quant) == ("cuda:0", "bf16", wanted)
        told = [notice for notice in made.notices if "too small for weights of 16 bits" in notice]
        assert len(told) == (wanted != "none")
        if told:
            assert f"--quant {wanted}" in told[0] and "GPU 0 (card)" in made.reasons["quant"]
            assert made.predicted.step.weights < plan(machine=WITH_GPU).predicted.step.weights
        assert made.memory[0].total <= (free - 1) * GIB
    small = replace(HOST, gpus=(replace(GPU, free=8 * GIB),))
    assert plan(machine=small, dtype="bf16").quant == "q4"
    assert plan(machine=small, quant="none").device == plan(machine=small, dtype="fp32").device == "cpu"
    assert plan(replace(BIG, packs=False), small).device == "cpu"
    made = plan(machine=small, quant="q8")
    assert (made.device, made.quant) == ("cpu", "q8"), "asked for, it stays so, wherever it fits"
    with pytest.raises(DoesNotFitError, match=r"--quant q4 \(fits"):
        plan(machine=small, quant="q8", device="cuda")
    with pytest.raises(DoesNotFitError, match=r"^host memory needs [^;]*\. Try --ctx"):  # its weights are no trouble
        plan(machine=small, context=1 << 20)


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
    usual = plan(context=40_000, dtype="bf16")
    need = usual.memory[0].total
    tight = plan(context=40_000, dtype="bf16", ram_limit=need - 1)
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


TINY = replace(HOST, memory_free=16 * GIB)


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_take_their_bytes_and_no_second_copy(tied: bool) -> None:
    model = replace(BIG, tied=tied)
    head = 128_256 * 4096
    for quant, body in (("q8", 34 / 32), ("q4", 20 / 32)):
        made = plan(model, TINY, quant=quant, context=4096)
        want = model.body * body + head * 34 / 32 * (1 if tied else 2)
        assert made.memory[0].weights == pytest.approx(want, rel=1e-6)
        assert (made.quant, made.numbers, made.reasons["quant"]) == (quant, f"fp32, weights in {quant}", "given")
    assert plan(model, HOST, context=4096).quant == "none"


def test_what_a_file_holds_in_fewer_bits_is_counted_so() -> None:
    model = replace(BIG, own_dtype="fp32", tied=True, packed=(("grid4", BIG.body), ("grid8", BIG.head)))
    made = plan(model, TINY, quant="q8", context=4096)
    assert made.memory[0].weights == pytest.approx(model.body * 20 / 32 + model.head * 34 / 32, rel=0.1)


def test_a_quantised_files_weights_stay_so() -> None:
    model = replace(BIG, in_file=(("grid4", 6_000_000_000), ("grid8", BIG.body + BIG.head - 6_000_000_000)))
    made = plan(model, TINY, context=4096)
    assert (made.quant, made.dtype, made.kv_dtype) == ("file", "fp32", "bf16")
    want = (
        6e9 * 20 / 32 + (BIG.body + BIG.head - 6e9) * 34 / 32 + BIG.head * 34 / 32
    )  # an embedding of its own has 8 bits
    assert made.memory[0].weights == pytest.approx(want, rel=1e-6)
    assert made.predicted.step.weights < plan(model, quant="q8", context=4096).predicted.step.weights
    for wanted in ({"quant": "none"}, {"dtype": "fp32"}, {"dtype": "bf16"}):
        assert plan(model, context=4096, **wanted).quant == "none"
    there = plan(model, WITH_GPU, context=4096)
    assert (there.device, there.quant, there.dtype) == ("cuda:0", "file", "bf16")
    assert there.memory[0].weights == pytest.approx(want, rel=1e-6)
    assert plan(model, WITH_GPU, context=4096, quant="none").memory[0].weights == 2 * BIG.parameters
    assert plan(model, replace(TINY, gpus=(replace(GPU, free=4 * GIB),)), context=4096).quant == "file"
    assert plan(replace(model, packs=False), context=4096).quant == "none"
    with pytest.raises(ModelError, match="not known to come from a quantised GGUF file"):
        plan(quant="file", context=4096)
    with pytest.raises(DoesNotFitError) as caught:
        plan(model, replace(HOST, memory_free=9 * GIB), context=32768)
    assert "--quant q8" not in str(caught.value)  # takes more than the file's own


def test_the_refusal_names_the_gentlest_packing_that_is_enough() -> None:
    for free, offered, other in ((16, "--quant q8 (fits", "--quant q4"), (11, "--quant q4 (fits", "--quant q8")):
        poor = replace(HOST, memory_free=free * GIB)
        with pytest.raises(DoesNotFitError) as caught:
            plan(machine=poor, context=4096)
        assert offered in str(caught.value) and other not in str(caught.value)
        assert plan(machine=poor, context=4096, quant=offered[8:10]).fits
        assert not draft(machine=poor, context=4096, quant="none").fits
    with pytest.raises(DoesNotFitError) as caught:
        plan(machine=replace(HOST, memory_free=11 * GIB), context=32768)
    assert "--quant q4 --kv-dtype int8 (fits" in str(caught.value)
    with pytest.raises(DoesNotFitError) as caught:
        plan(machine=replace(HOST, memory_free=9 * GIB), context=131072)
    context = int(re.search(r"--quant q4 --ctx (\d+) \(fits", str(caught.value))[1])  # type: ignore[index]
    assert plan(machine=replace(HOST, memory_free=9 * GIB), context=context, quant="q4").fits
    with pytest.raises(DoesNotFitError) as caught:
        plan(replace(BIG, packs=False), replace(HOST, memory_free=16 * GIB), context=4096)
    assert "--quant" not in str(caught.value)
    with pytest.raises(DoesNotFitError) as caught:
        plan(machine=replace(TINY, gpus=(replace(GPU, free=8 * GIB),)), device="cuda", quant="none", context=4096)
    assert "--quant q4 (fits" in str(caught.value) and "--device cpu --quant q8 (fits" in str(caught.value)


def test_packing_where_it_can_be() -> None:
    for device in ("auto", "cuda"):
        for dtype in (None, "bf16", "fp16"):
            made = plan(machine=WITH_GPU, device=device, quant="q4", dtype=dtype, context=4096)
            assert (made.device, made.quant, made.dtype) == ("cuda:0", "q4", dtype or "bf16")
    for machine, dtype in ((WITH_GPU, "fp32"), (HOST, "bf16"), (HOST, "fp16")):
        with pytest.raises(UsageError, match=f"--quant q4 and --dtype {dtype} exclude each other.*Drop one of them"):
            plan(machine=machine, quant="q4", dtype=dtype, context=4096)
    assert plan(machine=WITH_GPU, device="cpu", quant="q4", context=4096).quant == "q4"
    small = replace(TINY, gpus=(replace(GPU, free=4 * GIB),))
    assert plan(machine=small, quant="q4", context=4096).device == "cpu"
    with pytest.raises(ModelError, match="few of this model's weights are linear layers"):
        plan(replace(BIG, packs=False), quant="q8")


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


def test_the_policy_follows_the_context() -> None:
    short = plan(SMALL, context=1000, window=996, sinks=4)
    assert short.select == "exact" and short.quality is None and "window" in short.reasons["select"]
    middle = plan(SMALL, context=8192, window=512)
    assert (middle.select, middle.quality, middle.kv_dtype) == ("scan", QUALITY, "bf16")
    assert plan(SMALL, context=65536, window=512, yarn=True).select == "scan"
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


def test_weights_that_fit_are_not_rounded_for_what_does_not() -> None:
    """Rows that are too many, a window that is too large, several sequences: not the weights are at fault."""
    long = replace(BIG, trained_context=262_144)
    tight = replace(HOST, memory_free=24 * GIB, gpus=(replace(GPU, free=22 * GIB),))
    with pytest.raises(DoesNotFitError) as caught:
        plan(long, tight, context=262_144)
    assert "--kv-dtype int8" in str(caught.value)
    context = int(re.search(r"--ctx (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert plan(long, tight, context=context).quant == "none"
    made = plan(machine=WITH_GPU, window=60_000, context=131_072)
    assert (made.device, made.quant) == ("cpu", "none")
    one = replace(HOST, gpus=(replace(GPU, free=18 * GIB),))
    request = PlanRequest(context=4096)
    alone = make_plan(BIG, one, request)
    assert alone.quant == "none" and {shared(alone, n, BIG, one, request).quant for n in (8, 64, 96)} == {"none"}


def test_packing_beside_other_wishes() -> None:
    small = replace(HOST, gpus=(replace(GPU, free=8 * GIB),))
    mine = replace(BIG, in_file=(("grid4", BIG.body), ("grid8", BIG.head)))
    assert plan(mine, small, dtype="bf16").quant == "file", "a file's own bits go before rounding"
    quantised = replace(BIG, quantised=True)
    assert plan(quantised, small).quant == "none"
    with pytest.raises(ModelError, match=r"quantised already.*Leave --quant out"):
        plan(quantised, small, quant="q4")
    tiny = replace(HOST, gpus=(replace(GPU, free=4 * GIB),))
    for device in ("auto", "cuda"):  # no word of the CPU's fp32, where that dtype excludes it
        with pytest.raises(DoesNotFitError, match=r"GPU 0 \(card\) needs"):
            plan(machine=tiny, quant="q4", dtype="bf16", device=device)
    with pytest.raises(UsageError, match="or add --device cpu"):
        plan(machine=small, quant="q8", dtype="fp32")
    assert plan(machine=small, may_round=False).device == "cpu"
    assert plan(mine, small, may_round=False).quant == "file"
    (told,) = (
        one for one in plan(machine=replace(small, memory_free=9 * GIB), context=4096).notices if "16 bits" in one
    )
    assert "--device cpu" not in told, "they would not fit there, either"


def test_what_the_planner_rounded_is_told() -> None:
    small = replace(HOST, gpus=(replace(GPU, free=8 * GIB),))
    assert rounded_by(plan(machine=small)) == "q4" and rounded_by(plan(machine=WITH_GPU)) is None
    assert rounded_by(plan(replace(BIG, in_file=(("grid4", BIG.body), ("grid8", BIG.head))), small)) is None
