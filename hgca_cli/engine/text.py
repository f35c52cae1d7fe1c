"""Token ids become text as they come: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
LONGEST = 64  # tokens decoded together at most, however long no character ends
CONTEXT = 8  # of a prompt that is continued: enough for the rules about leading spaces


class TextStream:
    """Text of one answer, piece by piece. Work per token does not grow with the answer.

    decode  ids -> text; ids that end within a character give U+FFFD at the end
    stop    strings that end the answer; they and what follows are not part of it
    before  ids that come before the answer and that it continues; empty: it begins a text of its own
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = (), before: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        # The pending tokens are decoded together with those that made the last piece: how a token reads can depend on
        # what stands before it (a leading space), but not on more than that.
        self._ids = list(before[-CONTEXT:])
        self._pending = 0  # tokens at the end of _ids since the last piece
        self._shown = len(self._decode(self._ids)) if self._ids else 0  # characters of their text given on
        self._watch = StopWatch(stop)
        self.text = ""  # all that was given out

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._watch.found

    def push(self, token: int) -> str:
        """The text that became certain with one more token; may be empty."""
        self._ids.append(token)
        self._pending += 1
        whole = self._decode(self._ids)
        if len(self._ids) >= LONGEST:  # nothing but unfinished characters: give up waiting for them
            fresh = whole[self._shown :]
            self._keep(LONGEST // 2)
        elif whole.endswith(BROKEN):  # the last character is unfinished (or truly broken, which the end will tell)
            certain = whole.rstrip(BROKEN)
            fresh = certain[self._shown :]
            self._shown = max(self._shown, len(certain))
        else:
            fresh = whole[self._shown :]
            self._shown = len(whole)
            if fresh:
                self._keep(self._pending)
        return self._give(self._watch.push(fresh))

    def finish(self) -> str:
        """What was still held back, at the end of the answer."""
        rest = self._decode(self._ids)[self._shown :]
        self._shown += len(rest)
        return self._give(self._watch.push(rest) + self._watch.finish())

    def _keep(self, tokens: int) -> None:
        self._ids = self._ids[-tokens:]
        self._shown = len(self._decode(self._ids))
        self._pending = 0

    def _give(self, piece: str) -> str:
        self.text += piece
        return piece


class StopWatch:
    """Looks for stop strings in text that comes in pieces; what may be the beginning of one is held back.

    The string that is complete first wins, the longest of those that end together: the same however the text is cut.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(word for word in stop if word)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Text that is certainly before any stop string."""
        if self.found or not piece:
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        ends = [(text.index(word) + len(word), -len(word)) for word in self._stop if word in text]
        if ends:
            end, size = min(ends)
            self.found = True
            self._held = ""
            return text[: end + size]
        held = max(overlap(text, word) for word in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        rest, self._held = self._held, ""
        return "" if self.found else rest


def overlap(text: str, word: str) -> int:
    """Characters at the end of `text` that are a beginning of `word`, but not all of it."""
    for size in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:size]):
            return size
    return 0
