"""A token without the model's own functions: the very logits, only once it was seen, and never where somebody listens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, MixtralConfig, PreTrainedModel

from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.straight import ALIKE, MANY, NAME, Turns, next_logits
from tests.test_hf_decoder import cache_of
from tests.test_hf_families import SMALL, TOKENS, ids, tiny

FIRST = 40  # tokens of a prompt
SEEN = 1 + ALIKE  # tokens the model is asked for: its layers one by one, then all of them in one call, compared


def asked(model: PreTrainedModel) -> list[int]:
    """Tokens the model's own forward is given, from now on; nothing hears of it that looks for listeners."""
    count: list[int] = []
    inner = model.model
    of = type(inner)

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        count.append(named["input_ids"].shape[1])
        return of.forward(self, *args, **named)

    inner.__class__ = type(of.__name__, (of,), {"forward": forward})
    return count


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokens: Tensor, cache: Any) -> Tensor:
    model.set_attn_implementation("hgca")
    cache.expect(FIRST)
    out = [next_logits(model, tokens[:, :FIRST], cache)]
    cache.expect(0)
    out += [next_logits(model, tokens[:, at : at + 1], cache) for at in range(FIRST, TOKENS)]
    return torch.stack(out)


def from_config(config: Any) -> PreTrainedModel:
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
}


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, sliding", *ROPES])
def test_the_very_logits_of_the_models_own_forward(name: str) -> None:
    def made() -> PreTrainedModel:
        return tiny(name) if name not in ROPES else from_config(LlamaConfig(**SMALL, rope_parameters=ROPES[name]))

    model, other, tokens = made(), made(), ids()
    for one in (model, other):
        quicken(one)
    delattr(other, NAME)
    wanted = logits_of(other, tokens, cache_of(other, select="scan", quality=0.9))
    count = asked(model)
    cache = cache_of(model, select="scan", quality=0.9)
    assert torch.equal(logits_of(model, tokens, cache), wanted)
    assert count == [FIRST, *[1] * SEEN] and cache.get_seq_length() == TOKENS


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, logits_scaling=8.0, embedding_multiplier=1.0),
        GraniteConfig(**SMALL, logits_scaling=1.0, embedding_multiplier=12.0),
        CohereConfig(**SMALL, logit_scale=0.1),
    ],
)
def test_a_model_that_does_more_is_always_asked(config: Any) -> None:
    model = from_config(config)
    quicken(model)
    count = asked(model)
    wanted = from_config(config)(input_ids=ids(), use_cache=False).logits[0, FIRST - 1 :]
    assert (logits_of(model, ids(), cache_of(model)) - wanted).abs().max() <= 1e-4
    assert count == [FIRST, *[1] * (TOKENS - FIRST)]


def a_listener_at_the_head(model: Any) -> list[Any]:
    heard: list[Any] = []
    model.lm_head.register_forward_hook(lambda *_: heard.append(1))
    return heard


def a_listener_at_a_layer(model: Any) -> list[Any]:
    heard: list[Any] = []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: heard.append(1))
    return heard


def another_forward(model: Any) -> list[Any]:
    heard: list[Any] = []
    own = model.model.norm.forward

    def forward(x: Tensor) -> Tensor:
        heard.append(1)
        made: Tensor = own(x)
        return made

    model.model.norm.forward = forward
    return heard


@pytest.mark.parametrize("change", [a_listener_at_the_head, a_listener_at_a_layer, another_forward])
def test_who_listens_hears_every_token_once(change: Any) -> None:
    model, tokens = tiny("llama"), ids()
    quicken(model)
    logits_of(model, tokens, cache_of(model))
    heard = change(model)
    logits_of(model, tokens, cache_of(model))
    assert len(heard) == 1 + TOKENS - FIRST


def test_a_change_between_two_tokens_is_seen_within_eight() -> None:
    model, tokens = tiny("llama"), ids()
    quicken(model)
    model.set_attn_implementation("hgca")
    cache = cache_of(model)
    cache.expect(FIRST)
    with torch.inference_mode():
        next_logits(model, tokens[:, :FIRST], cache)
        cache.expect(0)
        for at in range(FIRST, FIRST + 10):
            next_logits(model, tokens[:, at : at + 1], cache)
        heard = a_listener_at_a_layer(model)
        for at in range(FIRST + 10, FIRST + 20):
            next_logits(model, tokens[:, at : at + 1], cache)
    assert len(heard) >= 3


def test_angles_of_many_positions_at_once() -> None:
    rotary, x = tiny("llama").model.rotary_emb, torch.zeros(1, 1, 48)
    turns = Turns(rotary)
    for position in (0, 1, MANY - 1, MANY, 5 * MANY + 3, 2):
        wanted = rotary(x, torch.tensor([[position]]))
        got = turns(x, position)
        assert all(torch.equal(one, other) and one.is_contiguous() for one, other in zip(got, wanted, strict=True))


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("family", "threads"), [("llama", 1), ("gemma2", 1), ("mixtral", 1), ("gpt-oss", 2)])
def test_a_token_wakes_no_threads_where_the_library_reads_nearly_all_weights(family: str, threads: int) -> None:
    """MKL wakes torch's for 128 sines, and they wait beside the library's; experts in floats that are held turned are torch's."""
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL | EXPERTS)) if family == "mixtral" else tiny(family)
    model.set_attn_implementation("hgca")
    quicken(model)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before, cache = torch.get_num_threads(), cache_of(model)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            for some in (ids()[:, :8], ids()[:, 8:9]):
                next_logits(model, some, cache)
        assert seen == [2, threads] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
