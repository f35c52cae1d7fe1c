"""Turns of a chat. The cache is kept between them: only what is new is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.prefill import check_room
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Done, Event, Notice, Text

LONG = 256  # tokens of a prompt whose time is worth knowing


class Conversation:
    """Messages, and the sequence that holds them as tokens.

    system           the system message, None for the template's own
    template_options passed to the chat template
    reuse            asked before a prompt is read: a sequence that holds more of its beginning than so many tokens
    seconds_per_token  of the last long prompt that was read, None without one

    A turn whose prompt could not be read, or was stopped while it was read, leaves the conversation as it was; rows
    that were read stay, so asking the same again goes on from there. An answer that was stopped, or broke off, stays
    with what was said.
    """

    def __init__(
        self, engine: Engine, system: str | None = None, template_options: dict[str, Any] | None = None
    ) -> None:
        self._engine = engine
        self._options = template_options or {}
        self._sequence = engine.new_sequence()
        self._history: list[int] = []  # ids of the messages up to the end of the last answer; [] if there is none
        self._documents: list[tuple[str, str]] = []
        self.reuse: Callable[[list[int], int], tuple[Sequence | None, list[Notice]]] | None = None
        self.seconds_per_token: float | None = None
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    @property
    def used_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._history)

    @property
    def engine(self) -> Engine:
        """What reads and writes."""
        return self._engine

    @property
    def history(self) -> list[int]:
        """Ids of the messages up to the end of the last answer; [] if they are not known."""
        return self._history

    @property
    def sequence(self) -> Sequence:
        """The tokens that were read and written, and their rows."""
        return self._sequence

    def resume(self, messages: list[dict[str, str]], history: list[int], sequence: Sequence | None) -> None:
        """Go on from where another conversation was: its messages, history and, if its rows are there, sequence."""
        self.messages, self._history, self._documents = list(messages), history, []
        self._restart()
        if sequence is not None:
            self._sequence = sequence

    def attach(self, name: str, text: str) -> int:
        """Put a document before the next question; returns its tokens.

        The question then reads `name:`, a blank line, the text, a blank line, and so on for each document, and then
        what was asked. Documents stay attached until a question was answered.
        """
        self._documents.append((name, text))
        return len(self._engine.loaded.tokenizer.encode(text))

    def clear(self, system: str | None = None) -> None:
        """Forget everything; the system message stays unless another is given."""
        kept = self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []
        self.messages = kept if system is None else [{"role": "system", "content": system}]
        self._documents = []
        self._history = []
        self._restart()

    def ask(self, text: str, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """One turn: yields Notice, PrefillProgress, Text and Done. Times count from this call.

        Raises ContextOverflowError if it does not fit; the conversation is as it was. Other errors as of Engine.answer.
        """
        return self._turn(text, sampling, stop, time.perf_counter())

    def _turn(
        self, text: str, sampling: SamplingSettings, stop: threading.Event, began: float
    ) -> Generator[Event, None, None]:
        documents = "".join(f"{name}:\n\n{body.strip()}\n\n" for name, body in self._documents)
        asked = [*self.messages, {"role": "user", "content": documents + text}]
        prompt = self._prompt(asked)
        check_room(len(prompt), self._engine.context, self._engine.loaded.trained_context)
        if notice := self._rewind_to(prompt):
            yield notice
        if self.reuse is not None:
            sequence, told = self.reuse(prompt, self._sequence.cached)
            yield from told
            if sequence is not None:
                self._sequence.close()
                self._sequence = sequence
        new = prompt[len(self._sequence.tokens) :]
        said: list[str] = []
        done = False
        try:
            for event in self._engine.answer(self._sequence, new, sampling, stop, began=began):
                if isinstance(event, Text):
                    said.append(event.text)
                elif isinstance(event, Done):
                    done = True
                    read = event.prompt_tokens - event.cached_tokens
                    if read >= LONG and event.finish_reason != "interrupted":
                        self.seconds_per_token = event.prefill_seconds / read
                    if said or event.finish_reason != "interrupted":  # else stopped before a word: it did not happen
                        self._take(asked, prompt, event.text)
                yield event
        finally:
            if said and not done:  # an error, or the caller has heard enough
                self._take(asked, prompt, "".join(said))

    def _prompt(self, asked: list[dict[str, str]]) -> list[int]:
        """Ids of the messages and the beginning of the answer; those of earlier answers as they were drawn."""
        tokenizer = self._engine.loaded.tokenizer
        if self._history:
            answer = self.messages[-1]["content"]
            if (tail := tokenizer.turn_ids(self.messages[:-1], answer, asked, **self._options)) is not None:
                return self._history + tail
        return tokenizer.encode_chat(asked, add_generation_prompt=True, **self._options)

    def _rewind_to(self, prompt: list[int]) -> Notice | None:
        """Back to the longest beginning of a prompt that is cached; a Notice if all must be read again."""
        tokens = self._sequence.tokens
        shared = 0
        for ours, theirs in zip(tokens, prompt[:-1], strict=False):  # at least one token is read: its logits are needed
            if ours != theirs:
                break
            shared += 1
        if self._sequence.rewind(shared):
            return None
        lost = len(tokens)
        self._restart()
        return Notice(
            f"reading the conversation again ({lost:,} tokens): the template changed what came before, "
            "and rows needed to go back are gone."
        )

    def _take(self, asked: list[dict[str, str]], prompt: list[int], answer: str) -> None:
        """The turn happened: its messages, and its ids."""
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        self._documents = []
        self._history = prompt + self._ids_of(answer, self._sequence.tokens[len(prompt) :])

    def _ids_of(self, answer: str, drawn: list[int]) -> list[int]:
        """The drawn ids that say `answer`: without a stop string that was cut off, or what nobody heard."""
        tokenizer = self._engine.loaded.tokenizer
        for kept in range(len(drawn), 0, -1):  # from the end: a stop string is a few tokens
            text = tokenizer.decode(drawn[:kept])
            if answer.startswith(text):
                return drawn[:kept] + tokenizer.encode(answer[len(text) :]) if text != answer else drawn[:kept]
        return tokenizer.encode(answer)

    def _restart(self) -> None:
        self._sequence.close()
        self._sequence = self._engine.new_sequence()
