"""A router and its experts in one call, and layers that have them: the model's own logits, in whatever way tokens come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, Qwen3MoeConfig

from hgca_cli.config import CacheSettings
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.decoder import QuickDecoder
from hgca_cli.hf.mixture import Mixed
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.stack import stack_of
from tests.mixtures import CHOSEN, EXPERTS, INNER, LAYERS, SHAPE, tiny_mixture
from tests.test_hf_families import logits_of
from tests.tiny_batch import alone, prompts, requests, run
from tests.tiny_engine import tiny_loaded

TOKENS = 60
FAMILIES = {
    "qwen3": lambda: qwen3(),
    "qwen3, shares as they are": lambda: qwen3(norm_topk_prob=False),
    "qwen3, one expert": lambda: qwen3(num_experts_per_tok=1),
    "qwen3, all experts": lambda: qwen3(num_experts_per_tok=EXPERTS),
    "qwen3, some layers without": lambda: qwen3(mlp_only_layers=[0]),
    "mixtral": lambda: MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}


def qwen3(**changes: Any) -> Any:
    own = {
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INNER,
        "norm_topk_prob": True,
    }
    return Qwen3MoeConfig(**SHAPE | own | changes)


def ids() -> Tensor:
    return torch.randint(3, 300, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def through_a_cache(model: Any, sizes: list[int]) -> Tensor:
    model.set_attn_implementation("hgca")
    return logits_of(model, ids(), HybridCache(model.config, CacheSettings(window=16, sinks=2, context=TOKENS)), sizes)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_models_own_logits(name: str) -> None:
    model: Any = tiny_mixture(FAMILIES[name]())
    with torch.inference_mode():
        want = model(input_ids=ids(), use_cache=False).logits
    quicken(model)
    mixed = [one for one in model.modules() if isinstance(one, Mixed)]
    assert len(mixed) == (1 if "without" in name else LAYERS)
    assert (
        all(isinstance(layer, QuickDecoder) for layer in model.model.layers)
        and stack_of(model.model.layers) is not None
    )
    got = through_a_cache(model, [30, 5, *[1] * 20, 5])
    assert float((got - want).abs().max()) <= 2e-4
    assert stack_of(model.model.layers).proven  # type: ignore[union-attr]


def test_a_layer_is_asked_as_transformers_asks_it() -> None:
    """With the router's logits among what is wanted the modules are their own."""
    model: Any = tiny_mixture()
    with torch.inference_mode():
        want = model(input_ids=ids(), output_router_logits=True, use_cache=False)
        quicken(model)
        got = model(input_ids=ids(), output_router_logits=True, use_cache=False)
    assert len(got.router_logits) == LAYERS
    pairs = zip((got.logits, *got.router_logits), (want.logits, *want.router_logits), strict=True)
    assert all(float((one - two).abs().max()) <= 2e-4 for one, two in pairs)


def test_another_router_is_left_alone() -> None:
    model: Any = tiny_mixture()
    gate = model.model.layers[0].mlp.gate

    class Sigmoid(type(gate)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = nn.functional.linear(x.reshape(-1, self.hidden_dim), self.weight)
            shares, chosen = logits.sigmoid().topk(self.top_k)
            return logits, shares, chosen

    gate.__class__ = Sigmoid
    with torch.inference_mode():
        want = model(input_ids=ids(), use_cache=False).logits
    quicken(model)
    assert [isinstance(layer.mlp, Mixed) for layer in model.model.layers] == [False, True]
    assert float((through_a_cache(model, [30, *[1] * 30]) - want).abs().max()) <= 2e-4


def test_who_listens_is_told_and_what_is_changed_counts() -> None:
    model: Any = tiny_mixture()
    quicken(model)
    block = model.model.layers[0].mlp
    x, heard = torch.randn(1, 1, 64), []
    with torch.inference_mode():
        before = block(x)
    hook = block.gate.register_forward_hook(lambda *_: heard.append(1))
    with torch.inference_mode():
        assert float((block(x) - before).abs().max()) < 1e-5 and heard == [1]
    hook.remove()
    block.gate.weight = nn.Parameter(-block.gate.weight, requires_grad=False)
    with torch.inference_mode():
        assert float((block(x) - before).abs().max()) > 1e-3
    block.gate.weight = nn.Parameter(-block.gate.weight, requires_grad=False)
    block.experts.down_proj = nn.Parameter(2 * block.experts.down_proj, requires_grad=False)
    with torch.inference_mode():
        assert float((block(x) - 2 * before).abs().max()) < 1e-4


def test_numbers_that_are_none_choose_some() -> None:
    model: Any = tiny_mixture()
    quicken(model)
    with torch.inference_mode():
        out = model.model.layers[0].mlp(torch.full((1, 3, 64), float("nan")))
    assert bool(out.isnan().all())


@pytest.mark.parametrize("slots", [2, 5])
def test_sequences_together_are_those_alone(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "pays_from", lambda loaded: 2)
    loaded = replace(tiny_loaded(), model=tiny_mixture())
    engine = Engine(loaded, CacheSettings(window=16, sinks=2, context=512, select="exact"), prefill_chunk=8)
    asked = requests(prompts(10, longest=60))
    answers = run(batch := Batch(engine, slots), asked)
    assert batch.peak == slots and all(isinstance(layer, QuickDecoder) for layer in loaded.model.model.layers)
    assert [answers[one.key].text for one in asked] == [alone(engine, one).text for one in asked]
