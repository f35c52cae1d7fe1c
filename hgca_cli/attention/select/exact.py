"""Every row of the store, for every query: the yardstick, and a mode to choose when nothing may be missed."""

from __future__ import annotations

from torch import Tensor

from hgca_cli.attention.select.contract import EVERY, Chosen, Turn
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store


class Unwatching:
    """A policy that needs to see no attention weights: what it knows is an index of the store's rows.

    An index is shared as the rows are (kv/shared.py): `share` writes it to files, and one of the same policy, of a store that begins as
    that one's with so many rows, may `begin_as` it. Errors as of GrowingArray.share and begin_as.
    """

    watches = False

    def stored(self, store: Store) -> None:
        """Nothing to index."""

    def share(self, files: SharedFiles, store: Store) -> None:
        """No index that others could begin with."""

    def begin_as(self, other: Unwatching, rows: int) -> None:
        """No index to begin with."""

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
