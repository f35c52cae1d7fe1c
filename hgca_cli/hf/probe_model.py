"""A random model whose layers cost what a layer costs: a clock for everything about a token that is not weights or rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hgca_cli.hf.attention
from hgca_cli.attention.slots import trouble
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.quicken_gpu import quicken_gpu
from hgca_cli.hf.straight import next_logits
from hgca_cli.kv.layout import LayerLayout

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 512, 1408, 8, 2, 1024
WIDER = 4  # times, on a GPU: products that take less than starting them would pass for small operations
CONTEXT = 4096
LAYER = LayerLayout(HEADS, KV_HEADS, HIDDEN // HEADS, HIDDEN // HEADS)


class ProbeModel:
    """A Llama of so many layers with random weights, on a device, attention through the hybrid cache.

    layer_numbers   numbers of one layer's weights; head_numbers: of the output layer's
    """

    def __init__(self, layers: int, device: str = "cpu", dtype: torch.dtype = torch.float32, *, wider: int = 1) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        hidden, intermediate, heads, kv_heads = (wider * one for one in (HIDDEN, INTERMEDIATE, HEADS, KV_HEADS))
        self.layer_numbers = hidden * (2 * hidden + 2 * hidden * kv_heads // heads) + 3 * hidden * intermediate
        self.head_numbers = hidden * VOCABULARY
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=CONTEXT,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):  # where drawing a billion numbers takes no time
                model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        draw = torch.Generator(device).manual_seed(5)
        for parameter in model.parameters():
            if parameter.dim() == 2:  # what 16 bits hold, as published weights are
                parameter.copy_(torch.randn(parameter.shape, generator=draw, device=device).bfloat16() * 0.0625 / wider)
        self._model = model
        self._model.set_attn_implementation(hgca_cli.hf.attention.NAME)
        self.device = torch.device(device)
        if device == "cpu":
            quicken(self._model)
        else:
            quicken_gpu(self._model)

    @property
    def config(self) -> Any:
        """Of the whole model."""
        return self._model.config

    def filled(self, rows: int, window: int, select: str) -> HybridCache:
        """A cache that holds so many rows of a prompt, read at once."""
        cache = HybridCache(self.config, CacheSettings(window=window, context=CONTEXT, select=select, kv_dtype="bf16"))
        cache.expect(rows)
        draw = torch.Generator().manual_seed(6)
        self._run(torch.randint(VOCABULARY, (1, rows), generator=draw), cache)
        cache.expect(0)
        return cache

    def step(self, cache: HybridCache, token: int, graph: GraphStep | None = None) -> int:
        """One more token; the likeliest next one, as a number of Python's. graph: of this cache."""
        ids = torch.tensor([[token]])
        if graph is None:
            return int(self._run(ids, cache).argmax())
        with torch.inference_mode():
            return int(graph.step(ids.to(self.device)).argmax())

    def graph(self, cache: HybridCache) -> GraphStep | None:
        """What computes a token of this cache in a CUDA graph; None where that cannot be."""
        served = self.device.type == "cuda" and GraphStep.serves(cache) and trouble(self.device) is None
        return GraphStep(self._model, cache) if served else None

    def _run(self, ids: Tensor, cache: HybridCache) -> Tensor:
        with torch.inference_mode():
            return next_logits(self._model, ids.to(self.device), cache)


def build_without_memory(config: Any, *, trust_remote_code: bool = False) -> int:
    """Numbers of the weights of the model that a config describes. Raises what transformers raises."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())
