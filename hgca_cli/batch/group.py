"""Rows that begin alike, next to each other: what they share is then read once."""

from __future__ import annotations

from collections.abc import Sequence

from hgca_cli.batch.check import Entry


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
