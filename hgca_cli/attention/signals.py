"""How a GPU in the midst of a graph and the CPU tell each other that a query, or its answer, is there: numbers in memory both see.

The device's kernels write and watch them (attention/signals_triton.py); the C library's threads watch and write them while one of them
waits for the step anyway. A function of the host in the graph does the same, and takes several times as long to be called.
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
    """Of the layers of some sequences.

    serial  i64 [1] on the device: the number of the step, which no two have in common
    relays  descriptions (`hgca_relay *`), layer after layer, `each` of a layer
    parts   into which a layer's sequences are divided: rows of one may be named while those of the other are read
    """

    def __init__(self, serial: Tensor, relays: Sequence[Any], each: int = 1, parts: int = 1) -> None:
        self.serial, self.parts, self._each = serial, parts, each
        self._layers = len(relays) // each
        with torch.inference_mode(False):
            # of layers: asked, answered; of their parts: named
            self._flags = torch.zeros(2 + parts, self._layers, LINE, dtype=torch.int32, pin_memory=serial.is_cuda)
        self.asked, self.answered = self._flags[:2]
        self.named = self._flags[2:].view(self._layers, parts, LINE)
        self._all = [native.address(one, "int32_t *") for one in (self.asked, self.named, self.answered)]
        self._relays = native.ffi.new("hgca_relay *[]", list(relays))

    def ask(self, layer: int) -> None:
        """The device says, when it comes to this, that a layer's queries are there."""
        from hgca_cli.attention import signals_triton

        signals_triton.tell(self.asked[layer], self.serial)

    def name(self, layer: int, part: int = 0) -> None:
        """The device says, when it comes to this, that the rows which a part of a layer's sequences is to read are named."""
        from hgca_cli.attention import signals_triton

        signals_triton.tell(self.named[layer, part], self.serial)

    def send(self, query: Tensor, to: Tensor) -> None:
        """query, any dtype, to f32 memory both see, by the device."""
        from hgca_cli.attention import signals_triton

        signals_triton.send(query, to)

    def wait(self, layer: int, *, served: bool) -> None:
        """The device waits for a layer's answers; if nobody serves it they are there."""
        from hgca_cli.attention import signals_triton

        signals_triton.wait((self.answered if served else self.asked)[layer], self.serial)

    def serve(self, serial: int, patience: float = PATIENCE) -> None:
        """Answer what the device asks in the step of this number, layer by layer.

        Raises NativeError if it says nothing for `patience` seconds.
        """
        of = self._relays, self._layers, self.parts, self._each // self.parts
        native.check(native.lib.hgca_serve_relays(*of, *self._all, serial & MOST, patience))

    def run(self, layer: int) -> None:
        """Answer a layer's queries, which are there."""
        native.lib.hgca_run_relays(self._relays + layer * self._each, self._each)

    def let_go(self, serial: int) -> None:
        """Nobody will serve the step of this number: the device does not wait for answers any more."""
        self.answered[:, 0] = serial & MOST


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
