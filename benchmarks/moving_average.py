"""What the moving average's free choices cost: KL against exact attention, teacher-forced after a long prefix.

    python benchmarks/moving_average.py --texts book.txt wiki.txt --alpha 0.5 0.0078 --beta 0.5 1 2 --budget 0.2

The text is read once, exactly, while every variant (alpha, pooling of the group; beta or a budget) watches; then each
follows the same tokens from what it has seen. With --appended N the last N tokens read are a turn of their own, at the end of
which the store is judged again. One line per variant: mean KL in nats, agreement, shares of rows and bytes read.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from variants import Reading, arguments, prepared, show

from hgca_cli.attention.select import moving_average
from hgca_cli.attention.select.contract import EVERY, Chosen, Turn
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.select.window import WindowOnly
from hgca_cli.hf.cache import HybridCache
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store

Variant = tuple[float, str, float, float | None]  # alpha, pool, beta, budget


class Watching(Unwatching):
    """Reads every row, and shows the prompt to variants of the policy."""

    watches = True

    def __init__(self, variants: list[MovingAverage]) -> None:
        self.variants = variants

    def choose(self, query: Tensor, store: Store) -> Chosen | None:
        """All rows."""
        return EVERY

    def see_chunk(self, turn: Turn, store: Store) -> None:
        """All variants see it; its weights are computed once."""
        weight = moving_average._weight
        known: dict[tuple[int, int, int], Tensor] = {}
        places = {key.untyped_storage().data_ptr() for key in turn.keys}

        def once(turn: Turn, head: int, key: Tensor, asked: slice) -> Tensor:
            if key.untyped_storage().data_ptr() not in places:  # the store's rows
                return weight(turn, head, key, asked)
            at = key.data_ptr(), head, asked.start
            if at not in known:
                known[at] = weight(turn, head, key, asked)
            return known[at].clone()

        moving_average._weight = once
        try:
            for variant in self.variants:
                variant.see_chunk(turn, store)
        finally:
            moving_average._weight = weight

    def leave(self, count: int, length: int) -> None:
        """All variants judge."""
        for variant in self.variants:
            variant.leave(count, length)


class Taught(Unwatching):
    """A variant that has seen the prompt already: while the prompt's rows are given on it hears nothing."""

    watches = True

    def __init__(self, variant: MovingAverage) -> None:
        self._variant, self.begun = variant, False

    def choose(self, query: Tensor, store: Store) -> Chosen | None:
        """As the variant says."""
        return self._variant.choose(query, store)

    def see_step(self, weight: Tensor) -> None:
        """The variant's."""
        self._variant.see_step(weight)

    def leave(self, count: int, length: int) -> None:
        """The variant's, of rows it has not judged yet."""
        if self.begun:
            self._variant.leave(count, length)


def begin(cache: HybridCache) -> None:
    """The prompt's rows are all there."""
    for layer in cache.layers:
        for state in layer.states:
            assert isinstance(state.selector, Taught)
            state.selector.begun = True


@torch.inference_mode()
def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5, 2 / 257, 0.001])
    parser.add_argument("--beta", type=float, nargs="*", default=[0.25, 1.0])
    parser.add_argument("--budget", type=float, nargs="*", default=[0.2], help="with a beta of 0: the largest averages")
    parser.add_argument("--pool", nargs="+", default=["mean", "max", "none"])
    parser.add_argument("--appended", type=int, default=0)
    options = parser.parse_args()
    loaded, texts = prepared(options)
    limits = [(beta, None) for beta in options.beta] + [(0.0, share) for share in options.budget]
    variants: list[Variant] = [
        (alpha, pool, *limit) for alpha, pool, limit in itertools.product(options.alpha, options.pool, limits)
    ]

    readings: list[tuple[Reading, list[Watching]]] = []
    for ids in texts:
        watching: list[Watching] = []

        def watch(layout: LayerLayout, index: int, watching: list[Watching] = watching) -> Watching:
            made = [
                MovingAverage(layout, options.window, alpha=alpha, beta=beta, pool=pool, budget=budget)
                for alpha, pool, beta, budget in variants
            ]
            watching.append(Watching(made))
            return watching[-1]

        reading = Reading(loaded, ids, options.positions, options.window, watch, options.appended)
        readings.append((reading, watching))
    show("window", [reading.follow(lambda layout, index: WindowOnly()) for reading, _ in readings])
    for number, (alpha, pool, beta, budget) in enumerate(variants):
        parts = [
            reading.follow(lambda layout, index, seen=seen, at=number: Taught(seen[index].variants[at]), begin)
            for reading, seen in readings
        ]
        limit = f"beta={beta:g}" if budget is None else f"budget={budget:g}"
        show(f"moving-average alpha={alpha:.4g} pool={pool} {limit}", parts)


if __name__ == "__main__":
    main()
