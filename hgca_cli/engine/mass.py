"""How much mass a policy is to aim at, so that what is metered stays at the quality asked for and no more is read.

A policy that is asked for 95 % of the mass keeps a little more, since heads that need little get their 64 rows anyway.
Where reading rows is what a token waits for, the aim is lowered by what was found to spare; where the meter falls below
the quality asked for, it is raised at once; where reading costs nothing, it goes back to the plan's. What moves is the aim
and not a most number of rows, which costs twice the divergence at the same rows (docs/log.md).
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median, stdev

from hgca_cli.engine.sample import Sample
from hgca_cli.events import Balanced

WORTH, IDLE = 0.10, 0.02  # of a token's time: what a lower aim must be able to save; what is too little to save
FURTHEST, ALMOST_ALL = 2.0, 0.9  # the mass left out is at most so many times the plan's, and never more than this
STRIDE = 1.25  # and grows by so much at once
MARGIN = 0.95  # of what may be missed is aimed at
LEAST = 1.05  # smaller changes are not worth a move
FEW, ENOUGH = 4, 8  # readings of the meter to raise by; timed tokens to judge by
RECENT = 64  # tokens


class MassTarget:
    """The mass aimed at for one text.

    planned  the quality asked for, in 0 .. 1: the aim is never above it, and what is metered stays below it only where the plan's own
             aim leaves more to estimates
    layers   that are metered, one after another, some heads of each: their readings differ, so a judgement takes one of each
    """

    def __init__(self, planned: float, layers: int) -> None:
        assert 0.0 < planned < 1.0
        self.mass = planned
        self._planned = planned
        allowed = 1.0 - planned
        self._most = max(allowed, min(FURTHEST * allowed, ALMOST_ALL))  # mass left out; less once that was too much
        self._round = max(ENOUGH, layers)
        self._patience = 1  # rounds until a move by time; twice as many whenever it turns back
        self._lowered: bool | None = None  # the last move's direction
        self._readings = 0  # since then
        self._kept: deque[float] = deque(maxlen=self._round)
        self._share = 0.0
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._cost: deque[float] = deque(maxlen=RECENT)

    def sample(self, sample: Sample, steady: bool) -> Balanced | None:
        """Take a token in; the move it leads to. Not steady: something else is tried, and times tell nothing."""
        if sample.kept is not None:
            self._kept.append(sample.kept)
            self._readings += 1
            if self._falls_short():
                return self._raise_by_quality()
        if steady:
            self._seconds.append(sample.seconds)
            if sample.waited is not None and sample.read is not None:
                self._cost.append(min(sample.waited, sample.read))
                self._share = sample.share or 0.0
        if sample.kept is None or self._readings < self._patience * self._round or len(self._cost) < ENOUGH:
            return None
        cost = median(self._cost) / median(self._seconds)
        if cost > WORTH:
            return self._lower(cost)
        return self._relax(cost) if cost < IDLE else None

    def _falls_short(self) -> bool:
        """Whether the readings say so; before each layer had its turn, by more than they scatter."""
        if self.mass == self._planned or len(self._kept) < FEW:
            return False
        doubt = 0.0 if len(self._kept) == self._round else stdev(self._kept) / math.sqrt(len(self._kept))
        return fmean(self._kept) + doubt < self._planned

    def _raise_by_quality(self) -> Balanced:
        quality, allowed, left = fmean(self._kept), 1.0 - self._planned, 1.0 - self.mass
        fewer = max(allowed, left * min(0.9, MARGIN * allowed / (1.0 - quality)))
        self._most = (left + fewer) / 2  # between what was too much and what may not be
        reason = f"only {quality:.1%} of the attention was kept, {self._planned:.1%} is wanted"
        return self._move(fewer, reason)

    def _lower(self, cost: float) -> Balanced | None:
        quality, allowed, left = fmean(self._kept), 1.0 - self._planned, 1.0 - self.mass
        spare = MARGIN * allowed / max(1.0 - quality, 1e-9)
        more = min(left * min(STRIDE, spare), self._most)
        if more < LEAST * left:
            return None
        return self._move(
            more,
            f"{quality:.1%} of the attention was kept, {self._planned:.1%} is wanted; "
            f"reading {self._share:.1%} of the store is {cost:.0%} of a token's time",
        )

    def _relax(self, cost: float) -> Balanced | None:
        if self.mass == self._planned:
            return None
        fewer = max(1.0 - self._planned, (1.0 - self.mass) / STRIDE)
        return self._move(fewer, f"reading is {cost:.1%} of a token's time: nothing is won by less")

    def _move(self, left: float, reason: str) -> Balanced:
        before = self.mass
        self.mass = self._planned if left <= 1.0 - self._planned else min(self._planned, round(1.0 - left, 4))
        lowered = self.mass < before
        if self._lowered not in (None, lowered):
            self._patience *= 2
        self._lowered = lowered
        self._readings = 0
        for measured in (self._kept, self._seconds, self._cost):
            measured.clear()
        return Balanced("mass", before, self.mass, reason)
