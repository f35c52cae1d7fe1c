"""Guesses at the next tokens, from the text itself: what came after its last tokens when they stood there before.

Prompt lookup decoding (Saxena, 2023): a question about a document is answered in its words, code is written again with a line changed,
names come back. A guess costs no model; whoever makes one checks it (engine/guessing.py).
"""

from __future__ import annotations

from array import array

ALIKE = (8, 4, 2)  # last tokens that are looked for, the longest first (docs/log.md)
FIRST = 2  # tokens of the first guess
WIDTH = array("i").itemsize


class PromptLookup:
    """Guesses for one answer.

    most  tokens of a guess

    The next guess is as long as the last ones were right: twice a guess that was right as a whole, one more than was right of another,
    and half of one that was wrong from the beginning. Nothing here reads a clock: the same text gives the same guesses.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(FIRST, most)
        self._text = bytearray()  # the tokens, as the search wants them
        self.guessed = self.right = 0  # tokens, so far

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """At most so many tokens that may follow these; [] if the last ones are new. Tokens are only added between two calls."""
        self._text += array("i", tokens[len(self._text) // WIDTH :]).tobytes()
        count = min(self._length, most)
        for alike in ALIKE if count > 0 else ():
            if (after := self._after_last(alike)) is not None:
                return tokens[after : after + count]
        return []

    def tell(self, guessed: int, right: int) -> None:
        """Of the last guess so many tokens came."""
        self.guessed += guessed
        self.right += right
        if right == guessed:
            self._length = min(self._most, max(self._length, 2 * right))
        else:
            self._length = min(self._most, right + 1) if right > 1 else (self._length + 1) // 2

    def _after_last(self, alike: int) -> int | None:
        """Where the last `alike` tokens stood before, the place behind them: the latest one."""
        text = self._text
        wanted = text[-alike * WIDTH :]
        end = len(text) - WIDTH  # where it may end: not where it does end now
        while len(wanted) == alike * WIDTH and (at := text.rfind(wanted, 0, end)) >= 0:
            if at % WIDTH == 0:
                return at // WIDTH + alike
            end = at + len(wanted) - 1
        return None
