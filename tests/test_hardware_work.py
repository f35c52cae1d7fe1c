"""What a chunk of a prompt holds while it is attended to is within what the planner counts for it."""

from __future__ import annotations

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.stream import prompt_attention
from hgca_cli.config import CacheSettings
from hgca_cli.hardware.memory import Choice, Model, work_bytes
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
    return most_bytes(lambda: prompt_attention(query, key, key, layer, scale=0.125))


@pytest.mark.parametrize("chunk", [1024, 4096])
def test_a_sliding_layer_holds_what_its_rows_need(chunk: int) -> None:
    most = held(SLIDING, chunk, 8192)
    states = 2 * 2 * chunk * MODEL.hidden  # that it stands on, and that come of it
    assert most + states <= work_bytes(MODEL, Choice("cuda:0", "bf16", "bf16", 131_072, 8192, 4, chunk))
    assert most - held(SLIDING, 512, 8192) <= (chunk - 512) * 64 * 64 * 8, "nothing grows faster than the chunk"
