"""Messages as token ids: what was written stays as it was drawn, and only what is new is encoded, where the template allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hgca_cli.engine import turns
from hgca_cli.engine.turns import Messages
from hgca_cli.hf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wording:
    """A conversation's messages, and the ids they became.

    history     ids of the messages up to the end of the last answer; [] if they are not known
    asked_with  options of the template the history was made with; None if nobody knows
    options     those of now
    """

    tokenizer: Tokenizer
    messages: Messages
    history: list[int]
    asked_with: dict[str, Any] | None
    options: dict[str, Any]

    def prompt(self, asked: Messages) -> list[int]:
        """Ids of the messages and the beginning of the answer; those of earlier answers as they were drawn, if the template
        repeats them.
        """
        if not self.history:
            return self.encoded(asked)
        before, plain = turns.for_template(self.messages[:-1]), turns.for_template(asked)
        tail: list[int] | None = None
        if "reasoning_content" not in self.messages[-1] and self.asked_with == self.options:
            tail = self.tokenizer.turn_ids(before, self.messages[-1]["content"], plain, **self.options)
        if tail is not None:
            return self.history + tail
        question = self._question_before()
        if question is not None:
            tail = self.tokenizer.tail_ids(before, plain, **self.options)
        if question is not None and tail is not None:
            return question + tail
        return self.encoded(asked)

    def encoded(self, asked: Messages) -> list[int]:
        """Ids of the messages and the beginning of an answer, all encoded anew."""
        return self.tokenizer.encode_chat(turns.for_template(asked), add_generation_prompt=True, **self.options)

    def question(self, asked: Messages) -> list[int]:
        """Ids of the messages up to the last question, and the beginning of an answer."""
        question = self._question_before() if self.history else None
        begin = self.tokenizer.generation_ids(turns.for_template(asked), **self.options)
        return question + begin if question is not None and begin else self.encoded(asked)

    def history_of(self, before: Messages) -> list[int]:
        """The history of these messages, which the last turn followed; [] if it is not what the present one begins with."""
        if not self.history or not before or before[-1]["role"] != "assistant" or "reasoning_content" in before[-1]:
            return []
        if self.asked_with is None:
            return []
        plain = turns.for_template(self.messages[:-1])
        tail = self.tokenizer.turn_ids(turns.for_template(before[:-1]), before[-1]["content"], plain, **self.asked_with)
        place = _last_place(self.history, tail) if tail else None
        return [] if place is None else self.history[:place]

    def _question_before(self) -> list[int] | None:
        """Ids of the messages up to the end of the last question; None if nobody knows where that is, or if the template
        writes them in another way with the present options.
        """
        if self.asked_with is None:
            return None
        before = turns.for_template(self.messages[:-1])
        if self.asked_with != self.options and (
            self.tokenizer.render(before, add_generation_prompt=False, **self.asked_with)
            != self.tokenizer.render(before, add_generation_prompt=False, **self.options)
        ):
            return None
        begin = self.tokenizer.generation_ids(before, **self.asked_with)
        place = _last_place(self.history, begin) if begin else None
        return None if place is None else self.history[:place]


def ids_of(tokenizer: Tokenizer, written: str, drawn: list[int]) -> list[int]:
    """The drawn ids that say what was written: without a stop string that was cut off, or what nobody heard."""
    for kept in range(len(drawn), 0, -1):  # from the end: a stop string is a few tokens
        text = tokenizer.decode(drawn[:kept])
        if written.startswith(text):
            return drawn[:kept] + tokenizer.encode(written[len(text) :]) if text != written else drawn[:kept]
    return tokenizer.encode(written)


def _last_place(ids: list[int], wanted: list[int]) -> int | None:
    """Where ids hold `wanted` last."""
    for place in range(len(ids) - len(wanted), -1, -1):
        if ids[place] == wanted[0] and ids[place : place + len(wanted)] == wanted:
            return place
    return None
