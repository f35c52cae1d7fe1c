"""Decode over long stores, made up of the rows of a text: tokens per second after 8k, 32k, 128k, 512k rows.

    python benchmarks/long.py [--rows 8192 131072 524288] [--select cluster scan] [--layers 3] [--store-dir DIR] [--record]

The rows of 8,192 tokens stand in the store again and again, newest last, as the store has them at that length (bf16, the
policy's index beside it). A segment that is clustered holds no row twice. Keys of older copies are moved against the direction
in which the text's queries point, so that copy j from the newest holds about 1 / j² of its attention: a policy that keeps a mass
reads few more rows of a text twice as long (hardware/expected.py), and not as large a share. What was read is told. Some layers,
evenly spread, have the long store, all others none: a token's time is that without any, and the rest scaled to all layers.
Sides take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decode import kept_text
from decode_sides import Text

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.config import QUALITY, CacheSettings
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf import model_cache
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.kv.store import Store
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "long.jsonl"
TEXT_ROWS, TOKENS, PIECE = 8192, 8, 2048
FADE = 2.0  # exponent with which the attention to older copies falls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 32768, 131_072, 524_288])
    parser.add_argument("--select", nargs="+", default=["cluster", "scan"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--store-dir", help="rows in files there")
    parser.add_argument("--keep", type=Path, default=None, help="as of decode.py")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    keep = options.keep or model_cache.cache_dir(print) / "benchmarks"
    keep.mkdir(parents=True, exist_ok=True)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    text = kept_text(loaded, None, TEXT_ROWS, keep)
    loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    against = directions(loaded, text, options)
    quicken(loaded.model)
    sides = {"no store": Long(loaded, text, 0, "exact", options, against)}
    for select in options.select:
        for rows in options.rows:
            began = time.perf_counter()
            sides[f"{select} {rows}"] = Long(loaded, text, rows, select, options, against)
            print(f"{select}, {rows:,} rows: made in {time.perf_counter() - began:.0f} s", flush=True)
    for turn in range(options.turns + 1):
        for side in sides.values():
            side.turn(text, turn)
    results = report(sides, len(text.keys), options)
    if options.record:
        line = {"benchmark": "long", **where_and_when(options.threads), "model": options.model, "results": results}
        line |= {name: getattr(options, name) for name in ("window", "layers")} | {"in_files": bool(options.store_dir)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Long:
    """A sequence of which some layers have a long store. rows: of these; 0: the window is all there is."""

    def __init__(
        self,
        loaded: LoadedModel,
        text: Text,
        rows: int,
        select: str,
        options: argparse.Namespace,
        against: list[torch.Tensor],
    ) -> None:
        self._loaded = loaded
        self.seconds: list[float] = []
        self.shares: list[float] = []
        self.stages: list[dict[str, float]] = []
        self._first = TEXT_ROWS - (options.turns + 1) * TOKENS
        settings = CacheSettings(
            window=options.window, context=max(rows, TEXT_ROWS) + TEXT_ROWS, select=select, kv_dtype="bf16",
            quality=None if select == "exact" else QUALITY, store_dir=options.store_dir,
        )  # fmt: skip
        cache = HybridCache(loaded.model.config, settings)
        every = len(text.keys)
        self.long = [(2 * one + 1) * every // (2 * options.layers) for one in range(options.layers)] if rows else []
        for index, (layer, keys, values) in enumerate(zip(cache.layers, text.keys, text.values, strict=True)):
            layer.lazy_initialization(keys[None, :, :1], values[None, :, :1])
            (state,) = layer.states
            if index in self.long:
                fill(state, keys[:, : self._first], values[:, : self._first], rows, against[index])
            newest = slice(self._first - settings.window // 2, self._first)
            state.append_chunk(keys[:, newest], values[:, newest])
            state.settle()
        cache.layers[0].get_seq_length = lambda: self._first + len(self.seconds)  # type: ignore[method-assign]  # the position
        self._sequence = Sequence(cache)

    def turn(self, text: Text, turn: int) -> None:
        """A few tokens; those of the first turn do not count."""
        states = [self._sequence.cache.layers[index].states[0] for index in self.long]
        for token in text.ids[self._first + turn * TOKENS :][:TOKENS]:
            began = time.perf_counter()
            int(self._sequence.forward(self._loaded, torch.tensor([[token]])).argmax())
            self.seconds.append(time.perf_counter() - began)
            self.shares += [read_share(state) for state in states]
            self.stages += [stages(state) for state in states]


def directions(loaded: LoadedModel, text: Text, options: argparse.Namespace) -> list[torch.Tensor]:
    """For each layer what a key [kv_heads, dim] is moved by so that scores of the text's queries fall by one, on the average."""
    asked: list[list[torch.Tensor]] = [[] for _ in text.keys]
    layers = itertools.cycle(range(len(text.keys)))
    attend = hgca_cli.hf.attention.decode_attention

    def listen(query: torch.Tensor, *rest: Any, scale: float, **more: Any) -> torch.Tensor:
        asked[next(layers)].append(scale * query[0])
        return attend(query, *rest, scale=scale, **more)

    hgca_cli.hf.attention.decode_attention = listen
    side = Long(loaded, text, 0, "exact", options, [])
    for turn in range(options.turns + 1):
        side.turn(text, turn)
    hgca_cli.hf.attention.decode_attention = attend
    moved = []
    for layer, keys in zip(asked, text.keys, strict=True):
        mean = torch.stack(layer).mean(0).view(keys.shape[0], -1, keys.shape[2]).mean(1)  # of a group's heads
        moved.append(-mean / mean.square().sum(-1, keepdim=True))
    return moved


def fill(state: LayerState, keys: torch.Tensor, values: torch.Tensor, rows: int, against: torch.Tensor) -> None:
    """So many rows into the store, the text's again and again, the whole text last; and the policy's index of them."""
    store = state.store
    assert store is not None
    count = keys.shape[1]
    before = rows - rows // count * count
    order = torch.cat([torch.arange(count - before, count), *[torch.arange(count)] * (rows // count)])
    for first in range(0, rows, PIECE):
        piece = order[first : first + PIECE]
        copy = (rows - 1 - torch.arange(first, first + len(piece))) // count + 1
        store.append(keys[:, piece] + FADE * copy.log()[:, None] * against[:, None], values[:, piece])
        state.selector.stored(store)
    state.selector.choose(torch.empty(0), store)  # what is clustered is waited for, and taken in


def read_share(state: LayerState) -> float:
    """Of the rows in a store, those the last token read."""
    store: Store | None = state.store
    last = state.reads.last
    return last.reads.read / (store.rows * last.kv_heads) if store is not None and last is not None else 1.0


def stages(state: LayerState) -> dict[str, float]:
    """Milliseconds of threads of each stage of the last token's attention in one layer."""
    if (last := state.reads.last) is None:
        return {}
    reads = last.reads
    told = {
        "groups": reads.group_seconds,
        "codes": reads.scan_seconds,
        "choice": reads.choose_seconds,
        "rows": reads.read_seconds,
    }
    return {name: 1e3 * seconds for name, seconds in told.items()}


def report(sides: dict[str, Long], layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Prints each side; returns what is recorded."""
    told = {name: median(side.seconds[TOKENS:]) for name, side in sides.items()}
    none = told.pop("no store")
    print(f"no store: {1e3 * none:.1f} ms a token", flush=True)
    results: dict[str, Any] = {"no store": {"ms": round(1e3 * none, 3)}}
    for name, seconds in told.items():
        whole = none + (seconds - none) * layers / options.layers
        shortest = results.get(f"{name.split()[0]} {options.rows[0]}", {"tok_s": 1 / whole})["tok_s"]
        share = median(sides[name].shares[TOKENS * options.layers :])
        late = sides[name].stages[TOKENS * options.layers :]
        spent = {stage: layers * median(one[stage] for one in late) for stage in late[0]}
        print(
            f"{name:18} {1 / whole:7.2f} tok/s, {1 / whole / shortest:.2f} of that at {options.rows[0]:,}, {share:.2%} read; "
            + "ms of threads: "
            + ", ".join(f"{stage} {taken:.1f}" for stage, taken in spent.items())
        )
        results[name] = {
            "tok_s": round(1 / whole, 3),
            "ms": round(1e3 * whole, 3),
            "read_share": round(share, 5),
            "thread_ms": spent,
        }
    return results


if __name__ == "__main__":
    main()
