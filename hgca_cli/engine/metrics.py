"""Reading what a sequence is doing from beside it: nothing is counted for this, and nothing waits.

Every number is kept by a run anyway, but for one: `watch` asks the C library how long a layer's attention takes. The run goes on
meanwhile, so numbers of different layers may be of tokens next to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select.cluster import Cluster
from hgca_cli.attention.select.exact import Exact
from hgca_cli.attention.select.scan import Scan
from hgca_cli.attention.shares import head_shares
from hgca_cli.engine.sequence import Sequence
from hgca_cli.metrics import Metrics, Places, Spent

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine

FLOAT = 4  # bytes of a number of a query, or of a result


class Readings:
    """Readings of an engine's latest answer, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self) -> Metrics | None:
        """One reading; None before the first row."""
        if (sequence := self._engine.sequence) is None:
            return None
        watch(sequence, True)  # again and again: that a layer is done in one call is known from its first token on
        return read_metrics(sequence)

    def rest(self) -> None:
        """None will be taken for some time: nothing is measured for them."""
        if (sequence := self._engine.sequence) is not None:
            watch(sequence, False)


def watch(sequence: Sequence, on: bool) -> None:
    """Whether the C library tells how long attention takes, where it does a layer in one call."""
    for state in _states(sequence):
        if (reading := state.reading) is not None:  # another thread may be about to forget it
            reading.watch(on)


def read_metrics(sequence: Sequence, *, told: bool = True, heads: bool = True) -> Metrics | None:
    """One reading; None as long as the sequence has no row. May be called from any thread.

    told   what the C library tells of a layer it did in one call is of the newest token
    heads  what each head read is wanted, too
    """
    states = list(_states(sequence))
    if not states:
        return None
    cache = sequence.cache
    device = states[0].window.keys.device
    full = [state for state in states if state.store is not None]
    rows = cache.rows()
    aims = [state.selector.mass for state in full if isinstance(state.selector, Scan)]
    asked = cache.settings.quality if aims and cache.settings.budget is None else None
    crossing = device.type != "cpu"
    stored = [state for state in full if state.store is not None and state.store.rows]
    return Metrics(
        device=str(device),
        tokens=len(sequence.tokens),
        context=cache.settings.context,
        threads=native.threads(),
        places=_places(states),
        spent=_spent(states, told=told),
        read_share=rows.read_share,
        bytes_share=rows.bytes_share,
        quality=rows.quality,
        measured=cache.meter.count,
        asked=asked,
        aim=None if asked is None else min(aims),
        heads=tuple(head_shares(state) for state in states) if heads else (),
        read_bytes=_read_bytes(states),
        to_host=sum(FLOAT * _query_numbers(state) for state in stored) if crossing else None,
        to_device=sum(FLOAT * _result_numbers(state) for state in stored) if crossing else None,
        evicted=sum(max(0, state.window.start - state.window.sinks) * _row_bytes(state) for state in full)
        if crossing
        else None,
    )


def _states(sequence: Sequence) -> Iterator[LayerState]:
    """Of the first sequence of a batch; none while the cache is being made or given up."""
    for layer in sequence.cache.layers:
        if states := layer.states:
            yield states[0]


def _places(states: list[LayerState]) -> Places:
    shown = next((state for state in states if state.store is not None), states[0])
    window = shown.window
    start, end = window.start, window.end
    stored = 0 if shown.store is None else shown.store.rows
    left = max(0, start - window.sinks) if shown.store is not None else 0  # rows that left the ring
    selector = shown.selector
    on_device = on_way = index = 0
    for state in states:
        on_device += state.window.rows * _row_bytes(state)
        if state.store is not None:
            on_way += max(0, state.window.start - state.window.sinks - state.store.rows) * _row_bytes(state)
            if not isinstance(state.selector, Exact):
                index += state.store.rows * state.layout.index_bytes(state.settings.select)
    return Places(
        sinks=min(end, window.sinks),
        window=max(0, end - start),
        pending=max(0, left - stored),
        store=min(stored, left),
        clustered=selector.clustered if isinstance(selector, Cluster) else None,
        window_bytes=on_device,
        pending_bytes=on_way,
        store_bytes=sum(state.store.bytes for state in states if state.store is not None),
        index_bytes=index,
    )


def _spent(states: list[LayerState], *, told: bool) -> Spent:
    """Where the library did whole layers it tells how long each one's attention took; else threads tell how long they worked."""
    choosing = reading = 0.0  # of all threads
    selection = attention = 0.0
    chosen = timed = 0
    for state in states:
        choose = read = 0.0
        if (last := state.reads.last) is not None:
            reads = last.reads
            choose, read = reads.group_seconds + reads.scan_seconds + reads.choose_seconds, reads.read_seconds
            chosen += 1
        if told and (one := state.reading) is not None and (took := one.took) is not None:
            timed += 1
            part = took * choose / (choose + read) if choose + read else 0.0
            selection, attention = selection + part, attention + took - part
        choosing, reading = choosing + choose, reading + read
    if timed == len(states):
        return Spent(selection=selection if chosen else None, attention=attention)
    if chosen:
        selection, attention = choosing / native.threads(), reading / native.threads()
    clock = states[0].clock.last
    if clock is None:  # what a GPU hides of it is not known
        return Spent(None, selection, attention) if chosen and states[0].window.keys.is_cpu else Spent()
    window, waited = clock
    host = selection + attention
    shown = min(1.0, waited / host) if host else 1.0
    if not chosen:
        return Spent(window, None, waited)
    return Spent(window, selection * shown, attention * shown, host * (1.0 - shown))


def _read_bytes(states: list[LayerState]) -> int | None:
    """Of the store and its index what the library says it touched, or all if all was read; and a window in CPU memory."""
    touched = 0
    for state in states:
        if state.window.read is not None:
            touched += state.window.rows * _row_bytes(state)
        if state.store is None or not state.store.rows:
            continue
        if (last := state.reads.last) is not None:
            touched += last.bytes
        elif isinstance(state.selector, Exact):
            touched += state.store.bytes
        elif state.reads.share:
            return None
    return touched


def _row_bytes(state: LayerState) -> int:
    """Of a row of all KV heads, as the device holds it."""
    return state.layout.row_elements * state.window.keys.element_size()


def _query_numbers(state: LayerState) -> int:
    beside = state.layout.heads if state.near_lse is not None else 0
    return state.layout.heads * state.layout.key_dim + beside


def _result_numbers(state: LayerState) -> int:
    return state.layout.heads * (state.layout.value_dim + 1)  # and a log-sum-exp
