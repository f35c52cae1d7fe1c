"""All that one layer of one sequence holds: window, store, the way between them, and the policy that reads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hgca_cli.attention.clock import Clock
from hgca_cli.attention.counters import Late, ReadCounters
from hgca_cli.attention.meter import QualityMeter
from hgca_cli.attention.select.contract import EVERY, Chosen, Selector
from hgca_cli.config import CacheSettings
from hgca_cli.errors import ContextOverflowError, DoesNotFitError
from hgca_cli.kv.evict import Evictor, evict_oldest, evict_oldest_together
from hgca_cli.kv.layout import LayerLayout, as_in_store, window_slots
from hgca_cli.kv.pieces import Pieces
from hgca_cli.kv.pinning import Pinning
from hgca_cli.kv.store import Store
from hgca_cli.kv.window import Window
from hgca_cli.kv.worker import worker
from hgca_cli.selection import Selection

if TYPE_CHECKING:
    from hgca_cli.attention.reading import Reading
    from hgca_cli.attention.select.mirror import Mirror


class LayerState:
    """Rows of one layer and one sequence.

    A sliding layer has no store: what it can no longer see is dropped. Every other row is always in exactly one place:
    sinks, ring, on its way (evictor), or store.
    """

    def __init__(
        self,
        layout: LayerLayout,
        settings: CacheSettings,
        selector: Selector,
        device: torch.device,
        dtype: torch.dtype,
        store_dtype: torch.dtype,
        meter: QualityMeter | None = None,
        clock: Clock | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.meter = meter or QualityMeter(1)
        self.clock = clock or Clock()
        self.pieces = pieces or Pieces()
        self.layout = layout
        self.settings = settings
        slots = window_slots(layout, settings.window, settings.sinks, settings.context)
        sinks = 0 if layout.sliding is not None else settings.sinks
        self.window = Window(layout, slots, sinks, device, dtype)
        self.store: Store | None = None
        self.evictor: Evictor | None = None
        if layout.sliding is None:
            capacity = max(0, settings.context - self.window.sinks)
            self.store = Store(layout, capacity, store_dtype, settings.store_dir, Pinning.of(device))
            self.evictor = Evictor(self.store, device)
        narrow = device.type == "cpu" and as_in_store(layout, dtype.itemsize, store_dtype.itemsize)
        self._round_to = store_dtype if narrow else None  # of the window's rows, once one leaves
        self.selector = selector
        self.read_all = False  # every row of the store is read, whatever the policy; it goes on learning of rows
        self.prompt_left = 0  # tokens of the current turn's prompt not seen yet
        self.first_turn = True  # the store was empty when the turn began
        # f32 [heads], log-sum-exp of the last token's window; None if the C library attends to it, as on the CPU
        self.near_lse: Tensor | None = None
        self.measured: int | None = None  # whose turn it was when the meter looked last; None: it never did
        self._reads = ReadCounters()
        self.late: Late | None = None  # steps that are added up before they are told
        self._settling: Future[None] | None = None
        # of the pass in which rows left last: the length before and after it, and where the ring began before
        self._before: tuple[int, int, int] | None = None
        self._untold = False  # rows are in the store, or will be, that the policy has not heard of
        self.reading: Reading | None = None  # made at the first token that is one call
        self.mirror: Mirror | None = None  # of a sequence's first layer: the codes of all of them, on the device

    @property
    def reads(self) -> ReadCounters:
        """What was read of the store."""
        self._tell_late()
        return self._reads

    def reset_reads(self) -> None:
        """Count what is read anew."""
        self._tell_late()
        self._reads = ReadCounters()

    def count_late(self, late: Late | None) -> None:
        """What adds steps up from now on before they are told; None: nothing does."""
        self._tell_late()
        self.late = late

    def _tell_late(self) -> None:
        if self.late is not None:
            self.late.tell(self._reads)

    @property
    def length(self) -> int:
        """Tokens seen."""
        return self.window.end

    def settle(self) -> None:
        """Rows on their way have arrived. Errors as of Store.append."""
        if self._settling is not None:
            settling, self._settling = self._settling, None
            settling.result()
        self._take_in()

    @property
    def unsettled(self) -> bool:
        """Whether `settle` has something to do."""
        return self._settling is not None or self._untold or (self.evictor is not None and self.evictor.pending > 0)

    def _take_in(self) -> None:
        if self.evictor is None or self.store is None:
            return
        if self.evictor.pending > 0:
            self.round_window()  # no sooner: until now the pass in which they left might have been undone
            self._untold = True
        self.evictor.settle()
        if self._untold:
            self.selector.stored(self.store)
            self._untold = False

    def _take_in_aside(self) -> None:
        """As `_take_in`, on a thread that has the time to register rows for the next chunk."""
        self._take_in()
        if self.store is not None:
            self.store.pin()

    def put_away(self) -> None:
        """Free what the window takes of the device, or of memory where the store is in files. Errors as of Window.put_away."""
        self._arrive()
        self.reading = self.mirror = None
        self.window.put_away(self.settings.store_dir)

    def bring_back(self) -> None:
        """The window is where it was, with the rows it had. Errors as of Window.bring_back."""
        self.window.bring_back()

    def _leaving(self, length: int, tokens: int) -> None:
        """Rows are about to leave, in a pass of so many tokens that come after `length` others."""
        if self._before is None or self._before[0] != length:
            self._before = length, length + tokens, self.window.start

    def _return(self, length: int) -> None:
        """Rows that left because of tokens that never were are in the window again: whoever computes these anew finds them there, and
        all layers are alike, whether they had come to these tokens or not.
        """
        before, self._before = self._before, None
        if self.evictor is not None and before is not None and before[0] == length and self.length <= before[1]:
            self.evictor.take_back(self.window, before[2], length)

    def _arrive(self) -> None:
        """Nobody else is at the store; rows it has no memory for at present are still on their way."""
        self.stay()
        settling, self._settling = self._settling, None
        if settling is not None:
            with contextlib.suppress(DoesNotFitError):
                settling.result()

    def stay(self) -> None:
        """Nothing is made ready for rows that leave next: they may be others then, or the store may."""
        if self.evictor is not None:
            self.evictor.stay()

    def expect(self, tokens: int) -> None:
        """A turn of so many prompt tokens begins; of none: it has ended, also where there is no memory for rows on their way."""
        if tokens:
            self.settle()
        else:
            with contextlib.suppress(DoesNotFitError):
                self.settle()
        self.stay()
        self.prompt_left = tokens
        self.first_turn = self.store is None or self.store.rows == 0
        if self.store is not None:
            stays = self.window.sinks + self.window.ring  # or less
            self.store.expect(max(0, self.length + tokens - stays) if tokens else 0)
            if tokens:
                self.store.advise(True)

    def read_on(self, tokens: int) -> None:
        """So many more tokens of the turn's prompt were attended to. A prompt reads the store from end to end, a token as its
        policy does.
        """
        before, self.prompt_left = self.prompt_left, max(0, self.prompt_left - tokens)
        if before and not self.prompt_left and self.store is not None:
            self.store.advise(self.settings.select == "exact")

    def choose(self, query: Tensor, store: Store) -> Chosen | Selection | None:
        """Rows of the store to read for one token, as of Selector.choose."""
        return EVERY if self.read_all else self.selector.choose(query, store)

    @property
    def _in_one_piece(self) -> bool:
        """Whether all rows are in the window, one behind the other from its first slot on."""
        return self.window.start == self.window.sinks and (self.store is None or self.store.rows == 0)

    def has_room(self, tokens: int) -> bool:
        """Whether the rows of so many more tokens are put behind those that are there, from the window's first slot on, none of which
        leaves or gets out of sight for them. Nothing may be on its way.
        """
        window, sliding = self.window, self.layout.sliding
        end = window.end + tokens
        return self._in_one_piece and end <= window.sinks + window.ring and end <= (sliding or end)

    @property
    def free_rows(self) -> int:
        """Rows that can be put after which none leaves, or gets out of sight, at once."""
        window, left = self.window, self.settings.context - self.length
        free = window.ring - window.ring_rows
        if self.layout.sliding is not None:
            return min(left, free, self.layout.sliding - window.end)
        return min(left, free - 1)  # with the ring full its oldest block leaves

    def make_room(self) -> None:
        """One more row fits into the window.

        Raises ContextOverflowError if the context has no row left.
        """
        self.check_context(1)
        if self.evictor is None and self.window.ring_rows == self.window.ring:
            self.window.drop_oldest(1)

    def round_window(self) -> None:
        """Rows have left: on the CPU the window is of the store's dtype from now on. Raises DoesNotFitError."""
        if self._round_to is not None:
            self.window.hold_as(self._round_to)
            self._round_to = None
            if self.reading is not None:
                self.reading.look_at(self.window)

    def evict_overflow(self, tokens: int = 1) -> None:
        """The last part of a pass of so many tokens: with the ring full, its oldest block starts on its way to the store.

        It arrives before the layer is used again (`settle`), so the copy has a whole token's time.
        """
        if self.overflow():
            evict_overflow([self], tokens=tokens)

    def overflow(self, free: int = 0, early: int = 0) -> int:
        """Rows that are to leave the ring at the end of a step, once no more than so many slots, of many, are free; or so many tokens
        early, of few where the ring is small.
        """
        window = self.window
        most = window.ring - min(free, window.ring // 32) - min(early, window.ring // 4)
        if self.evictor is None or window.ring_rows < most or self.length >= self.settings.context:
            return 0
        return min(self.settings.block, window.ring_rows)

    def append_chunk(self, key: Tensor, value: Tensor) -> None:
        """Take the rows of a prompt chunk [kv_heads, n, dim]: the newest stay in the window, older ones go on."""
        window, tokens = self.window, key.shape[1]
        first = max(0, min(tokens, window.sinks - window.end))
        excess = max(0, window.ring_rows + tokens - first - window.ring)
        if excess:
            self._leaving(self.length, tokens)
        window.append(key[:, :first], value[:, :first])
        key, value = key[:, first:], value[:, first:]
        from_ring = min(excess, window.ring_rows)
        straight = excess - from_ring
        if self.evictor is not None:
            if excess:
                self.selector.leave(excess, self.length + key.shape[1])
            evict_oldest(window, self.evictor, from_ring)
            if straight:
                self.evictor.start([(key[:, :straight], value[:, :straight])])
        else:
            window.drop_oldest(from_ring)
        if straight:
            window.skip(straight)
        window.append(key[:, straight:], value[:, straight:])
        self.evict_overflow(tokens)
        if self.evictor is not None and self.evictor.pending and key.is_cuda:  # beside what the GPU has still to do
            self._settling = worker("evict").submit(self._take_in_aside)

    def every_row(self) -> tuple[Tensor, Tensor]:
        """All rows so far, oldest first: keys and values [kv_heads, length, dim], copies in CPU memory.

        Only of a layer with a store.
        """
        assert self.store is not None
        self.settle()
        window, cpu = self.window, torch.device("cpu")
        first = min(window.end, window.sinks)
        pieces = [
            (window.keys[:, :first], window.values[:, :first]),
            *self.store.blocks(max(1, self.store.rows), cpu, window.keys.dtype),
            *window.oldest(window.ring_rows),
        ]
        keys, values = zip(*pieces, strict=True)
        return torch.cat([one.cpu() for one in keys], dim=1), torch.cat([one.cpu() for one in values], dim=1)

    def take_prompt(self, keys: Tensor, values: Tensor, chunk: int) -> None:
        """Take the rows [kv_heads, n, dim] of a prompt that was attended to elsewhere, as its chunks would bring them.

        The layer is empty. Prefill is exact, so the rows are the same under every policy.
        """
        device = self.window.keys.device
        self.expect(keys.shape[1])
        for key, value in zip(keys.split(chunk, dim=1), values.split(chunk, dim=1), strict=True):
            self.settle()
            self.check_context(key.shape[1])
            self.read_on(key.shape[1])
            self.append_chunk(key.to(device), value.to(device))

    def check_context(self, rows: int) -> None:
        """Raises ContextOverflowError if `rows` more do not fit."""
        if self.length + rows > self.settings.context:
            raise ContextOverflowError(
                f"{self.length + rows:,} tokens do not fit into a context of {self.settings.context:,}.",
                "Raise --ctx or start a new chat.",
            )

    def can_rewind(self, length: int) -> bool:
        """Whether every row a sequence of `length` tokens needs is still here."""
        if self.layout.sliding is None or length >= self.length:
            return True
        return self.window.start == 0 or length - self.window.start >= self.layout.sliding - 1

    def rewind(self, length: int) -> None:
        """Forget tokens `length` and later. Only if `can_rewind`."""
        self._arrive()  # nothing is stored for this, so it succeeds where there is no memory for more rows
        stored = 0 if self.store is None else self.store.rows
        self._return(length)
        self.window.rewind(length)
        if self.store is not None and self.evictor is not None:
            left = self.window.start - self.window.sinks
            self.store.truncate(left)
            self.evictor.cut(left - self.store.rows)
            self._untold &= self.store.rows > 0
            if self.store.rows < stored:
                self.reading = None  # rows that are read next may be as many as at some time before, and others
            self.selector.truncate(left, self.window.ring_rows)


def evict_overflow(layers: Sequence[LayerState], free: int = 0, tokens: int = 1) -> bool:
    """As LayerState.evict_overflow, of the layers of one sequence, which are alike, once no more than so many slots are free; whether
    rows left.
    """
    count = layers[0].overflow(free)
    if not count:
        return False
    evictors = [layer.evictor for layer in layers if layer.evictor is not None]
    for layer in layers:
        layer._leaving(layer.length - tokens, tokens)
        layer.selector.leave(count, layer.length)
    evict_oldest_together([layer.window for layer in layers], evictors, count)
    return True
