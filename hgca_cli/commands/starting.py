"""Python's search for cycles, seldom while libraries are imported: torch and transformers make half a million objects that stay."""

from __future__ import annotations

import gc

SELDOM = 1_000_000  # objects made between two searches: none while libraries are imported (docs/log.md)

_before: list[tuple[int, int, int]] = []  # how often there was one, while there are few


def search_seldom() -> None:
    """From now on, until `search_as_before`."""
    if not _before:
        _before.append(gc.get_threshold())
        gc.set_threshold(SELDOM, *_before[0][1:])


def search_as_before() -> None:
    """As often as before `search_seldom`, and no more among what is here by now. Nothing without that."""
    if _before:
        gc.freeze()
        gc.set_threshold(*_before.pop())
