"""Tiny random mixtures of experts, as transformers has them and as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from tests.models import add_shape, add_tokenizer, finish
from tests.tiny_engine import tiny_tokenizer

LAYERS, EXPERTS, CHOSEN, INNER = 2, 8, 2, 32
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PARTS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


def tiny_mixture(config: Any = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A Qwen3-MoE whose router tells experts apart; or a model of another config."""
    torch.manual_seed(7)
    own = {
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INNER,
        "norm_topk_prob": True,
    }
    model: Any = AutoModelForCausalLM.from_config(config or Qwen3MoeConfig(**SHAPE, **own)).eval().requires_grad_(False)
    for one in model.parameters():
        if one.dim() > 1:
            one.normal_(std=0.25)
    for one in model.parameters():
        one.data = one.to(torch.bfloat16).to(dtype)  # what 16 bits hold, as published weights are
    return model  # type: ignore[no-any-return]


def write_mixture(
    path: Path, quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32, *, together: bool = False
) -> Path:
    """The tiny Qwen3-MoE as a GGUF file, as llama.cpp's converter does it.

    quant     of the matrices
    together  gate and up of the experts are one tensor, as newer converters may write them
    """
    model = tiny_mixture()
    config, writer = model.config, gguf.GGUFWriter(path, "qwen3moe")
    add_shape(writer, config)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    add_tokenizer(writer, tiny_tokenizer().hf, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, LAYERS)

    def add(name: str, tensor: torch.Tensor) -> None:
        data = tensor.numpy().copy()
        kind = quant if data.ndim > 1 and "gate_inp" not in name else gguf.GGMLQuantizationType.F32
        packed = data if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(data, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)

    for name, tensor in model.state_dict().items():
        if (parts := PARTS.get(name.rpartition(".")[2])) is None:
            add(str(names.get_name(name, (".weight", ".bias"))), tensor)
            continue
        block = name.split(".")[2]
        whole = ("gate_up",) if together and len(parts) > 1 else parts
        for part, numbers in zip(whole, tensor.chunk(len(whole), dim=1), strict=True):
            add(f"blk.{block}.ffn_{part}_exps.weight", numbers)
    finish(writer)
    return path
