"""What a selection policy is: which rows of the store each head reads for this query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hgca_cli.kv.store import Store
from hgca_cli.selection import Selection


@dataclass(frozen=True)
class Chosen:
    """Rows of the store to read, as lists: list l serves heads / lists consecutive query heads.

    row_start  i64 [lists + 1], row i32: rows row_start[l] .. row_start[l + 1] belong to list l; None reads every row
    share      mean share of the store's rows in a list
    """

    row_start: Tensor | None
    row: Tensor | None
    share: float


EVERY = Chosen(None, None, 1.0)


@dataclass(frozen=True)
class Turn:
    """What a prompt chunk showed: its queries against everything, for policies that watch attention weights.

    query   [heads, queries, key_dim]; lse f32 [heads, queries], over all rows the queries saw
    keys    [kv_heads, rows, key_dim] each: ring rows before the chunk, oldest first, and last the chunk's own
    length  rows of the sequence, the chunk's included
    last    the turn ends with this chunk
    first   the store was empty when the turn began
    """

    query: Tensor
    keys: Sequence[Tensor]
    lse: Tensor
    scale: float
    softcap: float
    length: int
    last: bool
    first: bool


class Selector(Protocol):
    """One policy, for one layer and one sequence.

    watches  the policy wants `see_step` and `see_chunk`
    """

    watches: bool

    def choose(self, query: Tensor, store: Store) -> Chosen | Selection | None:
        """Rows to read for query f32 [heads, key_dim] on the CPU: named, or left to the C library; None reads nothing.

        A policy that does not watch is asked before there is a query, too, which is empty then: it may not look at it.
        """
        ...

    def stored(self, store: Store) -> None:
        """Rows have arrived in the store."""
        ...

    def see_step(self, weight: Tensor) -> None:
        """Attention weights f32 [heads, ring rows] one token gave the ring's rows, oldest first, itself last."""
        ...

    def see_chunk(self, turn: Turn, store: Store) -> None:
        """A prompt chunk was attended to. The ring's rows are now `turn.keys`, and the oldest leave by `leave`."""
        ...

    def leave(self, count: int, length: int) -> None:
        """The `count` oldest ring rows go to the store; the sequence is `length` rows long."""
        ...

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """The sequence was rewound: so many rows are left in the store and in the ring."""
        ...
