"""Reading a prompt, batch 1: our chunks beside the model's own sdpa attention with a DynamicCache, in turns.

    python -m benchmarks.prefill --text book.txt [--tokens 8192] [--chunk 512] [--kv-dtype fp32 bf16] [--record]

Every side reads the same chunks of the same text, one after the other, so that what disturbs one disturbs all. Where our
time goes: attention of a chunk to itself, the window and the store, rows taken in (window, eviction, store), the policy's index,
and the rest: products, norms, rotary positions, Python.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import DynamicCache

import hgca_cli.hf.attention
from benchmarks.batch import Clock, add_clock, set_clock
from hgca_cli import native
from hgca_cli.attention import stream
from hgca_cli.attention.layer import LayerState
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "prefill.jsonl"

PARTS = ("attention", "taken in", "index", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--select", default="exact")
    parser.add_argument("--kv-dtype", nargs="+", default=["fp32"])
    add_clock(parser)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    set_clock(options)
    native.share_openmp(True)
    plain = load_model(resolve(options.model), device="cpu", dtype="fp32")
    plain.model.set_attn_implementation("sdpa")
    quick = load_model(resolve(options.model), device="cpu", dtype="fp32")
    quick.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    quicken(quick.model)
    ids = torch.tensor([plain.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.tokens]])
    sides = {"sdpa": Reading(plain, DynamicCache())}
    for kind in options.kv_dtype:
        settings = CacheSettings(
            window=options.window, context=options.tokens + 1, select=options.select, kv_dtype=kind
        )
        sides[f"hgca {kind}"] = Reading(quick, HybridCache(quick.model.config, settings))
    for side in sides.values():
        side.expect(options.tokens)
    for piece in ids.split(options.chunk, dim=1):
        for side in sides.values():
            side.read(piece)
        print(
            f"{piece.shape[1]:6} " + ", ".join(f"{name} {side.chunks[-1]:.3f} s" for name, side in sides.items()),
            flush=True,
        )
    results = {name: side.report() for name, side in sides.items()}
    base = results["sdpa"]["seconds"]
    for name, result in results.items():
        print(
            f"{name:12} {result['seconds']:8.2f} s, {result['seconds'] / base:.2f} of sdpa's: {json.dumps(result['parts'])}"
        )
    apart = {name: float((side.logits - sides["sdpa"].logits).abs().max()) for name, side in sides.items()}
    print(f"largest difference of the last logits: {apart}")
    if options.record:
        line = {"benchmark": "prefill", **where_and_when(options.threads), "model": options.model, "dtype": "fp32"}
        line |= {name: getattr(options, name) for name in ("tokens", "chunk", "window", "select", "cpu_time")}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | {"results": results, "logits_apart": apart}) + "\n")


class Reading:
    """One side: what a chunk took, and of which what."""

    def __init__(self, loaded: LoadedModel, cache: Any) -> None:
        self._loaded, self._cache = loaded, cache
        self.chunks: list[float] = []
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def expect(self, tokens: int) -> None:
        """The whole prompt, for a cache that wants to know."""
        if isinstance(self._cache, HybridCache):
            self._cache.expect(tokens)

    @torch.inference_mode()
    def read(self, piece: torch.Tensor) -> None:
        """One chunk more."""
        with timed_parts(self.parts):
            began = Clock.now()
            self.logits = self._loaded.forward(piece, self._cache, logits_to_keep=1).logits[0, -1]
            self.chunks.append(Clock.now() - began)

    def report(self) -> dict[str, Any]:
        """Seconds: all, by part, and of the first and last quarter of the chunks."""
        whole, quarter = sum(self.chunks), max(1, len(self.chunks) // 4)
        self.parts["rest"] = whole - sum(value for name, value in self.parts.items() if name != "rest")
        ends = {"first_chunks": mean(self.chunks[:quarter]), "last_chunks": mean(self.chunks[-quarter:])}
        parts = {name: round(value, 3) for name, value in self.parts.items()}
        return {"seconds": round(whole, 3), "parts": parts, **{name: round(value, 4) for name, value in ends.items()}}


@contextmanager
def timed_parts(spent: dict[str, float]) -> Iterator[None]:
    """Adds to `spent` what the parts of prefill take; the index is inside what settling takes, and counted apart."""

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **more: Any) -> Any:
            began = Clock.now()
            result = call(*args, **more)
            spent[part] += Clock.now() - began
            return result

        return measured

    def settle(layer: LayerState) -> None:
        if layer.selector is not None:
            layer.selector.stored = timed("index", type(layer.selector).stored.__get__(layer.selector))  # type: ignore[method-assign]
        before = spent["index"]
        timed("taken in", originals[LayerState, "settle"])(layer)
        spent["taken in"] -= spent["index"] - before

    originals = {(LayerState, name): getattr(LayerState, name) for name in ("settle", "append_chunk")}
    originals |= {(stream, name): getattr(stream, name) for name in ("_full_attention", "_sliding_attention")}
    LayerState.settle = settle  # type: ignore[method-assign]
    LayerState.append_chunk = timed("taken in", LayerState.append_chunk)  # type: ignore[method-assign]
    for name in ("_full_attention", "_sliding_attention"):
        setattr(stream, name, timed("attention", getattr(stream, name)))
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


if __name__ == "__main__":
    main()
