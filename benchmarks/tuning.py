"""docs/tuning.svg: what quality and budget cost and bring, from what benchmarks/results/fidelity.jsonl holds.

python benchmarks/tuning.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

RESULTS = Path(__file__).with_name("results") / "fidelity.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "tuning.svg"
CASES = {"4k, window 256": (4096, 256), "8k, window 512": (8192, 512)}


def main() -> None:
    records = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hgca", "font.size": 9}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, (context, window) in CASES.items():
        points = sorted(settings(records, "two-level:quality=", context, window).items())
        left.plot(*zip(*[(100 * quality, 100 * one["perplexity_change"]) for quality, one in points], strict=True),
                  marker="o", label=f"perplexity, {label}")  # fmt: skip
        left.plot(*zip(*[(100 * quality, 100 * one["read_share"]) for quality, one in points], strict=True),
                  marker="s", linestyle="--", label=f"rows read, {label}")  # fmt: skip
    left.set_xlabel("--quality, % (two-level)")
    left.set_ylabel("% of perplexity more, % of the store read")
    for name, policy in (
        ("scan, by --quality", "scan:quality="),
        ("two-level, by --quality", "two-level:quality="),
        ("page, by --budget", "page:budget="),
        ("moving-average, by --budget", "moving-average:budget="),
    ):
        points = sorted(
            (one["read_share"], one["perplexity_change"]) for one in settings(records, policy, 4096, 256).values()
        )
        right.plot(*zip(*[(100 * share, 100 * max(change, 1e-4)) for share, change in points], strict=True),
                   marker="o", label=name)  # fmt: skip
    right.set_yscale("log")
    right.set_xlabel("% of the store's rows read (4k, window 256)")
    right.set_ylabel("% of perplexity more")
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


def settings(records: list[dict[str, Any]], policy: str, context: int, window: int) -> dict[float, Mapping[str, Any]]:
    """What was measured last over all texts with a policy, by its setting."""
    found = {}
    for one in records:
        if one.get("type") != "fidelity" or one["text"] != "all texts" or not one["policy"].startswith(policy):
            continue
        if (one["ctx"], one["window"]) == (context, window):
            found[float(one["policy"].removeprefix(policy))] = one
    return found


if __name__ == "__main__":
    main()
