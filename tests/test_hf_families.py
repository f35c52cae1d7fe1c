"""The central promise, family by family: reading everything gives the model's own logits and tokens.

Tiny random models, float32, windows far smaller than the text, so that most rows are in the store.
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

import hgca_cli.hf.attention  # noqa: F401  (registers "hgca")
from hgca_cli.config import CacheSettings
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import forward, with_cache
from hgca_cli.hf.shape import kv_layout, refuse_unsupported_model

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SMALL),
    "llama, no groups": lambda: LlamaConfig(**SMALL | {"num_key_value_heads": 6}),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=16),
    "mistral, sliding": lambda: MistralConfig(**SMALL, sliding_window=13),
    "gemma2": lambda: Gemma2Config(
        **SMALL, head_dim=8, sliding_window=13, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=13, sliding_window_pattern=3),
    "phi3": lambda: Phi3Config(**SMALL, sliding_window=None),
    "phi3, partial rotary and sliding": lambda: Phi3Config(
        **SMALL | {"hidden_size": 96}, sliding_window=17, partial_rotary_factor=0.5
    ),
    "gpt-oss": lambda: GptOssConfig(**SMALL, head_dim=8, sliding_window=13, num_local_experts=2, num_experts_per_tok=1),
}
TOKENS = 100


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(5)
    config = FAMILIES[name]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # random weights this small attend evenly: make attention matter
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    return model


def ids(batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 128, (batch, TOKENS), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokens: torch.Tensor, cache: HybridCache, sizes: list[int]) -> torch.Tensor:
    out, first = [], 0
    for size in sizes:
        cache.expect(size if size > 1 else 0)
        piece = tokens[:, first : first + size]
        out.append(forward(model, piece, cache).logits)
        first += size
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("window", [1, 16, 64, 200])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name: str, window: int) -> None:
    model = tiny(name)
    tokens = ids()
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation("hgca")
    cache = HybridCache(model.config, CacheSettings(window=window, sinks=2, context=TOKENS))
    got = logits_of(model, tokens, cache, [50, 20, *[1] * 20, 10])
    assert (got - wanted).abs().max() <= 1e-4
    assert cache.get_seq_length() == TOKENS
    rows = cache.rows()
    sees_all = any(layer.sliding is None for layer in cache.layout.layers)
    if sees_all:
        assert rows.store == max(0, TOKENS - rows.window) and (rows.store > 0) == (window < TOKENS - 2)
        assert rows.read_share == (1.0 if rows.store else 0.0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, sliding", "gemma2", "gpt-oss"])
def test_generate_gives_the_same_tokens(name: str) -> None:
    model = tiny(name)
    tokens = ids()[:, :40]
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(tokens, **options)
    model.set_attn_implementation("hgca")
    cache = HybridCache(model.config, CacheSettings(window=16, sinks=2, context=TOKENS))
    got = model.generate(tokens, **with_cache(model, cache), **options)
    assert got.tolist() == wanted.tolist()
    assert cache.get_seq_length() == 79


@pytest.mark.parametrize(
    ("name", "kv_dtype", "context", "kinds"),
    [
        ("llama", "bf16", TOKENS, {torch.bfloat16}),
        ("llama", "fp16", TOKENS, {torch.float16}),
        ("llama", "int8", TOKENS, {torch.float32}),  # the window is read whole: such rounding is for the store
        ("llama", "bf16", 66, {torch.float32}),  # no row ever leaves the window
        ("gemma2", "bf16", TOKENS, {torch.float32, torch.bfloat16}),  # layers that slide have no store
    ],
)
def test_a_windows_rows_are_the_stores_if_they_are_to_go_there(
    name: str, kv_dtype: str, context: int, kinds: set[torch.dtype]
) -> None:
    model, tokens = tiny(name), ids()[:, :context]
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation("hgca")
    cache = HybridCache(model.config, CacheSettings(window=64, sinks=2, context=context, kv_dtype=kv_dtype))
    first = logits_of(model, tokens[:, :60], cache, [40, *[1] * 20])
    states = [layer.states[0] for layer in cache.layers]
    assert {state.window.keys.dtype for state in states} == {torch.float32}
    assert (first - wanted[:, :60]).abs().max() <= 1e-4  # none was rounded yet
    got = torch.cat([first, logits_of(model, tokens[:, 60:], cache, [1] * (context - 60))], dim=1)
    assert {state.window.keys.dtype for state in states} == kinds
    assert (got - wanted).abs().max() <= (1e-4 if kinds == {torch.float32} and kv_dtype == "bf16" else 0.3)
    for state in states:
        if state.store is not None and state.store.scales is None and state.store.rows:
            assert state.store.keys.dtype is state.window.keys.dtype


def test_generate_takes_a_batch_of_equal_lengths() -> None:
    model = tiny("llama")
    tokens = ids(batch=3)[:, :40]
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(tokens, **options)
    model.set_attn_implementation("hgca")
    got = model.generate(tokens, **with_cache(model, HybridCache(model.config, CacheSettings(window=16))), **options)
    assert got.tolist() == wanted.tolist()


def test_what_would_be_silently_wrong_is_refused() -> None:
    model = tiny("llama")
    model.set_attn_implementation("hgca")
    tokens = ids(batch=2)[:, :20]
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    with pytest.raises(UsageError, match="padded"):
        model.generate(
            tokens,
            attention_mask=mask,
            **with_cache(model, HybridCache(model.config)),
            max_new_tokens=2,
            pad_token_id=0,
        )
    with pytest.raises(UsageError, match="past_key_values"):
        model(input_ids=tokens, use_cache=False)
    with pytest.raises(UsageError, match="beam"):
        model.generate(tokens, **with_cache(model, HybridCache(model.config)), max_new_tokens=3, num_beams=2)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("bloom", {}, "ALiBi|AttentionInterface"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("t5", {}, "encoder-decoder"),
        ("llama4_text", {}, "chunked_attention"),
        ("deepseek_v3", {}, "compressed latents"),
        ("gemma3n_text", {}, "share each other"),
        ("mamba", {}, "linear_attention|attention heads"),
    ],
)
def test_a_family_we_cannot_do_is_refused_by_name(family: str, options: dict[str, object], reason: str) -> None:
    config = AutoConfig.for_model(family, **options)
    with pytest.raises(ModelError, match=reason) as caught:
        kv_layout(config)
        with torch.device("meta"):
            refuse_unsupported_model(AutoModelForCausalLM.from_config(config))
    assert family in str(caught.value) and caught.value.exit_code == 5


def test_query_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="7 query heads"):
        config = LlamaConfig(**SMALL)
        config.num_attention_heads = 7
        kv_layout(config)


def test_a_rewound_cache_continues_with_other_tokens() -> None:
    model = tiny("qwen3")
    tokens = ids()
    model.set_attn_implementation("hgca")
    cache = HybridCache(model.config, CacheSettings(window=16, sinks=2, context=TOKENS))
    logits_of(model, tokens, cache, [80])
    assert cache.rewind(30)
    other = tokens.clone()
    other[:, 30:] = tokens.flip(1)[:, 30:]
    got = logits_of(model, other[:, 30:], cache, [40, *[1] * 30])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = model(input_ids=other, use_cache=False).logits[:, 30:]
    assert (got - wanted).abs().max() <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_logits_are_the_same(name: str, dtype: torch.dtype) -> None:
    model = tiny(name).to("cuda", dtype)
    tokens = ids().cuda()
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation("hgca")
    cache = HybridCache(model.config, CacheSettings(window=16, sinks=2, context=TOKENS))
    got = logits_of(model, tokens, cache, [50, 20, *[1] * 20, 10])
    if dtype == torch.float32:
        assert (got - wanted).abs().max() <= 1e-3
    else:
        assert ((got - wanted).float().pow(2).mean() / wanted.float().pow(2).mean()) < 1e-2
