"""What policies that watch know of the rows: kept before a forward pass, and known again where that is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.hf.cache import HybridCache

Known = list[dict[str, Any]]


def known(cache: HybridCache) -> Known:
    """What they know at present. Cheap: they replace what they know, and change no tensor."""
    return [{name: _held(value) for name, value in vars(one).items()} for one in _watchers(cache)]


def know(cache: HybridCache, before: Known) -> None:
    """They know what they knew. Only where the rows are those there were."""
    for one, what in zip(_watchers(cache), before, strict=False):  # layers that had no token yet are new again
        vars(one).update({name: _held(value) for name, value in what.items()})


def _watchers(cache: HybridCache) -> Iterator[MovingAverage]:
    for layer in cache.layers:
        for state in layer.states:
            if isinstance(state.selector, MovingAverage):
                yield state.selector


def _held(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
