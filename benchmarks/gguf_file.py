"""A GGUF file as people have it: hgca as it plans, beside llama.cpp, on the CPU.

    python benchmarks/gguf_file.py model-q4_k_m.gguf --text book.txt [--tokens 8000] [--new 48] [--turns 3] [--record]

Each side has processes of its own, in turns: the file is loaded, so many tokens of the text are read, then tokens are
written one by one. Told are medians of seconds to load (the file was read, and its packed weights kept, before: `first_s`
and `disk_mb` are what that takes in an empty cache, Python's own start included), tokens a second of reading and of
writing, and the most resident memory (MB, a file's mapped pages counted). llama.cpp has flash attention off and on. hgca
has the plan a chat would have: weights as in the file, and a policy that chooses rows; --select exact reads all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from quant import peak

from hgca_cli.hf.places import on_disk
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "gguf_file.jsonl"
SIDES = ("hgca", "llama.cpp", "llama.cpp flash")
BATCH = 512  # tokens llama.cpp reads at once, its default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--select", default=None, help="hgca's policy; default: the planner's")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(options) if options.one == "hgca" else llama_cpp(options, options.one.endswith("flash"))))
        return
    with tempfile.TemporaryDirectory(prefix="hgca-") as cache:
        began = time.perf_counter()
        run("hgca", ["--tokens", "64", "--new", "4"], HGCA_CACHE_DIR=cache)
        first = time.perf_counter() - began
        disk = sum(on_disk(one.stat()) for one in Path(cache).rglob("*") if one.is_file())
    run("hgca", ["--tokens", "64", "--new", "4"])  # with the usual cache
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.turns):
        for side in SIDES:
            found[side].append(run(side))
    told: dict[str, Any] = {
        "benchmark": "gguf_file",
        "model": options.model.stem,
        "tokens": options.tokens,
        "first_s": round(first, 1),
        "disk_mb": round(disk / 1e6),
    }
    print(f"first start {first:.1f} s, {disk / 1e6:,.0f} MB of disk")
    for side, turns in found.items():
        told[side] = {name: round(median(one[name] for one in turns), 2) for name in turns[0]}
        print(f"{side:16}", told[side])
    for name in ("read", "write"):
        best = max(told[side][name] for side in SIDES[1:])
        told[f"{name}_over_llama_cpp"] = round(told["hgca"][name] / best, 2)
        print(f"{name}: {told[f'{name}_over_llama_cpp']} times llama.cpp's better setting")
    if options.record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(where_and_when(options.threads) | told) + "\n")


def run(side: str, more: list[str] | None = None, **variables: str) -> dict[str, float]:
    """One side's figures, of a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], *(more or []), "--one", side]
    return figures_of(words, os.environ | variables)


def figures_of(words: list[str], environ: dict[str, str]) -> dict[str, float]:
    """What a process says in its last line."""
    done = subprocess.run(words, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(
            f"{words[-1]}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ours(options: argparse.Namespace) -> dict[str, float]:
    import threading

    from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
    from hgca_cli.config import SamplingSettings
    from hgca_cli.hardware.settings import PlanRequest

    request = PlanRequest(
        device="cpu", context=options.tokens + options.new + 64, threads=options.threads, select=options.select
    )
    began = time.perf_counter()
    choice = ModelChoice(str(options.model))
    files, plan = plan_model(choice, request, lambda _: None, profile="auto")
    engine = start_engine(choice, files, plan)
    loaded = time.perf_counter() - began
    ids = engine.loaded.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.tokens]
    sampling = SamplingSettings(temperature=0.0, max_tokens=options.new)
    *_, done = engine.answer(engine.new_sequence(), ids, sampling, threading.Event())
    return {
        "load_s": loaded,
        "read": len(ids) / done.prefill_seconds,
        "write": (done.completion_tokens - 1) / done.decode_seconds,
        "peak_mb": peak(),
    }


def llama_cpp(options: argparse.Namespace, flash: bool) -> dict[str, float]:
    from llama_cpp import Llama

    began = time.perf_counter()
    model = Llama(
        str(options.model), n_ctx=options.tokens + options.new + 64, n_threads=options.threads, n_threads_batch=options.threads,
        n_batch=BATCH, flash_attn=flash, verbose=False,
    )  # fmt: skip
    loaded = time.perf_counter() - began
    ids = model.tokenize(options.text.read_text(encoding="utf-8-sig").encode())[: options.tokens]
    began = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(options.new):
        model.eval([model.sample(temp=0.0)])
    return {
        "load_s": loaded,
        "read": len(ids) / read,
        "write": options.new / (time.perf_counter() - began),
        "peak_mb": peak(),
    }


if __name__ == "__main__":
    main()
