"""One request of a batch, from its prompt to its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.beginnings import Beginning
from hgca_cli.engine.chances import Chance, chance_of
from hgca_cli.engine.choosing import Chooser
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.guessing import Guessing
from hgca_cli.engine.lookup import PromptLookup
from hgca_cli.engine.prefill import check_room, prefill
from hgca_cli.engine.sequence import Sequence
from hgca_cli.engine.text import TextStream
from hgca_cli.errors import HgcaError
from hgca_cli.events import Done, Event
from hgca_cli.metrics import Slot

if TYPE_CHECKING:
    from hgca_cli.hf.grammar import Guide


class TimeoutError(HgcaError):
    """A request's work took longer than it may."""

    code = "timeout"


@dataclass(frozen=True)
class Request:
    """What is asked.

    key       whatever the caller knows it by
    ids       the prompt; continues: its text goes on in the answer
    seconds   most that its own work may take: chunks of its prompt, and steps that compute its tokens; None: no limit
    likeliest so many tokens with their chances are told for each that is written; None: no chances
    guide     of Engine.guide; thinks: the prompt ended with the mark a thought begins with
    """

    key: Any
    ids: list[int]
    sampling: SamplingSettings
    continues: bool = False
    seconds: float | None = None
    likeliest: int | None = None
    guide: Guide | None = None
    thinks: bool = False


@dataclass(frozen=True)
class Answer:
    """The end of a request: `done`, or the error that ended it and the text until then."""

    request: Request
    done: Done | None
    error: HgcaError | None = None
    text: str = ""
    chances: tuple[Chance, ...] = ()


class Member:
    """A request that runs. reading: its prompt is not read yet; answer: once it is finished."""

    def __init__(self, request: Request, engine: Engine) -> None:
        self.request = request
        self.beginning = Beginning()  # what its rows have in common with a kept sequence's, or will have
        self.sequence = engine.new_sequence()  # until `begin` gives it one that holds something
        self.begun = False
        self.at_once = False  # its whole prompt may be read in one pass
        self.reading = True
        self.answer: Answer | None = None
        self.granted = 0  # tokens that there is room for
        self.aside = False  # it waits for memory
        self.owed = False  # its last token was drawn, and is still to be computed
        self.spent = 0.0  # seconds of its chunks, and of the steps it took part in: not those it waited for others, or for memory
        self.logits: Tensor | None = None  # after the last token
        self.token = -1  # the next to be computed: it is in the sequence already
        self._engine = engine
        self._cached = 0
        self._chooser = Chooser(request.sampling, engine.loaded.tokenizer, guide=request.guide, thinks=request.thinks)
        self._stream = TextStream(
            engine.loaded.tokenizer.decode, request.sampling.stop, request.ids if request.continues else ()
        )
        self._lookup = PromptLookup(engine.guesses) if engine.guesses else None
        self._guessing: Guessing | None = None  # while its tokens are computed by itself
        self._ends = engine.loaded.tokenizer.end_ids
        self._prefill: Generator[Event, None, Tensor | None] | None = None
        self._began = self._read = self._first = self._last = time.perf_counter()
        self._written = 0
        self._chances: list[Chance] = []

    def begin(
        self, sequence: Sequence, stop: threading.Event, pause: int = 0, keep: Callable[[Sequence], None] | None = None
    ) -> None:
        """Its prompt is read into this sequence, which may hold its beginning. After `pause` tokens the sequence is shown to `keep`."""
        self.begun = True
        self.sequence, self._cached = sequence, sequence.cached
        self.at_once = pause == 0 and self.unread > 0 and len(self.request.ids) < self._engine.context
        self._began = self._read = self._first = self._last = time.perf_counter()
        self._prefill = self._whole_prompt(stop, pause, keep)

    def read(self) -> Iterator[Event]:
        """One chunk more of the prompt. An error of it is the answer."""
        assert self._prefill is not None
        self.at_once = False
        before = self.sequence.cached
        try:
            while self.sequence.cached == before or self.sequence.cached == len(self.request.ids):
                with spent_by([self]):
                    event = next(self._prefill)
                yield event
            self._check_time()
        except StopIteration as end:
            self.logits = end.value
            self._over()
        except HgcaError as error:
            self.fail(error)
            self._over()

    @property
    def unread(self) -> int:
        """Tokens of its prompt that are not in the cache."""
        return len(self.request.ids) - self.sequence.cached

    def expect_all(self) -> list[int]:
        """All that is left of its prompt is about to be read: these tokens."""
        sequence = self.sequence
        new = self.request.ids[len(sequence.tokens) :]
        sequence.tokens += new
        sequence.cache.expect(len(new))
        return new

    def expect_none(self) -> None:
        """That was not to be."""
        del self.sequence.tokens[self.sequence.cached :]
        self.sequence.cache.expect(0)
        self.at_once = False

    def has_read(self, logits: Tensor) -> None:
        """All of its prompt: logits [vocabulary] after it. An error is the answer."""
        self.logits = logits
        try:
            self._check_time()
        except HgcaError as error:
            self.fail(error)
        self._over()

    def _whole_prompt(
        self, stop: threading.Event, pause: int, keep: Callable[[Sequence], None] | None
    ) -> Generator[Event, None, Tensor | None]:
        engine, sequence, ids = self._engine, self.sequence, self.request.ids
        check_room(len(ids), engine.context, engine.loaded.trained_context)
        parts = [pause] if keep is not None and pause > sequence.cached else []
        logits = None
        for end in (*parts, len(ids)):
            new = ids[len(sequence.tokens) : end]
            logits = yield from prefill(engine.loaded, sequence, new, engine.context, engine.prefill_chunk, stop)
            if logits is None:
                return None
            if end == pause and keep is not None:
                keep(sequence)
        return logits

    @property
    def length(self) -> int:
        """Tokens there must be room for, for one more to be written."""
        return len(self.sequence.tokens) + 1

    @property
    def written(self) -> int:
        """Tokens of the answer."""
        return self._written

    def draw(self) -> int:
        """The next token, or the end of the answer; returns how many tokens were written, 0 or 1. None as long as the last one
        is still to be computed, because there was no memory.
        """
        assert self.logits is not None
        if self.owed:
            return 0
        try:
            if self.request.sampling.max_tokens == 0:
                return self._finish("length")
            self._check_time()
            token = self._chooser(self.logits, self.sequence.tokens)
            if token in self._ends:
                return self._finish("stop")
            self._chooser.take(token)
        except HgcaError as error:
            self.fail(error)
            return 0
        if (count := self.request.likeliest) is not None:
            self._chances.append(chance_of(self.logits, token, count))
        self.sequence.tokens.append(token)
        self.token = token
        self._last = time.perf_counter()
        self._written += 1
        if self._written == 1:
            self._first = self._last
        self._stream.push(token)
        full = len(self.sequence.tokens) >= self._engine.context
        if self._stream.stopped or self._chooser.done:
            self._finish("stop")
        elif self._written == self.request.sampling.max_tokens or full:
            self._finish("length")
        return 1

    def compute_alone(self) -> None:
        """Its token by itself, and with it what can be guessed: the logits after it. Errors as of Sequence.forward."""
        engine, sequence = self._engine, self.sequence
        if self._guessing is None:
            self._guessing = Guessing(engine.loaded, sequence, self._lookup, engine.context)
        left = self.request.sampling.max_tokens - self._written
        self.logits, self.owed = self._guessing.after(left), False

    def settle(self) -> None:
        """What was guessed is given up: it is computed with others, or waits."""
        if self._guessing is not None:
            self._guessing.close()
            self._guessing = None

    def fail(self, error: HgcaError) -> None:
        """An error is the answer, and the text until here."""
        self._stream.finish()
        self.answer = Answer(self.request, None, error, self._stream.text)

    @property
    def slot(self) -> Slot:
        """How far it is. May be called from any thread."""
        prompt = len(self.request.ids)
        read = min(prompt, self.sequence.cached)
        most = min(self.request.sampling.max_tokens, self._engine.context - prompt)
        return Slot(self.request.key, prompt, read, self._written, most, self.aside)

    def close(self) -> None:
        """Give the memory back."""
        if self._prefill is not None:
            self._prefill.close()
        self.sequence.close()

    def _finish(self, reason: str) -> int:
        self._stream.finish()
        if self._stream.stopped:  # the last piece, given up as a whole, held a stop string
            reason = "stop"
        self.settle()
        done = Done(
            finish_reason=reason,
            prompt_tokens=len(self.request.ids),
            cached_tokens=self._cached,
            completion_tokens=self._written,
            prefill_seconds=self._read - self._began,
            ttft_seconds=self._first - self._began,
            decode_seconds=self._last - self._first,
            rows=self.sequence.cache.rows(),
            seed=self._chooser.seed,
            guessed=self._lookup.guessed if self._lookup else 0,
            guessed_right=self._lookup.right if self._lookup else 0,
            text=self._stream.text,
        )
        self.answer = Answer(self.request, done, None, done.text, tuple(self._chances))
        return 0

    def _over(self) -> None:
        self.reading = False
        self._prefill = None
        self._read = self._first = self._last = time.perf_counter()

    def _check_time(self) -> None:
        limit = self.request.seconds
        if limit is not None and self.spent > limit:
            raise TimeoutError(f"the row took longer than {limit:g} s, waiting not counted.", "Raise --timeout.")


@contextmanager
def spent_by(members: Iterable[Member]) -> Iterator[None]:
    """What is done inside is the work of each: they do it together."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        for member in members:
            member.spent += seconds
