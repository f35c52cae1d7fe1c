"""A number hidden in a long text: does each policy still find it?

    python benchmarks/passkey.py --text book.txt --lengths 1000 2000 4000 --count 20

Every prompt is read once, exactly. Then each policy answers greedily from the same cache, which is rewound in between.
`full` is transformers' sdpa. With --appended the question comes as a turn of its own, so that the moving average judges
the whole store again by the question's tokens; without it, document and question are one turn and its sets are what was
worth keeping before the question was read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path

import torch

import hgca_cli.hf.attention  # noqa: F401  (registers "hgca")
from hgca_cli import native
from hgca_cli.attention.select.exact import Exact
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.select.window import WindowOnly
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.registry import resolve

FIXED = {"exact": Exact, "window": WindowOnly}
ANSWER = 14  # tokens: "The pass key is", five digits, and some to spare
QUESTION = "\n\nWhat is the pass key? Answer with the number only."


def make_prompt(loaded: LoadedModel, text: list[int], length: int, key: int, seed: int) -> tuple[list[int], int]:
    """Prompt ids of about `length` tokens with the key at a random depth, and where the question begins."""
    draw = random.Random(seed)
    tokenizer = loaded.tokenizer
    start = draw.randrange(max(1, len(text) - length))
    depth = draw.uniform(0.05, 0.8)
    cut = start + int(length * depth)
    before, after = tokenizer.decode(text[start:cut]), tokenizer.decode(text[cut : start + length])
    document = f"{before}\n\nThe pass key is {key}. Remember it: {key} is the pass key.\n\n{after}"
    whole = tokenizer.encode_chat([{"role": "user", "content": document + QUESTION}], add_generation_prompt=True)
    tail = len(tokenizer.encode(QUESTION, special=False)) + 6
    return whole, len(whole) - tail


@torch.inference_mode()
def answer(loaded: LoadedModel, cache: object, last: int, count: int) -> str:
    """Up to `count` greedy tokens after token `last`, which is not in the cache yet."""
    ids: list[int] = []
    token = last
    while len(ids) < count:
        output = loaded.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        token = int(output.logits[0, -1].argmax())
        if token in loaded.tokenizer.end_ids:
            break
        ids.append(token)
    return loaded.tokenizer.decode(ids)


@torch.inference_mode()
def read(loaded: LoadedModel, cache: HybridCache, ids: list[int], chunk: int) -> None:
    """One turn's prompt."""
    cache.expect(len(ids))
    for piece in torch.tensor([ids]).split(chunk, dim=1):
        loaded.model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)


def take_over(cache: HybridCache, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill a cache with the keys and values [1, kv_heads, n, dim] another prefill made."""
    with torch.inference_mode():
        for layer, (keys, values) in zip(cache.layers, rows, strict=True):
            layer.lazy_initialization(keys, values)
            layer.states[0].append_chunk(keys[0], values[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--beta", type=float, nargs="+", default=[1.0])
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0], help="0: 2 / (window + 1)")
    parser.add_argument("--pool", nargs="+", default=["mean"])
    parser.add_argument("--appended", action="store_true")
    parser.add_argument("--policies", nargs="+", default=["moving-average", "exact", "window"])
    parser.add_argument("--share-prefill", action="store_true", help="exact decodes from the rows sdpa's prefill made")
    parser.add_argument("--no-full", action="store_true", help="leave transformers' sdpa out")
    options = parser.parse_args()
    native.share_openmp(True)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    text = loaded.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))

    for length in options.lengths:
        right: dict[str, int] = {}
        share: dict[str, float] = {}
        began = time.perf_counter()
        for seed in range(options.count):
            key = random.Random(1000 + seed).randrange(10000, 100000)
            ids, question = make_prompt(loaded, text, length, key, seed)
            for name, said, read_share in answers(loaded, ids, question, options):
                right[name] = right.get(name, 0) + (str(key) in said)
                share[name] = share.get(name, 0.0) + read_share / options.count
        line = {
            "benchmark": "passkey",
            "length": length,
            "count": options.count,
            "window": options.window,
            "question": "appended turn" if options.appended else "same turn",
            "right": right,
            "read_share": {name: round(value, 4) for name, value in share.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps(line), flush=True)


def answers(
    loaded: LoadedModel, ids: list[int], question: int, options: argparse.Namespace
) -> list[tuple[str, str, float]]:
    """(policy, answer, share of the store read) of every policy for one prompt."""
    said: list[tuple[str, str, float]] = []
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    if not options.no_full:
        loaded.model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            out = loaded.model(input_ids=torch.tensor([ids[:-1]]), use_cache=True, logits_to_keep=1)
        rows = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        said.append(("full", answer(loaded, out.past_key_values, ids[-1], ANSWER), 1.0))
    loaded.model.set_attn_implementation("hgca")
    variants = [(a, b, p) for a in options.alpha for b in options.beta for p in options.pool]
    for index, (alpha, beta, pool) in enumerate(variants):
        settings = CacheSettings(window=options.window, context=len(ids) + 32, select="moving-average")
        watching = partial(MovingAverage, window=options.window, beta=beta, alpha=alpha or None, pool=pool)
        choose = watching if "moving-average" in options.policies else lambda layout: Exact()
        cache = HybridCache(loaded.model.config, settings, choose)
        turns = [ids[:question], ids[question:-1]] if options.appended else [ids[:-1]]
        if options.share_prefill:
            take_over(cache, rows)
            turns = []
        for turn in turns:
            read(loaded, cache, turn, 512)
        # the moving average first: the others evict rows behind its back
        policies: list[tuple[str, type | None]] = []
        if "moving-average" in options.policies:
            policies.append((f"moving-average alpha={alpha or 'auto'} beta={beta} {pool}", None))
        if index == 0:
            policies += [(name, kind) for name, kind in FIXED.items() if name in options.policies]
        for name, policy in policies:
            kept = [layer.states[0].selector for layer in cache.layers]
            for layer in cache.layers:
                if policy is not None:
                    layer.states[0].selector = policy()
            cache.reset_counters()
            text = answer(loaded, cache, ids[-1], ANSWER)
            said.append((name, text, cache.rows().read_share))
            for layer, selector in zip(cache.layers, kept, strict=True):
                layer.states[0].selector = selector
            cache.rewind(len(ids) - 1)
        cache.close()
    return said


if __name__ == "__main__":
    main()
