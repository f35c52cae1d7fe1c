"""The streams beside a device's main one, on which rows are chosen, queries leave and answers come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hgca_cli.attention.relay import Relays
from hgca_cli.attention.scoring import Guessed
from hgca_cli.attention.signals import Signals, launch_on_host


class Lane:
    """The streams beside the main one: on one of them queries leave and answers come, on another rows are chosen. On the CPU everything
    happens at once.

    signals  how graphs ask and are answered; a step that is no graph asks by functions of the host, as nobody serves it
    """

    def __init__(self, device: torch.device, signals: Signals) -> None:
        self.device, self.signals = device, signals
        there = device.type == "cuda"
        self._asking, self._choosing = (torch.cuda.Stream(device) if there else None for _ in range(2))

    def foresee(self, relays: Relays, query: Callable[[], Tensor]) -> None:
        """Choose a layer's rows by queries that are made for that, beside what the main stream does next; `ask` follows. What such
        queries guess of the other rows is worse than no guess (docs/log.md).
        """
        self._choose(relays, query)
        relays.foreseen = query  # which holds what it is made of until the streams join

    def ask(self, relays: Relays, query: Tensor, *, scores: bool) -> Guessed | None:
        """Send queries [sequences, heads, key_dim] and have them answered, beside what the main stream does next; returns what the
        device guesses of rows it scored and the CPU does not read. scores: whether rows are chosen there for any of them
        """
        guessed = self._choose(relays, lambda: query) if scores and relays.foreseen is None else None
        if self._asking is None:
            relays.query.copy_(query)
            self.signals.run(relays.index)
            return guessed
        with self._on(self._asking):
            self.signals.send(query, relays.query)
            self.signals.ask(relays.index)
            if not torch.cuda.is_current_stream_capturing():
                if relays.named is not None:
                    self._asking.wait_event(relays.named)
                for relay in relays.each:
                    launch_on_host(self._asking.cuda_stream, relay.described)
        return guessed

    def _choose(self, relays: Relays, query: Callable[[], Tensor]) -> Guessed | None:
        """One part of the sequences after another: the CPU reads the rows of the first meanwhile."""
        guessed: Guessed | None = None
        with self._on(self._choosing):
            asked = query()
            size = len(asked) // self.signals.parts
            for part in range(self.signals.parts):
                guessed = relays.score(asked, slice(part * size, (part + 1) * size))
                if self._choosing is not None:
                    self.signals.name(relays.index, part)
            if self._choosing is not None:
                relays.named = self._choosing.record_event()
        return guessed

    def join(self, relays: Relays) -> None:
        """The main stream waits for the answers."""
        if self._asking is not None:
            main = torch.cuda.current_stream(self.device)
            main.wait_stream(self._asking)
            if relays.named is not None:
                main.wait_event(relays.named)
            served = torch.cuda.is_current_stream_capturing()
            self.signals.wait(relays.index, served=served)
        relays.answered.copy_(relays.answer, non_blocking=True)  # kernels read the bus number by number, in 40 to 90 us
        relays.foreseen = relays.named = None

    @contextlib.contextmanager
    def _on(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """On one of the streams beside the main one, after what that one was given so far."""
        if stream is None:
            yield
            return
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
