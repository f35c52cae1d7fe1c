"""What was measured of one token, for whoever decides by it (engine/balance.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One token that was written. Shares are of 1; None: not measured this time.

    seconds  its forward pass and its drawing
    rows     in the cache
    waited   seconds of these in which the device had nothing to do but wait for the library's attention; of a CPU device what is `read`
    read     seconds of these in which the library's threads read chosen rows, were they to share it evenly
    share    of the store's rows that were read
    kept     of the attention mass, as the quality meter found in heads of one layer
    """

    seconds: float
    rows: int
    waited: float | None = None
    read: float | None = None
    share: float | None = None
    kept: float | None = None
