"""Is `exact` the model's own attention? Greedy tokens and logits against transformers' sdpa, over a long document.

    python benchmarks/parity.py --text book.txt --tokens 7000 --window 512 --new 128 [--device cuda] [--dtype bf16 --tolerance 0.5]

Both sides read the same prompt, on the same device; the hybrid side reads it in chunks, with all but sinks and window in the
store. Tokens are compared up to the first near-tie (the two best logits of sdpa closer than 1e-3); logits at every
step while the tokens agree. Exits with 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import hgca_cli.hf.attention  # noqa: F401  (registers "hgca")
from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import forward, load_model
from hgca_cli.hf.registry import resolve

NEAR_TIE = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--question", default="Who writes the letters, and to whom?")
    parser.add_argument("--tokens", type=int, default=7000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of logits")
    options = parser.parse_args()

    native.share_openmp(options.device == "cpu")
    loaded = load_model(resolve(options.model), device=options.device, dtype=options.dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    excerpt = tokenizer.decode(tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.tokens])
    messages = [{"role": "user", "content": f"{excerpt}\n\n{options.question}"}]
    prompt = torch.tensor([tokenizer.encode_chat(messages, add_generation_prompt=True)], device=loaded.device)
    print(
        f"prompt {prompt.shape[1]:,} tokens, window {options.window}, {options.new} new tokens, {options.dtype} on {loaded.device}"
    )

    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        began = time.perf_counter()
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        theirs = greedy(model, output, options.new)
        their_seconds = time.perf_counter() - began

        model.set_attn_implementation("hgca")
        cache = HybridCache(model.config, CacheSettings(window=options.window, context=prompt.shape[1] + options.new))
        cache.expect(prompt.shape[1])
        sequence = Sequence(cache)  # as a chat computes them: on a GPU a token is a CUDA graph
        began = time.perf_counter()
        for piece in prompt.split(options.chunk, dim=1):
            logits = sequence.forward(loaded, piece)
            sequence.tokens += piece[0].tolist()
        ours = [logits.flatten().float().clone()]
        while len(ours) < options.new:
            token = ours[-1].argmax().reshape(1, 1)
            sequence.tokens.append(int(token))
            ours.append(sequence.forward(loaded, token).flatten().float().clone())
        our_seconds = time.perf_counter() - began

    agreed, worst, tie = compare(theirs, ours)
    rows = cache.rows()
    verdict = {
        "agreed_tokens": agreed,
        "new_tokens": options.new,
        "stopped_at_near_tie": tie,
        "max_logit_difference": worst,
        "rows_window": rows.window,
        "rows_store": rows.store,
        "read_share": rows.read_share,
        "no_graph": sequence.no_graph,
        "seconds_sdpa": round(their_seconds, 2),
        "seconds_hgca": round(our_seconds, 2),
    }
    print(json.dumps(verdict))
    return 0 if (agreed == options.new or tie) and worst <= options.tolerance else 1


def greedy(model: torch.nn.Module, output: object, count: int) -> list[torch.Tensor]:
    """Logits [vocabulary] of `count` greedy steps, from the prompt's last."""
    logits = [output.logits[0, -1].float().clone()]  # type: ignore[attr-defined]
    cache = output.past_key_values  # type: ignore[attr-defined]
    while len(logits) < count:
        token = logits[-1].argmax().reshape(1, 1)
        logits.append(forward(model, token, cache).logits[0, -1].float().clone())
    return logits


def compare(theirs: list[torch.Tensor], ours: list[torch.Tensor]) -> tuple[int, float, bool]:
    """Tokens that agree, the largest difference of logits meanwhile, and whether a near-tie ended it."""
    worst = 0.0
    for step, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        worst = max(worst, float((a - b).abs().max()))
        if a.argmax() != b.argmax():
            first, second = a.topk(2).values.tolist()
            return step, worst, first - second < NEAR_TIE
    return len(theirs), worst, False


if __name__ == "__main__":
    sys.exit(main())
