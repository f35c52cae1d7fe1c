"""One sequence in a step that several share: its layers, what its next token reads, and its numbers for the device."""

from __future__ import annotations

from collections.abc import Sequence

from hgca_cli import native
from hgca_cli.attention.layer import LayerState, evict_overflow
from hgca_cli.attention.leaving import Leaving, codes_on_way, prepare
from hgca_cli.attention.relay import Relay
from hgca_cli.attention.scoring import LIMITS, Scoring
from hgca_cli.attention.select.mirror import Coded, Mirror
from hgca_cli.attention.select.scan import Scan
from hgca_cli.attention.tables import Tables

NOBODY = [0, -1, 0, 0, 0, 0, *[0] * LIMITS]  # position, slot, slots in use, what a choice is to be like


class Column:
    """A place for a sequence.

    relays   of its layers
    numbers  of its next token: position, slot, slots in use, what a choice is to be like
    """

    def __init__(self, at: int, relays: list[Relay], scoring: Scoring | None, tables: Tables) -> None:
        self.relays, self.numbers = relays, NOBODY
        self._at, self._scoring, self._tables = at, scoring, tables
        self._described = native.ffi.new("hgca_relay *[]", [relay.described for relay in relays])
        self._counted = False  # what all of them read for the present token is added up by the C library
        self._layers: list[LayerState] = []
        self._scans: dict[int, Scan] = {}
        self._mirror: Mirror | None = None
        self._made: list[int] = []
        # how the sequence is after a token that left nothing new to be looked at
        self._goes_on: tuple[object, ...] | None = None
        self._wanted = [0] * LIMITS
        self._choosing: list[Relay] = []  # of layers whose rows are chosen
        self._measured: Relay | None = None  # whose token is measured

    def holds(self, layers: Sequence[LayerState]) -> bool:
        """Whether the place is this sequence's; of no layers: nobody's."""
        return len(layers) == len(self._layers) and all(a is b for a, b in zip(layers, self._layers, strict=True))

    def bind(self, layers: Sequence[LayerState]) -> None:
        """This sequence has the place from now on; of no layers: nobody. Errors of torch, if there is no memory for its codes."""
        self._layers, self._goes_on, self.numbers, self._mirror, self._made = [], None, NOBODY, None, []
        self._counted, self._choosing, self._measured = False, [], None
        self._scans = {i: one.selector for i, one in enumerate(layers) if type(one.selector) is Scan}
        for index, relay in enumerate(self.relays):
            relay.bind(layers[index] if layers else None)
        self._place(layers)
        self._layers = list(layers)

    def _place(self, layers: Sequence[LayerState]) -> None:
        """Its rows, and codes of them, are where they are at present."""
        coded: dict[int, Coded] = {}
        if self._scoring is not None and self._scans and most_stored(layers[0]):
            self._mirror = mirror_of(layers, len(self._scans))
            coded = dict(zip(self._scans, self._mirror.layers, strict=True))
        self._made = [layer.window.made for layer in layers]
        for index, relay in enumerate(self.relays):
            window = layers[index].window if layers else None
            relay.coded = index in coded
            self._tables.put(
                index, self._at, None if window is None else (window.keys, window.values), coded.get(index)
            )

    def _moved(self) -> bool:
        first = self._layers[0]
        return (self._mirror is not None and first.mirror is not self._mirror) or any(
            layer.window.made != made for layer, made in zip(self._layers, self._made, strict=True)
        )

    def begin(self, among: int = 1) -> bool:
        """One more token, if there is a sequence, `among` of which are in the step: its `numbers`; whether what its windows held is
        elsewhere on the device, if at all. Errors as of LayerState.make_room.
        """
        if not self._layers:
            return False
        window, news = self._layers[0].window, [False]
        position = window.end
        if self._goes_on is not None and self._goes_on == self._state():
            self._goes_on = None
            self._layers[0].make_room()
            slot = window.take()
            for layer in self._layers[1:]:
                layer.window.end += 1
        else:
            self._goes_on = None
            for layer in self._layers:
                if layer.unsettled:
                    layer.round_window()
            if self._moved():
                self._place(self._layers)
            news, leaving = [relay.know() for relay in self.relays], codes_on_way(self._layers)
            slots = {relay.begin() for relay in self.relays}
            assert len(slots) == 1, "layers of one sequence move together"
            slot = slots.pop()
            self._choosing = [relay for relay in self.relays if relay.chooses]
            self._counted = all(relay.scores for relay in self.relays)
            self._bring_codes(leaving)
        self._measured = self._to_measure(among)
        spans = [number for first, count in window.runs() for number in (first, first + count)]
        self.numbers = [position, slot, *spans, *[0] * (4 - len(spans)), *self._wanted]
        return any(news)

    def _state(self) -> tuple[object, ...]:
        """What is another if anything but a token more was done to the sequence: its layers move together."""
        first, last, scan = self._layers[0], self._layers[-1], next(iter(self._scans.values()), None)
        known = first.near_lse is self.relays[0].near_lse
        rows = first.window.end, last.window.end, first.window.start, last.window.keys.data_ptr()
        return *rows, first.read_all, known, None if scan is None else scan.mass

    def _to_measure(self, among: int) -> Relay | None:
        if not self._choosing:
            return None
        at = self._layers[0].meter.next_of(len(self._choosing), among)
        return None if at is None else self._choosing[at]

    def _bring_codes(self, leaving: Leaving | None) -> None:
        """If rows are chosen on the device: codes that are new, also of rows that left, and what the choice is to be like."""
        self._wanted = [0] * LIMITS
        scoring = [i for i, relay in enumerate(self.relays) if relay.scores]
        if self._scoring is not None and self._mirror is not None and scoring:
            assert len(scoring) == len(self._scans), "layers of one sequence move together"
            aside = None if leaving is None else leaving.aside
            self._mirror.follow([self._scans[i].codes for i in scoring], aside)
            self._wanted = self._scoring.wanted(self.relays[scoring[0]].chosen)

    @property
    def reads(self) -> bool:
        """Whether rows of the store are attended to by the present token."""
        return any(relay.reads for relay in self.relays)

    def end(self, free: int = 0) -> bool:
        """The device is done with the token. Once no more than so many slots are free the oldest rows leave; whether they did. Errors
        as of Relay.end.
        """
        if not self._layers:
            return False
        if self._counted:
            native.check(native.lib.hgca_relays_status(self._described, len(self.relays)))
        else:
            for relay in self.relays:
                relay.end()
        if self._measured is not None:
            self._measured.measure()
        if evict_overflow(self._layers, free):
            return True
        self._goes_on = self._state()
        return False

    def prepare(self, free: int = 0) -> bool:
        """After `end`: what is made of rows that leave soon is begun, beside the next tokens; whether it was. free: as of `end`."""
        return bool(self._layers) and prepare(self._layers, free)


def mirror_of(layers: Sequence[LayerState], count: int) -> Mirror:
    """A device's copy of the codes of so many of a sequence's layers, which the first of them keeps."""
    first = layers[0]
    if first.mirror is None:
        rows = max(1, most_stored(first))
        first.mirror = Mirror(first.layout, count, rows, first.window.keys.device)
    return first.mirror


def most_stored(layer: LayerState) -> int:
    """Rows a layer's store may come to hold: all but those that never leave the window."""
    window = layer.window
    return max(0, layer.settings.context - window.sinks - window.ring + layer.settings.block)
