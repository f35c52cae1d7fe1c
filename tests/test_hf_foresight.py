"""A layer's query from the residual stream in front of the layer before: near the true one, and used to choose rows only."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from hgca_cli.config import CacheSettings
from hgca_cli.hf.foresight import FIRST, Drift, Foresight
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


def test_what_layers_add_is_averaged_and_goes_with_its_sequence() -> None:
    drift = Drift(3, 4, torch.zeros(2))
    for added in (1.0, 3.0, 2.0):
        drift.token()
        drift.add(1, torch.full((4, 1, 2), added))
    assert drift.mean[1].allclose(torch.tensor(2.0)) and drift.tokens.eq(3).all(), "all of them alike at first"
    for _ in range(20):
        drift.token()
        drift.add(1, torch.full((4, 1, 2), 12.0))
    assert 10.5 < float(drift.mean[1, 0, 0, 0]) < 12.0, "a tenth each then"
    drift.mean[:] = torch.arange(4.0).view(1, 4, 1, 1)
    drift.mean[:, 1] = float("nan")
    drift.move([2, None, 1])
    assert drift.mean[0, :, 0, 0].tolist() == [2.0, 2.0, 0.0, 3.0]
    assert drift.tokens.flatten().tolist() == [23.0, 0.0, 23.0, 23.0]
    drift.token()
    drift.add(1, torch.full((4, 1, 2), 7.0))
    assert float(drift.mean[1, 1, 0, 0]) == 7.0, "a newcomer's first token counts whole"
    drift.move([None, None])
    assert drift.tokens.flatten().tolist() == [0.0, 0.0, 24.0, 24.0]


@pytest.mark.parametrize("dense", [0, 4])
def test_what_layers_add_to_every_token_is_foreseen(dense: int) -> None:
    """Layers add a constant that is as large as the stream: without it queries would be foreseen badly."""
    model = deep("llama")
    for at, layer in enumerate(model.model.layers):
        torch.manual_seed(at)
        own, more = layer.mlp.forward, torch.randn(model.config.hidden_size)
        layer.mlp.forward = lambda x, own=own, more=more: own(x) + more
    cache = filled(
        model,
        CacheSettings(**vars(SETTINGS) | THERE | {"quality": 0.9, "look_ahead": True, "dense_layers": dense}),
        ids(),
    )
    step = GraphStep(model, cache)
    turned: dict[str, list[float]] = {"with": [], "without": []}
    foreseen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    foresight = step._foresight
    assert foresight is not None and step._drift is not None
    of, attend = foresight._foreseen, step.recorder.attend

    def noting(index: int, before: Any, stream: torch.Tensor, turns: Any, drift: Drift) -> torch.Tensor:
        made = of(index, before, stream, turns, drift)
        foreseen[index] = made, foresight._query(index, stream, turns)
        return made

    def comparing(index: int, query: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        for name, one in zip(turned, foreseen.pop(index, ()), strict=False):
            if not step._strange:
                turned[name].append(float(torch.cosine_similarity(one.flatten(), query.flatten(), dim=0)))
        return attend(index, query, *args, **named)

    foresight._foreseen, step.recorder.attend = noting, comparing  # type: ignore[method-assign]
    count = len(list(recorded(step, cache, ids())))
    assert float(step._drift.tokens) == count and len(turned["with"]) >= (count - 1) * (LAYERS - max(2, dense))
    assert min(turned["with"]) > 0.95 > 0.9 > sum(turned["without"]) / len(turned["without"])


def test_who_comes_back_is_known() -> None:
    model = deep("llama")
    how = CacheSettings(**vars(SETTINGS) | THERE | {"quality": 0.9, "look_ahead": True})
    one, other = (filled(model, how, ids()) for _ in range(2))
    step = GraphStep(model, one)
    taken = recorded(step, one, ids())
    next(taken), next(taken)
    drift = step._drift
    assert drift is not None and not step._strange
    step.let_go()
    assert step.bind(one) and not step._strange and float(drift.tokens) == 2
    next(taken)
    assert step.bind(other) and step._strange and float(drift.tokens) == 0
    assert step.bind(one) and step._strange, "it was forgotten meanwhile"


def test_a_sequence_and_a_step_are_given_back_at_once() -> None:
    model = deep("llama")
    cache = filled(model, CacheSettings(**vars(SETTINGS) | THERE | {"quality": 0.9, "look_ahead": True}), ids())
    step = GraphStep(model, cache)
    taken = recorded(step, cache, ids())
    for _ in range(3):
        next(taken)
    assert cache.rows().read_share
    held = [weakref.ref(cache.layers[0].states[0]), weakref.ref(step.recorder._scoring), weakref.ref(step.recorder)]
    taken.close()
    gc.collect()
    gc.disable()
    try:
        cache.close()
        del step, cache, taken
        assert [one() for one in held] == [None] * 3, "nobody has to look for them"
    finally:
        gc.enable()


@pytest.mark.gpu
def test_a_graph_chooses_what_its_operations_choose() -> None:
    """Rows that are left out show which query chose, of which layer, and that lists were there when they were read."""
    model = deep("qwen3").to("cuda")
    tokens = ids().cuda()
    how = CacheSettings(**vars(SETTINGS) | THERE | {"quality": 0.9, "look_ahead": True})
    caches = [filled(model, how, tokens) for _ in range(2)]
    replayed, eager = (GraphStep(model, cache) for cache in caches)
    eager.failed = "not captured, for this test"
    left_out = False
    for got, wanted in zip(recorded(replayed, caches[0], tokens), recorded(eager, caches[1], tokens), strict=True):
        assert (wanted - got).abs().max() <= 1e-3
        for one, other in zip(replayed.recorder.layers, eager.recorder.layers, strict=True):
            assert torch.equal(one.row_start, other.row_start)
            relay = one.each[0]
            if relay.scores:
                left_out |= 0 < int(one.row_start[0, -1]) < relay.chosen.rows * relay.chosen.kv_heads
    assert left_out and replayed.captured and not eager.captured


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
