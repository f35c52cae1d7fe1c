"""How a GPU in the midst of a graph and the CPU tell each other that a query, or its answer, is there: numbers in memory both see.

The device's kernels write and watch them (attention/signals_triton.py); the C library watches and writes them on the thread that waits
for the step anyway. A function of the host in the graph does the same, and takes several times as long to be called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native

MOST = 0x7FFFFFFF  # of a step's number, what a flag has room for (attention/signals_triton.py)
LINE = native.lib.HGCA_FLAGS  # numbers from one flag to the next: each has a cache line of its own
PATIENCE = 30.0  # seconds in which a device must have asked: longer than any step, so that it is broken if it has not


class Signals:
    """Of the layers of one sequence.

    serial  i64 [1] on the device: the number of the step, which no two have in common
    relays  the layers' descriptions (`hgca_relay *`), in order
    """

    def __init__(self, serial: Tensor, relays: Sequence[Any]) -> None:
        self.serial = serial
        with torch.inference_mode(False):
            self._flags = torch.zeros(2, len(relays), LINE, dtype=torch.int32, pin_memory=serial.is_cuda)
        self._asked, self._answered = (native.address(one, "int32_t *") for one in self._flags)
        self._relays = native.ffi.new("hgca_relay *[]", list(relays))

    def ask(self, layer: int) -> None:
        """The device says, when it comes to this, that a layer's query is there."""
        from hgca_cli.attention import signals_triton

        signals_triton.ask(self._flags[0, layer], self.serial)

    def send(self, query: Tensor, to: Tensor) -> None:
        """query, any dtype, to f32 memory both see, by the device."""
        from hgca_cli.attention import signals_triton

        signals_triton.send(query, to)

    def take(self, layer: int, answer: Tensor, to: Tensor, *, served: bool) -> None:
        """The device waits for a layer's answer, and copies it; if nobody serves it the answer is there."""
        from hgca_cli.attention import signals_triton

        signals_triton.take(self._flags[int(served), layer], self.serial, answer, to)

    def serve(self, serial: int, patience: float = PATIENCE) -> None:
        """Answer what the device asks in the step of this number, layer by layer.

        Raises NativeError if it asks nothing for `patience` seconds.
        """
        flags = self._asked, self._answered
        native.check(native.lib.hgca_serve_relays(self._relays, len(self._relays), *flags, serial & MOST, patience))

    def let_go(self, serial: int) -> None:
        """Nobody will serve the step of this number: the device does not wait for answers any more."""
        self._flags[1, :, 0] = serial & MOST
