"""Tokens after which nothing but their own row is new: what they read is described by what the token before them read.

Most tokens are such. The window takes one row more; the store's rows, and how they are chosen, are as they were until the ring's
oldest block leaves. To look at a layer anew takes Python 20 us, and here less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.meter import QualityMeter
from hgca_cli.attention.reading import Reading, tell_slots
from hgca_cli.attention.sparse import count_read, slots_in_use
from hgca_cli.selection import Selection


class Ahead:
    """Readings of a token each, of the layers of one sequence or of several, one layer's sequences after another's."""

    def __init__(self, readings: Sequence[tuple[Reading, LayerState]]) -> None:
        """readings  of a token that was computed"""
        alike: dict[tuple[Any, ...], list[tuple[Reading, LayerState]]] = {}
        for one, state in readings:
            alike.setdefault((id(state.meter), place_of(state), state.store is None), []).append((one, state))
        self._groups = [_Layers(group) for group in alike.values()]
        counts: dict[int, tuple[QualityMeter, int]] = {}
        for group in self._groups:
            meter = group.meter
            counts[id(meter)] = meter, counts.get(id(meter), (meter, 0))[1] + group.chosen
        self._meters = list(counts.values())
        self._described = native.ffi.new("hgca_reading *[]", [one.described for one, _ in readings])
        self._count = len(readings)

    def take(self) -> Any | None:
        """The hgca_readings of one more token each, for whose rows there are slots then; None, and nothing was done: something else is
        new, or is to be done.
        """
        for group in self._groups:
            if not group.goes_on():
                return None
        if not all(meter.is_free(count) for meter, count in self._meters):
            return None
        for meter, count in self._meters:
            meter.next_of(count)
        for group in self._groups:
            group.take()
        return self._described

    def end(self) -> None:
        """The call has returned: what was read is counted."""
        for group in self._groups:
            group.end()

    def __len__(self) -> int:
        return self._count


class _Layers:
    """Layers of a sequence whose windows move together."""

    def __init__(self, readings: list[tuple[Reading, LayerState]]) -> None:
        _, first = readings[0]
        window = self._window = first.window
        self._start = window.start
        # with one row more the ring's oldest block leaves, a sliding layer's row gets out of sight, or the context is full
        self._end = min(window.start + window.ring - 1, first.settings.context)
        if any(state.unsettled or (state.store is None and window.start != window.sinks) for _, state in readings):
            self._end = 0
        self._all = [(one, state, state.window, one.looked, facts_of(state)) for one, state in readings]
        self._to = [(one.described, one.described.near) for one, _ in readings]
        self._read = [(state, one.chosen) for one, state in readings if state.store is not None and state.store.rows]
        self.chosen = sum(isinstance(one.chosen, Selection) for one, _ in readings)
        self.meter = first.meter
        for to, _ in self._to:
            to.query = native.ffi.NULL  # nothing is measured

    def goes_on(self) -> bool:
        """Whether one more token leaves all as it is but for its own row."""
        end = self._window.end
        if end >= self._end:
            return False
        for one, state, window, looked, facts in self._all:
            if window.end != end or window.start != self._start or one.looked != looked or facts_of(state) != facts:
                return False
        return True

    def take(self) -> None:
        """A slot for the row in every window."""
        slot = self._window.take()
        for _, _, other, *_ in self._all:
            other.end = self._window.end
        rows, self._lists = slots_in_use(self._all[0][1])  # lists: kept as long as they are read
        for to, near in self._to:
            to.row = slot
            tell_slots(near, rows, self._lists)

    def end(self) -> None:
        """It was read."""
        for state, chosen in self._read:
            count_read(state, chosen)


def place_of(state: LayerState) -> tuple[int, ...]:
    """What layers have in common whose windows move together."""
    window = state.window
    return window.sinks, window.ring, window.start, window.end, state.layout.kv_heads


def facts_of(state: LayerState) -> tuple[Any, ...]:
    """What is another if anything but a token was done to a layer, its window's positions apart."""
    store = state.store
    mass = getattr(state.selector, "mass", None)
    return state.reading, state.prompt_left, state.read_all, None if store is None else store.rows, mass
