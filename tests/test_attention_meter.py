"""The quality meter against what is known of the rows: how much of the mass was read, another layer each time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.meter import EARLY, TOKENS, QualityMeter
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.step import decode_attention
from hgca_cli.attention.stream import prompt_attention
from hgca_cli.config import CacheSettings
from hgca_cli.kv.layout import LayerLayout

LAYOUT = LayerLayout(heads=4, kv_heads=2, key_dim=16, value_dim=16)
CPU = torch.device("cpu")


class Eager(QualityMeter):
    """Measures every step."""

    def due(self) -> bool:
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
