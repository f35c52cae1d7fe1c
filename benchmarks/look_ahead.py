"""What choosing rows by a foreseen query costs in fidelity: scan with the device's codes, by the true query and one layer ahead.

    python benchmarks/look_ahead.py --text book.txt [--model smollm2-135m] [--rows 4096] [--window 256] [--positions 256] [--record]

Teacher-forced over a text, the device tier on the CPU: the model's own sdpa logits of one pass, then the same positions token by
token through hf/graph.py. KL to sdpa, the share of positions with the same likeliest token, and the share of the store that was read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.load import forward, load_model
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "look_ahead.jsonl"
SKIPPED = 2000  # tokens at a text's beginning: titles and tables of contents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--quality", type=float, default=0.95)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    model, lines = loaded.model, []
    for text in options.text:
        ids = loaded.tokenizer.encode(text.read_text(encoding="utf-8-sig"))[SKIPPED : SKIPPED + options.rows]
        tokens = torch.tensor([ids])
        first = options.rows - options.positions
        with torch.inference_mode():
            model.set_attn_implementation("sdpa")
            wanted = model(input_ids=tokens, use_cache=False, logits_to_keep=options.positions).logits[0]
            model.set_attn_implementation(hgca_cli.hf.attention.NAME)
            for ahead in (False, True):
                settings = CacheSettings(
                    window=options.window, context=options.rows, select="scan", quality=options.quality,
                    kv_dtype="bf16", device_codes=True, look_ahead=ahead,
                )  # fmt: skip
                cache = HybridCache(model.config, settings)
                cache.expect(first)
                for piece in tokens[:, :first].split(512, dim=1):
                    forward(model, piece, cache, logits_to_keep=1)
                cache.expect(0)
                step = GraphStep(model, cache)
                got = torch.stack([step.step(tokens[:, at : at + 1])[0] for at in range(first, options.rows)])
                kl = F.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1)
                line = {
                    "text": text.name, "rows": options.rows, "look_ahead": ahead, "kl": float(kl.mean()),
                    "kl_error": float(kl.std() / len(kl) ** 0.5), "same": float((got.argmax(-1) == wanted.argmax(-1)).float().mean()),
                    "read_share": cache.rows().read_share,
                }  # fmt: skip
                print(
                    "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
                    flush=True,
                )
                lines.append(line)
                cache.close()
    if options.record:
        head = {"benchmark": "look_ahead", **where_and_when(native.threads()), "model": options.model}
        with RESULTS.open("a") as file:
            file.write(json.dumps(head | {"lines": lines}) + "\n")


if __name__ == "__main__":
    main()
