"""A prompt in float32 with torch's own products and with those of hf/products.py, in turns: a random model in Qwen3 0.6B's shape.

    python -m benchmarks.products [--tokens 2048 300 40] [--chunk 512] [--turns 5]

The same chunks of the same random text through the hybrid cache, exact attention: seconds of every turn, medians, how far the
last logits are apart, and resident memory after all turns, in which whatever oneDNN keeps is.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.hf import products
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import forward
from hgca_cli.hf.quicken import quicken

VOCABULARY = 32000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 300, 40])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    native.share_openmp(True)
    model = random_model()
    ids = torch.randint(0, VOCABULARY, (1, max(options.tokens)), generator=torch.Generator().manual_seed(4))
    print(f"{products.maker()}, {native.isa()}: oneDNN {'is' if products.faster() else 'is not'} used")
    sides = {
        "torch": products.OneDNN(lambda: None),
        "ours": products.here(),
    }  # the first computes nothing, so torch does
    for tokens in options.tokens:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        logits = {}
        for _ in range(options.turns + 1):
            for name, side in sides.items():
                products.here = lambda side=side: side  # type: ignore[assignment,misc]
                took, logits[name] = read(model, ids[:, :tokens], options.chunk)
                seconds[name].append(took)
        kept = {name: several[1:] for name, several in seconds.items()}  # all counts of vectors were met once
        apart = (logits["ours"] - logits["torch"]).norm() / logits["torch"].norm()
        before, after = (median(kept[name]) for name in ("torch", "ours"))
        print(
            f"{tokens:6} tokens: {before:.2f} s -> {after:.2f} s, {before / after:.2f} times; logits {apart:.1e} apart"
        )
        print(f"       { ({name: [round(one, 2) for one in several] for name, several in kept.items()}) }", flush=True)
    print(f"{psutil.Process().memory_info().rss / 1e6:.0f} MB resident")


def random_model() -> Any:
    """28 layers of 1,024 numbers in float32 that bf16 holds."""
    torch.manual_seed(3)
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        )
    )
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    quicken(model)
    return model


@torch.inference_mode()
def read(model: Any, ids: torch.Tensor, chunk: int) -> tuple[float, torch.Tensor]:
    """Seconds that a prompt took, and the logits after it."""
    tokens = ids.shape[1]
    cache = HybridCache(model.config, CacheSettings(window=1024, context=tokens + 1, select="exact"))
    cache.expect(tokens)
    began = time.perf_counter()
    for piece in ids.split(chunk, dim=1):
        logits = forward(model, piece, cache, logits_to_keep=1).logits[0, -1]
    return time.perf_counter() - began, logits


if __name__ == "__main__":
    main()
