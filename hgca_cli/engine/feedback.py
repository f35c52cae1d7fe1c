"""Feedback while an answer is written: tokens are measured, engine/balance.py decides, and here is done what it says."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator

import torch

from hgca_cli import native
from hgca_cli.config import FOLLOWING, SamplingSettings
from hgca_cli.engine.balance import Balance
from hgca_cli.engine.sample import Sample
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Balanced

TIMED = 7  # tokens of which one is timed: no divisor of the meter's 16, whose tokens take longer


class Feedback:
    """Of one engine, for its answers one after another.

    device  the model's: where it is the CPU, torch has no more threads than the library
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._planned, self._torch = native.threads(), torch.get_num_threads()
        self._balance = Balance(self._planned)
        self._of: weakref.ref[Sequence] | None = None
        self._metered = (0.0, 0)

    def watch(
        self, tokens: Generator[int, None, str], sequence: Sequence, sampling: SamplingSettings, *, fresh: bool
    ) -> Generator[int | Balanced, None, str]:
        """An answer's tokens as they come, and after each the moves it led to. A prompt is read as planned, before.

        tokens  of `decode`; the first one's forward pass was the prompt's
        fresh   the sequence was empty before the prompt

        An answer that is to be the same again (it was given a seed, or is greedy) is written as planned: which rows are
        read, and how many threads add numbers up, changes its last digits.
        """
        active = sampling.seed is None and sampling.temperature > 0
        self._begin(sequence, active, fresh)
        written = 0
        try:
            while True:
                asked = time.perf_counter()
                try:
                    token = next(tokens)
                except StopIteration as end:
                    reason: str = end.value
                    return reason
                seconds = time.perf_counter() - asked
                yield token
                written += 1
                if (
                    active and written > 1 and sequence.alone
                ):  # of tokens that came together none took a time of its own
                    yield from self._after(sequence, seconds)
                    sequence.cache.clock.on = written % TIMED == 0
        finally:
            sequence.cache.clock.on = False
            self._balance.rest()  # no trial goes on in the next answer
            self._set_threads(self._planned)

    def forget(self) -> None:
        """What is aimed at was changed: the next answer begins as planned."""
        self._of = None

    def _begin(self, sequence: Sequence, active: bool, fresh: bool) -> None:
        cache = sequence.cache
        if fresh or self._of is None or self._of() is not sequence:
            aims = cache.settings.select in FOLLOWING and cache.settings.budget is None
            layers = sum(layer.sliding is None for layer in cache.layout.layers)
            self._balance.new_text(cache.settings.quality if aims else None, layers)
            self._of = weakref.ref(sequence)
        cache.clock.take()  # of a forward pass that did not end
        self._metered = cache.meter.kept, cache.meter.count
        if active:
            self._apply(sequence)
        elif self._balance.mass is not None and cache.settings.quality is not None:
            cache.aim_at(cache.settings.quality)

    def _after(self, sequence: Sequence, seconds: float) -> list[Balanced]:
        """What follows from the newest token, and is done at once."""
        moves = self._balance.sample(self._sample(sequence, seconds))
        if moves:
            self._apply(sequence)
        return moves

    def _sample(self, sequence: Sequence, seconds: float) -> Sample:
        cache = sequence.cache
        waited = read = share = kept = None
        if cache.clock.on:
            waited = cache.clock.take()
            if (reads := cache.last_reads()) is not None:
                share, read = reads[0], reads[1] / self._balance.threads
            if self._device.type == "cpu":
                waited = read  # nothing else is done meanwhile
        before, self._metered = self._metered, (cache.meter.kept, cache.meter.count)
        if self._metered[1] > before[1]:
            kept = (self._metered[0] - before[0]) / (self._metered[1] - before[1])
        return Sample(seconds, sequence.cached, waited, read, share, kept)

    def _apply(self, sequence: Sequence) -> None:
        self._set_threads(self._balance.threads)
        if self._balance.mass is not None:
            sequence.cache.aim_at(self._balance.mass)

    def _set_threads(self, count: int) -> None:
        if native.threads() != count:
            native.set_threads(count)
            if self._device.type == "cpu":
                torch.set_num_threads(min(count, self._torch))
