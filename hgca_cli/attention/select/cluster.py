"""Like rows stand together, and the mean key of 16 says whether they are worth a look; who is not looked at is estimated.

`cluster` reads all rows of the groups that hold the mass wanted (RetroInfer, arXiv:2505.02922: what is near is read, what
matters is retrieved, the rest is estimated by the groups' mean keys and values). `two-level` scans the 4-bit codes of
the rows of a wider choice of groups, and reads the rows that hold the mass wanted. Rows that are like no others have
groups of their own, which are always looked at: a mean would hide them. Rows not yet clustered are read by `cluster`,
scanned by `two-level`. A mass of 1 opens the gate: every row is scanned then, and nothing is estimated.

Groups are of 16 rows exactly, by halving again and again; they stay where they are in the store, as runs of 16 rows are
read no faster than single ones once [key | value] lie together (docs/log.md).
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from hgca_cli import indexing
from hgca_cli.attention.select.clusters import Clusters
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.attention.select.scan import Scan
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store
from hgca_cli.selection import Selection

BLOCKS_FROM = 32768  # clustered rows from which blocks of 128 are looked at before groups
GATE_LEFT = 0.2  # of what rows may leave out, so much may what is not looked at hold: closed blocks, and groups
GATE_SHARE = 0.5  # most of the groups; with a fifth the divergence at 28k is four times as large (docs/log.md)
NARROW = 10.0  # but all except so many times what may be left out


class Cluster(Scan):
    """Reads the groups that hold the mass wanted, and estimates the others.

    mass, budget  as of Scan
    """

    gate = "read"
    apart = 0  # groups of a segment for rows that are like no others
    blocks = False  # a long store's groups are looked at block by block

    def __init__(self, layout: LayerLayout, capacity: int, *, mass: float, budget: float | None = None) -> None:
        super().__init__(layout, capacity, mass=mass, budget=budget)
        self._described_rows = 0  # clustered ones that the description knows of

    @cached_property
    def _clusters(self) -> Clusters:
        return Clusters(self._layout, self._capacity, self.apart, blocks=self.blocks)

    @property
    def clustered(self) -> int:
        """Rows that stand in groups."""
        return self._clusters.rows

    def choose(self, query: Tensor, store: Store) -> Selection | None:
        """The standing description, brought up to date; segments that are due are taken in."""
        described = self._described(store)
        clusters = self._clusters
        clusters.settle(store, self.codes)
        if clusters.rows != self._described_rows:
            self._described_rows = clusters.rows
            gate = self.gate if self.mass < 1.0 or self._budget is not None else "none"
            mass, most = self._gate(clusters.rows // indexing.GROUP)
            described.cluster(
                clusters.rows,
                clusters.order,
                clusters.group_codes,
                clusters.means,
                clusters.apart,
                spread_codes=clusters.spread_codes,
                block_codes=clusters.block_codes if gate != "none" and clusters.rows >= BLOCKS_FROM else None,
                open_mass=mass,
                shared=clusters.shared,
                gate=gate,
                mass=mass,
                most=most,
            )
        return described

    def aim_at(self, mass: float) -> None:
        """As of Scan; the gate is described anew."""
        super().aim_at(mass)
        self._described_rows = 0

    def stored(self, store: Store) -> None:
        """New rows get their codes, and full segments are clustered; a long prompt's are taken in as they are made, or its
        segments would all be in memory twice until the first token.
        """
        super().stored(store)
        self._clusters.extend(store)
        self._clusters.settle(store, self.codes, wait=False)

    def share(self, files: SharedFiles, store: Store) -> None:
        """Codes, and the groups of segments that are due."""
        if self.indexed:
            self._clusters.settle(store, self.codes)
            self._clusters.share(files)
        super().share(files, store)

    def begin_as(self, other: Unwatching, rows: int) -> None:
        """The other's codes and groups; segments still being clustered come to both."""
        assert isinstance(other, Cluster)
        if other.indexed:
            self._clusters.begin_as(other._clusters)
        super().begin_as(other, rows)

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """Segments that are no longer whole are forgotten, and their rows get codes in their own order again."""
        if not self.indexed:
            return
        before = self._clusters.rows
        self._clusters.truncate(store_rows)
        kept = self._clusters.rows
        super().truncate(kept if kept < before else store_rows, ring_rows)
        if self._selection is not None and kept < before:
            self._selection.uncluster()
            self._described_rows = 0

    def _gate(self, groups: int) -> tuple[float, int]:
        """Mass and number of groups that are let through."""
        return self.mass, groups if self._budget is None else max(1, round(self._budget * groups))


class TwoLevel(Cluster):
    """Scans the codes of the groups that may matter, reads the rows that do, and estimates the other groups."""

    gate = "scan"
    apart = 8  # a block's
    blocks = True

    def _gate(self, groups: int) -> tuple[float, int]:
        left = 1.0 - self.mass
        return 1.0 - GATE_LEFT * left, max(1, round(max(GATE_SHARE, 1.0 - NARROW * left) * groups))
