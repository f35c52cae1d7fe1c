"""Many requests at once: sequences of different lengths decode together, and whoever is finished is replaced at once.

Between two tokens of everybody the prompts of those who wait are read, a chunk's worth at a time, so that neither starves. Where
memory gets short the youngest are set aside: they keep all they have, and go on when others are finished.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from hgca_cli import native
from hgca_cli.engine.admission import Admission
from hgca_cli.engine.beginnings import Beginnings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Member, Request, spent_by
from hgca_cli.engine.room import Room
from hgca_cli.engine.together import Together
from hgca_cli.errors import DoesNotFitError, HgcaError
from hgca_cli.events import Notice
from hgca_cli.metrics import Slot

TRIM_SECONDS = 2.0  # between two times: one takes 10 ms, and to touch memory anew some more


@dataclass(frozen=True)
class Progress:
    """How a batch stands: sequences that write, that read, and that are set aside until there is memory; prompt tokens read and
    tokens written since the last time.
    """

    writing: int
    reading: int
    read: int
    written: int
    aside: int = 0


class Batch:
    """Requests of one engine.

    slots  most sequences that run at once
    room   what they may take; a request that does not fit beside the others waits, one that is alone runs
    """

    peak: int  # most that ran at once
    set_aside: int  # how often a sequence was

    def __init__(self, engine: Engine, slots: int, room: Room | None = None) -> None:
        self.engine = engine
        self.slots = slots
        self.peak = self.set_aside = 0
        self._together = Together(engine.loaded)
        self._beginnings = Beginnings(engine)
        self._admission = Admission(room or Room(), self._beginnings, engine.context, lambda: self._running)
        self._reading: list[Member] = []
        self._writing: list[Member] = []
        self._aside: list[Member] = []  # memory was refused to them; others that wait for it are among those that write
        self._trim_at = 0.0
        self._left = False  # somebody, since memory was refused the last time
        self._waiting: Request | None = None  # one more, which there is no room for yet

    def run(self, requests: Iterator[Request | None], stop: threading.Event) -> Iterator[Answer | Progress | Notice]:
        """Answers as they are finished, and how it stands after every step. After `stop` nothing more comes: what was not
        answered was not. Requests that begin alike are to follow each other. None: there is no other at present.
        """
        gc.collect()
        gc.freeze()  # a model's modules, and all else that stays: to look through them at every few tokens is 4 ms of a step of 32
        try:
            while not stop.is_set():
                self._bring_back()
                self._admit(requests)
                if not self._running:
                    return
                yield from self._step(stop)
        finally:
            gc.unfreeze()
            self._together.let_go()
            for member in self._running:
                member.close()
            self._beginnings.close()
            self._reading, self._writing, self._aside, self._waiting = [], [], [], None

    @property
    def members(self) -> list[tuple[Member, bool]]:
        """Whoever runs at present, and whether it writes. May be called from any thread."""
        return [*((one, True) for one in list(self._writing)), *((one, False) for one in list(self._reading))]

    @property
    def slots_in_use(self) -> tuple[Slot, ...]:
        """How far everybody is, those that write first. May be called from any thread."""
        return tuple(one.slot for one in [*(member for member, _ in self.members), *self.refused])

    @property
    def refused(self) -> list[Member]:
        """Whoever was refused memory, and waits with all it has. May be called from any thread."""
        return list(self._aside)

    @property
    def joint(self) -> bool:
        """Whether the latest token of all was computed in one forward pass."""
        return self._together.joint

    @property
    def _running(self) -> list[Member]:
        return self._writing + self._reading + self._aside

    def _admit(self, requests: Iterator[Request | None]) -> None:
        """Whoever there is a slot and room for. One more is known of, as long as there are any."""
        while True:
            if self._waiting is None:
                self._waiting = next(requests, None)
            full = len(self._running) >= self.slots or any(member.aside for member in self._running)
            if self._waiting is None or full or not self._admission.has_room(self._waiting):
                return
            self._reading.append(self._member(self._waiting))
            self._waiting = None
            self.peak = max(self.peak, len(self._running))

    def _member(self, request: Request) -> Member:
        member = Member(request, self.engine)
        self._admission.enter(member)
        return member

    def _grant(self) -> list[Member]:
        """Those that write the next token: there is room for it. The oldest are asked first, and one goes on whatever happens."""
        for member in self._writing:
            if self._admission.grants(member):
                member.aside = False
            elif not (self._reading or any(not one.aside for one in self._writing if one is not member)):
                self._admission.grant_anyway(member)
                member.aside = False
            elif not member.aside:
                self._wait(member)
        return [member for member in self._writing if not member.aside]

    def _wait(self, member: Member) -> None:
        member.aside = True
        self.set_aside += 1

    def _refuse(self, member: Member, error: HgcaError | None, beside: int) -> bool:
        """Memory was refused to one that writes or reads, while so many others had some; False if that is its end, because
        nobody else's could help it.
        """
        if not isinstance(error, DoesNotFitError):
            return False
        while self._admission.drop(refused=member):
            beside += 1
        if not beside:
            return False
        if member.logits is None:  # nothing of an answer is lost: the prompt is read again, after those that have one
            self._together.let_go()
            member.close()
            member = self._member(member.request)
            self._aside.append(member)
        else:
            member.owed = True
            self._together.let_go()
            with contextlib.suppress(DoesNotFitError):  # no memory to copy it to: it waits as it is
                member.sequence.put_away()
            self._aside.insert(0, member)
        self._left = False
        self._wait(member)
        return True

    def _bring_back(self) -> None:
        """One of those that were refused memory is tried again, once others have given some back, or if there is nobody else."""
        if not self._aside or not (self._left or not (self._writing or self._reading)):
            return
        member = self._aside[0]
        try:
            member.sequence.bring_back(self.engine.loaded)
        except DoesNotFitError as error:
            if self._writing or self._reading or self._admission.drop():
                return
            member.fail(error)
        self._aside.pop(0)
        member.aside = False
        (self._reading if member.reading else self._writing).append(member)

    def _read_together(self, stop: threading.Event) -> list[Member]:
        """The first of those that read, as many as are read in one pass of a chunk's tokens. The very first has begun."""
        found: list[Member] = []
        tokens = 0
        for at, member in enumerate(self._reading):
            if not member.begun:
                after = self._reading[at + 1].request if at + 1 < len(self._reading) else self._waiting
                self._begin(member, after, stop)
            if tokens + member.unread > self.engine.prefill_chunk or not self._together.takes(member, tokens):
                break
            found.append(member)
            tokens += member.unread
        return found

    def _begin(self, member: Member, following: Request | None, stop: threading.Event) -> None:
        pause = self._beginnings.worth_keeping(member.request.ids, following.ids if following is not None else None)
        if pause and not self._admission.fits_kept(member, pause):
            pause = 0
        member.begin(self._admission.begin(member), stop, pause, partial(self._admission.keep, member))

    def _step(self, stop: threading.Event) -> Iterator[Answer | Progress | Notice]:
        """A chunk's worth of prompts, then a token of everybody who writes."""
        read = 0
        while self._reading and read < self.engine.prefill_chunk and not stop.is_set():
            if together := self._read_together(stop):
                with spent_by(together):
                    read += self._together.read(together)
                members = [member for member in together if not member.reading]
            else:
                member = self._reading[0]
                before = member.sequence.cached
                for event in member.read():
                    if isinstance(event, Notice):
                        yield event
                read += max(0, member.sequence.cached - before)
                members = [] if member.reading else [member]
            for member in members:
                self._reading.remove(member)
                if member.answer is not None:
                    beside = len(self._writing) + sum(one.begun for one in self._reading + self._aside)
                    if not self._refuse(member, member.answer.error, beside):
                        yield self._leave(member)
                elif stop.is_set():
                    member.close()
                else:
                    self._writing.append(member)
        if stop.is_set():
            return
        if read and time.monotonic() >= self._trim_at and self._admission.crowded:
            native.trim()
            self._trim_at = time.monotonic() + TRIM_SECONDS
        going, written = self._grant(), 0
        with spent_by(going):
            for member in going:
                if member.answer is None:
                    written += member.draw()
        for member in [one for one in self._writing if one.answer is not None]:
            self._writing.remove(member)
            yield self._leave(member)
        going = [one for one in going if one.answer is None]
        beside = len(self._writing) - 1 + sum(one.begun for one in self._reading)
        with spent_by(going):
            failures = self._together.forward(going)
        for member, error in failures:
            self._writing.remove(member)
            if not self._refuse(member, error, beside):
                member.fail(error)
                yield self._leave(member)
        aside = sum(member.aside for member in self._running)
        yield Progress(len(self._writing) + len(self._aside) - aside, len(self._reading), read, written, aside)

    def _leave(self, member: Member) -> Answer:
        answer = member.answer
        assert answer is not None
        if answer.done is not None:
            self._admission.lengths.ended(answer.done.completion_tokens, member.request.sampling.max_tokens)
        self._left = True
        self._together.let_go()
        member.close()
        return answer
