"""Reading what the sequences of a batch are doing, from beside them: one reading of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hgca_cli.engine.batch import Batch
from hgca_cli.engine.member import Member
from hgca_cli.engine.metrics import read_metrics, watch
from hgca_cli.hf.joint import most_in_a_call
from hgca_cli.metrics import Metrics, Places, Slot, Spent

PARTS = ("window", "selection", "attention", "hidden")  # of a token's time


class BatchReadings:
    """Readings of a batch, by one thread at a time."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._in_a_call = most_in_a_call(
            batch.engine.loaded
        )  # tokens of one pass of which it is told how long attention took
        self._evicted: dict[int, int] = {}  # bytes, by member
        self._left = 0  # bytes evicted of those that are gone

    def take(self) -> Metrics | None:
        """One reading of all together; None where nobody has a row."""
        members = self._batch.members
        told = not self._batch.joint or sum(writes for _, writes in members) <= self._in_a_call
        found = [(member, writes, self._of(member, told)) for member, writes in members]
        known = [(writes, one) for _, writes, one in found if one is not None]
        still = {id(member) for member in self._batch.refused}
        running = {at: size for at, size in self._evicted.items() if at in still}
        running |= {id(member): one.evicted or 0 for member, _, one in found if one is not None}
        self._left += sum(size for member, size in self._evicted.items() if member not in running)
        self._evicted = running
        if not known:
            return None
        return together(
            [one for _, one in known], [one for writes, one in known if writes], self._batch.engine.context, self._left
        )

    def slots(self) -> tuple[Slot, ...]:
        """Whoever runs, those that write first."""
        everybody = [*(member for member, _ in self._batch.members), *self._batch.refused]
        found = (self._still(member, lambda one: one.slot) for member in everybody)
        return tuple(slot for slot in found if slot is not None)

    def _of(self, member: Member, told: bool) -> Metrics | None:
        def read(one: Member) -> Metrics | None:
            watch(one.sequence, True)
            return read_metrics(one.sequence, told=told, heads=False)

        return self._still(member, read)

    def _still(self, member: Member, read: Callable[[Member], Any]) -> Any:
        """What is read of a member; None of one that went meanwhile, whose layers may be half given up."""
        try:
            return read(member)
        except Exception:
            if any(member is one for one in [*(one for one, _ in self._batch.members), *self._batch.refused]):
                raise
            return None


def together(found: Sequence[Metrics], writing: Sequence[Metrics], context: int, left: int = 0) -> Metrics:
    """One reading of several sequences: rows and bytes of all; a token's time, and shares, are means over those that write.

    left  bytes that were evicted of sequences that are gone
    """
    first = found[0]
    stored = [one for one in writing if one.places.store]
    measured = sum(one.measured for one in writing if one.quality is not None)
    asked = [one.asked for one in found if one.asked is not None]
    aims = [one.aim for one in found if one.aim is not None]
    crossing = first.evicted is not None
    return Metrics(
        device=first.device,
        tokens=sum(one.tokens for one in found),
        context=context,
        threads=first.threads,
        places=_places([one.places for one in found]),
        spent=_spent([one.spent for one in writing]),
        read_share=_mean([(one.read_share, one.places.store) for one in stored]) or 0.0,
        bytes_share=_mean([(one.bytes_share, one.places.store_bytes) for one in stored]) or 0.0,
        quality=_mean([(one.quality, one.measured) for one in writing if one.quality is not None]),
        measured=measured,
        asked=asked[0] if asked else None,
        aim=min(aims) if aims else None,
        heads=_heads([one.heads for one in writing]),
        read_bytes=_whole([one.read_bytes for one in writing]),
        to_host=_whole([one.to_host for one in writing]) if crossing else None,
        to_device=_whole([one.to_device for one in writing]) if crossing else None,
        evicted=left + sum(one.evicted or 0 for one in found) if crossing else None,
    )


def _places(found: Sequence[Places]) -> Places:
    clustered = [one.clustered for one in found if one.clustered is not None]
    return Places(
        sinks=sum(one.sinks for one in found),
        window=sum(one.window for one in found),
        pending=sum(one.pending for one in found),
        store=sum(one.store for one in found),
        clustered=sum(clustered) if clustered else None,
        window_bytes=sum(one.window_bytes for one in found),
        pending_bytes=sum(one.pending_bytes for one in found),
        store_bytes=sum(one.store_bytes for one in found),
        index_bytes=sum(one.index_bytes for one in found),
    )


def _spent(found: Sequence[Spent]) -> Spent:
    """A part counts where it was measured."""
    parts = ([(one, 1) for spent in found if (one := getattr(spent, name)) is not None] for name in PARTS)
    window, selection, attention, hidden = (_mean(part) for part in parts)
    return Spent(window, selection, attention, hidden or 0.0)


def _heads(found: Sequence[tuple[tuple[float, ...] | None, ...]]) -> tuple[tuple[float, ...] | None, ...]:
    """Of each layer and head the mean over sequences that have a store there."""
    layers = []
    for layer in zip(*found, strict=True):
        known = [shares for shares in layer if shares is not None]
        layers.append(tuple(sum(head) / len(known) for head in zip(*known, strict=True)) if known else None)
    return tuple(layers)


def _whole(found: Sequence[int | None]) -> int | None:
    known = [one for one in found if one is not None]
    return round(sum(known) / len(known)) if known else None


def _mean(found: Sequence[tuple[float | None, float]]) -> float | None:
    """By weight; None over nothing."""
    weight = sum(weight for _, weight in found)
    return sum((value or 0.0) * weight for value, weight in found) / weight if weight else None
