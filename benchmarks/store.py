"""Rows on their way into the store: GB/s read and written by its append, beside a plain copy of as many bytes.

    python benchmarks/store.py [--rows 512 8192] [--threads 2] [--record]

GB/s counts each byte read and each byte written once. `memcpy` reads and writes as many bytes in one run of memory with
the same number of threads (torch's copy), `share` is the append's rate over it, `torch` how many times as long torch's
own operations take. Each run takes other memory, more of it in all than fits into caches, whose pages
are there already. The best of --times runs: what a shared machine adds is other programs' work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hgca_cli import native
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "store.jsonl"
SHAPES = {"32/8/128": LayerLayout(32, 8, 128, 128), "9/3/64": LayerLayout(9, 3, 64, 64)}
WAYS = {
    "f32->bf16": (torch.float32, torch.bfloat16),
    "bf16->bf16": (torch.bfloat16, torch.bfloat16),
    "f32->i8": (torch.float32, torch.int8),
    "bf16->i8": (torch.bfloat16, torch.int8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512, 8192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=25)
    parser.add_argument("--own-threads", action="store_true", help="the library's threads, as with a GPU, not torch's")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.set_threads(options.threads)
    native.share_openmp(not options.own_threads)
    torch.set_num_threads(options.threads)

    print(f"{'shape':10}{'way':12}{'rows':>7}{'ms':>9}{'GB/s':>7}{'memcpy':>8}{'share':>7}{'torch':>8}")
    lines = []
    for name, layout in SHAPES.items():
        for way in WAYS:
            for rows in options.rows:
                line = {"shape": name, "way": way, "rows": rows}
                line |= measure(layout, *WAYS[way], rows, options.times)
                lines.append(line)
                print(
                    f"{name:10}{way:12}{rows:>7}{line['ms']:>9.3f}{line['gb_s']:>7.1f}"
                    f"{line['memcpy_gb_s']:>8.1f}{line['share']:>7.2f}{line['over_torch']:>7.2f}x"
                )
    if options.record:
        record(options.threads, lines)


def measure(layout: LayerLayout, source: torch.dtype, kind: torch.dtype, rows: int, times: int) -> dict[str, float]:
    """One append of so many rows, a plain copy of as many bytes, and torch's own conversion, alternating."""
    key = torch.randn(layout.kv_heads, rows, layout.key_dim).to(source)
    value = torch.randn(layout.kv_heads, rows, layout.value_dim).to(source)
    copies = max(3, (96 << 20) // (key.numel() * 8))  # so that together they are larger than caches
    stores = [Store(layout, rows, kind) for _ in range(copies)]
    sources = [(key.clone(), value.clone()) for _ in range(copies)]
    for store, (keys, values) in zip(stores, sources, strict=True):
        store.append(keys, values)
    moved = 2 * key.numel() * (source.itemsize + kind.itemsize)
    if kind == torch.int8:
        moved += 8 * layout.kv_heads * rows
    whole = torch.ones(copies, moved // 2, dtype=torch.uint8)
    target = torch.zeros_like(whole)

    def append(turn: int) -> None:
        store = stores[turn % copies]
        store.truncate(0)
        store.append(*sources[turn % copies])

    def by_torch(turn: int) -> None:
        other = (turn + copies // 2) % copies  # not what `append` has just brought into the caches
        store = stores[other]
        for to, rows, part in zip((store.keys, store.values), sources[other], (0, 1), strict=True):
            if store.scales is None:
                to.copy_(rows)
            else:
                scale = rows.abs().amax(-1).float() / 127
                to.copy_((rows / scale[..., None]).round_())
                store.scales[..., part] = scale

    runs: dict[str, Callable[[int], object]] = {
        "append": append,
        "memcpy": lambda turn: target[turn % copies].copy_(whole[turn % copies]),
        "torch": by_torch,
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(times):
        for name, run in runs.items():
            began = time.perf_counter()
            run(turn)
            taken[name].append(time.perf_counter() - began)
    seconds = {name: min(values) for name, values in taken.items()}
    return {
        "ms": seconds["append"] * 1e3,
        "gb_s": moved / seconds["append"] / 1e9,
        "memcpy_gb_s": whole.shape[1] * 2 / seconds["memcpy"] / 1e9,
        "share": seconds["memcpy"] / seconds["append"],
        "over_torch": seconds["torch"] / seconds["append"],
    }


def record(threads: int, lines: list[dict[str, float]]) -> None:
    """Append one JSON line with where and when."""
    line = {
        "benchmark": "store",
        **where_and_when(threads),
        "results": [{k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()} for one in lines],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
