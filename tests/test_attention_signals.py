"""A device that asks by numbers in memory both see, played by a thread: every query is answered, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.signals import LINE, Signals
from hgca_cli.errors import NativeError
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.selection import Selection

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
            assert signals.answered[layer, 0] != serial
            signals.asked[layer, 0] = serial
            until = time.monotonic() + 10
            while signals.answered[layer, 0] != serial and time.monotonic() < until:
                time.sleep(0)
            seen.append(bool(signals.answered[layer, 0] == serial))

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
    signals.asked[0, 0] = 5
    began = time.monotonic()
    with pytest.raises(NativeError, match="did not come to ask"):
        signals.serve(5, patience=0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert signals.answered[:, 0].eq(5).all(), "it would wait for the others' answers"
    assert answers[0].eq(1).sum() == 0 and answers[1:].eq(1).all()


def test_a_step_that_nobody_serves_is_let_go() -> None:
    signals = Signals(torch.zeros(1, dtype=torch.int64), [native.ffi.new("hgca_relay *") for _ in range(LAYERS)])
    signals.let_go(9)
    assert signals.answered[:, 0].eq(9).all() and signals.asked.eq(0).all()


@pytest.mark.parametrize("query_last", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_that_a_device_names_are_known_before_the_queries_or_after(
    dtype: torch.dtype, parts: int, query_last: bool, rng: torch.Generator
) -> None:
    """Four sequences a layer, their lists written by the device step after step; one reads nothing, one all of its rows."""
    layout = LayerLayout(4, 2, 16, 16)
    store = Store(layout, 900, dtype)
    store.append(*torch.randn(2, 2, 900, 16, generator=rng))
    queries, answers = torch.zeros(LAYERS, 4, 4, 16), torch.zeros(LAYERS, 4, 4 * 17)
    starts = torch.zeros(LAYERS, 4, 3, dtype=torch.int64)
    named = torch.zeros(2, 4, 2 * 900, dtype=torch.int32)
    counted = torch.zeros(LAYERS, 4, 2, dtype=torch.int64)
    told: Any = native.ffi.new("hgca_selection[]", LAYERS * 4)
    relays: list[Any] = []
    for layer in range(LAYERS):
        for at in range(4):
            to: Any = relay(store.read, queries[layer, at], answers[layer, at])
            to.far.rows = 0 if at == 3 else store.rows
            if at < 2:
                to.far.lists, own = 2, told[layer * 4 + at]
                to.far.row_start, to.far.row = (
                    native.address(starts[layer, at], "int64_t *"),
                    native.address(named[layer % 2, at], "int32_t *"),
                )
                own.rows_read = native.address(counted[layer, at], "int64_t *")
                to.told = native.ffi.addressof(told, layer * 4 + at)
            relays.append(to)
    signals = Signals(torch.zeros(1, dtype=torch.int64), relays, 4, parts)
    wanted = torch.zeros_like(answers)

    def name(layer: int, part: int, serial: int) -> None:
        for at in range(part * 4 // parts, min(2, (part + 1) * 4 // parts)):
            lists = [torch.randperm(900, generator=rng)[: 300 * (1 + at)].sort().values.int() for _ in range(2)]
            starts[layer, at, 1:] = torch.tensor([len(lists[0]), len(lists[0]) + len(lists[1])])
            named[layer % 2, at, : int(starts[layer, at, 2])] = torch.cat(lists)
        signals.named[layer, part, 0] = serial

    def ask(layer: int, serial: int) -> None:
        queries[layer] = torch.randn(4, 4, 16, generator=rng)
        signals.asked[layer, 0] = serial

    def asks(serial: int) -> None:
        until = time.monotonic() + 10
        for layer in range(LAYERS):
            if not query_last:
                ask(layer, serial)
            for part in range(parts):
                name(layer, part, serial)
            if query_last:
                time.sleep(0.002)  # rows are being fetched
                ask(layer, serial)
            while signals.answered[layer, 0] != serial and time.monotonic() < until:
                time.sleep(0)

    for serial in (1, 2, 3):
        thread = threading.Thread(target=asks, args=(serial,))
        thread.start()
        signals.serve(serial)
        thread.join()
        assert signals.answered[:, 0].eq(serial).all()
        got = answers.clone()
        for layer in range(LAYERS - 2, LAYERS):  # of those before the lists are others' now
            for at in range(4):
                native.lib.hgca_run_relay(relays[layer * 4 + at])
                wanted[layer, at] = answers[layer, at]
            assert torch.allclose(got[layer, :3], wanted[layer, :3], atol=1e-5)
        assert got[:, 3, :64].eq(0).all() and got[:, 3, 64:].eq(float("-inf")).all()
        assert counted[:, 0].eq(300).all() and counted[:, 1].eq(600).all()
        assert all(to.status == 0 and to.ns > 0 for at, to in enumerate(relays) if at % 4 < 3)


@pytest.mark.parametrize("named", [True, False])
def test_a_device_that_names_or_asks_nothing_is_let_go(named: bool) -> None:
    rows = native.Rows(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
    queries, answers = torch.zeros(LAYERS, 2, 8), torch.ones(LAYERS, 2 * 9)
    relays: list[Any] = [relay(rows, *pair) for pair in zip(queries, answers, strict=True)]
    starts, row = torch.tensor([0, 2]), torch.tensor([1, 3], dtype=torch.int32)
    told = native.ffi.new("hgca_selection *")
    for to in relays:
        to.far.lists, to.told = 1, told
        to.far.row_start, to.far.row = native.address(starts, "int64_t *"), native.address(row, "int32_t *")
    signals = Signals(torch.zeros(1, dtype=torch.int64), relays)
    signals.asked[:, 0], signals.named[0, 0, 0] = 5 * (not named), 5 * named
    with pytest.raises(NativeError, match="did not come to ask"):
        signals.serve(5, patience=0.05)
    assert signals.answered[:, 0].eq(5).all() and answers.eq(1).all()


@pytest.mark.parametrize("each", [1, 2, 5])
def test_all_sequences_of_a_layer_are_answered_at_once(each: int, rng: torch.Generator) -> None:
    """Some read all of their rows, some lists of them, some what is chosen, some none."""
    layout = LayerLayout(4, 2, 16, 16)
    stores = [Store(layout, 300, torch.bfloat16) for _ in range(each)]
    for index, store in enumerate(stores):
        store.append(*torch.randn(2, 2, 300 - 40 * index, 16, generator=rng))
    codes = [Codes(layout, 300) for _ in stores]
    chosen = []
    for store, code in zip(stores, codes, strict=True):
        code.extend(store)
        one = Selection(4, store.keys, store.values, code.whole, block_means=code.means, mass=0.8, least=8)
        one.hold(store.rows, code.rows)
        chosen.append(one)
    queries, answers = torch.randn(LAYERS, each, 4, 16, generator=rng), torch.full((LAYERS, each, 4 * 17), 7.0)
    starts, named = torch.tensor([0, 3, 5]), torch.tensor([1, 8, 20, 0, 99], dtype=torch.int32)
    relays: list[Any] = []
    for layer in range(LAYERS):
        for at, store in enumerate(stores):
            to: Any = relay(store.read, queries[layer, at], answers[layer, at])
            kind = (layer + at) % 4
            to.far.rows = 0 if kind == 1 else store.rows
            if kind == 2:
                to.chosen = chosen[at].job
            if kind == 3:
                to.far.lists = 2
                to.far.row_start, to.far.row = native.address(starts, "int64_t *"), native.address(named, "int32_t *")
            relays.append(to)
    signals = Signals(torch.zeros(1, dtype=torch.int64), relays, each)
    for layer in range(LAYERS):
        signals.run(layer)
    got = answers.clone()
    answers.fill_(7.0)
    for to in relays:
        native.lib.hgca_run_relay(to)
    assert torch.allclose(got, answers, atol=1e-5) and not got.eq(7.0).any()
    assert all(to.status == 0 for to in relays)
    for layer in range(LAYERS):
        for at, store in enumerate(stores):
            if (layer + at) % 4 == 0:
                wanted = native.attend(native.Attention(queries[layer, at], *store_rows(store), scale=1.0))
                assert torch.allclose(got[layer, at, :64].view(4, 16), wanted.out, atol=1e-5)
    relays[0].far.dtype = 77
    signals.run(0)
    assert relays[0].status and not any(to.status for to in relays[1:each]), "who is wrong is told, others are answered"
    assert torch.allclose(answers[0, 1:], got[0, 1:], atol=1e-5)


def store_rows(store: Store) -> tuple[Tensor, Tensor]:
    return store.keys[:, : store.rows], store.values[:, : store.rows]
