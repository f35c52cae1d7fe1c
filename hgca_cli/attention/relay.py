"""The store's part of a token's attention inside a device's step, which Python prepares before and does not see happen.

The device's stream sends the queries to pinned memory, has the C library answer them, and fetches what it wrote there
(native/relay.c). All addresses stay the same from token to token, so the step can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.counters import Late
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial
from hgca_cli.attention.reading import UNKNOWN
from hgca_cli.attention.scoring import TURNS, Guessed, Scoring
from hgca_cli.attention.select.contract import Chosen
from hgca_cli.attention.sparse import Exact, count_read
from hgca_cli.attention.tables import Places
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.selection import Selection


class Relays:
    """One layer of all sequences of a step: its `index`, and a Relay for `each`.

    query, answer    f32 [sequences, heads, key_dim]; out and, behind it, lse f32 [sequences, heads * (value_dim + 1)]: in CPU memory,
                     pinned for a GPU
    answered         the answers on the device
    near_lse, beside f32 [sequences, heads], of the windows, of the last token the device is done with: in CPU memory, and there
    scoring, places  what chooses rows on the device, by what; None where that is left to the C library
    foreseen         what must live until the answers are there, if rows were chosen by queries made before the true ones
    named            when the device has named the rows, if it does for the present token
    """

    def __init__(
        self,
        index: int,
        layout: LayerLayout,
        near_lse: Tensor,
        beside: Tensor,
        places: Places,
        scoring: Scoring | None = None,
    ) -> None:
        self.index, self.layout = index, layout
        count, pinned = len(beside), beside.is_cuda
        with torch.inference_mode(False):
            self.query = torch.zeros(count, layout.heads, layout.key_dim, pin_memory=pinned)
            self.answer = torch.zeros(count, layout.heads * (layout.value_dim + 1), pin_memory=pinned)
            self.answered = torch.zeros_like(self.answer, device=beside.device)
            self.row_start = torch.zeros(count, layout.kv_heads + 1, dtype=torch.int64, pin_memory=pinned)
        self.near_lse, self.beside = near_lse, beside
        self.scoring, self.places = scoring, places
        self.foreseen: object | None = None
        self.named: torch.cuda.Event | None = None
        self._turn = index % TURNS
        self._scale, self._softcap = 1.0, 0.0
        self.each = [Relay(self, at) for at in range(count)]

    def tell(self, scale: float, softcap: float) -> None:
        """How scores are made, the same for every token."""
        if (scale, softcap) != (self._scale, self._softcap):
            self._scale, self._softcap = scale, softcap
            for relay in self.each:
                relay.tell(scale, softcap)

    def score(self, query: Tensor, part: slice = slice(None)) -> Guessed | None:
        """Choose the rows the C library reads, on the device, of those sequences of a part for which they are chosen there. As of
        Scoring.choose.
        """
        if self.scoring is None:
            return None
        how = {"scale": self._scale, "softcap": self._softcap}
        return self.scoring.choose(query, self.places, self.beside, self.row_start, turn=self._turn, part=part, **how)

    def far(self) -> Partial:
        """What came back, on the device: out [sequences, heads, value_dim], lse [sequences, heads]."""
        shape = self.layout
        out, lse = self.answered.split([shape.heads * shape.value_dim, shape.heads], dim=1)
        return Partial(out.view(-1, shape.heads, shape.value_dim), lse)


class Relay:
    """One layer of one sequence, the `at`-th of the layer's `of`; as long as it is nobody's, it reads nothing.

    near_lse         f32 [heads], its part of the layer's
    coded            whether its codes are on the device, too
    scores           whether rows are chosen there for the present token
    """

    def __init__(self, of: Relays, at: int) -> None:
        shape = of.layout
        self.layer: LayerState | None = None
        self.query, self.near_lse = of.query[at], of.near_lse[at]
        self._starts = native.address(of.row_start[at], "int64_t *")
        self._scoring, self._layout = of.scoring, shape
        self._named = None if of.scoring is None else of.scoring.named[of.index % TURNS][at]
        self.scores = self.coded = False
        self._chosen: Chosen | Selection | None = None
        self._scale, self._softcap = 1.0, 0.0
        to = self.described = native.ffi.new("hgca_relay *")
        out = shape.heads * shape.value_dim
        answer = of.answer[at]
        to.query, to.out, to.lse = (native.address(one) for one in (self.query, answer[:out], answer[out:]))
        to.scale = 1.0
        self._own_far()

    def bind(self, layer: LayerState | None) -> None:
        """It is about this layer from now on."""
        before, self.layer, self.coded, self.scores, self._chosen = self.layer, layer, False, False, None
        if before is not None and before.late is not None and before.late.described is self.described:
            before.count_late(None)
        if before is not None and before.near_lse is self.near_lse:
            before.near_lse = self.near_lse.clone()  # somebody else's numbers come here
        self._own_far()

    def _own_far(self) -> None:
        to, layer, shape = self.described, self.layer, self._layout
        to.chosen, to.told, to.status, to.ns = native.ffi.NULL, native.ffi.NULL, 0, 0
        if layer is not None and layer.store is not None:
            to.far = layer.store.read.described[0]
            to.row_bytes = layer.store.row_bytes // shape.kv_heads
        to.far.rows, to.far.lists, to.far.heads, to.far.value_dim = 0, 0, shape.heads, shape.value_dim

    def know(self) -> bool:
        """What the window held before, in the place where it is looked for; whether it was elsewhere."""
        layer = self.layer
        assert layer is not None
        if layer.near_lse is self.near_lse:
            return False
        if layer.near_lse is None:
            self.near_lse.fill_(float("-inf"))
        else:
            self.near_lse.copy_(layer.near_lse)
        layer.near_lse = self.near_lse
        return True

    @staticmethod
    def serves(layer: LayerState) -> bool:
        """Whether a layer can be read so: it sees everything, and its policy looks at no weights."""
        return layer.layout.sliding is None and not layer.selector.watches

    def tell(self, scale: float, softcap: float) -> None:
        """How scores are made, the same for every token."""
        self._scale = self.described.scale = scale
        self._softcap = self.described.softcap = softcap

    @property
    def chosen(self) -> Selection:
        """Of the present token. Only where `scores`."""
        assert isinstance(self._chosen, Selection)
        return self._chosen

    @property
    def reads(self) -> bool:
        """Whether rows of the store are read for the present token."""
        return bool(self.described.far.rows or self.described.chosen)

    @property
    def chooses(self) -> bool:
        """Whether they are chosen by what they hold."""
        return isinstance(self._chosen, Selection)

    def begin(self) -> int:
        """One more token: rows on their way arrive, what is read is described; returns the slot of the token's row."""
        layer, to = self.layer, self.described
        assert layer is not None
        layer.count_late(None)
        layer.settle()
        store = layer.store
        stored = store is not None and store.rows > 0
        chosen = self._chosen = layer.choose(UNKNOWN, store) if stored else None  # type: ignore[arg-type]
        to.chosen, to.told, to.far.rows, to.far.lists = native.ffi.NULL, native.ffi.NULL, 0, 0
        self.scores = False
        if isinstance(chosen, Selection):
            if self.coded and self._scoring is not None and self._scoring.fits(chosen):
                self._leave_choice(chosen, self._scoring)
            else:
                to.chosen = chosen.job
                to.beside = native.address(self.near_lse)
        elif chosen is not None:
            assert chosen.row_start is None, "a list of rows that Python names needs the query"
            to.far.rows = store.rows  # type: ignore[union-attr]
        layer.make_room()
        return layer.window.take()

    def _leave_choice(self, chosen: Selection, scoring: Scoring) -> None:
        """To the device, which writes lists of rows."""
        to, self.scores, layer = self.described, True, self.layer
        assert layer is not None and layer.store is not None
        layer.count_late(Late(to, chosen, layer.store.row_bytes))
        to.told, to.scored_bytes = chosen.job, scoring.bytes_scored(chosen.rows)
        to.far.rows, to.far.lists = chosen.rows, chosen.kv_heads
        to.far.row_start, to.far.row = self._starts, self._named

    def end(self) -> None:
        """The device is done with the token: it is counted.

        Raises NativeError if the library could not do its part.
        """
        layer, chosen = self.layer, self._chosen
        assert layer is not None
        if self.described.status:
            native.check(self.described.status)
        if layer.store is not None and layer.store.rows > 0 and not self.scores:
            count_read(layer, chosen)

    def measure(self) -> None:
        """The device is done with a token whose rows were chosen: the meter is told what they held."""
        layer, chosen = self.layer, self._chosen
        assert layer is not None and isinstance(chosen, Selection)
        Exact(layer, self.query, self._scale, self._softcap, self.near_lse).tell(chosen.read_lse)
