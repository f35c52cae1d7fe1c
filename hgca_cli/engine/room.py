"""Who may grow: what sequences hold, what they may become, and whether all of them can still come to their ends.

A sequence asks for some tokens at a time. It gets them where afterwards there is an order in which one after the other can be
finished, each with the room that those before it gave back (Dijkstra's banker): whoever has to wait keeps all it has, and
nobody waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Bytes = tuple[int, ...]  # in every place that holds rows

QUANTUM = 16  # tokens that are asked for at a time
KNOWN = 8  # answers that must have ended before lengths of others are expected to be like theirs
LATEST = 64  # answers that are remembered
MOST_ARE = 0.8  # of the answers are no longer than what is expected


class Claim(NamedTuple):
    """Tokens of a sequence: those it has room for, those it may become, and the first ones whose rows are a kept one's."""

    granted: int
    most: int
    shared: int = 0


@dataclass(frozen=True)
class Room:
    """What rows of sequences may take together.

    limits  bytes of every place; takes: of a sequence that grows to so many tokens, there. None: nobody counts
    holds   of one that has so many tokens and may grow to so many; None: as much as it may take
    shares  what a sequence does not take if its first so many tokens are a kept one's; None: nothing is shared
    free    bytes that are free at present beside what is held, in places where that is known; None: nobody looks
    """

    limits: Bytes = ()
    takes: Callable[[int], Bytes] | None = None
    holds: Callable[[int, int], Bytes] | None = None
    free: Callable[[], tuple[int | None, ...]] | None = None
    shares: Callable[[int], Bytes] | None = None
    _known: dict[Claim, Bytes] = field(default_factory=dict, repr=False, compare=False)

    def of(self, tokens: int) -> Bytes:
        """Bytes of a sequence that grows to so many tokens."""
        return self.held(Claim(tokens, tokens))

    def held(self, claim: Claim) -> Bytes:
        """Bytes that a sequence holds."""
        if self.takes is None:
            return ()
        if (known := self._known.get(claim)) is None:
            if len(self._known) > 1 << 16:  # a long job
                self._known.clear()
            partly = self.holds is not None and claim.granted < claim.most
            granted, most, shared = claim
            known = self.holds(granted, most) if partly and self.holds is not None else self.takes(most)
            if shared and self.shares is not None:
                known = tuple(max(0, all_ - theirs) for all_, theirs in zip(known, self.shares(shared), strict=True))
            self._known[claim] = known
        return known

    def fits(self, claims: Sequence[Claim], kept: Sequence[int] = (), share: float = 1.0) -> bool:
        """Whether what sequences hold fits beside kept ones, into a share of the room."""
        places = zip(*map(self.of, kept), *map(self.held, claims), strict=True)
        return all(sum(place) <= share * limit for place, limit in zip(places, self.limits, strict=True))

    def safe(self, claims: Sequence[Claim], kept: Sequence[int] = (), limits: Bytes | None = None) -> bool:
        """Whether sequences can all come to their ends, one after the other at worst, beside kept ones that stay as they are.

        limits  in place of the room's own
        """
        left = list(self.limits if limits is None else limits)
        for held in (*map(self.of, kept), *map(self.held, claims)):
            left = [one - other for one, other in zip(left, held, strict=True)]
        if any(one < 0 for one in left):
            return False
        waiting = sorted(claims, key=lambda claim: claim.most - claim.granted)
        while waiting:
            still = []
            for claim in waiting:
                held, whole = self.held(claim), self.held(claim._replace(granted=claim.most))
                if all(more - one <= rest for more, one, rest in zip(whole, held, left, strict=True)):
                    left = [rest + one for rest, one in zip(left, held, strict=True)]
                else:
                    still.append(claim)
            if len(still) == len(waiting):
                return False
            waiting = still
        return True

    def limits_now(self, claims: Sequence[Claim], kept: Sequence[int]) -> Bytes:
        """What the limits are while others use the machine, too: never more than what is held and what is free."""
        if self.free is None or not self.limits:
            return self.limits
        held = [sum(place) for place in zip(*map(self.of, kept), *map(self.held, claims), strict=True)]
        held = held or [0] * len(self.limits)
        found = zip(self.limits, held, self.free(), strict=True)
        return tuple(limit if free is None else min(limit, there + free) for limit, there, free in found)


class Lengths:
    """How long answers become, by those that have ended: as a share of what they may be at most."""

    def __init__(self) -> None:
        self._shares: deque[float] = deque(maxlen=LATEST)

    def ended(self, written: int, most: int) -> None:
        """An answer is there."""
        self._shares.append(written / max(1, most))

    def expected(self, prompt: int, written: int, most: int) -> int:
        """Tokens that a sequence is expected to become, its answer at most `most`; all of them before anything is known."""
        share = 1.0
        if len(self._shares) >= KNOWN:
            share = sorted(self._shares)[min(len(self._shares) - 1, int(MOST_ARE * len(self._shares)))]
        return prompt + min(most, max(written + QUANTUM, round(share * most)))
