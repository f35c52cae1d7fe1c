"""Pages of 16 rows in their own order; the pages that could matter to this query are read whole.

A page is known by the smallest and the largest of its keys' numbers, and its score is the largest score a row within
these bounds could have (Quest, arXiv:2406.10774, section 3). Pages are read in the order of their softmax weight, pooled
over a KV head's group, and what is not read leaves no trace. Bounds beat the middle of the box and the mean of the keys at
the same bytes, though they are twice as many (docs/log.md).
"""

from __future__ import annotations

import torch

from hgca_cli import indexing
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store
from hgca_cli.selection import Selection

BLOCK = indexing.GROUP * indexing.GROUP  # rows of 16 pages, which lie side by side


BUDGET = 0.2  # of the pages, where nothing is asked for: with the bounds a quarter of the store's bytes


class Page(Unwatching):
    """Reads the pages with the largest bounds.

    mass    share of the softmax over the pages' scores that is read, None: all; of bounds it is no share of the attention's
            mass, as they promise too much
    budget  most pages, as a share; None: the mass alone decides, or BUDGET without one
    kind    "box", or what means say: "centre" of the box, "mean"
    """

    kind = "box"

    def __init__(
        self, layout: LayerLayout, capacity: int, *, mass: float | None = None, budget: float | None = None
    ) -> None:
        self._mass = 1.0 if mass is None else mass
        self._budget = BUDGET if mass is None and budget is None else budget
        self._layout = layout
        self._rows = 0
        width = indexing.page_bytes(layout.key_dim, self.kind)
        blocks = -(-capacity // BLOCK)
        self._memory = GrowingArray(layout.kv_heads, blocks, width, torch.uint8, "the index of older rows")
        self.pages = self._memory.whole
        self._selection: Selection | None = None

    def choose(self, query: torch.Tensor, store: Store) -> Selection | None:
        """The standing description, brought up to date."""
        if self._rows < store.rows:
            self.stored(store)
        if self._selection is None:
            self._selection = Selection(
                self._layout.heads, store.keys, store.values, None, scales=store.scales, mass=self._mass
            )
        pages = -(-store.rows // indexing.GROUP)
        most = pages if self._budget is None else max(1, round(self._budget * pages))
        self._selection.hold(store.rows, store.rows)
        self._selection.page(self.pages, kind=self.kind, mass=self._mass, most=most)
        return self._selection

    def stored(self, store: Store) -> None:
        """New rows enter their pages; the one that was not full is written anew."""
        first = self._rows // indexing.GROUP * indexing.GROUP
        self._memory.commit(-(-store.rows // BLOCK), first // BLOCK)
        scale = None if store.scales is None else store.scales[:, : store.rows, 0]
        keys = store.keys[:, : store.rows]
        indexing.write_pages(keys, self.pages, first, kind=self.kind, scale=scale)
        self._rows = store.rows

    def share(self, files: SharedFiles, store: Store) -> None:
        """The bounds."""
        self._memory.share(files, -(-self._rows // BLOCK))

    def begin_as(self, other: Unwatching, rows: int) -> None:
        """The other's bounds."""
        assert isinstance(other, Page)
        blocks = min(-(-other._rows // BLOCK), self.pages.shape[1])
        self._memory.begin_as(other._memory, blocks)
        self._rows = min(other._rows, blocks * BLOCK)
        self.truncate(rows, 0)

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """The page that lost rows is written anew when it is read."""
        if store_rows < self._rows:
            self._rows = store_rows // indexing.GROUP * indexing.GROUP
