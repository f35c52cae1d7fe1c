"""How to score a page of 16 rows: by its bounds, the middle of these, or the mean of its keys.

    python benchmarks/page.py --texts book.txt wiki.txt --budget 0.05 0.1 0.2 0.4 --mass 0.5 0.8 0.95

One line per kind and budget or mass: KL against exact attention in nats, agreement, shares of rows and bytes read.
"""

from __future__ import annotations

import torch
from variants import Reading, arguments, prepared, show

from hgca_cli.attention.select.page import Page
from hgca_cli.hf.cache_layer import Policy
from hgca_cli.kv.layout import LayerLayout


def paged(kind: str, mass: float | None, budget: float | None, capacity: int) -> Policy:
    """The policy with another kind of page."""

    def policy(layout: LayerLayout, index: int) -> Page:
        return type("Kind", (Page,), {"kind": kind})(layout, capacity, mass=mass, budget=budget)

    return policy


@torch.inference_mode()
def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", default=["box", "centre", "mean"])
    parser.add_argument("--budget", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--mass", type=float, nargs="*", default=[0.5, 0.8, 0.95])
    options = parser.parse_args()
    loaded, texts = prepared(options)
    readings = [Reading(loaded, ids, options.positions, options.window) for ids in texts]
    for kind in options.kind:
        limits: list[tuple[str, float | None, float | None]]
        limits = [(f"budget={share}", None, share) for share in options.budget]
        limits += [(f"mass={mass}", mass, None) for mass in options.mass]
        for name, mass, budget in limits:
            policy = paged(kind, mass, budget, options.ctx)
            show(f"page {kind} {name}", [reading.follow(policy) for reading in readings])


if __name__ == "__main__":
    main()
