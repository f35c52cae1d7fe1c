"""Fidelity over what is read, of recorded runs: each policy over all texts, as a table and as a picture.

    hgca eval fidelity -f book.txt --ctx 4k --select scan --quality 0.9 0.95 --record benchmarks/results/fidelity.jsonl
    python benchmarks/curve.py --commit 1620451 --ctx 4096 --plot docs/fidelity.svg

A curve takes an hour and more; so a run of a text or a policy is recorded at a time, and put together here. Every policy must
have been measured on the same texts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgca_cli.commands.eval_fidelity import ALL_TEXTS  # a mean that was recorded, too: it is made anew here
from hgca_cli.measure.fidelity import Fidelity, mean_fidelity
from hgca_cli.ui.eval_table import FIDELITY, FIDELITY_LEGEND, EvalTable
from hgca_cli.ui.plot import plot_divergence

RECORDS = Path(__file__).with_name("results") / "fidelity.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--commit", required=True, nargs="+", help="of the runs; a policy's last line of a text counts")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--plot", type=Path, help=".svg or .png")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.records.read_text().splitlines()]
    wanted = {"type": "fidelity", "ctx": options.ctx}
    lines = [
        one
        for one in lines
        if wanted.items() <= one.items() and one["commit"] in options.commit and one["text"] != ALL_TEXTS
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in lines:
        found.setdefault(one["policy"], {})[one["text"]] = one
    texts = {one["text"] for one in lines}
    lacking = [policy for policy, parts in found.items() if set(parts) != texts]
    if lacking or not lines:
        raise SystemExit(f"not measured on all of {len(texts)} texts: {', '.join(lacking) or 'anything'}.")
    title = f"{lines[0]['model']}, context {options.ctx:,}, window {lines[0]['window']:,}, {len(texts)} texts"
    print(f"{title}: {', '.join(sorted(texts))}; store {lines[0]['kv_dtype']}\n")
    table = EvalTable(FIDELITY, [ALL_TEXTS], [*found], FIDELITY_LEGEND)
    curves: dict[str, list[tuple[float, float]]] = {}
    for policy, parts in sorted(found.items()):
        one = mean_of([*parts.values()])
        print("\n".join(table.lines(ALL_TEXTS, {"policy": policy, **one})))
        if policy != "exact":
            curves.setdefault(policy.partition(":")[0], []).append((one["bytes_share"], one["kl"]))
    print(table.ending())
    if options.plot is not None:
        plot_divergence(options.plot, title, curves)


def mean_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one policy over several texts."""
    names = Fidelity.__dataclass_fields__
    one = mean_fidelity(
        [
            Fidelity(
                **{name: value for name, value in line.items() if name in names},
                nll=math.log(line["perplexity"]),
                exact_nll=math.log(line["exact_perplexity"]),
            )
            for line in lines
        ]
    )
    more = {"perplexity": one.perplexity, "perplexity_change": one.perplexity_change}
    return {name: getattr(one, name) for name in names} | more


if __name__ == "__main__":
    main()
