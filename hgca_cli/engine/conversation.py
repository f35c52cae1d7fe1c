"""Turns of a chat. The cache is kept between them: only what is new is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.prefill import check_room
from hgca_cli.events import Done, Event, Notice


class Conversation:
    """Messages, and the sequence that holds them as tokens.

    system           the system message, None for the template's own
    template_options passed to the chat template

    A turn whose prompt could not be read, or was stopped while it was read, leaves the messages as they were; rows that
    were read stay, so asking the same again goes on from there. A stopped answer stays with what was said.
    """

    def __init__(
        self, engine: Engine, system: str | None = None, template_options: dict[str, Any] | None = None
    ) -> None:
        self._engine = engine
        self._options = template_options or {}
        self._sequence = engine.new_sequence()
        self.messages: list[dict[str, str]] = []
        self._documents: list[tuple[str, str]] = []
        self._answered = 0  # tokens of the sequence up to the end of the last answer
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    @property
    def used_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._sequence.tokens)

    def attach(self, name: str, text: str) -> int:
        """Put a document before the next question; its tokens."""
        self._documents.append((name, text))
        return len(self._engine.loaded.tokenizer.encode(text))

    def clear(self, system: str | None = None) -> None:
        """Forget everything; the system message stays unless another is given."""
        kept = self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []
        self.messages = kept if system is None else [{"role": "system", "content": system}]
        self._documents = []
        self._restart()

    def ask(self, text: str, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """One turn: yields Notice, PrefillProgress, Text and Done.

        Raises ContextOverflowError if it does not fit; the conversation is as it was.
        """
        documents = "".join(f"{name}:\n\n{body.strip()}\n\n" for name, body in self._documents)
        asked = [*self.messages, {"role": "user", "content": documents + text}]
        new, notice = self._new_tokens(asked)
        if notice:
            yield notice
        for event in self._engine.answer(self._sequence, new, sampling, stop):
            if isinstance(event, Done) and (event.completion_tokens or event.finish_reason != "interrupted"):
                self.messages = [*asked, {"role": "assistant", "content": event.text}]
                self._documents = []
                self._answered = self._end_of(event)
            yield event

    def _new_tokens(self, asked: list[dict[str, str]]) -> tuple[list[int], Notice | None]:
        """What is to be read so that the sequence holds the conversation; the sequence is rewound where it must be."""
        tokenizer, sequence = self._engine.loaded.tokenizer, self._sequence
        if self._answered and self._answered == len(sequence.tokens):
            before = self.messages[:-1]
            tail = tokenizer.turn_ids(before, self.messages[-1]["content"], asked, **self._options)
            if tail is not None:
                return tail, None
        whole = tokenizer.encode_chat(asked, add_generation_prompt=True, **self._options)
        check_room(len(whole), self._engine.context)
        shared = 0
        for ours, theirs in zip(sequence.tokens, whole[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        if sequence.rewind(shared):
            return whole[shared:], None
        lost = len(sequence.tokens)
        self._restart()
        return whole, Notice(
            f"reading the conversation again ({lost:,} tokens): its text changed before rows that are gone."
        )

    def _end_of(self, done: Done) -> int:
        """Tokens up to the end of the answer; 0 if the tokens say more than its text (a stop string was cut off)."""
        tokens = self._sequence.tokens
        said = self._engine.loaded.tokenizer.decode(tokens[done.prompt_tokens :])
        return len(tokens) if said == done.text else 0

    def _restart(self) -> None:
        self._sequence.close()
        self._sequence = self._engine.new_sequence()
        self._answered = 0
