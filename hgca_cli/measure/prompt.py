"""A prompt that is read once, exactly, and from which every policy goes on.

Prefill approximates nothing, so the rows of a prompt are the same under every policy. They are copied after the first
reading and brought to the others as its chunks would have brought them: window, store and index are then what reading
would have made. Rewinding one cache would not do: rows that left the window while one policy decoded stay in the store,
and the next would begin with a shorter window. A policy that watches attention weights has the prompt read to it again,
and so has every policy of a model with sliding layers, whose older rows are gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from hgca_cli.config import CacheSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.prefill import prefill
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Event, PrefillProgress, Worked

Tell = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Nobody is told."""


class Prompt:
    """Token ids, and their rows once they were read.

    ids       at least one; the cache settings given to `sequence` leave room for one more
    appended  so many of the last ids are a turn of their own: a policy may judge the store again when it begins
    tell      hears Worked, and Notice where the engine has something to say
    """

    def __init__(self, engine: Engine, ids: list[int], tell: Tell = ignore, *, appended: int = 0) -> None:
        self.ids = ids
        self._turns = [turn for turn in (ids[: len(ids) - appended], ids[len(ids) - appended :]) if turn]
        self._engine = engine
        self._tell = tell
        self._rows: list[tuple[Tensor, Tensor]] | None = None

    def sequence(self, settings: CacheSettings) -> Sequence:
        """A sequence of these tokens under a policy; the caller closes it. Errors as of `prefill`."""
        sequence = self._engine.new_sequence(settings)
        if self._rows is None or sequence.cache.watches:
            self._read(sequence)
        else:
            began = time.perf_counter()
            sequence.cache.fill(self._rows, self._engine.loaded.device, self._engine.prefill_chunk)
            sequence.tokens = list(self.ids)
            self._tell(Worked("fill", len(self.ids), time.perf_counter() - began))
        sequence.cache.reset_counters()
        return sequence

    def reads(self, settings: Iterable[CacheSettings]) -> int:
        """How many tokens `sequence` will read, called once with each of these settings, in order."""
        ones = [self._engine.new_sequence(one).cache for one in settings]
        slides = any(layer.is_sliding for layer in ones[0].layers) if ones else False
        return len(self.ids) * sum(not index or slides or cache.watches for index, cache in enumerate(ones))

    def _read(self, sequence: Sequence) -> None:
        engine, context = self._engine, len(self.ids) + 1
        for turn in self._turns:
            read, seconds = sequence.cached, 0.0
            for event in prefill(engine.loaded, sequence, turn, context, engine.prefill_chunk, threading.Event()):
                if not isinstance(event, PrefillProgress):
                    self._tell(event)
                    continue
                if event.processed > read:
                    self._tell(Worked("read", event.processed - read, event.seconds - seconds))
                read, seconds = event.processed, event.seconds
        if self._rows is None:
            self._rows = sequence.cache.every_row()


def step(engine: Engine, sequence: Sequence, token: int, tell: Tell = ignore) -> tuple[Tensor, float]:
    """Decode one given token: logits f32 [vocabulary] on the CPU after it, and the seconds it took."""
    sequence.tokens.append(token)
    began = time.perf_counter()
    logits = sequence.forward(engine.loaded, torch.tensor([[token]], device=engine.loaded.device))
    logits = logits.float().cpu()  # waits for the device
    seconds = time.perf_counter() - began
    tell(Worked("decode", 1, seconds))
    return logits, seconds


def feed(
    engine: Engine, sequence: Sequence, tokens: Iterable[int], tell: Tell = ignore
) -> Iterator[tuple[Tensor, float]]:
    """Decode given tokens one by one, as `step` does; one is asked for when it is needed."""
    for token in tokens:
        yield step(engine, sequence, token, tell)
