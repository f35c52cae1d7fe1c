"""Every row is scored by a 4-bit copy of its key; the rows that hold the mass wanted are read exactly.

The set follows the query, so a row that nobody looked at before the question came is found. Keys are quantised per
channel in blocks of 128 rows, as a few channels of keys are large (KIVI, arXiv:2402.02750); rows are chosen per KV head
by the largest softmax weight a query head of its group gives them (a mass target instead of a fixed number: Twilight,
arXiv:2502.02770), and more is left out where more rows hold it. What is scored and not read enters with the weight its
code gives it, half with the mean value of its block and half with the values of rows just heavy enough to be read.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store
from hgca_cli.selection import EVERY, Selection

LEAST = 64  # rows of a KV head that are always read


class Scan(Unwatching):
    """Reads what a scan of 4-bit keys finds to matter.

    mass    share of the attention mass to be kept per KV head; less where what is left is spread over many rows (docs/selection.md)
    budget  most rows as a share of the store; None: the mass alone decides
    """

    def __init__(self, layout: LayerLayout, capacity: int, *, mass: float, budget: float | None = None) -> None:
        self.mass, self._budget = mass, budget
        self._layout, self._capacity = layout, capacity
        self._selection: Selection | None = None

    @cached_property
    def codes(self) -> Codes:
        """Of the store's rows: made for the first ones, as the layers of a short text have none."""
        return Codes(self._layout, self._capacity)

    @property
    def indexed(self) -> bool:
        """Whether there were rows to make codes of."""
        return "codes" in self.__dict__

    def choose(self, query: Tensor, store: Store) -> Selection | None:
        """The standing description, brought up to date."""
        return self._described(store)

    def aim_at(self, mass: float) -> None:
        """Keep this share of the mass from the next token on."""
        self.mass = mass

    def stored(self, store: Store) -> None:
        """New rows get their codes."""
        self.codes.extend(store)

    def share(self, files: SharedFiles, store: Store) -> None:
        """The codes."""
        if self.indexed:
            self.codes.share(files)

    def begin_as(self, other: Unwatching, rows: int) -> None:
        """The other's codes."""
        assert isinstance(other, Scan)
        if other.indexed:
            self.codes.begin_as(other.codes)
            self.truncate(rows, 0)

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """Codes of rows that are gone are written anew."""
        if self.indexed:
            self.codes.truncate(store_rows)

    def _described(self, store: Store) -> Selection:
        if self._selection is None:
            self._selection = Selection(
                self._layout.heads,
                store.keys,
                store.values,
                self.codes.whole,
                scales=store.scales,
                block_means=self.codes.means,
                mass=self.mass,
            )
        self._selection.hold(store.rows, self.codes.rows)
        most = EVERY if self._budget is None else max(1, round(self._budget * store.rows))
        self._selection.limit(self.mass, min(LEAST, most), most)
        return self._selection
