"""Every row of the store, for every query: the yardstick, and a mode to choose when nothing may be missed."""

from __future__ import annotations

from torch import Tensor

from hgca_cli.attention.select.contract import EVERY, Chosen, Turn
from hgca_cli.kv.store import Store


class Unwatching:
    """A policy that needs to see no attention weights."""

    watches = False

    def stored(self, store: Store) -> None:
        """Nothing to index."""

    def see_step(self, weight: Tensor) -> None:
        """Nothing to learn."""

    def see_chunk(self, turn: Turn, store: Store) -> None:
        """Nothing to learn."""

    def leave(self, count: int, length: int) -> None:
        """Nothing to keep."""

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """Nothing to forget."""


class Exact(Unwatching):
    """Reads the whole store."""

    def choose(self, query: Tensor, store: Store) -> Chosen | None:
        """All rows."""
        return EVERY
