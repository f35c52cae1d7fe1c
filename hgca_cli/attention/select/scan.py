"""Every row is scored by a 4-bit copy of its key; the rows that hold the mass wanted are read exactly.

The set follows the query, so a row that nobody looked at before the question came is found. Keys are quantised per
channel in blocks of 128 rows, as a few channels of keys are large (KIVI, arXiv:2402.02750); rows are chosen per KV head
by their mean softmax weight over the head's group (a mass target instead of a fixed number: Twilight, arXiv:2502.02770).
"""

from __future__ import annotations

from torch import Tensor

from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.selection import Selection

LEAST = 64  # rows of a KV head that are always read


class Scan(Unwatching):
    """Reads what a scan of 4-bit keys finds to matter.

    mass    share of the attention mass to be kept per KV head
    budget  most rows as a share of the store; None: the mass alone decides
    """

    def __init__(
        self, layout: LayerLayout, capacity: int, *, mass: float, budget: float | None = None, estimate: bool = True
    ) -> None:
        self.estimate = estimate
        self._layout, self._capacity = layout, capacity
        self._mass, self._budget = mass, budget
        self._codes: Codes | None = None
        self._selection: Selection | None = None

    def choose(self, query: Tensor, store: Store) -> Selection | None:
        """The standing description, brought up to date."""
        assert self._codes is not None and self._selection is not None
        self._selection.hold(store.rows, self._codes.rows)
        return self._selection

    def stored(self, store: Store) -> None:
        """New rows get their codes."""
        if self._codes is None:
            self._codes = Codes(self._layout, self._capacity)
            self._selection = Selection(
                self._layout.heads,
                store.keys,
                store.values,
                self._codes.whole,
                scales=store.scales,
                block_means=self._codes.means if self.estimate else None,
                mass=self._mass,
            )
        assert self._selection is not None
        self._codes.extend(store)
        if self._budget is None:
            self._selection.limit(self._mass, LEAST, store.rows)
        else:
            most = max(1, round(self._budget * store.rows))
            self._selection.limit(self._mass, min(LEAST, most), most)

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """Codes of rows that are gone are written anew."""
        if self._codes is not None:
            self._codes.truncate(store_rows)
