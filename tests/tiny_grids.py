"""A tiny random Llama whose weights are on 4-bit grids, so that the library does a layer of several sequences in one call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import hgca_cli.hf.attention
from hgca_cli.hf.decoder import QuickDecoder
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.quicken import quicken
from tests.tiny_engine import tiny_loaded


def put_on_grids(model: nn.Module, rng: torch.Generator) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            outputs, blocks = layer.out_features, layer.in_features // 32
            codes = torch.randint(0, 16, (outputs, blocks, 32), generator=rng).float()
            codes[..., 0], codes[..., 1] = 0.0, 15.0
            scale = (0.05 * torch.rand(outputs, blocks, 1, generator=rng) + 0.005).half().float()
            layer.weight.data = (codes * scale + (-7.5 * scale).half().float()).flatten(1)


def grid_loaded(rng: torch.Generator) -> LoadedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, attn_implementation=hgca_cli.hf.attention.NAME,
    )  # fmt: skip
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    put_on_grids(model, rng)
    quicken(model)
    assert all(isinstance(layer, QuickDecoder) for layer in model.model.layers)
    return replace(tiny_loaded(), model=model.requires_grad_(False))
