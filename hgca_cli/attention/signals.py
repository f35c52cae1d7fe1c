"""How a GPU in the midst of a graph and the CPU tell each other that a query, or its answer, is there: numbers in memory both see.

The device's kernels write and watch them (attention/signals_triton.py); the C library watches and writes them on the thread that waits
for the step anyway. A function of the host in the graph does the same, and takes several times as long to be called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError

MOST = 0x7FFFFFFF  # of a step's number, what a flag has room for (attention/signals_triton.py)
LINE = native.lib.HGCA_FLAGS  # numbers from one flag to the next: each has a cache line of its own
PATIENCE = 30.0  # seconds in which a device must have asked: longer than any step, so that it is broken if it has not


class Signals:
    """Of the layers of some sequences: a flag for each part of a layer's.

    serial  i64 [1] on the device: the number of the step, which no two have in common
    relays  descriptions (`hgca_relay *`), layer after layer, `each` of a layer
    parts   into which a layer's sequences are divided: the device may ask for one while it is not yet done with the next
    """

    def __init__(self, serial: Tensor, relays: Sequence[Any], each: int = 1, parts: int = 1) -> None:
        self.serial, self.parts, self._each = serial, parts, each
        self._groups = len(relays) // each * parts
        with torch.inference_mode(False):
            self._flags = torch.zeros(2, self._groups, LINE, dtype=torch.int32, pin_memory=serial.is_cuda)
        self._asked, self._answered = (native.address(one, "int32_t *") for one in self._flags)
        self._relays = native.ffi.new("hgca_relay *[]", list(relays))

    def ask(self, layer: int, part: int = 0) -> None:
        """The device says, when it comes to this, that the queries of a part of a layer's sequences may be answered."""
        from hgca_cli.attention import signals_triton

        signals_triton.ask(self._flags[0, layer * self.parts + part], self.serial)

    def ask_all(self, layer: int) -> None:
        """As `ask`, of all parts: the first last, so that whoever watches for that finds them together."""
        for part in reversed(range(self.parts)):
            self.ask(layer, part)

    def send(self, query: Tensor, to: Tensor) -> None:
        """query, any dtype, to f32 memory both see, by the device."""
        from hgca_cli.attention import signals_triton

        signals_triton.send(query, to)

    def take(self, layer: int, answer: Tensor, to: Tensor, *, served: bool) -> None:
        """The device waits for a layer's answers, and copies them; if nobody serves it they are there."""
        from hgca_cli.attention import signals_triton

        last = layer * self.parts + self.parts - 1  # parts are answered in order
        signals_triton.take(self._flags[int(served), last], self.serial, answer, to)

    def serve(self, serial: int, patience: float = PATIENCE) -> None:
        """Answer what the device asks in the step of this number, layer by layer.

        Raises NativeError if it asks nothing for `patience` seconds.
        """
        of, flags = (self._relays, self._groups, self._each // self.parts), (self._asked, self._answered)
        native.check(native.lib.hgca_serve_relays(*of, *flags, serial & MOST, patience))

    def run(self, layer: int) -> None:
        """Answer a layer's queries, which are there."""
        native.lib.hgca_run_relays(self._relays + layer * self._each, self._each)

    def let_go(self, serial: int) -> None:
        """Nobody will serve the step of this number: the device does not wait for answers any more."""
        self._flags[1, :, 0] = serial & MOST


def launch_on_host(stream: int, relay: Any) -> None:
    """Let a CUDA stream, which may be capturing a graph, run a relay when it comes to it. Raises NativeError.

    The driver is found at run time: nothing is linked with it.
    """
    status = _driver().cuLaunchHostFunc(
        ctypes.c_void_p(stream),
        ctypes.c_void_p(int(native.ffi.cast("uintptr_t", native.ffi.addressof(native.lib, "hgca_run_relay")))),
        ctypes.c_void_p(int(native.ffi.cast("uintptr_t", relay))),
    )
    if status:
        raise NativeError(f"the CUDA driver does not take work for the CPU (error {status}).")


@lru_cache(maxsize=1)
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NativeError(f"the CUDA driver's library cannot be opened ({error}).") from error
