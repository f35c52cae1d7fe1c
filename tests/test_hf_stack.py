"""All layers of a token in one call: only where each gets what the one before it made, and nobody listens in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaModel

from hgca_cli.errors import HgcaError
from hgca_cli.hf.quicken import quicken
from tests.test_hf_decoder import cache_of, calls  # noqa: F401  (a fixture)
from tests.test_hf_families import ids, logits_of, tiny


def a_listener(model: Any, heard: list[Tensor]) -> None:
    model.model.layers[1].register_forward_hook(lambda _, given, made: heard.append(made.clone()))


def another_forward(model: Any, heard: list[Tensor]) -> None:
    layer = model.model.layers[1]
    own = layer.forward

    def forward(*args: Any, **named: Any) -> Any:
        heard.append(made := own(*args, **named))
        return made

    layer.forward = forward


@pytest.mark.parametrize("change", [a_listener, another_forward])
@torch.inference_mode()
def test_who_listens_between_layers_hears_them(change: Callable[..., None], calls: dict[str, int]) -> None:  # noqa: F811
    model, tokens = tiny("llama"), ids()
    states = tiny("llama")(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    quicken(model)
    model.set_attn_implementation("hgca")
    cache, heard = cache_of(model), []
    logits_of(model, tokens[:, :50], cache, [40, *[1] * 10])
    assert calls["all"] == 9
    change(model, heard)
    logits_of(model, tokens[:, 50:], cache, [1] * 10)
    assert calls["all"] == 9 and (torch.cat(heard, 1) - states[2][:, 50:60]).abs().max() <= 1e-4


@torch.inference_mode()
def test_a_model_cut_short_is_layer_by_layer(calls: dict[str, int]) -> None:  # noqa: F811
    model, tokens = tiny("llama"), ids()
    quicken(model)
    model.set_attn_implementation("hgca")
    logits_of(model, tokens[:, :43], cache_of(model), [40, 1, 1, 1])
    assert calls["all"] == 2
    fewer = tiny("llama")
    for one in (model, fewer):
        one.config.num_hidden_layers = 2
    wanted = fewer(input_ids=tokens[:, :50], use_cache=False).logits
    got = logits_of(model, tokens[:, :50], cache_of(model), [40, *[1] * 10])
    assert calls["all"] == 2 and (got - wanted).abs().max() <= 1e-4
    del model.model.layers[2]
    assert (logits_of(model, tokens[:, :50], cache_of(model), [40, *[1] * 10]) - wanted).abs().max() <= 1e-4
    assert calls["all"] == 2


class Between(LlamaModel):
    """A loop that does something of its own between its layers."""

    factor = 1.0

    def forward(self, input_ids: Tensor, past_key_values: Any, **_: Any) -> Any:
        x = self.embed_tokens(input_ids)
        seen = past_key_values.get_seq_length()
        turns = self.rotary_emb(x, torch.arange(seen, seen + x.shape[1])[None])
        for layer in self.layers:
            x = layer(x, position_embeddings=turns, cache=past_key_values)
            x = x if self.factor == 1.0 else self.factor * x
        return self.norm(x)


@torch.inference_mode()
def test_layers_that_do_not_follow_each_other_are_not_one_call(calls: dict[str, int]) -> None:  # noqa: F811
    model = tiny("llama")
    quicken(model)
    model.set_attn_implementation("hgca")
    inner = model.model
    inner.__class__ = Between
    cache = cache_of(model)
    inner.factor = 0.5
    for token in ids()[0, :5]:
        inner(token[None, None], cache)
    assert calls["all"] == 0 and calls["one"] == 12  # none of the first token's, of whom there is no cache yet
    inner.factor = 1.0
    for token in ids()[0, 5:8]:
        inner(token[None, None], cache)
    assert calls["all"] == 2
    inner.factor = 0.5
    with pytest.raises(HgcaError, match="layer 1 was given something else"):
        inner(ids()[:, 8:9], cache)
    assert all(cache.layers[i].states[0].length == 9 for i in range(3)) and cache.rewind(8)
    inner.factor = 1.0
    inner(ids()[:, 8:9], cache)
    assert cache.get_seq_length() == 9
