"""Tokens of a sequence one behind the other in one pass, each of which reads what it would read by itself.

Each puts a row into the window, which only those behind it see; of the store each reads what is chosen for its own query. So what comes
of a token does not depend on those behind it, and these may be guesses at what will be written (speculative decoding,
arXiv:2211.17192): the rows of wrong ones are given back. No row leaves a window meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hgca_cli import native
from hgca_cli.attention.ahead import facts_of, place_of
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.reading import Reading, tell_slots
from hgca_cli.attention.sparse import count_read, slots_in_use
from hgca_cli.selection import Selection

Layers = Sequence[tuple[Reading, LayerState]]


class Following:
    """What the layers of one sequence read for several tokens."""

    def __init__(self, layers: Layers) -> None:
        """layers  all of them, in their order"""
        self._layers = list(layers)
        self._facts: list[Any] = []
        self._groups: list[list[int]] = []  # layers whose windows move together
        self._tokens: list[_Token] = []
        self._arrays: dict[int, Any] = {}
        self._lists: list[native.Lists | None] = []
        self._chosen = 0

    def of(self, layers: Layers) -> bool:
        """Whether these are the layers."""
        return len(layers) == len(self._layers) and all(
            one is mine and state is own for (one, state), (mine, own) in zip(layers, self._layers, strict=True)
        )

    @property
    def room(self) -> int:
        """Tokens that can be taken at present, at most: until a row leaves, or a layer is to be measured."""
        free = min(state.free_rows for _, state in self._layers)
        return min(free, self._layers[0][1].meter.free // self._chosen) if self._chosen else free

    def take(self, tokens: int) -> Any | None:
        """Slots for the rows of so many tokens, and the hgca_readings of them, one layer's after another's; None, and nothing was
        taken: they are to be read one by one, as a row is about to leave, one of them is to be measured, or Python names rows.
        """
        if (self._facts != self._now() and not self._describe()) or tokens > self.room:
            return None
        while len(self._tokens) < tokens:
            self._tokens.append(_Token(self._layers))
        self._layers[0][1].meter.next_of(self._chosen * tokens)
        self._lists = []
        for token in self._tokens[:tokens]:
            self._put(token)
        if tokens not in self._arrays:
            ordered = [token.described[at] for at in range(len(self._layers)) for token in self._tokens[:tokens]]
            self._arrays[tokens] = native.ffi.new("hgca_reading *[]", ordered)
        return self._arrays[tokens]

    def end(self) -> None:
        """The call has returned. What the first token read is counted: the others read as much, and may be wrong guesses."""
        for (_, state), chosen in zip(self._layers, self._tokens[0].chosen, strict=True):
            if state.store is not None and state.store.rows:
                count_read(state, chosen)

    def keep(self, length: int) -> None:
        """Rows of tokens `length` and later, of those taken last, are given back."""
        for _, state in self._layers:
            state.window.rewind(length)

    def _now(self) -> list[Any]:
        return [(facts_of(state), state.window.start, state.window.made, state.unsettled) for _, state in self._layers]

    def _describe(self) -> bool:
        """What a layer reads has changed: a block left, a turn began, another share is aimed at."""
        self._tokens, self._arrays = [], {}
        if not all(reading.choose(state, metered=False) for reading, state in self._layers):
            self._facts = []
            return False
        self._facts = self._now()
        self._chosen = sum(isinstance(reading.chosen, Selection) for reading, _ in self._layers)
        alike: dict[Any, list[int]] = {}
        for at, (_, state) in enumerate(self._layers):
            alike.setdefault(place_of(state), []).append(at)
        self._groups = list(alike.values())
        return True

    def _put(self, token: _Token) -> None:
        """A slot for a token's row in every window, and what it reads of these."""
        for group in self._groups:
            first = self._layers[group[0]][1]
            slot = first.window.take()
            rows, lists = slots_in_use(first)
            self._lists.append(lists)  # kept as long as they are read
            for at in group:
                self._layers[at][1].window.end = first.window.end
                to = token.described[at]
                to.row = slot
                tell_slots(to.near, rows, lists)


class _Token:
    """What every layer reads for one of the tokens, as its Reading has it."""

    def __init__(self, layers: Layers) -> None:
        self.chosen = [
            reading.chosen.beside() if isinstance(reading.chosen, Selection) else reading.chosen
            for reading, _ in layers
        ]
        self.described = []
        for (reading, _), chosen in zip(layers, self.chosen, strict=True):
            to = native.ffi.new("hgca_reading *")
            to[0] = reading.described[0]
            to.query = to.took = native.ffi.NULL
            if isinstance(chosen, Selection):
                to.chosen = chosen.job
            self.described.append(to)
