"""The logits an answer goes on with: of one token, or of several at once where these can be guessed.

A model reads its weights once for all tokens of a pass, which is most of what a token costs. So the next ones are guessed, and computed
behind the newest as if they had been written; whichever the model then writes itself is right. Tokens are drawn by the same numbers, in
the same order, as without (speculative decoding, arXiv:2211.17192, for guesses that are certain): what differs is rounding, as between
a sequence by itself and in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli.engine.lookup import PromptLookup
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.load import LoadedModel


class Guessing:
    """Of one answer.

    lookup  None: nothing is guessed
    context  most tokens of the sequence
    """

    def __init__(self, loaded: LoadedModel, sequence: Sequence, lookup: PromptLookup | None, context: int) -> None:
        self._loaded, self._sequence, self._lookup, self._context = loaded, sequence, lookup, context
        self._guess: list[int] = []  # tokens behind the newest whose rows are in the cache
        self._rows: Tensor | None = None  # logits after the token they were guessed for, and after each of them
        self._right = 0  # of these have come

    def after(self, left: int) -> Tensor:
        """Logits [vocabulary] after the newest token of the sequence, of whose answer so many may still come. Errors as of
        Sequence.forward.
        """
        token = self._sequence.tokens[-1]
        if self._rows is not None:
            if self._right < len(self._guess) and self._guess[self._right] == token:
                self._right += 1
                return self._rows[self._right]
            self._end()
        waiting = self._sequence.waiting  # more than the newest, where all is read again
        if self._lookup is not None and left > 1 and len(waiting) == 1:
            most = min(left - 1, self._context - len(self._sequence.tokens))
            guess = self._lookup.guess(self._sequence.tokens, most)
            if guess and (rows := self._sequence.forward_following(self._loaded, [token, *guess])) is not None:
                self._guess, self._rows, self._right = guess[: len(rows) - 1], rows, 0
                return rows[0]
        return self._sequence.forward(self._loaded, torch.tensor([waiting], device=self._loaded.device))

    def close(self) -> None:
        """Nothing is left in the cache but what was written, whatever interrupted it."""
        if self._rows is not None:
            self._end()
        self._sequence.drop_newest(self._sequence.cached - len(self._sequence.tokens))

    def _end(self) -> None:
        """A guess is over: rows of the tokens that did not come are given back, and of one that ends the answer, as of any."""
        assert self._lookup is not None
        tokens, left = self._sequence.tokens, len(self._guess) - self._right
        drawn = len(tokens) > self._sequence.cached - left  # one more, of which nobody asked what comes after
        came = drawn and self._guess[self._right :][:1] == tokens[-1:]
        self._lookup.tell(len(self._guess), self._right + came)
        self._sequence.drop_newest(left)
        self._guess, self._rows = [], None
