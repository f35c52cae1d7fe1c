"""The cost model is arithmetic: what it says of parts, totals and limits holds for any rates."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgca_cli.config import QUALITY, SELECTORS
from hgca_cli.hardware.cost import GPU_SHARE, SIGNAL_SHARE, Costs, _streamed
from hgca_cli.hardware.expected import LEAST, rows_read, scored_rows
from hgca_cli.hardware.memory import Choice, Model
from hgca_cli.hardware.row_rates import between, rate_at, row_ns, thread_factor
from hgca_cli.hardware.step_cost import StepCost
from hgca_cli.kv.layout import KVLayout, LayerLayout
from tests.rates import gpu_rates, host_rates, profile

LAYER = LayerLayout(32, 8, 128, 128)
MODEL = Model(KVLayout((LAYER,) * 32), 8_000_000_000, 131_072, hidden=4096, intermediate=14336, vocabulary=128_256)
CPU = Choice("cpu", "bf16", "bf16", context=32768, window=1024, sinks=4, chunk=512, select="exact")
GPU = replace(CPU, device="cuda:0")
HERE, CARD = profile(), profile(gpu_rates())


def decode(choice: Choice = CPU, machine: Any = HERE, model: Model = MODEL, **more: Any) -> StepCost:
    return Costs(machine, model, **{k: more.pop(k) for k in list(more) if k != "length" and k != "batch"}).decode(
        choice, 4, **more
    )


def test_the_parts_of_a_token_on_the_cpu() -> None:
    step = decode()
    read = MODEL.body + MODEL.head
    assert step.weights == pytest.approx(read * 2 / 36e9)
    assert step.layers == pytest.approx(32 * 100e-6 + 200e-6)
    assert step.window == pytest.approx(32 * 1028 * 8 * 16e-9), "measured for just this shape: 16 ns"
    assert step.attention == pytest.approx(32 * (32768 - 1028) * 8 * 16e-9)
    assert (step.copies, step.selection, step.hidden) == (0, 0, 0)
    assert step.total == pytest.approx(sum(step.parts.values()))


def test_choosing_rows_scores_all_and_reads_few() -> None:
    step = decode(replace(CPU, select="scan"), quality=QUALITY)
    stored = 32768 - 1028
    assert step.selection == pytest.approx(32 * (stored * 8 * 4e-9 + 50e-6))
    assert step.attention == pytest.approx(32 * rows_read(replace(CPU, select="scan")) * 8 * 24e-9)
    assert step.total < decode().total


@pytest.mark.parametrize(
    ("rows", "two_level", "cluster"), [(8192, 0.66, 0.34), (131_072, 0.26, 0.23), (524_288, 0.21, 0.23)]
)
def test_groups_make_choosing_cheaper_the_longer_the_store(rows: int, two_level: float, cluster: float) -> None:
    """Shares as benchmarks/results/long.jsonl has them."""
    assert scored_rows("scan", rows) == rows and scored_rows("exact", rows) == 0
    assert scored_rows("two-level", rows) == pytest.approx(two_level * rows, rel=0.05)
    assert scored_rows("cluster", rows) == pytest.approx(cluster * rows, rel=0.05)
    assert scored_rows("two-level", 1000) == scored_rows("cluster", 1000) == 1000, "nothing is in groups yet"


def test_a_gpu_hides_the_hosts_work_behind_its_window() -> None:
    step = decode(replace(GPU, select="scan"), CARD, quality=QUALITY)
    assert step.weights == pytest.approx((MODEL.body + MODEL.head) * 2 / (800e9 * GPU_SHARE))
    assert step.window == pytest.approx(32 * 1028 * 8 * 256 * 2 / (800e9 * GPU_SHARE))
    assert step.copies == pytest.approx(32 * 20e-6 * SIGNAL_SHARE), "in a graph"
    assert step.layers == pytest.approx(32 * 50e-6 + 200e-6)
    assert step.hidden == pytest.approx(min(step.window, step.host)) and step.hidden > 0
    assert step.total == pytest.approx(sum(step.parts.values()))
    nothing_stored = decode(replace(GPU, window=32764), CARD)
    assert nothing_stored.host == 0 and nothing_stored.total < decode(GPU, CARD).total


def test_what_a_gpu_chooses_ahead_is_hidden_behind_all_it_does() -> None:
    ahead = replace(GPU, select="scan", device_codes=True, context=131_072, window=16_384)
    for batch in (1, 4, 16, 64):
        step = decode(ahead, CARD, quality=QUALITY, batch=batch)
        device = step.weights + step.layers + step.window
        assert step.ahead and 0 < step.fetched < step.attention
        asked = step.copies + step.attention - step.fetched
        assert step.total >= device * (1 - 1e-9) and step.total >= (asked + step.fetched) * (1 - 1e-9)
        assert step.total >= step.selection and step.total == pytest.approx(sum(step.parts.values()))
        assert 0 < step.slowed < step.selection and step.waits == (step.total > (device + step.slowed) * (1 + 1e-9))
        assert step.total < replace(step, ahead=False).total or not step.waits
    assert replace(decode(ahead, CARD, quality=QUALITY), attention=1.0).waits
    small = replace(ahead, context=20_000)
    assert not decode(small, CARD, quality=QUALITY).waits


def test_launches_count_where_there_is_no_graph_and_they_are_slower_than_weights() -> None:
    small = replace(MODEL, parameters=100_000_000, vocabulary=1000)
    sliding = replace(small, layout=KVLayout((LAYER,) * 31 + (replace(LAYER, sliding=512),)))
    odd = replace(small, layout=KVLayout((replace(LAYER, key_dim=96),) * 32))
    graph = decode(GPU, CARD, small).layers
    assert graph == pytest.approx(32 * 50e-6 + 200e-6)
    for other, choice in ((sliding, GPU), (odd, GPU), (small, replace(GPU, select="moving-average"))):
        step = decode(choice, CARD, other)
        assert step.layers == pytest.approx(32 * 200e-6 + 200e-6 - step.weights)
    large = replace(sliding, parameters=MODEL.parameters, vocabulary=MODEL.vocabulary)
    assert decode(GPU, CARD, large).layers == pytest.approx(graph), "an 8B's weights take longer than its launches"


def test_weights_by_what_holds_them() -> None:
    packed = replace(MODEL, own_dtype="fp32", tied=True, packed=(("grid4", 6_000_000_000), ("grid8", 2_000_000_000)))
    wide = replace(CPU, dtype="fp32")
    expected = 6e9 * 20 / 32 / 25e9 + 2e9 * 34 / 32 / 34e9
    assert decode(wide, model=packed).weights == pytest.approx(expected)
    assert decode(wide, model=replace(packed, packed=())).weights == pytest.approx(8e9 * 4 / 36e9)
    assert decode(wide).weights == pytest.approx((MODEL.body + MODEL.head) * 2 / 36e9), "published in 16 bits"
    for quant, body in (("q8", 34 / 32 / 34e9), ("q4", 20 / 32 / 25e9)):
        expected = MODEL.body * body + MODEL.head * 34 / 32 / 34e9
        assert decode(replace(wide, quant=quant)).weights == pytest.approx(expected)
    assert decode(model=replace(MODEL, active_share=0.25)).weights < 0.4 * decode().weights


def test_sequences_read_more_experts_than_one() -> None:
    mixture = replace(MODEL, in_experts=0.8, active_share=1 - 0.8 * (1 - 0.125))
    assert (
        mixture.read_by(1) == pytest.approx(mixture.active_share) and replace(mixture, in_experts=0.0).read_by(9) < 0.31
    )
    assert mixture.read_by(2) == pytest.approx(1 - 0.8 * 0.875**2) and mixture.read_by(1000) == pytest.approx(1.0)
    one, four = (decode(model=mixture, batch=batch).weights for batch in (1, 4))
    assert one < four < decode(model=replace(mixture, active_share=1.0), batch=4).weights


def test_sliding_layers_read_no_store() -> None:
    sliding = replace(MODEL, layout=KVLayout((replace(LAYER, sliding=512),) * 16 + (LAYER,) * 16))
    step = decode(model=sliding)
    assert step.attention == pytest.approx(decode().attention / 2)
    assert step.window == pytest.approx(16 * (512 + 1028) * 8 * 16e-9)


def test_dense_layers_read_everything() -> None:
    scan = replace(CPU, select="scan")
    assert decode(scan).attention < decode(scan, dense_layers=4).attention < decode(scan, dense_layers=32).attention
    assert decode(scan, dense_layers=32).attention == pytest.approx(decode().attention)


@given(length=st.integers(1, 1 << 20), more=st.integers(1, 1 << 16), select=st.sampled_from(SELECTORS))
def test_a_longer_text_is_never_faster(length: int, more: int, select: str) -> None:
    for choice, machine in ((CPU, HERE), (GPU, CARD)):
        chosen = replace(choice, select=select, context=1 << 21)
        assert (
            decode(chosen, machine, length=length).total <= decode(chosen, machine, length=length + more).total * 1.0001
        )


def test_the_knee_of_a_batch() -> None:
    costs = Costs(CARD, MODEL)
    whole = replace(GPU, context=1024, window=1020)
    knee = costs.knee(whole, 4, 256)
    rate = {size: size / costs.decode(whole, 4, batch=size).total for size in (1, knee, 256)}
    assert 1 < knee < 256 and rate[knee] >= 0.9 * rate[256] and rate[knee] > 4 * rate[1]
    assert costs.knee(whole, 4, 1) == 1
    assert costs.knee(replace(GPU, context=131_072), 4, 64) <= 4, (
        "reading the store is most of it: sequences share nothing"
    )


def test_a_prompt_takes_its_products_its_pairs_and_its_stream() -> None:
    costs = Costs(HERE, MODEL)
    short, long = costs.prefill(CPU, 1024, 4), costs.prefill(CPU, 32768, 4)
    assert short == pytest.approx(2 * MODEL.body * 1024 / 0.2e12, rel=0.1)
    assert long > 33 * short
    narrow = replace(HERE, host=replace(HERE.host, prefill_attention_bf16_tflop_s=0.5))
    assert (half := Costs(narrow, MODEL).prefill(CPU, 32768, 4)) < long, "twice the rate over rows of bf16"
    assert Costs(narrow, MODEL).prefill(replace(CPU, kv_dtype="int8"), 32768, 4) == half
    assert Costs(narrow, MODEL).prefill(replace(CPU, kv_dtype="fp32"), 32768, 4) == long
    packed = replace(CPU, dtype="fp32", quant="q4")
    for rates, rate in (
        ({"fp32": 0.3, "bf16": 0.1}, 0.3),
        ({"fp32": 0.3, "grid8": 0.5}, 0.5),
        ({"fp32": 0.3, "grid8": 1.0, "grid4": 0.5}, 0.5),
    ):
        machine = replace(HERE, host=replace(HERE.host, matmul_tflop_s=rates))
        taken = Costs(machine, MODEL).prefill(packed, 1024, 4)
        assert taken == pytest.approx(2 * MODEL.body * 1024 / (rate * 1e12), rel=0.12), rates
    device = Costs(CARD, MODEL)
    larger = replace(GPU, chunk=4096)
    assert device.prefill(larger, 131_072, 4) < device.prefill(GPU, 131_072, 4), "the store is streamed fewer times"
    whole = replace(GPU, window=131_068)
    assert device.prefill(whole, 131_072, 4) <= device.prefill(GPU, 131_072, 4)
    slow = replace(CARD, gpus=tuple(replace(gpu, to_device_gb_s=4.0) for gpu in CARD.gpus))
    behind = Costs(slow, MODEL)
    assert behind.prefill(whole, 131_072, 4) < behind.prefill(GPU, 131_072, 4), "what is on its way is waited for"


def test_a_prompt_on_a_gpu_waits_for_the_slowest_of_its_parts() -> None:
    """Attention, or the copies of the store: the link's, or as fast as memory is read."""

    def seconds(card: dict[str, Any], choice: Choice = GPU, **host: Any) -> float:
        return Costs(profile(gpu_rates(**card), **host), MODEL).prefill(choice, 131_072, 4)

    slow, slower = seconds({"to_device_gb_s": 2.0}), seconds({"to_device_gb_s": 1.0})
    assert slower > 1.8 * slow
    assert seconds({}, read_gb_s={1: 0.5, 4: 1.0}) == pytest.approx(slower), "no thread's share of it"
    assert seconds({}, read_gb_s={1: 2.0, 4: 90.0}, usable=16) < slow
    hopper, whole = {"name": "NVIDIA H100 80GB HBM3"}, replace(GPU, window=131_068, chunk=4096)
    assert seconds(hopper, whole) < 0.95 * seconds({}, whole), "cuDNN attends there"
    assert seconds(hopper, replace(whole, chunk=1000)) == pytest.approx(seconds({}, replace(whole, chunk=1000)))


@given(chunks=st.integers(0, 200), chunk=st.integers(1, 300), held=st.integers(0, 20_000))
def test_rows_streamed_are_the_plain_sum(chunks: int, chunk: int, held: int) -> None:
    assert _streamed(chunks, chunk, held) == sum(max(0, k * chunk - held) for k in range(chunks))


def test_a_prompts_length_does_not_make_predicting_it_longer() -> None:
    huge = 1 << 50  # a typing error; chunk by chunk it would take years
    assert Costs(CARD, MODEL).prefill(replace(GPU, context=huge), huge, 4) > 0


def test_rates_between_measured_shapes() -> None:
    known = [(1.0, 10.0), (2.0, 20.0), (4.0, 60.0)]
    assert [between(known, at) for at in (0.5, 1.0, 1.5, 3.0, 4.0, 8.0)] == [10.0, 10.0, 15.0, 40.0, 60.0, 120.0]
    assert between([(2.0, 5.0)], 1.0) == between([(2.0, 5.0)], 9.0) == 5.0


def test_shapes_that_were_measured_are_what_was_measured() -> None:
    host = host_rates()
    assert row_ns(host, "dense", "bf16", LAYER) == pytest.approx(16.0)
    assert row_ns(host, "dense", "bf16", LayerLayout(64, 8, 128, 128)) == pytest.approx(24.0)
    assert row_ns(host, "dense", "bf16", LayerLayout(9, 3, 64, 64)) == pytest.approx(8.0)
    assert 16.0 < row_ns(host, "dense", "bf16", LayerLayout(48, 8, 128, 128)) < 24.0
    assert row_ns(host, "dense", "bf16", LayerLayout(128, 8, 128, 128)) == pytest.approx(48.0), "arithmetic"
    bare = host_rates(rows=())
    assert row_ns(bare, "dense", "bf16", LAYER) == pytest.approx(512 / (40 * 0.8))
    assert row_ns(bare, "dense", "int8", LAYER) == pytest.approx(264 / (40 * 0.8))
    assert row_ns(bare, "scan", "bf16", LAYER) < row_ns(bare, "rows", "bf16", LAYER) / 4


@pytest.mark.parametrize(("threads", "rate"), [(1, 10.0), (2, 20.0), (3, 26.0), (4, 32.0), (64, 32.0)])
def test_rates_by_number_of_threads(threads: int, rate: float) -> None:
    host = host_rates()
    assert rate_at(host.attention_gb_s, threads) == pytest.approx(rate)
    assert thread_factor(host, threads) == pytest.approx(32.0 / rate)
    assert rate_at({2: 20.0}, 1) == 10.0


@pytest.mark.parametrize(
    ("choice", "more", "expected"),
    [
        (replace(CPU, select="exact"), {}, 31740),
        (replace(CPU, select="window"), {}, 0),
        (replace(CPU, select="scan"), {"budget": 0.0}, 0),
        (replace(CPU, select="scan"), {"budget": 0.005}, 159),
        (replace(CPU, select="scan"), {"quality": 1.0}, 31740),
        (replace(CPU, select="moving-average"), {}, 6348),
        (replace(CPU, select="scan", context=1100), {"quality": 0.5}, LEAST),
        (replace(CPU, select="scan", context=1040), {}, 12),
    ],
)
def test_rows_read(choice: Choice, more: dict[str, float], expected: int) -> None:
    assert rows_read(choice, **more) == expected


def test_rows_read_are_what_was_measured() -> None:
    """Shares of `hgca eval fidelity` on two or three texts: 4,096 tokens with a window of 256, 8,192 with 512."""
    short = replace(CPU, select="scan", context=4096, window=256)
    long = replace(CPU, select="scan", context=8192, window=512)
    measured = {
        (short, 0.9): 0.0297,
        (short, 0.95): 0.0555,
        (short, 0.98): 0.1182,
        (long, 0.9): 0.0133,
        (long, 0.95): 0.0258,
        (long, 0.98): 0.0544,
    }
    for (choice, quality), share in measured.items():
        stored = choice.context - choice.window - choice.sinks
        assert rows_read(choice, quality=quality) == pytest.approx(share * stored, rel=0.15)


def test_rows_read_where_the_device_chooses_are_what_was_measured() -> None:
    """Of the library by the rule that the device still goes by; there .6 of what may be left out is."""
    measured = {
        (4096, 256, 0.85): 0.0395,
        (4096, 256, 0.95): 0.0948,
        (4096, 256, 0.98): 0.1755,
        (8192, 512, 0.95): 0.0508,
    }
    for (context, window, kept), share in measured.items():
        choice = replace(CPU, select="scan", device_codes=True, context=context, window=window)
        stored = context - window - choice.sinks
        assert rows_read(choice, quality=1 - (1 - kept) / 0.6) == pytest.approx(share * stored, rel=0.15)


def test_costs_need_no_torch() -> None:
    code = "import sys, hgca_cli.hardware.cost; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
