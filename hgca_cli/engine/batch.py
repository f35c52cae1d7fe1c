"""Many requests at once: sequences of different lengths decode together, and whoever is finished is replaced at once.

Between two tokens of everybody the prompts of those who wait are read, a chunk's worth at a time, so that neither starves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hgca_cli.engine.beginnings import Beginnings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Member, Request
from hgca_cli.engine.sequence import Sequence
from hgca_cli.engine.together import Together
from hgca_cli.errors import HgcaError
from hgca_cli.events import Notice

Bytes = tuple[int, ...]  # in every place that holds rows


@dataclass(frozen=True)
class Room:
    """What rows of sequences may take together.

    limits  bytes of every place; takes: of a sequence that grows to so many tokens, there. None: nobody counts
    """

    limits: Bytes = ()
    takes: Callable[[int], Bytes] | None = None

    def of(self, tokens: int) -> Bytes:
        """Bytes of a sequence that grows to so many tokens."""
        return self.takes(tokens) if self.takes is not None else ()


@dataclass(frozen=True)
class Progress:
    """How a batch stands: sequences that write and that read, prompt tokens read and tokens written since the last time."""

    writing: int
    reading: int
    read: int
    written: int


class Batch:
    """Requests of one engine.

    slots  most sequences that run at once
    room   what they may take; a request that does not fit beside the others waits, one that is alone runs
    """

    def __init__(self, engine: Engine, slots: int, room: Room | None = None) -> None:
        self.engine = engine
        self.slots = slots
        self.peak = 0  # most that ran at once
        self._room = room or Room()
        self._together = Together(engine.loaded)
        self._beginnings = Beginnings(engine)
        self._reading: list[Member] = []
        self._writing: list[Member] = []
        self._waiting: Request | None = None  # one more, which there is no room for yet

    def run(self, requests: Iterator[Request | None], stop: threading.Event) -> Iterator[Answer | Progress | Notice]:
        """Answers as they are finished, and how it stands after every step. After `stop` nothing more comes: what was not
        answered was not. Requests that begin alike are to follow each other. None: there is no other at present.
        """
        try:
            while not stop.is_set():
                self._admit(requests)
                if not self._running:
                    return
                yield from self._step(stop)
        finally:
            for member in self._running:
                member.close()
            self._beginnings.close()
            self._reading, self._writing, self._waiting = [], [], None

    @property
    def members(self) -> list[tuple[Member, bool]]:
        """Whoever runs at present, and whether it writes. May be called from any thread."""
        return [*((one, True) for one in list(self._writing)), *((one, False) for one in list(self._reading))]

    @property
    def joint(self) -> bool:
        """Whether the latest token of all was computed in one forward pass."""
        return self._together.joint

    @property
    def _running(self) -> list[Member]:
        return self._writing + self._reading

    def _admit(self, requests: Iterator[Request | None]) -> None:
        """Whoever there is a slot and room for. One more is known of, as long as there are any."""
        while True:
            if self._waiting is None:
                self._waiting = next(requests, None)
            if self._waiting is None or len(self._running) >= self.slots or not self._make_room(self._waiting):
                return
            self._reading.append(Member(self._waiting, self.engine))
            self._waiting = None
            self.peak = max(self.peak, len(self._running))

    def _make_room(self, request: Request) -> bool:
        """Whether a request fits beside those that run, once beginnings that are not its own are given up."""
        lengths = [self._most(request), *(self._most(member.request) for member in self._running)]
        while not self._fit([*lengths, *self._beginnings.lengths]):
            if not self._beginnings.drop(request.ids):
                return not self._running and (not self._beginnings.drop() or self._make_room(request))
        return True

    def _fit(self, lengths: list[int]) -> bool:
        """Whether rows of sequences of these lengths fit, however far all of them get."""
        places = zip(*(self._room.of(length) for length in lengths), strict=True)
        return all(sum(place) <= limit for place, limit in zip(places, self._room.limits, strict=True))

    def _most(self, request: Request) -> int:
        return max(1, min(self.engine.context, len(request.ids) + request.sampling.max_tokens))

    def _begin(self, member: Member, stop: threading.Event) -> None:
        """A sequence with address space, and a window, for what the request can need, and what is known of its prompt."""
        following = self._reading[1].request if len(self._reading) > 1 else self._waiting
        ids = member.request.ids
        pause = self._beginnings.worth_keeping(ids, following.ids if following is not None else None)
        if pause and not self._fit([pause, *(self._most(one.request) for one in self._running)]):
            pause = 0
        member.begin(self._beginnings.sequence_for(ids, self._most(member.request)), stop, pause, self._keep)

    def _keep(self, sequence: Sequence) -> None:
        with contextlib.suppress(HgcaError):  # it is read again then
            self._beginnings.keep(sequence)

    def _step(self, stop: threading.Event) -> Iterator[Answer | Progress | Notice]:
        """A chunk's worth of prompts, then a token of everybody who writes."""
        read = 0
        while self._reading and read < self.engine.prefill_chunk and not stop.is_set():
            member = self._reading[0]
            if not member.begun:
                self._begin(member, stop)
            before = member.sequence.cached
            for event in member.read():
                if isinstance(event, Notice):
                    yield event
            read += max(0, member.sequence.cached - before)
            if member.reading:
                continue
            self._reading.pop(0)
            if member.answer is not None:
                yield self._leave(member)
            elif stop.is_set():
                member.close()
            else:
                self._writing.append(member)
        if stop.is_set():
            return
        written = 0
        for member in self._writing:
            written += member.draw()
        for member in [one for one in self._writing if one.answer is not None]:
            self._writing.remove(member)
            yield self._leave(member)
        for member, error in self._together.forward(self._writing):
            member.fail(error)
            self._writing.remove(member)
            yield self._leave(member)
        yield Progress(len(self._writing), len(self._reading), read, written)

    def _leave(self, member: Member) -> Answer:
        answer = member.answer
        assert answer is not None
        member.close()
        return answer
