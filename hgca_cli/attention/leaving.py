"""Rows that leave a sequence's windows next, made into rows of its stores beside the tokens before they do.

Done between two tokens, that takes as long as several. The rows are attended to in the windows until they leave, at the same token
as if nothing had been made of them; what is written meanwhile nobody reads: rows behind a store's last, and codes aside. If the
sequence goes another way it is dropped, and the rows arrive as any others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait

import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.contract import Selector
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.attention.select.mirror import Aside
from hgca_cli.attention.select.scan import Scan
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.evict import Pieces, copy_oldest
from hgca_cli.kv.store import Store
from hgca_cli.kv.window import Window
from hgca_cli.kv.worker import worker

EARLY = 32  # tokens before rows leave


class Leaving:
    """The oldest rows of all layers of a sequence, and the work on them. Its thread holds the stores, not the sequence."""

    def __init__(self, layers: Sequence[LayerState], count: int) -> None:
        copies, self.copied = copy_oldest([layer.window for layer in layers], count)
        scans = [layer.selector for layer in layers if type(layer.selector) is Scan]
        self._aside = aside_of([scan.codes for scan in scans], layers[0], count) if scans else None
        coded = iter(() if self._aside is None else zip(self._aside.codes, self._aside.means, strict=True))
        self.rows: list[LeavingRows] = []
        for layer, pieces in zip(layers, copies, strict=True):
            scan = layer.selector if type(layer.selector) is Scan else None
            aside = None if scan is None else (scan.codes, *next(coded))
            self.rows.append(LeavingRows(self, layer, count, pieces, aside))
        self._dropped = False
        self._arrived = 0
        self._job: Future[None] = worker("prepare").submit(self._make)

    def _make(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        with torch.inference_mode():
            for rows in self.rows:
                if self._dropped:
                    return
                rows.make()

    @property
    def aside(self) -> Aside | None:
        """The codes that are new, if rows of all layers arrived as they were made here."""
        return self._aside if self._arrived == len(self.rows) else None

    def arrives(self) -> bool:
        """Once the work is done: whether it was, of all layers. Errors of it other than DoesNotFitError."""
        try:
            self._job.result()
        except (DoesNotFitError, CancelledError):
            return False
        return not self._dropped

    def arrived(self) -> None:
        """Those of one more layer did."""
        self._arrived += 1

    def drop(self) -> None:
        """Of all layers, as they move together; its thread is at none any more."""
        self._dropped = True
        if not self._job.cancel():
            wait([self._job])


class LeavingRows:
    """Those of one layer: an Ahead of kv/evict.py.

    aside  its codes, and where those that change are written: u8 and bf16 [kv_heads, blocks, ...]; None: it has none
    """

    def __init__(
        self,
        of: Leaving,
        layer: LayerState,
        count: int,
        pieces: Pieces,
        aside: tuple[Codes, Tensor, Tensor] | None,
    ) -> None:
        assert layer.store is not None
        self.pieces, self.copied = pieces, of.copied
        self._of, self._aside = of, aside
        self._store: Store = layer.store
        self._first, self._end, self._start = layer.store.rows, layer.store.rows + count, layer.window.start
        self._coded = 0 if aside is None else aside[0].rows

    def make(self) -> None:
        """Write them behind the store's rows, and their codes aside. Errors as of Store.append."""
        first = self._first
        for key, value in self.pieces:
            self._store.place(key, value, first)
            first += key.shape[1]
        if self._aside is not None:
            codes, *aside = self._aside
            codes.extend_aside(self._store, self._end, *aside)

    def is_oldest(self, window: Window, count: int) -> bool:
        """As of Ahead."""
        return window.start == self._start and count == self._end - self._first

    def arrive(self) -> bool:
        """As of Ahead."""
        store, aside = self._store, self._aside
        if not self._of.arrives() or store.rows != self._first or (aside and aside[0].rows != self._coded):
            return False
        store.rows = self._end
        if aside is not None:
            codes, *written = aside
            codes.take_aside(self._end, *written)
        self._of.arrived()
        return True

    def drop(self) -> None:
        """As of Ahead."""
        self._of.drop()

    @property
    def sequence(self) -> Leaving:
        """All layers'."""
        return self._of


def prepare(layers: Sequence[LayerState], free: int = 0) -> bool:
    """Begin with what leaves soon, once no more than so many slots are free, of layers of one sequence, which are alike; whether it was
    begun: there is such, and no layer has anything else to do, or an index that is made otherwise than by Codes.
    """
    first = layers[0]
    count = first.overflow(free, EARLY)
    if not count or count < first.settings.block or not all(_can(layer) for layer in layers):
        return False
    leaving = Leaving(layers, count)
    for layer, rows in zip(layers, leaving.rows, strict=True):
        assert layer.evictor is not None
        layer.evictor.ahead = rows
    return True


def _can(layer: LayerState) -> bool:
    """A first row takes memory for an index, and makes the next token another: no sooner than it leaves."""
    evictor, store = layer.evictor, layer.store
    if evictor is None or evictor.ahead is not None or store is None or not store.rows or layer.unsettled:
        return False
    return known_of(layer.selector)


def known_of(selector: Selector) -> bool:
    """Whether what a policy does when rows arrive is nothing, or to write their codes."""
    return type(selector).stored is Unwatching.stored or (type(selector) is Scan and selector.indexed)


def aside_of(codes: Sequence[Codes], layer: LayerState, count: int) -> Aside:
    """Where codes that change are written, of layers that are alike: their stores get so many rows more."""
    assert layer.store is not None
    rows, shape = layer.store.rows + count, layer.layout
    blocks = codes[0].not_full(rows)
    assert all(one.not_full(rows) == blocks for one in codes), "layers of one sequence move together"
    pinned = layer.window.keys.is_cuda
    sizes = [(codes[0].whole.shape[2], torch.uint8), (shape.value_dim, torch.bfloat16)]
    whole, means = (
        torch.empty(len(codes), shape.kv_heads, len(blocks), width, dtype=dtype, pin_memory=pinned)
        for width, dtype in sizes
    )
    return Aside(blocks.start, rows, whole, means)


def codes_on_way(layers: Sequence[LayerState]) -> Leaving | None:
    """What was made for rows that are on their way and arrive next."""
    evictor = layers[0].evictor
    if evictor is None or not evictor.pending or not isinstance(evictor.ahead, LeavingRows):
        return None
    return evictor.ahead.sequence
