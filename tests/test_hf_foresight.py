"""A layer's query from the residual stream in front of the layer before: near the true one, and used to choose rows only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from hgca_cli.config import CacheSettings
from hgca_cli.hf.foresight import FIRST, Foresight
from hgca_cli.hf.graph import GraphStep
from tests.test_attention_recorded import PROMPT, SETTINGS, filled, recorded
from tests.test_hf_families import SMALL, TOKENS, ids, tiny

LAYERS = 6
CONFIGS = {
    "llama": lambda: LlamaConfig(**SMALL | {"num_hidden_layers": LAYERS}, head_dim=16),
    "qwen2": lambda: Qwen2Config(**SMALL | {"num_hidden_layers": LAYERS, "hidden_size": 96}),
    "qwen3": lambda: Qwen3Config(**SMALL | {"num_hidden_layers": LAYERS}, head_dim=16),
}
THERE: dict[str, Any] = {"select": "scan", "device_codes": True}


def deep(family: str) -> Any:
    """A model whose layers add a little to a stream, as those of trained ones do."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="hgca").eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(0.02)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_queries_are_foreseen_as_the_model_makes_them(family: str) -> None:
    model = deep(family)
    foresight = Foresight.of(model, LAYERS)
    assert foresight is not None and foresight.indexes == list(range(FIRST, LAYERS))
    cache = filled(model, CacheSettings(**vars(SETTINGS) | THERE | {"quality": 0.9, "look_ahead": True}), ids())
    step = GraphStep(model, cache)
    near: list[float] = []
    chosen: list[bool] = []
    foresee, attend = step.recorder.foresee, step.recorder.attend
    foreseen: dict[int, torch.Tensor] = {}

    def noting(index: int, query: Any) -> None:
        def made() -> torch.Tensor:
            foreseen[index] = query()
            return foreseen[index]

        foresee(index, made)

    def comparing(index: int, query: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if index in foreseen:
            near.append(float(torch.cosine_similarity(foreseen[index].flatten(), query.flatten(), dim=0)))
        relays = step.recorder.layers[index]
        scores = relays.each[0].scores
        assert (relays.foreseen is not None) == (scores and index in foreseen), "rows are chosen once"
        chosen.append(relays.foreseen is not None)
        return attend(index, query, *args, **named)

    step.recorder.foresee, step.recorder.attend = noting, comparing  # type: ignore[method-assign]
    for _ in zip(range(8), recorded(step, cache, ids()), strict=False):
        pass
    assert len(near) >= 8 * len(foresight.indexes) - 8 and min(near) > 0.85
    assert any(chosen)


@pytest.mark.parametrize("family", CONFIGS)
def test_all_rows_by_a_foreseen_query_are_all_rows(family: str) -> None:
    """Rows are chosen by what is foreseen, and attended to by the true query: with nothing left out, nothing differs."""
    model = deep(family)
    tokens = ids()
    exact = filled(model, SETTINGS, tokens)
    ahead = filled(model, CacheSettings(**vars(SETTINGS) | THERE | {"quality": 1.0, "look_ahead": True}), tokens)
    steps = GraphStep(model, exact), GraphStep(model, ahead)
    for wanted, got in zip(recorded(steps[0], exact, tokens), recorded(steps[1], ahead, tokens), strict=True):
        assert (wanted - got).abs().max() <= 5e-5
    assert exact.get_seq_length() == ahead.get_seq_length() == TOKENS > PROMPT


def test_little_is_lost_by_foreseeing() -> None:
    model = deep("llama")
    tokens = ids()
    out = []
    for more in ({"quality": 1.0}, {"quality": 0.9}, {"quality": 0.9, "look_ahead": True}):
        cache = filled(model, CacheSettings(**vars(SETTINGS) | THERE | more), tokens)
        step = GraphStep(model, cache)
        out.append(torch.stack(list(recorded(step, cache, tokens))))
    true, ahead = ((one - out[0]).pow(2).mean() / out[0].pow(2).mean() for one in out[1:])
    assert true > 0 and ahead < max(4 * true, 2e-3)


@pytest.mark.parametrize("family", ["phi3", "phi3, partial rotary and sliding"])
def test_other_queries_are_not_foreseen(family: str) -> None:
    model = tiny(family)
    count = model.config.num_hidden_layers
    foresight = Foresight.of(model, count)
    assert foresight is None or not foresight.indexes


def test_a_layer_that_makes_its_query_otherwise_is_left_alone() -> None:
    model = deep("llama")
    layer = model.model.layers[3]

    attention = layer.self_attn
    own = attention.forward
    attention.forward = lambda hidden_states, **named: own(hidden_states=2.0 * hidden_states, **named)
    foresight = Foresight.of(model, LAYERS)
    assert foresight is not None and foresight.indexes == [2, 4, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_looks_ahead(dtype: torch.dtype) -> None:
    model = deep("qwen3").to("cuda", dtype)
    tokens = ids().cuda()
    exact = filled(model, SETTINGS, tokens)
    ahead = filled(model, CacheSettings(**vars(SETTINGS) | THERE | {"quality": 1.0, "look_ahead": True}), tokens)
    steps = GraphStep(model, exact), GraphStep(model, ahead)
    for wanted, got in zip(recorded(steps[0], exact, tokens), recorded(steps[1], ahead, tokens), strict=True):
        if dtype == torch.float32:
            assert (wanted - got).abs().max() <= 1e-3
        else:
            assert ((wanted - got).float().pow(2).mean() / wanted.float().pow(2).mean()) < 1e-2
    assert steps[1].failed is None and steps[1].captured and steps[1]._foresight is not None
