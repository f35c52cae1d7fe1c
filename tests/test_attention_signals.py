"""A device that asks by numbers in memory both see, played by a thread: every query is answered, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.signals import LINE, Signals
from hgca_cli.errors import NativeError

LAYERS = 3


def relay(rows: native.Rows, query: Tensor, answer: Tensor) -> object:
    to = native.ffi.new("hgca_relay *")
    to.far = rows.described[0]
    to.far.heads, to.far.rows = query.shape[0], rows.capacity
    to.query, to.out = native.address(query), native.address(answer)
    to.lse = to.out + query.shape[0] * rows.value_dim
    to.scale = 1.0
    return to


def device(signals: Signals, queries: Tensor, serial: int, seen: list[bool]) -> threading.Thread:
    """Asks layer after layer, each only once the one before was answered."""

    def asks() -> None:
        for layer in range(LAYERS):
            queries[layer].fill_(float(serial + layer))
            assert signals._flags[1, layer, 0] != serial
            signals._flags[0, layer, 0] = serial
            until = time.monotonic() + 10
            while signals._flags[1, layer, 0] != serial and time.monotonic() < until:
                time.sleep(0)
            seen.append(bool(signals._flags[1, layer, 0] == serial))

    thread = threading.Thread(target=asks)
    thread.start()
    return thread


def test_what_a_device_asks_is_answered_in_order(rng: torch.Generator) -> None:
    rows = native.Rows(*torch.randn(2, 1, 40, 8, generator=rng))
    queries, answers = torch.zeros(LAYERS, 2, 8), torch.zeros(LAYERS, 2 * 9)
    relays = [relay(rows, *pair) for pair in zip(queries, answers, strict=True)]
    signals = Signals(torch.zeros(1, dtype=torch.int64), relays)
    for serial in (1, 2, 7):
        seen: list[bool] = []
        thread = device(signals, queries, serial, seen)
        signals.serve(serial)
        thread.join()
        assert seen == [True] * LAYERS
        for query, answer in zip(queries, answers, strict=True):
            wanted = native.attend(native.Attention(query, *rows.kept[:2], scale=1.0))
            assert torch.equal(answer[:16].view(2, 8), wanted.out) and torch.equal(answer[16:], wanted.lse)
    assert signals._flags[:, :, 1:].eq(0).all() and signals._flags.shape[2] == LINE


def test_a_device_that_does_not_ask_is_let_go() -> None:
    rows = native.Rows(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
    queries, answers = torch.zeros(LAYERS, 2, 8), torch.ones(LAYERS, 2 * 9)
    relays = [relay(rows, *pair) for pair in zip(queries, answers, strict=True)]
    signals = Signals(torch.zeros(1, dtype=torch.int64), relays)
    signals._flags[0, 0, 0] = 5
    began = time.monotonic()
    with pytest.raises(NativeError, match="did not come to ask"):
        signals.serve(5, patience=0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert signals._flags[1, :, 0].eq(5).all(), "it would wait for the others' answers"
    assert answers[0].eq(1).sum() == 0 and answers[1:].eq(1).all()


def test_a_step_that_nobody_serves_is_let_go() -> None:
    signals = Signals(torch.zeros(1, dtype=torch.int64), [native.ffi.new("hgca_relay *") for _ in range(LAYERS)])
    signals.let_go(9)
    assert signals._flags[1, :, 0].eq(9).all() and signals._flags[0].eq(0).all()
