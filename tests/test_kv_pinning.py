"""Ranges that are full of rows are registered, rows in them come without threads, and all are let go before their memory is."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
import torch

from hgca_cli.config import CacheSettings
from hgca_cli.kv import lane, pinning
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.pieces import Pieces
from hgca_cli.kv.pinning import Pinning
from hgca_cli.kv.reservation import HUGE_PAGE, Reservation
from hgca_cli.kv.store import Store

LAYOUT = LayerLayout(heads=6, kv_heads=3, key_dim=24, value_dim=16)
CPU = torch.device("cpu")
ROWS = 45_000  # of 160 bytes in float32: 3 huge pages of each head, and none ends with a row


class Fake:
    """A driver that refuses from its n-th range on, and keeps what happened."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most, self.ranges, self.happened = most, dict[int, int](), list[str]()

    def register(self, at: int, size: int) -> int:
        if len(self.ranges) >= self.most:
            return 2
        assert all(at + size <= begin or begin + held <= at for begin, held in self.ranges.items())
        self.ranges[at] = size
        return 0

    def unregister(self, at: int) -> int:
        self.happened.append("unregister")
        del self.ranges[at]
        return 0

    def wait(self) -> None:
        self.happened.append("wait")


def filled(
    rng: torch.Generator, fake: Fake, kind: torch.dtype = torch.float32, *, step: int = 5000, rows: int = ROWS
) -> Store:
    store = Store(LAYOUT, ROWS, kind, pinning=Pinning(fake))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        store.append(*(torch.randn(3, count, dim, generator=rng) for dim in (24, 16)))
        store.pin()
    return store


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "STEP", HUGE_PAGE)


def check(store: Store, pieces: Pieces, dtype: torch.dtype = torch.float32) -> None:
    """Every row comes once and right."""
    wanted = next(store.blocks(store.rows, CPU, dtype))
    seen = torch.zeros(3, dtype=torch.int64)
    for heads, key, value in pieces.of(store, LAYOUT, CPU, dtype):
        rows = slice(int(seen[heads][0]), int(seen[heads][0]) + key.shape[1])
        assert torch.equal(key, wanted[0][heads, rows]) and torch.equal(value, wanted[1][heads, rows])
        seen[heads] += key.shape[1]
    assert (seen == store.rows).all()


def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that threads copied."""
    counts: list[int] = []
    original = lane._carry

    def counting(source: Any, *rest: Any) -> None:
        counts.append(source.nbytes)
        original(source, *rest)

    monkeypatch.setattr(lane, "_carry", counting)
    return counts


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("numbers", [3 * 40 * 1000, 3 * 40 * 20_000])
def test_rows_that_are_registered_come_without_threads(
    numbers: int, inference: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgca_cli.kv.layout.PIECE_NUMBERS", numbers)
    fake = Fake()
    store = filled(rng, fake)
    assert sorted(set(fake.ranges.values())) == [HUGE_PAGE] and len(fake.ranges) == 9
    counts = carried(monkeypatch)
    with torch.inference_mode(inference):
        check(store, Pieces(apart=True))
    whole = 3 * HUGE_PAGE // 160
    assert sum(counts) == 3 * (ROWS - whole) * 160


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8])
def test_rows_of_other_dtypes_are_converted_where_they_come(kind: torch.dtype, rng: torch.Generator) -> None:
    """Scales of int8 rows are staged."""
    fake = Fake()
    store = filled(rng, fake, kind, step=ROWS)
    assert bool(fake.ranges) == (kind == torch.bfloat16)
    check(store, Pieces(apart=True))


def test_a_copy_stays_within_a_range(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    store = filled(rng, fake)
    original, copies = lane._fetch, []

    def watching(direct: Any, stream: Any) -> str | None:
        copies.extend((source.data_ptr(), source.data_ptr() + source.nbytes) for source, _ in direct)
        return original(direct, stream)

    monkeypatch.setattr(lane, "_fetch", watching)
    check(store, Pieces(apart=True))
    assert copies
    for begin, end in copies:
        assert any(at <= begin and end <= at + size for at, size in fake.ranges.items())


@pytest.mark.parametrize("most", [0, 1, 4, 6])
def test_a_refusal_leaves_what_was_registered_of_all_heads(most: int, rng: torch.Generator) -> None:
    """The others are staged, nobody asks again, and it can be told."""
    fake = Fake(most)
    store = filled(rng, fake)
    assert store.pinning is not None and store.pinning.refused == "error 2 of 6 MiB"
    assert len(fake.ranges) == most // 3 * 3
    check(store, Pieces(apart=True))
    fake.most = 100
    store.pin()
    assert len(fake.ranges) == most // 3 * 3


def test_a_copy_that_goes_wrong_goes_another_way(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    store = filled(rng, fake)
    assert store.pinning is not None
    inside = {at for first, size in fake.ranges.items() for at in range(first, first + size, 16)}
    original = torch.Tensor.copy_

    def failing(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if source.data_ptr() in inside and source.dim() == 1:
            raise RuntimeError("CUDA error: invalid argument\nmore")
        return original(self, source, non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    pieces = Pieces(apart=True)
    check(store, pieces)
    assert store.pinning.refused == "CUDA error: invalid argument" and store.registered(slice(0, ROWS)) == []
    check(store, pieces)


def test_all_is_let_go_before_the_memory_is(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    store = filled(rng, fake)
    view = store.keys[0, :3]
    released: list[int] = []
    from hgca_cli.kv import reservation

    class Library:
        def hgca_release(self, at: Any, size: int) -> int:
            released.append(len(fake.ranges))
            result: int = library.hgca_release(at, size)
            return result

    library = reservation.lib
    del store
    gc.collect()
    assert len(fake.ranges) == 9 and not fake.happened  # a view keeps it
    monkeypatch.setattr(reservation, "lib", Library())
    del view
    gc.collect()
    assert released == [0] and fake.happened == ["wait", *["unregister"] * 9]


def test_a_child_process_asks_no_device(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    store = filled(rng, fake)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        del store
        gc.collect()
    assert not fake.happened


def test_no_registered_page_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, joined = Fake(), list[int]()
    original = Reservation.join_pages

    def joining(self: Reservation, offset: int) -> None:
        at = array.whole.data_ptr() + offset
        assert not any(first < at + HUGE_PAGE and at < first + size for first, size in fake.ranges.items())
        joined.append(offset)
        original(self, offset)

    monkeypatch.setattr(Reservation, "join_pages", joining)
    array = GrowingArray(2, 40_000, 64, torch.float32, pinning=Pinning(fake))
    for rows in range(1000, 40_001, 1000):
        array.commit(rows, 0)
        array.pin(rows)
    assert len(joined) == 2 * 5 and len(fake.ranges) == 2 * 4


def test_steps_grow_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a long text is not thousands of ranges; and a range is registered once it is full."""
    monkeypatch.undo()
    fake = Fake()
    ranges = pinning.Registered(Pinning(fake))
    for full in range(0, 1 << 30, 1 << 20):
        ranges.grow([1 << 40], full)
        assert sum(fake.ranges.values()) <= full
        if full > 4 * pinning.STEP:
            assert sum(fake.ranges.values()) >= 0.75 * full - pinning.STEP
    assert len(fake.ranges) < 40 and max(fake.ranges.values()) == pinning.MOST_AT_ONCE


def test_files_and_processors_register_nothing(rng: torch.Generator, tmp_path: Any) -> None:
    assert Pinning.of(CPU) is None
    fake = Fake()
    store = Store(LAYOUT, 20_000, torch.float32, str(tmp_path), Pinning(fake))
    store.append(torch.zeros(3, 20_000, 24), torch.zeros(3, 20_000, 16))
    store.pin()
    assert not fake.ranges and store.pinning is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_on_a_gpu_registered_rows_come_by_themselves(
    kind: torch.dtype, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda:0")
    counts = carried(monkeypatch)
    layout = LayerLayout(8, 2, 128, 128)
    store = Store(layout, 50_000, kind, pinning=Pinning(pinning.Cuda(device)))
    store.append(*(torch.randn(2, 50_000, 128, generator=rng) for _ in "kv"))
    store.pin()
    assert store.pinning is not None and store.pinning.refused is None
    assert store.packed[0, :100].is_pinned()
    pieces = Pieces()
    for _ in range(3):
        for heads, key, value in pieces.of(store, layout, device, kind):
            assert heads == slice(0, 2)
            rows = slice(0, key.shape[1])
            assert torch.equal(key.cpu(), store.keys[:, rows]) and torch.equal(value.cpu(), store.values[:, rows])
            break
        got = [(key.cpu(), value.cpu()) for _, key, value in pieces.of(store, layout, device, kind)]
        keys, values = (torch.cat(one, 1) for one in zip(*got, strict=True))
        assert torch.equal(keys, store.keys) and torch.equal(values, store.values)
    assert sum(counts) < 0.9 * 3 * 2 * store.bytes
    assert store.pinning.refused is None
    del store, got
    gc.collect()
    torch.ones(1, device=device)  # no error is left behind


@pytest.mark.gpu
def test_on_a_gpu_a_refusal_leaves_no_error_behind() -> None:
    device = torch.device("cuda:0")
    driver = pinning.Cuda(device)
    assert driver.register(1 << 12, 1 << 21) != 0  # nothing is there
    assert torch.ones(3, device=device).sum().item() == 3


@pytest.mark.gpu
def test_on_a_gpu_a_long_prompt_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgca_cli.attention.layer import LayerState
    from hgca_cli.attention.select.window import WindowOnly
    from hgca_cli.attention.stream import prompt_attention

    device, layout = torch.device("cuda:0"), LayerLayout(8, 2, 128, 128)
    draw = torch.Generator(device).manual_seed(3)
    chunks = [
        [torch.randn(heads, 4096, 128, generator=draw, device=device, dtype=torch.bfloat16) for heads in (8, 2, 2)]
        for _ in range(8)
    ]

    def read() -> tuple[list[torch.Tensor], LayerState]:
        settings = CacheSettings(context=33_000, window=2048, sinks=4, select="exact")
        layer = LayerState(layout, settings, WindowOnly(), device, torch.bfloat16, torch.bfloat16)
        layer.expect(8 * 4096)
        with torch.inference_mode():
            return [prompt_attention(*chunk, layer, scale=0.09) for chunk in chunks], layer

    got, layer = read()
    assert layer.store is not None and layer.store.registered(slice(0, layer.store.rows))
    monkeypatch.setattr(Pinning, "of", staticmethod(lambda device: None))
    wanted, _ = read()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
