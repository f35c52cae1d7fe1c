"""Mixtures whose shapes are known without a network: what their configs say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from hgca_cli.commands.describe import _model
from hgca_cli.hardware.shapes import known_model


def qwen3() -> Any:
    return Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        max_position_embeddings=40960, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip


def mixtral() -> Any:
    return MixtralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=32768,
        sliding_window=None, dtype=torch.bfloat16,
    )  # fmt: skip


def gpt_oss() -> Any:
    config = GptOssConfig(
        num_hidden_layers=24, vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_local_experts=32,
        num_experts_per_tok=4, num_attention_heads=64, num_key_value_heads=8, head_dim=64, sliding_window=128,
        max_position_embeddings=131072, dtype=torch.bfloat16,
    )  # fmt: skip
    config.quantization_config = {"quant_method": "mxfp4"}
    return config


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Qwen/Qwen3-30B-A3B", qwen3),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", mixtral),
        ("openai/gpt-oss-20b", gpt_oss),
    ],
)
def test_a_known_mixture_is_what_its_config_says(name: str, config: Any) -> None:
    described = config()
    with torch.device("meta"):
        count = sum(one.numel() for one in AutoModelForCausalLM.from_config(described).parameters())
    assert known_model(name) == _model(described, count, {})
