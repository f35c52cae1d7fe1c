"""The tokens of one answer: drawn by chance, within what a schema allows, and as the budget of the thought before it has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.reasoning import END, ThoughtStream
from hgca_cli.engine.sampling import Sampler
from hgca_cli.engine.text import TextStream
from hgca_cli.hf.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hgca_cli.hf.grammar import Guide

CLOSED = f"\n{END}\n\n"  # how models write it that were trained to


class Chooser:
    """Chooses token after token: call it, and `take` what is written.

    guide   says which tokens may come next (hf/grammar.py); in the answer, not in the thought before it
    thinks  the prompt ended with the mark a thought begins with
    """

    def __init__(
        self, sampling: SamplingSettings, tokenizer: Tokenizer, *, guide: Guide | None = None, thinks: bool = False
    ) -> None:
        self._sampler = Sampler(sampling)
        self._tokenizer, self._budget = tokenizer, sampling.reasoning_budget
        self._guide, self._guiding = guide, not thinks
        self._thoughts = ThoughtStream(open=thinks)
        self._thought = 0  # tokens of it
        self._forced: list[int] = []  # what comes next, whatever the model would say
        looks = self._budget is not None or (guide is not None and thinks)
        self._stream = TextStream(tokenizer.decode) if looks else None  # nobody else needs the text
        self._end_thought()

    @property
    def seed(self) -> int:
        """The one in use."""
        return self._sampler.seed

    @property
    def done(self) -> bool:
        """Whether the answer is whole, and nothing may follow."""
        return self._guide is not None and self._guiding and self._guide.done

    def __call__(self, logits: Tensor, seen: list[int]) -> int:
        """One token id; arguments and errors as of Sampler. Raises HgcaError where a schema cannot be kept to."""
        if self._forced:
            return self._forced[0]
        if self._guide is not None and self._guiding:
            logits = self._guide.allow(logits)
        return self._sampler(logits, seen)

    def take(self, token: int) -> None:
        """This one is written: the one that was chosen, unless it ended the answer. Raises HgcaError."""
        if self._forced:
            del self._forced[0]
        elif self._guide is not None and self._guiding:
            self._guide.take(token)
        if self._stream is None:
            return
        self._thought += self._thoughts.thinking
        self._thoughts.push(self._stream.push(token))
        self._end_thought()
        self._guiding = self._guiding or (self._thoughts.answering and not self._forced)

    def _end_thought(self) -> None:
        used_up = self._budget is not None and self._thought >= self._budget
        if used_up and self._thoughts.thinking and not (self._forced or self._thoughts.within_mark):
            self._forced = self._tokenizer.encode_answer(CLOSED, special=True)
