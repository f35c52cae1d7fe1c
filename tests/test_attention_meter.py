"""The quality meter against what is known of the rows: how much of the mass was read, another layer each time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hgca_cli import native, selection
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.meter import EARLY, TOGETHER, TOKENS, QualityMeter, heads_in_turn
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.sparse import Exact, window_job
from hgca_cli.attention.step import decode_attention
from hgca_cli.attention.stream import prompt_attention
from hgca_cli.config import CacheSettings
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.selection import Selection

LAYOUT = LayerLayout(heads=4, kv_heads=2, key_dim=16, value_dim=16)
CPU = torch.device("cpu")


class Eager(QualityMeter):
    """Measures every step."""

    def due(self, among: int = 1) -> bool:
        return True


def test_the_share_is_of_everything(rng: torch.Generator) -> None:
    store, near = torch.randn(2, 300, generator=rng).double() * 3, torch.randn(2, 40, generator=rng).double() * 3
    read = store[:, :50]
    meter = QualityMeter(1)
    meter.add(read.logsumexp(1).float(), store.logsumexp(1).float(), near.logsumexp(1).float())
    missed = torch.softmax(torch.cat([store, near], 1), 1)[:, 50:300].sum(1)
    assert meter.quality == pytest.approx(1.0 - float(missed.mean()), abs=1e-6)
    meter.reset()
    assert meter.quality is None
    meter.add(
        torch.full((2,), -math.inf), store.logsumexp(1).float(), None
    )  # nothing was read, nothing stood elsewhere
    assert meter.quality == 0.0


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_every_layer_has_its_turn(layers: int) -> None:
    meter = QualityMeter(layers)

    def due_of(steps: int) -> list[int]:
        due = []
        for step in range(steps):
            if meter.due():
                due.append(step)
                meter.add(torch.zeros(2), torch.zeros(2), None)
        return due

    for _ in range(2):  # of every answer
        due = due_of((EARLY + layers) * (layers * TOKENS + 1))
        assert {step % layers for step in due} == set(range(layers)) and due[0] <= 2 * layers
        gaps = [b - a for a, b in itertools.pairwise(due)]
        assert gaps[: EARLY - 1] == [layers + 1] * (EARLY - 1) and set(gaps[EARLY:]) == {layers * TOKENS + 1}
        meter.reset()


def test_a_step_of_several_is_measured_no_oftener_than_one_of_one() -> None:
    """Whether each has a meter or all share one; a token's layers at once are as many one by one."""
    layers, sequences, steps = 5, 8, 16 * 40

    def measured(meters: list[QualityMeter], together: bool) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(sequences)]
        for meter in meters:
            meter.early = 0
        for step in range(steps):
            for one in range(sequences):
                meter = meters[one % len(meters)]
                if together:
                    at = meter.next_of(layers, sequences)
                else:
                    due = [layer for layer in range(layers) if meter.due(sequences)]
                    assert len(due) <= 1
                    at = due[0] if due else None
                found[one] += [] if at is None else [step * layers + at]
        return found

    for count in (1, sequences):
        found = measured([QualityMeter(layers) for _ in range(count)], True)
        assert found == measured([QualityMeter(layers) for _ in range(count)], False)
        assert steps / TOKENS - sequences <= sum(len(one) for one in found) <= steps / TOKENS + sequences
        assert all({at % layers for at in one} == set(range(layers)) for one in found if count > 1)
        assert {at % layers for one in found for at in one} == set(range(layers)) and all(found)


@pytest.mark.parametrize("kv_heads", [1, 3, 8])
@pytest.mark.parametrize("head_bytes", [1 << 10, 6 << 20, 1 << 30])
def test_every_head_has_its_turn(kv_heads: int, head_bytes: int) -> None:
    turns = [heads_in_turn(turn, kv_heads, head_bytes) for turn in range(2 * kv_heads)]
    together = turns[0].stop - turns[0].start
    assert together == 1 or together * head_bytes <= TOGETHER
    seen = [head for turn in turns[: kv_heads // together] for head in range(turn.start, turn.stop)]
    assert sorted(seen) == list(range(kv_heads)) and turns[kv_heads // together] == turns[0]
    assert head_bytes > 1 << 10 or together == kv_heads


def test_short_texts_are_measured_in_other_layers() -> None:
    first = []
    for tokens in range(7, 7 + 12):
        meter = QualityMeter(6)
        meter.reset(tokens)
        first.append(next(layer for layer in range(6) if meter.due()))
        meter.add(torch.zeros(2), torch.zeros(2), None)
        turns, left = meter.turns, meter._left
        meter.reset(tokens + 1)  # the text's next answer goes on
        assert meter.turns == turns and (meter._left - left) % 6 == 0
    assert sorted(first) == sorted(list(range(6)) * 2)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_one_head_is_measured_as_it_is_among_all(kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the query heads that share its rows; all in turn say what the layer says at once."""
    settings = CacheSettings(window=64, sinks=2, context=600, select="scan", budget=0.05)
    found = []
    for bytes_at_once in (TOGETHER, 1):
        monkeypatch.setattr("hgca_cli.attention.meter.TOGETHER", bytes_at_once)
        draw = torch.Generator().manual_seed(8)
        layer = LayerState(LAYOUT, settings, make_selector(settings, LAYOUT, 0), CPU, torch.float32, kv_dtype)
        key, value = torch.randn(2, 500, 16, generator=draw), torch.randn(2, 500, 16, generator=draw)
        layer.expect(499)
        prompt_attention(torch.zeros(4, 499, 16), key[:, :499], value[:, :499], layer, scale=1.0)
        query = torch.randn(4, 16, generator=draw) * torch.tensor([0.2, 0.5, 1.0, 2.0])[:, None]
        layer.settle()
        layer.window.append(key[:, 499:], value[:, 499:])
        assert layer.store is not None
        chosen = layer.choose(query, layer.store)
        assert isinstance(chosen, Selection)
        selection.start([selection.Aimed(chosen, query, 1.0, 0.0, window_job(query, layer, 1.0, 0.0))]).wait()
        near = native.start([window_job(query, layer, 1.0, 0.0)]).wait()[0].lse
        kept = []
        for beside in (None, near) * (1 if bytes_at_once > 1 else 2):
            before = layer.meter.kept
            Exact(layer, query, 1.0, 0.0, beside).tell(chosen.read_lse)
            kept.append(layer.meter.kept - before)
        if bytes_at_once == 1:  # heads in turn: the first, the second, the first again
            assert kept[0] == pytest.approx(kept[2], abs=1e-6) and abs(kept[0] - kept[1]) > 0.01
            kept = [sum(kept[:2]) / 2, sum(kept[2:]) / 2]
        assert kept[0] == pytest.approx(kept[1], abs=1e-5)
        found.append(kept[0])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and 0.05 < found[0] < 0.98


@pytest.mark.parametrize(
    ("select", "budget", "kept"), [("scan", 5 / 400, 1.0), ("scan", 2 / 400, 0.4), ("exact", None, None)]
)
def test_what_a_policy_kept_is_measured(
    rng: torch.Generator, select: str, budget: float | None, kept: float | None
) -> None:
    """Five rows of the store hold nearly everything, in equal parts."""
    settings = CacheSettings(window=8, sinks=2, context=600, select=select, budget=budget)
    layer = LayerState(
        LAYOUT, settings, make_selector(settings, LAYOUT, 0), CPU, torch.float32, torch.float32, Eager(1)
    )
    key = torch.randn(2, 410, 16, generator=rng) * 0.01
    key[:, 100:600:60] = 0.0
    loud = [110, 170, 230, 290, 350]
    direction = torch.randn(2, 16, generator=rng)
    direction /= direction.norm(dim=1, keepdim=True)
    key[:, loud] = direction[:, None] * 10
    layer.expect(409)
    value = torch.randn(2, 410, 16, generator=rng)
    prompt_attention(torch.zeros(4, 409, 16), key[:, :409], value[:, :409], layer, scale=1.0)
    query = direction.repeat_interleave(2, 0) * 2
    decode_attention(query[None], key[None, :, 409:], value[None, :, 409:], [layer], scale=1.0)
    if kept is None:
        assert layer.meter.quality is None  # all was read: there is nothing to measure
    else:
        assert layer.meter.quality == pytest.approx(kept, abs=0.02)
