"""The attention of a token of each of several sequences in all layers, as a CUDA graph of it can be replayed for the next tokens,
and for other sequences.

What changes from token to token is in memory whose address stays: the slots of the new rows, the slots in use, where a sequence's rows
are, and what the relays describe. The queries leave for the CPU before the windows are attended to, and the answers are awaited after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hgca_cli.attention.aside import Lane
from hgca_cli.attention.column import Column, most_stored
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial, absorb_sink
from hgca_cli.attention.relay import Relay, Relays
from hgca_cli.attention.scoring import LIMITS, Scoring
from hgca_cli.attention.select.scan import Scan
from hgca_cli.attention.signals import Signals
from hgca_cli.attention.slots import SlotAttention
from hgca_cli.attention.tables import Tables

TOKEN, POSITION, SERIAL = 0, 1, 12  # of the numbers of a sequence that go to the device before a step
TAKEN, CHOICE = slice(2, 7), slice(7, 7 + LIMITS)
NUMBERS = 13
PARTS = (
    2  # of a layer's sequences, where it is not looked ahead: rows of one are chosen while those of the other are read
)


class Recorder:
    """Places for sequences of one model.

    sequences  the layers of each
    places     there are, at least as many as sequences; None: as many
    room       as of `room_of`, of the largest there will be a place for; None: of these
    numbers    i64 [places, 13] on the device: a sequence's token, its position, its slot, the slots in use, what a choice is to be
               like; and in the first line the number of the step
    kind       of step: what is done with the stores, and where
    ahead      whether rows are chosen by foreseen queries in most layers, where the device chooses them (`foresee`)
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[LayerState]],
        places: int | None = None,
        room: tuple[int, int] | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        first, shape = sequences[0][0], sequences[0][0].layout
        rows, device = first.window.keys, first.window.keys.device
        count, layers = places or len(sequences), len(sequences[0])
        with torch.inference_mode(False):
            self._sent = torch.zeros(count, NUMBERS, dtype=torch.int64, pin_memory=device.type == "cuda")
            self.numbers = torch.zeros_like(self._sent, device=device)
            self._lines = self._sent.numpy()  # the same memory: a line costs Python less so
            self._near_lse = torch.full((layers, count, shape.heads), float("-inf"), pin_memory=device.type == "cuda")
            self._beside = torch.full_like(self._near_lse, float("-inf"), device=device)
        self._room = slots, rows_there = room or room_of(sequences)
        self._scoring: Scoring | None = None
        scanned = any(type(layer.selector) is Scan for layer in sequences[0])
        if first.settings.device_codes and shape.in_graph and scanned:
            self._scoring = Scoring(shape, rows_there, self.numbers[:, CHOICE], ahead=ahead)
        self._tables = Tables(layers, count, shape.kv_heads, device, rows.dtype)
        self.layers = [
            Relays(index, shape, *parts, self._scoring)
            for index, parts in enumerate(zip(self._near_lse, self._beside, self._tables.layers, strict=True))
        ]
        self._columns = [
            Column(at, [layer.each[at] for layer in self.layers], self._scoring, self._tables) for at in range(count)
        ]
        self.kind: tuple[bool, ...] = ()
        self._sequences = 0
        self._serial = self._served = 0
        self._later: tuple[int, Callable[[], Tensor]] | None = None
        halves = self._scoring is not None and not ahead and count % PARTS == 0 and count >= 2 * PARTS
        parts = PARTS if halves else 1
        self._signals = Signals(self.numbers[0, SERIAL:], [relay.described for relay in self.relays], count, parts)
        self._lane = Lane(device, self._signals)
        self._slots = SlotAttention(self.numbers[:, TAKEN], shape.heads, slots, shape.value_dim)
        self.bind(sequences)

    @property
    def relays(self) -> list[Relay]:
        """Layer after layer, those of a layer's sequences side by side."""
        return [relay for layer in self.layers for relay in layer.each]

    @staticmethod
    def serves(layers: Sequence[LayerState]) -> bool:
        """Whether a sequence's attention can be recorded: layers are alike, also in what is in their windows, see everything, and no
        policy looks at weights.
        """
        shape, window, on_cpu = layers[0].layout, layers[0].window, layers[0].window.keys.is_cpu
        alike = all(
            layer.layout == shape and (layer.window.start, layer.window.end) == (window.start, window.end)
            for layer in layers
        )
        return alike and all(Relay.serves(layer) for layer in layers) and (on_cpu or shape.in_graph)

    def takes(self, sequences: Sequence[Sequence[LayerState]]) -> bool:
        """Whether there is a place, and room, for each of these."""
        return len(sequences) <= len(self._columns) and all(
            wanted <= there for wanted, there in zip(room_of(sequences), self._room, strict=True)
        )

    def of(self, sequences: Sequence[Sequence[LayerState]]) -> bool:
        """Whether the places are these sequences', in this order."""
        return len(sequences) <= len(self._columns) and all(
            column.holds(one) for column, one in zip(self._columns, self._filled(sequences), strict=True)
        )

    def bind(self, sequences: Sequence[Sequence[LayerState]]) -> None:
        """Give the places to these sequences, for which there is room: it is about them from now on. Of none: their memory is not held.

        Raises torch.OutOfMemoryError if there is none for the codes of one; the places are nobody's then.
        """
        try:
            for column, layers in zip(self._columns, self._filled(sequences), strict=True):
                if not column.holds(layers):
                    column.bind(layers)
        except BaseException:
            for column in self._columns:
                column.bind([])
            raise
        self._sequences = len(sequences)

    def _filled(self, sequences: Sequence[Sequence[LayerState]]) -> list[Sequence[LayerState]]:
        return [*sequences, *[[]] * (len(self._columns) - len(sequences))]

    def begin(self) -> None:
        """One more token of each, which whoever has the step made writes into `numbers` then. Errors as of LayerState.make_room."""
        news = [column.begin(self._sequences) for column in self._columns]
        if any(news):
            self._beside.copy_(self._near_lse, non_blocking=True)
        if self._tables.changed:
            self._tables.send()
        stored = any(column.reads for column in self._columns)
        self.kind = (stored, *(any(relay.scores for relay in layer.each) for layer in self.layers))
        for layer in self.layers:
            layer.foreseen = layer.named = None
        self._later = None
        self._serial += 1
        self._lines[:] = [[0, *column.numbers, self._serial] for column in self._columns]
        self.numbers.copy_(self._sent, non_blocking=True)

    def foresee(self, index: int, query: Callable[[], Tensor]) -> None:
        """Queries [places, heads, key_dim] like those layer `index` will have can be made, while the layer before is computed: if the
        device chooses rows, it does by these, beside what is computed until then. A layer that waits for its own choice comes first.
        """
        if not self.stored or not self.kind[1 + index]:
            return
        if index and self.kind[index] and self.layers[index - 1].foreseen is None:
            self._later = index, query
            return
        self._lane.foresee(self.layers[index], query)

    def attend(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float,
        sink: Tensor | None,
    ) -> Tensor:
        """Attention of the tokens in one layer, their rows taken in.

        query [places, heads, key_dim]; key, value [places, kv_heads, 1, dim]; returns [places, heads, value_dim] in the query's dtype
        """
        relays = self.layers[index]
        relays.tell(scale, softcap)
        guessed = self._lane.ask(relays, query, scores=self.kind[1 + index]) if self.stored else None
        self._slots.put(key, value, relays.places)
        near = self._slots.near(query, relays.places, scale=scale, softcap=softcap)
        if self.stored:
            self._lane.join(relays)
        whole = near.finish(relays.far() if self.stored else None, relays.beside, guessed, relays.near_lse)
        if sink is not None:
            out, lse = absorb_sink(Partial(whole.out.transpose(0, 1), whole.lse.T), sink)
            whole = Partial(out.transpose(0, 1), lse.T)
        if self._later is not None:
            following, self._later = self._later, None
            self._lane.foresee(self.layers[following[0]], following[1])
        return whole.out.to(query.dtype)

    @property
    def stored(self) -> bool:
        """Whether rows of a store are attended to: a step with them is another than one without."""
        return self.kind[:1] == (True,)

    @property
    def host_seconds(self) -> float:
        """What the C library took for the last token of all."""
        return sum(relay.described.ns for relay in self.relays) * 1e-9 if self.stored else 0.0

    def serve(self) -> None:
        """A graph of the step was started: answer what it asks. Raises NativeError if it does not ask."""
        if self.stored:
            self._signals.serve(self._serial)
        self._served = self._serial

    def let_go(self) -> None:
        """If a graph of the step was started and not served, whatever came between: the device waits for nobody."""
        if self._served != self._serial:
            self._signals.let_go(self._serial)

    def end(self) -> None:
        """The device is done with the tokens. Errors as of Column.end.

        Rows of one sequence a step leave a little before they must, so that those of all seldom do at once: that takes a step's time.
        So does beginning to copy them.
        """
        free = early = len(self._columns) if len(self._columns) > 1 else 0
        for column in self._columns:
            if column.end(free):
                free = 0
        for column in self._columns:
            if column.prepare(early):
                break


def room_of(sequences: Sequence[Sequence[LayerState]]) -> tuple[int, int]:
    """Slots of the largest window of these, and the most rows a store of theirs may come to hold."""
    slots = max(one[0].window.keys.shape[1] for one in sequences)
    return slots, max(most_stored(one[0]) for one in sequences)
