"""What policies that watch know of the rows: kept before a forward pass, and known again where that is undone."""

from __future__ import annotations

from collections.abc import Iterator

from hgca_cli.attention.select.moving_average import Known as KnownOfLayer
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.hf.cache import HybridCache

Known = list[KnownOfLayer]


def known(cache: HybridCache) -> Known:
    """What they know at present."""
    return [one.known() for one in _watchers(cache)]


def know(cache: HybridCache, before: Known) -> bool:
    """They know what they knew; False if that was of rows elsewhere."""
    watchers = zip(_watchers(cache), before, strict=False)  # layers that had no token yet are new again
    return all(one.know(what) for one, what in watchers)


def _watchers(cache: HybridCache) -> Iterator[MovingAverage]:
    for layer in cache.layers:
        for state in layer.states:
            if isinstance(state.selector, MovingAverage):
                yield state.selector
