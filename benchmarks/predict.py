"""Predicted beside measured: a token of the default model at several lengths, one layer's attention of an 8B shape.

    python benchmarks/predict.py [--profile auto|FILE] [--rows 512 2048 4096 8192] [--grid] [--record]

The machine is measured in the same process first (--quick: as a chat does), unless --profile names a file. What is measured
is the engine's own step, and the kernels' call for one layer. --grid decodes with 12 settings of the same quality or better, and
compares the planned one with the best of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decode_sides import Ours, Text
from selection import CHUNK, mixture, query_of

from hgca_cli import native, selection
from hgca_cli.attention.select.scan import Scan
from hgca_cli.commands.describe import describe
from hgca_cli.config import QUALITY, CacheSettings
from hgca_cli.hardware.cost import Costs
from hgca_cli.hardware.memory import Choice, Model
from hgca_cli.hardware.plan import make_plan
from hgca_cli.hardware.probe import probe_machine
from hgca_cli.hardware.probes.run import measure_profile
from hgca_cli.hardware.profile import read as read_profile
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.hf import model_cache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "predict.jsonl"
TOKENS = 8  # of a turn
SHAPE = LayerLayout(32, 8, 128, 128)
WINDOWS, POLICIES, KV = (256, 512, 1024), ("scan", "exact"), ("bf16", "fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", help="a file; default: measured now")
    parser.add_argument("--quick", action="store_true", help="measure the machine as a first chat does")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048, 4096, 8192])
    parser.add_argument("--layer-rows", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    profile = read_profile(Path(options.profile)) if options.profile else measure_profile(quick=options.quick)
    threads = profile.host.usable
    native.set_threads(threads)
    torch.set_num_threads(threads)
    lines = layers(profile, options.layer_rows, threads, options.turns)
    files = resolve("smollm2-135m")
    model = describe(files, False)
    loaded = load_model(files)
    quicken(loaded.model)
    text = made_up(loaded, max(options.rows) + 1)
    lines += tokens(profile, model, loaded, text, options, threads)
    grid = (
        compare_grid(profile, model, loaded, text, max(options.rows), options.turns, threads) if options.grid else None
    )
    if options.record:
        line = {"benchmark": "predict", **where_and_when(threads), "quick": profile.quick, "lines": lines, "grid": grid}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def layers(profile: Profile, lengths: list[int], threads: int, turns: int) -> list[dict[str, Any]]:
    """One layer of an 8B shape over so many rows in the store, all and chosen: predicted and measured."""
    lines = []
    draw = torch.Generator().manual_seed(20250703)
    model = Model(KVLayout((SHAPE,)), 0, 0, 4096, 14336, 0)
    cold = torch.ones(48 << 20)
    for rows in lengths:
        store = Store(SHAPE, rows, torch.bfloat16)
        keys, centres = mixture(SHAPE.kv_heads, rows, SHAPE.key_dim, draw)
        for first in range(0, rows, CHUNK):
            piece = keys[:, first : first + CHUNK]
            store.append(piece, torch.randn(piece.shape, generator=draw))
        del keys
        scan = Scan(SHAPE, rows, mass=QUALITY, budget=0.01)
        scan.stored(store)
        for select in ("exact", "scan"):
            taken = []
            for _ in range(turns + 1):
                query = query_of(centres, SHAPE.heads, 1.5, draw)
                cold.add_(1.0)
                time.sleep(0.02)
                began = time.perf_counter()
                if select == "exact":
                    native.start([native.Step(query, store.read, rows, SHAPE.key_dim**-0.5)]).wait()
                else:
                    chosen = scan.choose(query, store)
                    assert chosen is not None
                    selection.start([selection.Aimed(chosen, query, SHAPE.key_dim**-0.5)]).wait()
                taken.append(time.perf_counter() - began)
            choice = Choice("cpu", "bf16", "bf16", rows, 1, 0, 512, select)
            host = profile.host
            bare = replace(profile, host=replace(host, layer_us=0.0, store_us=0.0, token_us=0.0))
            step = Costs(bare, model, budget=0.01).decode(replace(choice, context=rows + 1), threads)
            lines.append(told(f"layer {rows:,} {select}", step.host, median(taken[1:])))
    return lines


def tokens(
    profile: Profile, model: Model, loaded: LoadedModel, text: Text, options: argparse.Namespace, threads: int
) -> list[dict[str, Any]]:
    """A token of the default model after so many rows."""
    lines = []
    for rows, select in itertools.product(options.rows, POLICIES):
        request = PlanRequest(context=rows, window=min(512, rows - 5), select=select, device="cpu")
        plan = make_plan(model, probe_machine(), request, profile)
        (seconds,) = timed(loaded, text, rows, [plan.cache], options.turns)
        lines.append(told(f"token {rows:,} {select}", plan.predicted.step.total, seconds))
    return lines


def compare_grid(
    profile: Profile, model: Model, loaded: LoadedModel, text: Text, rows: int, turns: int, threads: int
) -> dict[str, Any]:
    """Decode with 12 settings and with the planned one, in turns."""
    plan = make_plan(model, probe_machine(), PlanRequest(context=rows, device="cpu"), profile)
    grid = [
        CacheSettings(
            window=window, context=rows, select=select, kv_dtype=kv, quality=QUALITY if select == "scan" else None
        )
        for window, select, kv in itertools.product(WINDOWS, POLICIES, KV)
    ]
    seconds = timed(loaded, text, rows, [plan.cache, *grid], turns)
    best = min(range(1, len(seconds)), key=seconds.__getitem__)
    name = f"{grid[best - 1].select}, window {grid[best - 1].window}, {grid[best - 1].kv_dtype}"
    share = seconds[best] / seconds[0]
    print(
        f"grid at {rows:,}: planned ({plan.select}, window {plan.window}, {plan.kv_dtype}) {1e3 * seconds[0]:.2f} ms, best of "
        f"12 ({name}) {1e3 * seconds[best]:.2f} ms: {share:.3f} of its speed"
    )
    return {"planned_ms": 1e3 * seconds[0], "best": name, "best_ms": 1e3 * seconds[best], "share": share}


def timed(loaded: LoadedModel, text: Text, rows: int, settings: list[CacheSettings], turns: int) -> list[float]:
    """Median seconds of a token with each of the settings, in turns; the last one finds all rows but itself."""
    sides = [Ours(loaded, replace(one, context=one.context + 1)) for one in settings]
    first = rows - (turns + 1) * TOKENS
    for side in sides:
        side.at(text, first)
        side.begin()
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(turns + 1):
        for side, kept in zip(sides, taken, strict=True):
            for token in text.ids[first + turn * TOKENS : first + (turn + 1) * TOKENS]:
                began = time.perf_counter()
                side.step(token)
                if turn:
                    kept.append(time.perf_counter() - began)
    return [median(kept) for kept in taken]


def made_up(loaded: LoadedModel, rows: int) -> Text:
    """Rows like a text's: those of a real beginning, repeated. What a policy reads of them is much like of a text."""
    from decode_sides import read

    documents = sorted(Path(__file__).parent.parent.glob("docs/*.md"))
    ids = loaded.tokenizer.encode("\n".join(one.read_text(encoding="utf-8") for one in documents))[:rows]
    keep = model_cache.cache_dir(print) / "benchmarks" / f"predict-{loaded.fingerprint}-{rows}.pt"
    keep.parent.mkdir(exist_ok=True)
    if keep.exists() and (text := Text(**torch.load(keep))).ids == ids:
        return text
    text = read(loaded, ids)
    torch.save(vars(text), keep)
    return text


def told(what: str, predicted: float, measured: float) -> dict[str, Any]:
    """Prints one line; returns what is recorded of it."""
    off = predicted / measured - 1
    print(f"{what:24} predicted {1e3 * predicted:8.2f} ms, measured {1e3 * measured:8.2f} ms, {off:+.0%}", flush=True)
    return {"what": what, "predicted_ms": 1e3 * predicted, "measured_ms": 1e3 * measured, "off": round(off, 3)}


if __name__ == "__main__":
    main()
