"""How a plan holds weights in fewer bits: asked for, as a file has them, or as they fit on a GPU."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hgca_cli.errors import DoesNotFitError, ModelError, UsageError
from hgca_cli.hardware.packing import rounded_by
from hgca_cli.hardware.plan import make_plan, shared
from hgca_cli.hardware.settings import PlanRequest
from tests.test_hardware_plan import BIG, GIB, GPU, HOST, WITH_GPU, draft, plan

TINY = replace(HOST, memory_free=16 * GIB)


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


def test_experts_are_packed_on_the_cpu() -> None:
    mixture = replace(BIG, in_experts=0.9, active_share=0.2)
    small = replace(HOST, gpus=(replace(GPU, free=8 * GIB),))
    assert plan(mixture, small).device == "cpu", "16 bits do not fit on the GPU, and experts are not packed there"
    asked = plan(mixture, small, quant="q4")
    assert asked.device == "cpu" and asked.reasons["device"] == "experts are packed on the CPU only"
    assert any("running there" in one for one in asked.notices)
    with pytest.raises(ModelError, match="experts are packed on the CPU only"):
        plan(mixture, small, quant="q4", device="cuda:0")
    published = replace(mixture, quantised=True, in_file=(("float4", BIG.body), ("grid8", BIG.head)))
    assert plan(published, small).quant == "file" and plan(published, small).device == "cpu"
    with pytest.raises(ModelError, match="quantised already"):
        plan(published, small, quant="q8", device="cpu")


def test_what_is_quantised_already_is_not_told_to_be_packed() -> None:
    published = replace(BIG, quantised=True, in_experts=0.9, active_share=0.2, in_file=(("float4", BIG.body),))
    with pytest.raises(DoesNotFitError) as refused:
        plan(published, replace(HOST, memory_free=4 * GIB), quant="file")
    assert "--quant" not in str(refused.value.hint)


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
