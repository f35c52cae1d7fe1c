"""Rows that begin alike, next to each other: what they share is then read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hgca_cli.batch.check import BEGINNINGS, Entry


def grouped(entries: Sequence[Entry]) -> list[Entry]:
    """The same rows; those that share the longest beginnings stand together, where the first of them stood."""
    first: dict[tuple[int, ...], int] = {}
    for at, entry in enumerate(entries):
        for depth in range(1, len(entry.begins) + 1):
            first.setdefault(entry.begins[:depth], at)

    def place(numbered: tuple[int, Entry]) -> tuple[int, ...]:
        at, entry = numbered
        return (*(first[entry.begins[:depth]] for depth in range(1, len(entry.begins) + 1)), at)

    return [entry for _, entry in sorted(enumerate(entries), key=place)]


def alike(entries: Sequence[Entry]) -> list[int]:
    """For each row how many characters another one begins with, too, at least."""
    count = Counter(beginning for entry in entries for beginning in entry.begins)
    return [
        max((length for length, one in zip(BEGINNINGS, entry.begins, strict=False) if count[one] > 1), default=0)
        for entry in entries
    ]
