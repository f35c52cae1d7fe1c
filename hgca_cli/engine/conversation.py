"""Turns of a chat. The cache is kept between them: only what is new is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.engine import turns
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.prefill import check_characters, check_room
from hgca_cli.engine.reasoning import BEGIN, END, ThoughtStream, written_out
from hgca_cli.engine.sequence import Sequence, shared
from hgca_cli.engine.turns import Document, Messages
from hgca_cli.engine.wording import Wording, ids_of
from hgca_cli.errors import UsageError
from hgca_cli.events import Done, Event, Notice, Text

LONG = 256  # tokens of a prompt whose time is worth knowing
FREE_SHARE = 4  # a quarter of the context is free again once turns were dropped: not every question drops some


class Conversation:
    """Messages, and the sequence that holds them as tokens.

    system           the system message, None for the template's own
    options          passed to the chat template; they may change between turns
    trim             a context that is full loses its oldest turns; else the question is refused
    reuse            asked before a prompt is read: a sequence that holds more of its beginning than so many tokens
    seconds_per_token  of the last long prompt that was read, None without one

    A turn whose prompt could not be read, or was stopped while it was read, leaves the conversation as it was; rows
    that were read stay, so asking the same again goes on from there. An answer that was stopped, or broke off, stays
    with what was said. What a model thinks before it answers stands apart in its message ("reasoning_content").
    """

    def __init__(
        self, engine: Engine, system: str | None = None, options: dict[str, Any] | None = None, *, trim: bool = False
    ) -> None:
        self._engine = engine
        self.options = options or {}
        self.trim = trim
        self._exact = False
        self._sequence = engine.new_sequence()
        self._history: list[int] = []  # ids of the messages up to the end of the last answer; [] if there is none
        self._asked_with: dict[str, Any] | None = dict(self.options)
        self._documents: list[Document] = []
        self._counted: tuple[Messages, int] | None = None
        self.reuse: Callable[[list[int], int], tuple[Sequence | None, list[Notice]]] | None = None
        self.seconds_per_token: float | None = None
        self.messages: Messages = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    @property
    def used_tokens(self) -> int:
        """Tokens of the conversation so far."""
        if self._history or not any(message["role"] == "user" for message in self.messages):
            return len(self._history)
        if self._counted is None or self._counted[0] is not self.messages:
            ids = self._engine.loaded.tokenizer.encode_chat(
                turns.for_template(self.messages), add_generation_prompt=False, **self.options
            )
            self._counted = self.messages, len(ids)
        return self._counted[1]

    @property
    def engine(self) -> Engine:
        """What reads and writes."""
        return self._engine

    @property
    def history(self) -> list[int]:
        """Ids of the messages up to the end of the last answer; [] if they are not known."""
        return self._history

    @property
    def asked_with(self) -> dict[str, Any] | None:
        """Options of the template the history was made with; None if nobody knows."""
        return self._asked_with

    @property
    def waiting(self) -> list[Document]:
        """Documents before the next question."""
        return self._documents

    @property
    def sequence(self) -> Sequence:
        """The tokens that were read and written, and their rows."""
        return self._sequence

    @property
    def exact(self) -> bool:
        """Whether every row is read, whatever the policy. It can be switched between turns."""
        return self._exact

    @exact.setter
    def exact(self, on: bool) -> None:
        self._exact = on
        self._sequence.cache.set_read_all(on)

    @property
    def _wording(self) -> Wording:
        tokenizer = self._engine.loaded.tokenizer
        return Wording(tokenizer, self.messages, self._history, self._asked_with, self.options)

    def resume(
        self,
        messages: Messages,
        history: list[int],
        sequence: Sequence | None,
        asked_with: dict[str, Any] | None = None,
    ) -> None:
        """Go on from where another conversation was: its messages, history, the options that one was made with (None: not
        known) and, if its rows are there, sequence.
        """
        self.messages, self._history, self._documents = list(messages), history, []
        self._asked_with = asked_with
        self._use(sequence or self._engine.new_sequence())

    def attach(self, name: str, text: str) -> int:
        """Put a document before the next question; returns its tokens.

        The question then reads `name:`, a blank line, the text, a blank line, and so on for each document, and then
        what was asked. Documents stay attached until a question was answered. Raises ContextOverflowError for one that is
        far too long.
        """
        self._check_length(name, text)
        self._documents.append((name, text))
        return len(self._engine.loaded.tokenizer.encode(text))

    def detach(self) -> None:
        """Nothing stands before the next question any more."""
        self._documents = []

    def _check_length(self, what: str, text: str) -> None:
        check_characters(what, len(text), self._engine.loaded.tokenizer, self._engine.context)

    def droppable_tokens(self) -> int:
        """Tokens that are free once all turns are dropped: documents and the system message stay."""
        said = [
            size for one, size in zip(self.messages, self._sizes(self.messages), strict=True) if one["role"] != "system"
        ]
        return sum(said)

    def clear(self, system: str | None = None) -> None:
        """Forget everything; the system message stays unless another is given."""
        kept = self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []
        self.messages = kept if system is None else [{"role": "system", "content": system}]
        self._documents = []
        self._history = []
        self._use(self._engine.new_sequence())

    def ask(self, text: str, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """One turn: yields Notice, PrefillProgress, Thought, Text and Done. Times count from this call.

        Raises ContextOverflowError if it does not fit; the conversation is as it was. Other errors as of Engine.answer.
        """
        return self._turn(text, sampling, stop, time.perf_counter())

    def regenerate(self, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """Another answer to the last question, in place of the one there is; rows of the question stay. Events and errors
        as of `ask`; UsageError if there is no answer.
        """
        self._check_answered("to give again")
        began, asked = time.perf_counter(), self.messages[:-1]
        return self._answer(asked, self._wording.question(asked), sampling, stop, began, self._documents)

    def go_on(self, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """More of the last answer, from where it ended. Events and errors as of `ask`; UsageError if there is none."""
        self._check_answered("to go on with")
        if sampling.json_schema:
            raise UsageError("an answer that fits a schema is not gone on with.", "/regen gives another one.")
        began, asked, last = time.perf_counter(), self.messages[:-1], self.messages[-1]
        thought, text = last.get("reasoning_content", ""), last["content"]
        prompt = self._history
        if not prompt:
            tokenizer = self._engine.loaded.tokenizer
            prompt = self._wording.question(asked)
            place = not tokenizer.ends_with(prompt, END)  # for a thought: a switch may have put an empty one there
            opened = tokenizer.ends_with(prompt, BEGIN)
            prompt = prompt + tokenizer.encode_answer(written_out(thought if place else "", text, open=opened))
        return self._answer(asked, prompt, sampling, stop, began, self._documents, said=(thought, text))

    def undo(self) -> tuple[str, list[Document]]:
        """Take the last question and its answer back; its documents are attached again. Rows before them stay.

        returns  what was asked, and those documents. Raises UsageError if there is nothing to take back.
        """
        self._check_answered("to take back")
        text, documents = turns.taken_apart(self.messages[-2])
        before = self.messages[:-2]
        self._history = self._wording.history_of(before)
        self.messages = before
        self._documents = documents + self._documents
        return text, documents

    def _check_answered(self, what: str) -> None:
        if [message["role"] for message in self.messages[-2:]] != ["user", "assistant"]:
            raise UsageError(f"there is no answer {what}.", "Ask something first.")

    def _turn(
        self, text: str, sampling: SamplingSettings, stop: threading.Event, began: float
    ) -> Generator[Event, None, None]:
        self._check_length("the prompt", text)
        asked = [*self.messages, turns.question(text, self._documents)]
        prompt = self._wording.prompt(asked)
        remedy = ""
        if len(prompt) >= self._engine.context and any(one["role"] == "assistant" for one in self.messages):
            kept, shorter, gone = self._trimmed(asked, prompt, sampling)
            helps = len(shorter) < self._engine.context  # documents stay, and may be what is too long
            if helps and self.trim:
                yield Notice(_told(gone, len(prompt) - len(shorter)))
                asked, prompt = kept, shorter
            by = "--overflow trim-oldest, " if helps else "/detach, " if self._documents else ""
            remedy = f"use {by}/undo or /clear"
        yield from self._answer(asked, prompt, sampling, stop, began, [], remedy=remedy)

    def _trimmed(
        self, asked: Messages, prompt: list[int], sampling: SamplingSettings
    ) -> tuple[Messages, list[int], list[str]]:
        """Messages without the oldest turns, their prompt, and what those turns asked: as short as it takes, or as it gets."""
        gone: list[str] = []
        free = max(1, min(sampling.max_tokens, self._engine.context // FREE_SHARE))
        while len(prompt) >= self._engine.context:
            shorter = turns.trim_oldest(asked, self._sizes(asked), len(prompt) + free - self._engine.context)
            if not shorter.gone:
                break
            asked, gone = shorter.messages, gone + shorter.gone
            prompt = self._wording.encoded(asked)
        return asked, prompt, gone

    def _answer(
        self,
        asked: Messages,
        prompt: list[int],
        sampling: SamplingSettings,
        stop: threading.Event,
        began: float,
        waiting: list[Document],
        said: tuple[str, str] | None = None,
        remedy: str = "use /undo or /clear",
    ) -> Generator[Event, None, None]:
        """Read a prompt and write what follows.

        waiting  documents before the next question, once this one is answered
        said     thought and text of the answer whose end the prompt is
        remedy   what makes room where the context has none
        """
        context, trained = self._engine.context, self._engine.loaded.trained_context
        check_room(len(prompt), context, trained, remedy)
        if notice := self._rewind_to(prompt):
            yield notice
        if self.reuse is not None:
            sequence, told = self.reuse(prompt, self._sequence.cached)
            yield from told
            if sequence is not None:
                self._use(sequence)
        new = prompt[len(self._sequence.tokens) :]
        tokenizer = self._engine.loaded.tokenizer
        within = bool(said and said[0] and not said[1]) and not tokenizer.ends_with(prompt, END)
        stream = ThoughtStream(open=tokenizer.ends_with(prompt, BEGIN) if said is None else within)
        if said is not None and said[1]:
            stream.answer_only()
        written: list[str] = []
        done = False

        def take() -> None:
            self._take(asked, prompt, "".join(written), stream, said or ("", ""))
            self._documents = waiting

        events = self._engine.answer(
            self._sequence, new, sampling, stop, began=began, before=prompt if said is not None else None
        )
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, Text):
                        written.append(event.text)
                        yield from stream.push(event.text)
                        continue
                    if isinstance(event, Done):
                        yield from stream.finish()
                        done = True
                        read = event.prompt_tokens - event.cached_tokens
                        if read >= LONG and event.finish_reason != "interrupted":
                            self.seconds_per_token = event.prefill_seconds / read
                        if (
                            written or event.finish_reason != "interrupted"
                        ):  # else stopped before a word: nothing happened
                            take()
                        event = replace(event, text=stream.text, thought=stream.thought)
                    yield event
        finally:
            if written and not done:  # an error, or the caller has heard enough
                stream.finish()
                take()

    def _sizes(self, asked: Messages) -> list[int]:
        """Tokens of what each message says, without documents."""
        encode = self._engine.loaded.tokenizer.encode
        said = (turns.taken_apart(one)[0] if one["role"] == "user" else one["content"] for one in asked)
        return [len(encode(text)) for text in said]

    def _rewind_to(self, prompt: list[int]) -> Notice | None:
        """Back to the longest beginning of a prompt that is cached; a Notice if all must be read again."""
        tokens = self._sequence.tokens
        if self._sequence.rewind(shared(tokens, prompt[:-1])):  # at least one token is read: its logits are needed
            return None
        lost = len(tokens)
        self._use(self._engine.new_sequence())
        return Notice(
            f"reading the conversation again ({lost:,} tokens): what came before has changed, "
            "and rows needed to go back are gone."
        )

    def _take(
        self, asked: Messages, prompt: list[int], written: str, stream: ThoughtStream, said: tuple[str, str]
    ) -> None:
        """The turn happened: its messages, and its ids."""
        self.messages = [*asked, turns.answer(said[1] + stream.text, said[0] + stream.thought)]
        self._asked_with = dict(self.options)
        drawn = self._sequence.tokens[len(prompt) :]
        self._history = prompt + ids_of(self._engine.loaded.tokenizer, written, drawn)

    def _use(self, sequence: Sequence) -> None:
        """Go on in another sequence."""
        self._sequence.close()
        self._sequence = sequence
        sequence.cache.set_read_all(self._exact)


def _told(gone: list[str], tokens: int) -> str:
    """Which turns were dropped."""
    begins = ", ".join(f"'{' '.join(text.split())[:40]}'" for text in (gone if len(gone) < 4 else [gone[0], gone[-1]]))
    between = (
        f"{len(gone):,} turns, from first to last" if len(gone) >= 4 else f"{len(gone)} turns" if gone[1:] else "turn"
    )
    verb = "is" if len(gone) == 1 else "are"
    return (
        f"the context is full: the oldest {between} ({begins}; {tokens:,} tokens) {verb} dropped. "
        "System message and documents stay."
    )
