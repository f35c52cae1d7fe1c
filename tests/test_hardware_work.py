"""What a chunk of a prompt holds while it is attended to is within what the planner counts for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.stream import _account, prompt_attention
from hgca_cli.config import CacheSettings
from hgca_cli.hardware.memory import Choice, Model, needs, work_bytes
from hgca_cli.kv.layout import KVLayout, LayerLayout
from tests.live import most_bytes

SLIDING = LayerLayout(heads=64, kv_heads=8, key_dim=64, value_dim=64, sliding=128)  # as gpt-oss has them
FULL = LayerLayout(heads=64, kv_heads=8, key_dim=64, value_dim=64)
MODEL = Model(KVLayout((SLIDING, FULL)), 20_000_000_000, 131_072, hidden=2880, intermediate=2880, vocabulary=201_088)
META = torch.device("meta")  # nothing is computed: a GPU's path, and its sizes


def held(layout: LayerLayout, chunk: int, before: int) -> int:
    """Bytes that a layer makes for a chunk after so many rows."""
    settings = CacheSettings(window=before, sinks=0, context=1 << 17)
    layer = LayerState(layout, settings, make_selector(settings, layout, 0), META, torch.bfloat16, torch.bfloat16)
    layer.window.end, layer.window.start = before, before - min(before, layout.sliding or before)
    query = torch.empty(layout.heads, chunk, layout.key_dim, device=META, dtype=torch.bfloat16)
    key = query[: layout.kv_heads]
    there = query, layer.window.keys, layer.window.values
    return most_bytes(lambda: prompt_attention(query, key, key, layer, scale=0.125), there)


@pytest.mark.parametrize("chunk", [1024, 4096])
def test_a_sliding_layer_holds_what_its_rows_need(chunk: int) -> None:
    most = held(SLIDING, chunk, 8192)
    states = 2 * 2 * chunk * MODEL.hidden  # that it stands on, and that come of it
    assert most + states <= work_bytes(MODEL, Choice("cuda:0", "bf16", "bf16", 131_072, 8192, 4, chunk))
    assert most - held(SLIDING, 512, 8192) <= (chunk - 512) * 64 * 64 * 8, "nothing grows faster than the chunk"


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize(("window", "chunk"), [(4096, 4096), (65536, 1024), (65536, 4096)])
@pytest.mark.parametrize("layout", [LayerLayout(32, 8, 128, 128), LayerLayout(16, 16, 128, 128)], ids=["gqa", "mha"])
def test_moving_averages_hold_what_is_planned_for_them(
    layout: LayerLayout, window: int, chunk: int, softcap: float
) -> None:
    settings = CacheSettings(window=window, sinks=4, context=1 << 17, select="moving-average")
    selector = MovingAverage(layout, window)
    layer = LayerState(layout, settings, selector, META, torch.bfloat16, torch.bfloat16)
    layer.window.start, layer.window.end = 20_000, 20_000 + window
    selector.average = torch.zeros(layout.heads, window, device=META)
    query = torch.empty(layout.heads, chunk, 128, device=META, dtype=torch.bfloat16)
    key = query[: layout.kv_heads]
    lse = torch.empty(layout.heads, chunk, device=META)
    there = (query, lse, layer.window.keys, layer.window.values, selector.average)
    most = most_bytes(lambda: _account(query, key, layer, lse, 1.0, softcap), there)
    model = Model(KVLayout((layout,) * 4), 10**9, 1 << 17, hidden=1024, intermediate=2048, vocabulary=1000)
    # beside query, key, value, states and what attention came to
    beside = chunk * (2 * (2 * 1024 + 2 * layout.heads * 128 + 2 * layout.kv_heads * 128) + 4 * layout.heads * 128)
    for device in ("cuda:0", "cpu"):
        choice = Choice(device, "bf16", "bf16", 1 << 17, window, 4, chunk, "moving-average")
        assert most + beside <= work_bytes(model, choice)
        stay = needs(model, choice, 0, 0)[0].window - needs(model, replace(choice, select="exact"), 0, 0)[0].window
        assert stay == 4 * selector.average.nbytes, "of all layers, once renewed"
