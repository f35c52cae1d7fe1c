"""What one layer of one sequence reads for a token, described for the C library once and brought up to date token by token.

Where window and store are both in CPU memory there is nothing to overlap with: the new row, the choice and all reading are
part of one blocking call, which may do the rest of the layer too (hf/decoder.py). Everything else goes through step.py.
"""

from __future__ import annotations

from typing import Any

import torch

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select.contract import Chosen
from hgca_cli.attention.sparse import Exact, count_read, slots_in_use
from hgca_cli.kv.window import Window
from hgca_cli.selection import Selection

UNKNOWN = torch.empty(0)  # the query, before the layer has computed it


class Reading:
    """For a layer whose window the C library reads, and whose policy looks at no weights."""

    def __init__(self, layer: LayerState, scale: float, softcap: float) -> None:
        assert self.serves(layer)
        self._scale, self._softcap = scale, softcap
        self._query = torch.empty(layer.layout.heads, layer.layout.key_dim)
        self.chosen: Chosen | Selection | None = None  # of the store, by the last token
        self.looked = 0  # how often what a token reads was looked at
        self._lists: native.Lists | None = None
        self._metered = False
        to = self._described = native.ffi.new("hgca_reading *")
        to.scale, to.softcap, to.tokens = scale, softcap, 1
        self.look_at(layer.window)
        self._took = native.ffi.new("int64_t *")

    def look_at(self, window: Window) -> None:
        """The layer's window, which the C library reads, is there from now on."""
        assert window.read is not None
        self._described.window = window.read.described
        self._described.near = self._described.window[0]

    def watch(self, on: bool) -> None:
        """Whether `took` tells how long attention takes, from the next token on. May be called from any thread."""
        self._described.took = self._took if on else native.ffi.NULL

    @property
    def took(self) -> float | None:
        """Seconds of the last token's attention, choosing its rows included; None before `watch` was called and a token came."""
        return self._took[0] * 1e-9 or None

    @staticmethod
    def serves(layer: LayerState) -> bool:
        """Whether a layer can be read so."""
        return layer.window.read is not None and not layer.selector.watches

    def begin(self, layer: LayerState) -> Any | None:
        """The hgca_reading of one more token, for whose row there is a slot then; None: its rows are named in Python."""
        return self.take(layer) if self.choose(layer) else None

    def choose(self, layer: LayerState, *, metered: bool = True) -> bool:
        """What one more token reads of the store, and whether the library knows how: the first half of `begin`.

        metered  a token is about to be read: the meter counts it, and may measure it
        """
        layer.settle()
        self.looked += metered
        store, to = layer.store, self._described
        stored = store is not None and store.rows > 0
        chosen = self.chosen = layer.choose(UNKNOWN, store) if stored else None  # type: ignore[arg-type]
        to.chosen, to.query, to.far.rows, self._metered = native.ffi.NULL, native.ffi.NULL, 0, False
        if isinstance(chosen, Selection):
            to.chosen = chosen.job
            if metered and layer.meter.due():
                self._metered = True
                to.query = native.address(self._query)
        elif chosen is not None:
            if chosen.row_start is not None:
                return False
            to.far = store.read.described[0]  # type: ignore[union-attr]
            to.far.rows = store.rows  # type: ignore[union-attr]
        return True

    def take(self, layer: LayerState) -> Any:
        """A slot for the row, and the hgca_reading: the second half."""
        to = self._described
        layer.make_room()
        to.row = layer.window.take()
        self._read_window(layer)
        return to

    @property
    def described(self) -> Any:
        """The hgca_reading of what was taken last."""
        return self._described

    def take_tokens(self, layer: LayerState, tokens: int) -> Any:
        """Slots for the rows of several tokens one behind the other, and the hgca_reading of them. Only if the layer `has_room`."""
        to, window = self._described, layer.window
        self.looked += 1
        to.chosen, to.query, to.far.rows, self.chosen, self._metered = native.ffi.NULL, native.ffi.NULL, 0, None, False
        to.row, to.tokens = window.end, tokens
        window.end += tokens
        to.near.rows, to.near.lists = window.end, 0
        return to

    def end_tokens(self, layer: LayerState) -> None:
        """As `end`, of these."""
        tokens = self._described.tokens
        layer.read_on(tokens)
        self._described.tokens = 1
        layer.evict_overflow(tokens)

    def _read_window(self, layer: LayerState) -> None:
        rows, self._lists = slots_in_use(layer)
        tell_slots(self._described.near, rows, self._lists)

    def end(self, layer: LayerState) -> None:
        """The call has returned: it is counted, now and then measured, and the ring's oldest rows may leave."""
        chosen, store = self.chosen, layer.store
        if isinstance(chosen, Selection) and self._metered:
            Exact(layer, self._query, self._scale, self._softcap).tell(chosen.read_lse)
        if store is not None and store.rows > 0:
            count_read(layer, chosen)
        layer.evict_overflow()


def tell_slots(near: Any, rows: int, lists: native.Lists | None) -> None:
    """Put `slots_in_use` into the hgca_attention of a window."""
    if lists is None:
        near.rows, near.lists = rows, 0
        return
    told = lists.described
    near.rows, near.lists = rows, told.lists
    near.row_start, near.row, near.run = told.row_start, told.row, told.run
