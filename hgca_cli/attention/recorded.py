"""The attention of a token in all layers, such that a CUDA graph of it can be replayed for the next token.

What changes from token to token is in memory whose address stays: the slot of the new row, the slots in use, and what the
relays describe. The query leaves for the CPU before the window is attended to, and the answer is awaited after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import absorb_sink
from hgca_cli.attention.relay import Lane, Relay
from hgca_cli.attention.scoring import LIMITS, Scoring
from hgca_cli.attention.select.mirror import Coded, Mirror
from hgca_cli.attention.select.scan import Scan
from hgca_cli.attention.signals import Signals
from hgca_cli.attention.slots import SlotAttention

TOKEN, POSITION, SLOT, SPANS = 0, 1, 2, slice(3, 7)  # of the numbers that go to the device before a step
CHOICE = slice(7, 7 + LIMITS)
SERIAL = slice(CHOICE.stop, CHOICE.stop + 1)
NUMBERS = SERIAL.stop


class Recorder:
    """The layers of one sequence.

    numbers  i64 [13] on the device: the token, its position, its slot, the slots in use, what a choice is to be like, and the
             number of the step
    kind     of step: what is done with the store, and where
    looks_ahead  whether `foresee` will be called for most layers
    """

    def __init__(self, layers: Sequence[LayerState]) -> None:
        window, shape = layers[0].window, layers[0].layout
        device = window.keys.device
        with torch.inference_mode(False):
            self._sent = torch.zeros(NUMBERS, dtype=torch.int64, pin_memory=device.type == "cuda")
            self.numbers = torch.zeros_like(self._sent, device=device)
        self._scoring: Scoring | None = None
        coded: dict[int, Coded] = {}
        self._scans = {i: one.selector for i, one in enumerate(layers) if type(one.selector) is Scan}
        if layers[0].settings.device_codes and shape.in_graph and self._scans:
            self._scoring = Scoring(shape, most_stored(layers[0]), self.numbers[CHOICE])
            self._mirror = Mirror(shape, len(self._scans), self._scoring.rows, device)
            coded = dict(zip(self._scans, self._mirror.layers, strict=True))
        self.relays = [Relay(i, layer, device, self._scoring, coded.get(i)) for i, layer in enumerate(layers)]
        self.kind: tuple[bool, ...] = ()
        self.looks_ahead = False
        self._slot = self.numbers[SLOT : SLOT + 1]
        self._serial = self._served = 0
        self._signals = Signals(self.numbers[SERIAL], [relay.described for relay in self.relays])
        self._lane = Lane(device, self._signals)
        self._slots = SlotAttention(self.numbers[SPANS], shape.heads, window.keys.shape[1], shape.value_dim)

    @staticmethod
    def serves(layers: Sequence[LayerState]) -> bool:
        """Whether these layers' attention can be recorded: they are alike, see everything, and no policy looks at weights."""
        shape, on_cpu = layers[0].layout, layers[0].window.keys.is_cpu
        return all(Relay.serves(layer) and layer.layout == shape for layer in layers) and (on_cpu or shape.in_graph)

    def begin(self) -> None:
        """One more token, which is in `numbers` already. Errors as of LayerState.make_room."""
        window = self.relays[0].layer.window
        position = window.end
        slots = {relay.begin() for relay in self.relays}
        assert len(slots) == 1, "layers of one sequence move together"
        stored = any(relay.described.far.rows or relay.described.chosen for relay in self.relays)
        self.kind = (stored, *(relay.scores for relay in self.relays))
        self._bring_codes()
        self._serial += 1
        spans = [number for first, count in window.runs() for number in (first, first + count)]
        wanted = [0] * LIMITS if self._scoring is None else self._scoring.wanted
        self._sent[POSITION:] = torch.tensor(
            [position, slots.pop(), *spans, *[0] * (4 - len(spans)), *wanted, self._serial]
        )
        self.numbers[POSITION:].copy_(self._sent[POSITION:], non_blocking=True)

    def foresee(self, index: int, query: Callable[[], Tensor]) -> None:
        """A query that is like the one layer `index` will have can be made: if rows are chosen on the device, they are by this one,
        beside what is computed until then.
        """
        relay = self.relays[index]
        if self.stored and relay.scores:
            self._lane.foresee(relay, query)

    def _bring_codes(self) -> None:
        """If rows are chosen on the device: codes that are new, and what a choice is to be like."""
        scans = [self._scans[i].codes for i, relay in enumerate(self.relays) if relay.scores]
        if self._scoring is not None and scans:
            assert len(scans) == len(self._scans), "layers of one sequence move together"
            self._mirror.follow(scans)
            one = next(relay for relay in self.relays if relay.scores)
            self._scoring.limit(one.chosen, ahead=self.looks_ahead)

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
        """Attention of the token in one layer, its row taken in.

        query [heads, key_dim]; key, value [kv_heads, 1, dim]; returns [heads, value_dim] in the query's dtype
        """
        relay = self.relays[index]
        relay.tell(scale, softcap)
        window = relay.layer.window
        guessed = self._lane.ask(relay, query) if self.stored else None
        window.keys.index_copy_(1, self._slot, key.to(window.keys.dtype))
        window.values.index_copy_(1, self._slot, value.to(window.values.dtype))
        near = self._slots.near(query, window.keys, window.values, scale=scale, softcap=softcap)
        if self.stored:
            self._lane.join(relay)
        whole, near_lse = near.finish(relay.far() if self.stored else None, guessed)
        relay.near_lse.copy_(near_lse, non_blocking=True)
        if relay.coded is not None:
            relay.beside.copy_(near_lse)
        if sink is not None:
            whole = absorb_sink(whole, sink)
        return whole.out.to(query.dtype)

    @property
    def stored(self) -> bool:
        """Whether rows of the store are attended to: a step with them is another than one without."""
        return self.kind[:1] == (True,)

    @property
    def host_seconds(self) -> float:
        """What the C library took for the last token."""
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
        """The device is done with the token. Errors as of Relay.end."""
        for relay in self.relays:
            relay.end()


def most_stored(layer: LayerState) -> int:
    """Rows a layer's store may come to hold: all but those that never leave the window."""
    window = layer.window
    return max(0, layer.settings.context - window.sinks - window.ring + layer.settings.block)
