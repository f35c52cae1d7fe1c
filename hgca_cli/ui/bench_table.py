"""Measurements as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgca_cli.units import counted

HEADER = (
    f"{'shape':10} {'dtype':5} {'pattern':7} {'rows':>8} {'tokens':>6} {'ms':>9} {'GB/s':>7} {'read':>7} {'share':>6}"
    f" {'gqa':>7} {'folded':>7} {'matmul':>7} {'llama':>7}  also"
)
LEGEND = (
    "ms: ours, one layer, median. GB/s: unique key and value bytes over that. read, share: read bandwidth of all\n"
    "threads in the same turns, median, and GB/s over it. Times over ours: gqa, folded: torch's attention; matmul: torch's\n"
    "matrix products; llama: llama.cpp's attention."
)
COLUMNS = ("sdpa gqa", "sdpa folded", "matmul folded", "llama.cpp")


def attention_line(record: Mapping[str, Any]) -> str:
    """One case (docs/cli.md, `attention`)."""
    over = dict(record["over"])
    ratios = [over.pop(name, None) for name in COLUMNS]
    cells = " ".join(f"{'-':>7}" if one is None else f"{one:>6.2f}x" for one in ratios)
    also = [f"{name.removeprefix('hgca ')} {one:.2f}x" for name, one in over.items()]
    if record["cost_over_one_token"] is not None:
        also.append(f"{record['cost_over_one_token']:.2f} x one token")
    line = (
        f"{record['shape']:10} {record['dtype']:5} {record['pattern']:7} {record['rows']:>8} {record['tokens']:>6} "
        f"{record['ms']:>9.3f} {record['gb_s']:>7.2f} {record['read_gb_s']:>7.2f} {record['share']:>6.2f} "
        f"{cells}  {', '.join(also)}"
    )
    return line.rstrip()


def bandwidth_line(record: Mapping[str, Any]) -> str:
    """The memory's own speed (docs/cli.md, `bandwidth`)."""
    parts = [
        f"{counted(one['threads'], 'thread')} {one['median_gb_s']:.2f} GB/s (best {one['best_gb_s']:.2f})"
        for one in record["read"]
    ]
    return f"read bandwidth, median of all turns: {', '.join(parts)}"
