"""Selection policies: one policy, one file, one paper."""

from __future__ import annotations

from hgca_cli.attention.select.cluster import Cluster, TwoLevel
from hgca_cli.attention.select.contract import Selector
from hgca_cli.attention.select.exact import Exact
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.select.page import Page
from hgca_cli.attention.select.scan import Scan
from hgca_cli.attention.select.window import WindowOnly
from hgca_cli.config import QUALITY, CacheSettings
from hgca_cli.kv.layout import LayerLayout

CODED: dict[str, type[Scan]] = {"scan": Scan, "cluster": Cluster, "two-level": TwoLevel}  # config.FOLLOWING
WATCHED = 0.2  # of the rows: the largest moving averages, unless another share is asked for


def make_selector(settings: CacheSettings, layout: LayerLayout, index: int) -> Selector:
    """The policy `settings.select` names, for layer `index` of one sequence."""
    if index < settings.dense_layers:
        return Exact()
    if settings.select == "window" or settings.budget == 0.0:
        return WindowOnly()
    if settings.select == "moving-average":
        share = WATCHED if settings.budget is None else settings.budget
        return MovingAverage(layout, settings.window, beta=0.0, budget=share)
    if settings.select == "page":
        return Page(layout, settings.context, mass=settings.quality, budget=settings.budget)
    if policy := CODED.get(settings.select):
        return policy(layout, settings.context, mass=settings.quality or QUALITY, budget=settings.budget)
    return Exact()
