"""Weights packed while they are loaded (--quant), beside the same model as it is: memory, speed, and what rounding moves.

    python -m benchmarks.quant [--model smollm2-135m] [--held fp32 q8 q4] [--tokens 1024] [--new 48] [--turns 3] [--record]
    python -m benchmarks.quant --shape 28,1024,3072,16,8,128,151936 --held bf16 q8 q4

Each way to hold the weights has processes of its own, one after the other, in turns. Told of each, medians: seconds to load, the
most resident memory until then and until the end (MB, a file's mapped pages counted), tokens a second of a prompt and of decoding; of a
real model also its distributions after each token of a text beside those of the first way: KL, the same next token, perplexity.
A shape (layers, width, of the block inside, heads, KV heads, of a head, vocabulary) has random weights in bf16, and no such text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "quant.jsonl"
TEXT = Path(__file__).parent.parent / "docs" / "log.md"
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--shape", help="a random model instead: layers,width,inside,heads,kv_heads,head_dim,vocabulary"
    )
    parser.add_argument("--held", nargs="+", default=["fp32", "q8", "q4"], choices=["fp32", "bf16", "file", "q8", "q4"])
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=1024, help="of the text, and of the prompt that is timed")
    parser.add_argument("--new", type=int, default=48, help="tokens that are decoded")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # way, model, where the distributions go
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options, *options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make(options.shape, Path(folder) / "model") if options.shape else options.model
        told = measure(options, model, Path(folder))
    for held, line in told.items():
        line = {"benchmark": "quant", "model": options.shape or Path(options.model).stem, "held": held} | line
        print(json.dumps(line))
        if options.record:
            with RESULTS.open("a") as file:
                file.write(json.dumps(where_and_when(THREADS) | line) + "\n")


def measure(options: argparse.Namespace, model: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of each way, medians of the turns."""
    found: dict[str, list[dict[str, float]]] = {held: [] for held in options.held}
    for turn in range(options.turns):
        for held in options.held:
            words = [sys.executable, "-m", "benchmarks.quant", *sys.argv[1:], "--one", held, model]
            words.append(str(folder / held) if turn == 0 and not options.shape else "")
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found[held].append(json.loads(done.stdout.splitlines()[-1]))
    told = {
        held: {name: round(median(one[name] for one in turns if name in one), 3) for name in turns[0]}
        for held, turns in found.items()
    }
    first = told[options.held[0]]
    for held, line in told.items():
        line |= {f"{name}_ratio": round(line[name] / first[name], 3) for name in ("prompt", "decode")}
        if not options.shape:
            line |= compared(*(torch.load(folder / one) for one in (options.held[0], held)))
    return told


def compared(want: Tensor, got: Tensor) -> dict[str, float]:
    """Of logits [tokens, vocabulary] beside others: KL in nats, and how often the likeliest token is the same."""
    kl = []
    for a, b in zip(want.split(128), got.split(128), strict=True):
        a, b = a.float().log_softmax(-1), b.float().log_softmax(-1)
        kl.append((a.exp() * (a - b)).sum(-1))
    same = (want.argmax(-1) == got.argmax(-1)).float().mean()
    return {"kl": float(f"{float(torch.cat(kl).mean()):.3g}"), "same_token": round(float(same), 4)}


def run(options: argparse.Namespace, held: str, model: str, distributions: str) -> dict[str, float]:
    """One way to hold the weights, in this process."""
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hf.load import load_model
    from hgca_cli.hf.packed import BITS
    from hgca_cli.hf.registry import resolve

    native.set_threads(THREADS)
    torch.set_num_threads(THREADS)
    files = resolve(model)
    began, before = time.perf_counter(), peak()
    how = {"quant": held} if held in BITS else {"dtype": held}
    loaded = load_model(files, **how)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    engine = Engine(
        loaded,
        CacheSettings(window=options.tokens + options.new, context=options.tokens + options.new),
        prefill_chunk=256,
    )
    after = peak()
    ids = loaded.tokenizer.encode(options.text.read_text(encoding="utf-8"))[: options.tokens]
    figures = speeds(engine, ids, options.new)
    told = {
        "load_s": seconds,
        "before_mb": before,
        "loaded_mb": after,
        "peak_mb": peak(),
        "weights_mb": loaded.weights_bytes / 1e6,
    }
    if distributions:
        with torch.inference_mode():
            sequence = engine.new_sequence()
            logits = loaded.forward(torch.tensor([ids]), sequence.cache).logits[0]
            sequence.close()
        torch.save(logits, distributions)
        nll = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]))
        told["perplexity"] = float(nll.exp())
    return told | figures


def speeds(engine: Any, ids: list[int], new: int) -> dict[str, float]:
    """Tokens a second of reading a prompt and of writing after it."""
    sampling = SamplingSettings(temperature=0.0, max_tokens=new)
    for warm in (ids[:40], ids):
        sequence = engine.new_sequence()
        *_, done = engine.answer(sequence, warm, sampling, threading.Event())
        sequence.close()
    return {"prompt": len(ids) / done.prefill_seconds, "decode": (done.completion_tokens - 1) / done.decode_seconds}


def peak() -> float:
    """Most resident memory of this process so far, MB. Not getrusage's, which begins with that of the process before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def make(shape: str, folder: Path) -> str:
    """A random model of the shape on disk, with the default model's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from hgca_cli.hf.registry import DEFAULT, resolve

    layers, width, inside, heads, kv_heads, head_dim, vocabulary = map(int, shape.split(","))
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(resolve(DEFAULT).path).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
