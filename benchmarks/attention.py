"""CPU attention of one decode token: our kernel, torch's, and the memory's own speed, in one run.

    python benchmarks/attention.py [--rows 4096 32768] [--threads 2] [--record]

GB/s counts every key and value byte once; `share` is that over the read bandwidth measured in the same run (a sum over
a gigabyte by the same number of threads: the best of several, as a ceiling should be). Medians of --times runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hgca_cli import native

RESULTS = Path(__file__).parent / "results" / "attention.jsonl"
SHAPES = {"32/8/128": (32, 8, 128), "9/3/64": (9, 3, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--own-threads", action="store_true", help="the library's threads, as with a GPU, not torch's")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.set_threads(options.threads)
    native.share_openmp(not options.own_threads)
    torch.set_num_threads(options.threads)

    ceiling = {threads: bandwidth(threads) for threads in sorted({1, options.threads})}
    print("read bandwidth: " + ", ".join(f"{t} threads {gb:.1f} GB/s" for t, gb in ceiling.items()))
    print(f"{'shape':10}{'dtype':6}{'rows':>8}{'ms':>9}{'GB/s':>7}{'share':>7}{'sdpa gqa':>10}{'sdpa folded':>13}")
    lines = []
    for name, (heads, kv_heads, dim) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            for rows in options.rows:
                line = {"shape": name, "dtype": str(dtype).removeprefix("torch."), "rows": rows}
                line |= compare(heads, kv_heads, dim, rows, dtype, options.times, ceiling[options.threads])
                lines.append(line)
                print(
                    f"{name:10}{line['dtype'][:5]:6}{rows:>8}{line['ms']:>9.3f}{line['gb_s']:>7.1f}{line['share']:>7.2f}"
                    f"{line['over_sdpa_gqa']:>9.2f}x{line['over_sdpa_folded']:>12.2f}x"
                )
    if options.record:
        record(options.threads, ceiling, lines)


def compare(
    heads: int, kv_heads: int, dim: int, rows: int, dtype: torch.dtype, times: int, ceiling: float
) -> dict[str, float]:
    """Our kernel and torch on the same numbers, alternating so that a slow moment of the machine hits all."""
    together = torch.randn(kv_heads, rows, 2 * dim).to(dtype)  # as the store keeps them: [key | value]
    query = torch.randn(heads, dim)
    job = native.Attention(query, together[..., :dim], together[..., dim:], dim**-0.5)
    key, value = (part.contiguous()[None] for part in (job.key, job.value))
    one = query.to(dtype)[None, :, None]
    folded = query.to(dtype).view(1, kv_heads, -1, dim)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: native.attend(job).out,
        "gqa": lambda: scaled_dot_product_attention(one, key, value, enable_gqa=True),
        "folded": lambda: scaled_dot_product_attention(folded, key, value),
    }
    wanted = runs["folded"]().view(heads, dim).float()
    assert (runs["ours"]() - wanted).abs().max() < 2e-2, "the two sides compute different things"
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(times + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first is a warm-up
                taken[name].append(time.perf_counter() - began)
    seconds = {name: median(values) for name, values in taken.items()}
    rate = together.numel() * together.element_size() / seconds["ours"] / 1e9
    return {
        "ms": seconds["ours"] * 1e3,
        "gb_s": rate,
        "share": rate / ceiling,
        "over_sdpa_gqa": seconds["gqa"] / seconds["ours"],
        "over_sdpa_folded": seconds["folded"] / seconds["ours"],
    }


def bandwidth(threads: int) -> float:
    """GB/s of reading a gigabyte with torch's sum, best of several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    data = torch.ones(1 << 28)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - began)
    torch.set_num_threads(before)
    return data.numel() * 4 / best / 1e9


def record(threads: int, ceiling: dict[int, float], lines: list[dict[str, float]]) -> None:
    """Append one JSON line with where and when."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line = {
        "benchmark": "attention",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "processor": processor(),
        "isa": native.isa(),
        "torch": torch.__version__,
        "threads": threads,
        "ceiling_gb_s": {str(t): round(gb, 2) for t, gb in ceiling.items()},
        "results": [{k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()} for one in lines],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.processor()


if __name__ == "__main__":
    main()
