"""What the moving average's free choices cost: KL against exact attention, teacher-forced after a long prefix.

    python benchmarks/moving_average.py --texts book.txt wiki.txt --prefix 2048 --steps 96 --window 256

For each variant (alpha, beta, pooling of the group) the prefix is read once, exactly, the policy watching; then the next
tokens of the text are fed one by one and their logits compared with those of `exact`. One line per variant: mean KL in
nats, share of steps whose likeliest token agrees, share of the store that was read.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.attention.select.exact import Exact
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.select.window import WindowOnly
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.registry import resolve


@torch.inference_mode()
def follow(
    loaded: LoadedModel, ids: list[int], prefix: int, window: int, policy: Callable[..., Any]
) -> tuple[Tensor, float]:
    """Log-probabilities [steps, vocabulary] of the tokens after the prefix, and the share of the store read."""
    settings = CacheSettings(window=window, context=len(ids) + 1)
    cache = HybridCache(loaded.model.config, settings, policy)
    cache.expect(prefix)
    for piece in torch.tensor([ids[:prefix]]).split(512, dim=1):
        loaded.model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    rows = []
    for token in ids[prefix:]:
        output = loaded.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        rows.append(output.logits[0, -1].log_softmax(-1))
    share = cache.rows().read_share
    cache.close()
    return torch.stack(rows), share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--prefix", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5, 2 / 257, 0.001])
    parser.add_argument("--beta", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--pool", nargs="+", default=["mean", "max", "none"])
    options = parser.parse_args()
    native.share_openmp(True)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    policies: dict[str, Callable[..., Any]] = {"window": lambda layout: WindowOnly()}
    for alpha, beta, pool in itertools.product(options.alpha, options.beta, options.pool):
        name = f"moving-average alpha={alpha:.4g} beta={beta:g} pool={pool}"
        policies[name] = partial(MovingAverage, window=options.window, alpha=alpha, beta=beta, pool=pool)
    texts = [loaded.tokenizer.encode(path.read_text(encoding="utf-8-sig")) for path in options.texts]
    texts = [ids[5000 : 5000 + options.prefix + options.steps] for ids in texts]
    exact = [follow(loaded, ids, options.prefix, options.window, lambda layout: Exact())[0] for ids in texts]
    for name, policy in policies.items():
        kl, agree, read = 0.0, 0.0, 0.0
        for ids, want in zip(texts, exact, strict=True):
            got, share = follow(loaded, ids, options.prefix, options.window, policy)
            kl += float((want.exp() * (want - got)).sum(-1).mean()) / len(texts)
            agree += float((want.argmax(-1) == got.argmax(-1)).float().mean()) / len(texts)
            read += share / len(texts)
        print(
            json.dumps({"policy": name, "kl": round(kl, 4), "agree": round(agree, 3), "read": round(read, 4)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
