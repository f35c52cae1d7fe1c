"""What a model thinks before it answers, told apart from the answer as both come: <think> ... </think>."""

from __future__ import annotations

from hgca_cli.engine.text import overlap
from hgca_cli.events import Text, Thought

BEGIN, END = "<think>", "</think>"


class ThoughtStream:
    """Pieces of what a model writes, as Thought and Text. Only what stands first is a thought: an answer may quote the marks.

    open  the prompt ended with <think>: the model is thinking already
    """

    def __init__(self, *, open: bool = False) -> None:
        self._state = "thought" if open else "begin"
        self._held = ""
        self._fresh = True  # nothing but blanks since the last mark
        self.thought = ""
        self.text = ""

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to a thought."""
        return self._state == "thought"

    @property
    def answering(self) -> bool:
        """Whether what comes next belongs to the answer, for sure."""
        return self._state == "answer"

    @property
    def within_mark(self) -> bool:
        """Whether the text so far may be the beginning of a mark."""
        return bool(self._held)

    def answer_only(self) -> None:
        """What comes goes on with an answer that was begun before."""
        self._state, self._fresh = "answer", False

    def push(self, piece: str) -> list[Thought | Text]:
        """What became certain with one more piece."""
        if self._state == "answer":
            return self._say(piece)
        self._held += piece
        if self._state == "begin":
            start = self._held.lstrip()
            if start.startswith(BEGIN):
                self._state, self._held = "thought", start[len(BEGIN) :]
            elif BEGIN.startswith(start):
                return []
            else:
                self._state, rest, self._held = "answer", self._held, ""
                self._fresh = False
                return self._say(rest)
        before, mark, after = self._held.partition(END)
        if mark:
            self._state, self._held = "answer", ""
            said = self._think(before)
            self._fresh = True
            return said + self._say(after)
        certain = len(before) - overlap(before, END)
        self._held = before[certain:]
        return self._think(before[:certain])

    def finish(self) -> list[Thought | Text]:
        """What was held back, at the end."""
        rest, self._held = self._held, ""
        return self._think(rest) if self._state == "thought" else self._say(rest)

    def _think(self, piece: str) -> list[Thought | Text]:
        piece = self._begun(piece)
        self.thought += piece
        return [Thought(piece)] if piece else []

    def _say(self, piece: str) -> list[Thought | Text]:
        piece = self._begun(piece)
        self.text += piece
        return [Text(piece)] if piece else []

    def _begun(self, piece: str) -> str:
        """Without blanks right after a mark."""
        if self._fresh:
            piece = piece.lstrip()
            self._fresh = not piece
        return piece


def written_out(thought: str, text: str, *, open: bool) -> str:
    """What a model wrote, marks and all, as far as its answer came.

    open  its prompt ended with <think>
    """
    begin = "" if open or not thought else f"{BEGIN}\n"
    end = f"\n{END}\n\n" if text and (open or thought) else ""
    return begin + thought.rstrip("\n" if end else "") + end + text
