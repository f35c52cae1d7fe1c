"""One token over a long store: exact attention beside policies that choose rows, and what each stage takes.

    python benchmarks/selection.py --rows 8192 131072 --shape 32/8/128
    python benchmarks/selection.py --rows 8192 --shape 9/3/64 --layers 30

Keys are a mixture: clusters of unlike size along random directions, and the query looks for some of them, so that a few
rows hold most of the mass, as in text. A step is one token in --layers layers, each with a store of its own, one after another as
a model asks for them: what a policy does in Python, and the library's call. Times are a layer's, medians over steps, of which each
reads stores that are no longer in the cache. `x exact` is exact attention's time over the policy's; bytes are shares of the store's
rows; kept is the share of the attention mass that the rows read hold, error how far outputs are from exact attention's, over their
length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hgca_cli import native, selection
from hgca_cli.attention.select.cluster import TwoLevel
from hgca_cli.attention.select.scan import Scan
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.measure.machine import where_and_when
from hgca_cli.native import ffi, lib

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}
CHUNK = 4096


def mixture(heads: int, rows: int, dim: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [heads, rows, dim] around centres, and the centres [heads, centres, dim]."""
    centres = torch.randn(heads, max(8, rows // 256), dim, generator=draw)
    share = torch.rand(centres.shape[1], generator=draw) ** 2
    which = torch.multinomial(share, heads * rows, replacement=True, generator=draw).view(heads, rows, 1)
    noise = torch.randn(heads, rows, dim, generator=draw) * 0.5
    return centres.gather(1, which.expand(-1, -1, dim)) + noise, centres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["32/8/128"], help="heads/KV heads/width")
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 131072])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--quality", type=float, default=0.95)
    parser.add_argument("--sharpness", type=float, default=1.5, help="of the query: its length, in those of a centre")
    parser.add_argument("--threads", type=int, default=native.usable_processors())
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--layers", type=int, default=1, help="of a step")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/selection.jsonl")
    options = parser.parse_args()
    native.share_openmp(False)
    native.set_threads(options.threads)
    draw = torch.Generator().manual_seed(1)
    print(
        f"{'shape':10} {'rows':>8}  {'policy':10} {'ms':>8} {'x exact':>8} {'rows':>6} {'bytes':>6} {'kept':>6} {'error':>6}"
        "  stages, ms of threads"
    )
    for shape in options.shape:
        layout = LayerLayout(*map(int, shape.split("/")), int(shape.split("/")[2]))
        for rows in options.rows:
            layers = [layer_of(layout, rows, options, draw) for _ in range(options.layers)]
            steps = [
                [query_of(layer.centres, layout.heads, options.sharpness, draw) for layer in layers]
                for _ in range(options.times)
            ]
            for line in measure(layers, steps):
                print(
                    f"{shape:10} {rows:>8}  {line['policy']:10} {line['ms']:>8.3f} {line['x_exact']:>7.2f}x "
                    f"{line['rows_share']:>6.1%} {line['bytes_share']:>6.1%} {line['kept']:>6.3f} {line['error']:>6.3f}  "
                    f"{line['stages_ms']}",
                    flush=True,
                )
                if options.record:
                    at = {"benchmark": "selection", "shape": shape, "rows": rows, "layers": options.layers}
                    at |= {"dtype": options.dtype, "quality": options.quality, "sharpness": options.sharpness}
                    with Path(__file__).with_name("results").joinpath("selection.jsonl").open("a") as file:
                        file.write(json.dumps(at | line | where_and_when(options.threads)) + "\n")


@dataclass
class Layer:
    """A store, who chooses of it, and what its queries look for."""

    store: Store
    policies: dict[str, Scan]
    centres: torch.Tensor


def layer_of(layout: LayerLayout, rows: int, options: argparse.Namespace, draw: torch.Generator) -> Layer:
    store = Store(layout, rows, DTYPES[options.dtype])
    keys, centres = mixture(layout.kv_heads, rows, layout.key_dim, draw)
    policies = {kind.__name__: kind(layout, rows, mass=options.quality) for kind in (Scan, TwoLevel)}
    for first in range(0, rows, CHUNK):
        piece = keys[:, first : first + CHUNK]
        store.append(piece, torch.randn(piece.shape, generator=draw))
    for policy in policies.values():
        policy.stored(store)
    return Layer(store, policies, centres)


def query_of(centres: torch.Tensor, heads: int, sharpness: float, draw: torch.Generator) -> torch.Tensor:
    """f32 [heads, dim]: each query head looks for a centre of its KV head, and a little elsewhere."""
    kv_heads, count, dim = centres.shape
    picked = torch.randint(count, (kv_heads, heads // kv_heads), generator=draw)
    found = centres.gather(1, picked[..., None].expand(-1, -1, dim)).reshape(heads, dim)
    query = found * sharpness + torch.randn(heads, dim, generator=draw) * 0.3
    return query.bfloat16().float().contiguous()  # as a bf16 model asks


@dataclass
class Side:
    """What one way found, step by step; per layer and step but for the seconds."""

    seconds: list[float] = field(default_factory=list)
    reads: list[selection.Reads] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)


def measure(layers: list[Layer], steps: list[list[torch.Tensor]]) -> list[dict[str, object]]:
    """A line per side: milliseconds a layer, and what was read.

    steps  of each the layers' queries, f32 [heads, dim]
    """
    cold = torch.ones(48 << 20)  # floats: more than a cache holds
    sides = {name: Side() for name in ("exact", *layers[0].policies)}
    for queries in steps:
        whole: list[native.Partial] = []
        for name, side in sides.items():
            jobs = [aimed(layer, name, query) for layer, query in zip(layers, queries, strict=True)]
            cold.add_(1.0)
            time.sleep(0.02)  # until torch's threads sleep
            side.seconds.append(step(name, jobs))
            if name == "exact":
                whole = [partial for _, partial, _ in jobs]
                continue
            for layer, query, exact, (_, part, _) in zip(layers, queries, whole, jobs, strict=True):
                chosen = layer.policies[name].choose(query, layer.store)
                assert chosen is not None
                side.reads.append(chosen.reads)
                side.errors.append(float((part.out - exact.out).norm() / exact.out.norm()))
                side.kept.append(float((chosen.read_lse - exact.lse).exp().mean()))
    exact_seconds = statistics.median(sides["exact"].seconds)
    return [line_of(name, side, exact_seconds, layers) for name, side in sides.items()]


def aimed(layer: Layer, name: str, query: torch.Tensor) -> tuple[Any, native.Partial, Any]:
    """The library's description of a layer's attention, where its result will be, and what must stay alive."""
    store, scale = layer.store, query.shape[1] ** -0.5
    if name == "exact":
        described = ffi.new("hgca_attention[]", 1)
        result, partial = native.result_of(
            native.describe_step(native.Step(query, store.read, store.rows, scale), described, 0), *query.shape
        )
        return described, partial, result
    chosen = layer.policies[name].choose(query, store)
    assert chosen is not None
    kept, partial = chosen.aim(query, scale, 0.0, None, None)
    return chosen.job, partial, kept


def step(name: str, jobs: list[tuple[Any, native.Partial, Any]]) -> float:
    """Seconds of a token's attention."""
    ticket = ffi.new("int64_t *")
    start = lib.hgca_start if name == "exact" else lib.hgca_start_selected
    began = time.perf_counter()
    for described, _, _ in jobs:  # described before: most tokens are not looked at anew (hgca_cli/attention/ahead.py)
        native.check(start(described, 1, ticket))
        native.check(lib.hgca_wait(ticket[0]))
    return time.perf_counter() - began


def line_of(name: str, side: Side, exact: float, layers: list[Layer]) -> dict[str, object]:
    mine = statistics.median(side.seconds)
    line: dict[str, object] = {"policy": name, "ms": mine / len(layers) * 1e3, "x_exact": exact / mine}
    line |= {"rows_share": 1.0, "bytes_share": 1.0, "kept": 1.0, "error": 0.0, "stages_ms": {}}
    if found := side.reads:
        store = layers[0].store
        line["stages_ms"] = {
            stage: round(statistics.median(getattr(one, f"{stage}_seconds") for one in found) * 1e3, 3)
            for stage in ("group", "scan", "choose", "read")
        }
        line["rows_share"] = statistics.mean(one.read for one in found) / (store.keys.shape[0] * store.rows)
        line["bytes_share"] = statistics.mean(one.bytes for one in found) / store.bytes
        line["kept"], line["error"] = statistics.mean(side.kept), statistics.mean(side.errors)
    return line


if __name__ == "__main__":
    main()
