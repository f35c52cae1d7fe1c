"""One layer, one token, a long store: exact attention beside policies that choose rows, and what each stage takes.

    python benchmarks/selection.py --rows 8192 131072 --shape 32/8/128

Keys are a mixture: clusters of unlike size along random directions, and the query looks for some of them, so that a few
rows hold most of the mass, as in text. Times are medians over turns in which every side reads a store that is no longer in
the cache. `x exact` is exact attention's time over the policy's; bytes are shares of the store's rows; kept is the share of the
attention mass that the rows read hold, error how far outputs are from exact attention's, over their length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from hgca_cli import native, selection
from hgca_cli.attention.select.cluster import TwoLevel
from hgca_cli.attention.select.scan import Scan
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.measure.machine import where_and_when

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
        heads, kv_heads, dim = map(int, shape.split("/"))
        layout = LayerLayout(heads, kv_heads, dim, dim)
        for rows in options.rows:
            store = Store(layout, rows, DTYPES[options.dtype])
            keys, centres = mixture(kv_heads, rows, dim, draw)
            policies = {kind.__name__: kind(layout, rows, mass=options.quality) for kind in (Scan, TwoLevel)}
            for first in range(0, rows, CHUNK):
                piece = keys[:, first : first + CHUNK]
                store.append(piece, torch.randn(piece.shape, generator=draw))
            del keys
            for policy in policies.values():
                policy.stored(store)
            queries = [query_of(centres, heads, options.sharpness, draw) for _ in range(options.times)]
            for line in measure(store, policies, queries, heads):
                print(
                    f"{shape:10} {rows:>8}  {line['policy']:10} {line['ms']:>8.3f} {line['x_exact']:>7.2f}x "
                    f"{line['rows_share']:>6.1%} {line['bytes_share']:>6.1%} {line['kept']:>6.3f} {line['error']:>6.3f}  "
                    f"{line['stages_ms']}",
                    flush=True,
                )
                if options.record:
                    at = {"benchmark": "selection", "shape": shape, "rows": rows, "dtype": options.dtype}
                    at |= {"quality": options.quality, "sharpness": options.sharpness}
                    with Path(__file__).with_name("results").joinpath("selection.jsonl").open("a") as file:
                        file.write(json.dumps(at | line | where_and_when(options.threads)) + "\n")


def query_of(centres: torch.Tensor, heads: int, sharpness: float, draw: torch.Generator) -> torch.Tensor:
    """f32 [heads, dim]: each query head looks for a centre of its KV head, and a little elsewhere."""
    kv_heads, count, dim = centres.shape
    picked = torch.randint(count, (kv_heads, heads // kv_heads), generator=draw)
    found = centres.gather(1, picked[..., None].expand(-1, -1, dim)).reshape(heads, dim)
    query = found * sharpness + torch.randn(heads, dim, generator=draw) * 0.3
    return query.bfloat16().float().contiguous()  # as a bf16 model asks


def measure(
    store: Store, policies: dict[str, Scan], queries: list[torch.Tensor], heads: int
) -> list[dict[str, object]]:
    """A line per side: milliseconds, and what was read."""
    scale = store.keys.shape[-1] ** -0.5
    cold = torch.ones(48 << 20)  # floats: more than a cache holds
    times: dict[str, list[float]] = {"exact": [], **{name: [] for name in policies}}
    reads: dict[str, list[selection.Reads]] = {name: [] for name in policies}
    errors: dict[str, list[float]] = {name: [] for name in policies}
    kept: dict[str, list[float]] = {name: [] for name in policies}
    for query in queries:
        for name in times:
            cold.add_(1.0)
            time.sleep(0.02)  # until torch's threads sleep
            began = time.perf_counter()
            if name == "exact":
                whole = native.start([native.Step(query, store.read, store.rows, scale)]).wait()[0]
                times[name].append(time.perf_counter() - began)
                continue
            chosen = policies[name].choose(query, store)
            assert chosen is not None
            part = selection.start([selection.Aimed(chosen, query, scale)]).wait()[0]
            times[name].append(time.perf_counter() - began)
            reads[name].append(chosen.reads)
            errors[name].append(float((part.out - whole.out).norm() / whole.out.norm()))
            kept[name].append(float((chosen.read_lse - whole.lse).exp().mean()))
    exact = statistics.median(times["exact"])
    lines: list[dict[str, object]] = []
    for name, seconds in times.items():
        mine = statistics.median(seconds)
        line: dict[str, object] = {"policy": name, "ms": mine * 1e3, "x_exact": exact / mine}
        line |= {"rows_share": 1.0, "bytes_share": 1.0, "kept": 1.0, "error": 0.0, "stages_ms": {}}
        if found := reads.get(name):
            kv_heads = store.keys.shape[0]
            stages = {
                stage: round(statistics.median(getattr(one, f"{stage}_seconds") for one in found) * 1e3, 3)
                for stage in ("group", "scan", "choose", "read")
            }
            line["rows_share"] = statistics.mean(one.read for one in found) / (kv_heads * store.rows)
            line["bytes_share"] = statistics.mean(one.bytes for one in found) / store.bytes
            line["stages_ms"] = stages
            line["kept"], line["error"] = statistics.mean(kept[name]), statistics.mean(errors[name])
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
