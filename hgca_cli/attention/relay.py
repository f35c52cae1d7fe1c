"""The store's part of a token's attention inside a device's step, which Python prepares before and does not see happen.

The device's stream sends the query to pinned memory, calls the C library, and fetches what it wrote there (native/relay.c).
All addresses stay the same from token to token, so the step can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial
from hgca_cli.attention.reading import UNKNOWN
from hgca_cli.attention.scoring import Guessed, Scoring
from hgca_cli.attention.select.contract import Chosen
from hgca_cli.attention.select.mirror import Coded
from hgca_cli.attention.signals import Signals
from hgca_cli.attention.sparse import count_read
from hgca_cli.errors import NativeError
from hgca_cli.selection import Selection


class Lane:
    """The stream beside the main one on which queries leave and answers come; on the CPU everything happens at once.

    signals  how graphs ask and are answered; what is no graph asks by a function of the host, as nobody serves it
    """

    def __init__(self, device: torch.device, signals: Signals) -> None:
        self.device, self.signals = device, signals
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def foresee(self, relay: Relay, query: Callable[[], Tensor]) -> None:
        """Choose a layer's rows by a query that is made for that, beside what the main stream does next; `ask` follows. What such a
        query guesses of the other rows is worse than no guess (docs/log.md).
        """
        with self._aside():
            relay.score(query())
            relay.foreseen = query  # which holds what it is made of until the streams join

    def ask(self, relay: Relay, query: Tensor) -> Guessed | None:
        """Send a query [heads, key_dim] and have it answered, beside what the main stream does next; returns what the device
        guesses of rows it scored and the CPU does not read.
        """
        with self._aside():
            if self._stream is None:
                relay.query.copy_(query)
            else:
                self.signals.send(query, relay.query)
            guessed = relay.score(query) if relay.foreseen is None else None
            if self._stream is None:
                native.lib.hgca_run_relay(relay.described)
                relay.answered.copy_(relay.answer)
                return guessed
            self.signals.ask(relay.index)
            if not torch.cuda.is_current_stream_capturing():
                launch_on_host(self._stream.cuda_stream, relay.described)
        return guessed

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream beside the main one, after what that one was given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self, relay: Relay) -> None:
        """The main stream waits for the answer."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            served = torch.cuda.is_current_stream_capturing()
            self.signals.take(relay.index, relay.answer, relay.answered, served=served)
        relay.foreseen = None


class Relay:
    """One layer of one sequence: its `index`.

    query, answer    f32 [heads, key_dim]; out and, behind it, lse f32 [heads * (value_dim + 1)]: in CPU memory, pinned for a GPU
    answered         the answer on the device
    near_lse         f32 [heads] in CPU memory: of the window, of the last token the device is done with
    scoring, coded   what chooses rows on the device, by what; None where that is left to the C library
    beside           near_lse on the device, there only
    scores           whether rows are chosen on the device for the present token
    foreseen         what must live until the answer is there, if rows were chosen by a query made before the true one
    """

    def __init__(
        self,
        index: int,
        layer: LayerState,
        device: torch.device,
        scoring: Scoring | None = None,
        coded: Coded | None = None,
    ) -> None:
        self.index = index
        shape, pinned = layer.layout, device.type == "cuda"
        self.layer = layer
        with torch.inference_mode(False):
            self.query = torch.zeros(shape.heads, shape.key_dim, pin_memory=pinned)
            self.answer = torch.zeros(shape.heads * (shape.value_dim + 1), pin_memory=pinned)
            self.near_lse = torch.full((shape.heads,), float("-inf"), pin_memory=pinned)
            self.answered = torch.zeros_like(self.answer, device=device)
            self.row_start = torch.zeros(shape.kv_heads + 1, dtype=torch.int64, pin_memory=pinned)
            self._starts = native.address(self.row_start, "int64_t *")
            self.beside = torch.full_like(self.near_lse, float("-inf"), device=device)
        self.scoring, self.coded = scoring, coded
        self.scores = False
        self.foreseen: object | None = None
        self._chosen: Chosen | Selection | None = None
        self._metered = False
        self._scale, self._softcap = 1.0, 0.0
        to = self.described = native.ffi.new("hgca_relay *")
        out = shape.heads * shape.value_dim
        to.query, to.out, to.lse = (native.address(one) for one in (self.query, self.answer[:out], self.answer[out:]))
        if layer.store is not None:
            to.far = layer.store.read.described[0]
            to.row_bytes = layer.store.row_bytes // shape.kv_heads
        to.far.heads, to.far.value_dim = shape.heads, shape.value_dim

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

    def far(self) -> Partial:
        """What came back, on the device."""
        shape = self.layer.layout
        out, lse = self.answered.split([shape.heads * shape.value_dim, shape.heads])
        return Partial(out.view(shape.heads, shape.value_dim), lse)

    def score(self, query: Tensor) -> Guessed | None:
        """Choose the rows the C library reads, on the device, if they are chosen there."""
        if not self.scores or self.scoring is None or self.coded is None:
            return None
        how = {"scale": self._scale, "softcap": self._softcap}
        return self.scoring.choose(query, self.coded, self.beside, self.row_start, **how)

    def begin(self) -> int:
        """One more token: rows on their way arrive, what is read is described; returns the slot of the token's row."""
        layer, to = self.layer, self.described
        layer.settle()
        store = layer.store
        stored = store is not None and store.rows > 0
        chosen = self._chosen = layer.choose(UNKNOWN, store) if stored else None  # type: ignore[arg-type]
        to.chosen, to.told, to.far.rows, to.far.lists = native.ffi.NULL, native.ffi.NULL, 0, 0
        self._metered = self.scores = False
        self.foreseen = None
        if isinstance(chosen, Selection):
            self._metered = layer.meter.due()
            if self.coded is not None and self.scoring is not None and self.scoring.fits(chosen):
                self._leave_choice(chosen, self.scoring)
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
        to, self.scores = self.described, True
        to.told, to.scored_bytes = chosen.job, scoring.bytes_scored(chosen.rows)
        to.far.rows, to.far.lists = chosen.rows, self.layer.layout.kv_heads
        to.far.row_start, to.far.row = self._starts, scoring.named

    def end(self) -> None:
        """The device is done with the token: it is counted, now and then measured, and the ring's oldest rows may leave.

        Raises NativeError if the library could not do its part.
        """
        layer, chosen = self.layer, self._chosen
        if self.described.status:
            native.check(self.described.status)
        if isinstance(chosen, Selection) and self._metered:
            self._measure(chosen)
        if layer.store is not None and layer.store.rows > 0:
            count_read(layer, chosen)
        layer.near_lse = self.near_lse
        layer.evict_overflow()

    def _measure(self, chosen: Selection) -> None:
        store = self.layer.store
        assert store is not None
        exact = native.Step(self.query, store.read, store.rows, self._scale, self._softcap)
        (far,) = native.start([exact]).wait()
        self.layer.meter.add(chosen.read_lse, far.lse, self.near_lse)


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
