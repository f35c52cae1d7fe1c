"""Token ids become text as they come: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Callable

BROKEN = "\ufffd"
CONTEXT = 8  # tokens decoded again with the new ones: enough for any character and for leading-space rules


class TextStream:
    """Text of one answer, piece by piece. Work per token does not grow with the answer.

    decode  ids -> text
    stop    strings that end the answer; they and what follows are not part of it
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = tuple(word for word in stop if word)
        self._ids: list[int] = []  # what is decoded together with the next token
        self._shown = ""  # their text that was given out already
        self._held = ""  # text that may be the beginning of a stop string
        self.text = ""  # all that was given out
        self.stopped = False  # a stop string was found

    def push(self, token: int) -> str:
        """The text that became certain with one more token; may be empty."""
        self._ids.append(token)
        whole = self._decode(self._ids)
        if whole.endswith(BROKEN) and len(self._ids) < 2 * CONTEXT:
            return ""  # part of a character: wait for the rest
        fresh = whole[len(self._shown) :]
        if len(self._ids) >= 2 * CONTEXT:
            self._ids = self._ids[-CONTEXT:]
            self._shown = self._decode(self._ids)
        else:
            self._shown = whole
        return self._release(fresh)

    def finish(self) -> str:
        """What was still held back, at the end of the answer."""
        whole = self._decode(self._ids)
        self._held += whole[len(self._shown) :]
        self._shown = whole
        if self.stopped:
            return ""
        rest, self._held = self._cut(self._held), ""
        self.text += rest
        return rest

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        self._held += fresh
        certain = self._cut(self._held)
        if self.stopped:
            self._held = ""
        else:
            keep = max((self._overlap(self._held, word) for word in self._stop), default=0)
            certain = self._held[: len(self._held) - keep]
            self._held = self._held[len(certain) :]
        self.text += certain
        return certain

    def _cut(self, text: str) -> str:
        """Text before the first stop string in it."""
        found = [at for at in (text.find(word) for word in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        return text

    @staticmethod
    def _overlap(text: str, word: str) -> int:
        """Characters at the end of `text` that are a beginning of `word`."""
        for size in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:size]):
                return size
        return 0
