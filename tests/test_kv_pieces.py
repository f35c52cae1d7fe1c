"""A store comes to the device whole, in order, and in no more memory than the plan states, on a device apart or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli.hardware.memory import Choice, Model, pieces_bytes
from hgca_cli.hf.cache_layer import STORE_DTYPES
from hgca_cli.kv import lane
from hgca_cli.kv import layout as sizes
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.kv.pieces import Pieces, cut
from hgca_cli.kv.store import Store

LAYOUT = LayerLayout(heads=6, kv_heads=3, key_dim=24, value_dim=16)
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def filled(rng: torch.Generator, rows: int, kind: torch.dtype, layout: LayerLayout = LAYOUT) -> Store:
    store = Store(layout, max(1, rows), kind)
    size = torch.logspace(-2, 2, rows)[:, None] if rows else 1.0
    key, value = (torch.randn(layout.kv_heads, rows, dim, generator=rng) * size for dim in (24, 16))
    store.append(key, value)
    return store


def whole(pieces: Pieces, store: Store, dtype: torch.dtype, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """All rows, put together again as the pieces say."""
    seen = torch.zeros(3, dtype=torch.int64)
    keys, values = (torch.full((3, store.rows, dim), float("nan"), dtype=dtype) for dim in (24, 16))
    for heads, key, value in pieces.of(store, LAYOUT, device, dtype):
        assert key.dtype == value.dtype == dtype and key.device.type == device.type
        first = seen[heads]
        assert (first == first[0]).all() and key.shape[0] == len(first)
        rows = slice(int(first[0]), int(first[0]) + key.shape[1])
        keys[heads, rows], values[heads, rows] = key.cpu(), value.cpu()
        seen[heads] += key.shape[1]
    assert (seen == store.rows).all()
    return keys, values


@pytest.fixture(params=["whole heads", "one head at a time"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 10 rows of all KV heads, or of 30 of one."""
    monkeypatch.setattr(sizes, "PIECE_NUMBERS", 3 * 40 * 10)
    monkeypatch.setattr(sizes, "GPU_PIECE_NUMBERS", 3 * 40 * 10)
    monkeypatch.setattr(sizes, "PIECE_ROWS", 10 if request.param == "whole heads" else 30)


@pytest.mark.usefixtures("small")
def test_every_row_comes_in_inference_mode(rng: torch.Generator) -> None:
    """Which is a thread's own, and other threads carry the rows."""
    store = filled(rng, 40, torch.bfloat16)
    with torch.inference_mode():
        keys, values = whole(Pieces(apart=True), store, torch.bfloat16)
    assert torch.equal(keys, store.keys[:, :40]) and torch.equal(values, store.values[:, :40])


@pytest.mark.parametrize("apart", [False, True], ids=["here", "as to a GPU"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STORE_DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 30, 31, 95])
def test_every_row_comes_once(rows: int, kind: str, dtype: str, apart: bool, rng: torch.Generator) -> None:
    store = filled(rng, rows, STORE_DTYPES[kind])
    pieces = Pieces(apart=apart)
    (wanted_key, wanted_value) = next(iter(store.blocks(max(1, rows), CPU, DTYPES[dtype])), (None, None))
    got_key, got_value = whole(pieces, store, DTYPES[dtype])
    if wanted_key is None or wanted_value is None:
        assert rows == 0 and got_key.shape[1] == 0
        return
    assert torch.equal(got_key, wanted_key) and torch.equal(got_value, wanted_value)


@pytest.mark.usefixtures("small")
def test_a_piece_is_sent_for_when_the_one_before_on_its_side_was_used(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, before the first is asked for; what can be done beside comes before each is waited for."""
    happened: list[str] = []
    for name in ("send", "arrive", "used"):
        method = getattr(lane.Lane, name)

        def told(self: lane.Lane, side: int, *rest: Any, name: str = name, method: Any = method) -> None:
            happened.append(f"{name} {side}")
            method(self, side, *rest)

        monkeypatch.setattr(lane.Lane, name, told)
    store = filled(rng, 35, torch.float32)
    count = len(list(cut(store, LAYOUT)))
    coming = Pieces(apart=True).of(
        store, LAYOUT, CPU, torch.float32, lambda share: happened.append(f"beside {share:.2f}")
    )
    assert happened == ["send 0", "send 1"] and count in (4, 6)
    happened.clear()
    for number, _ in enumerate(coming):
        last = [] if number == 0 else [f"used {1 - number % 2}"]
        sent = [f"send {1 - number % 2}"] if last and number - 1 + 2 < count else []
        assert happened == [*last, *sent, f"beside {(number + 1) / count:.2f}", f"arrive {number % 2}"]
        happened.clear()


@pytest.mark.usefixtures("small")
def test_pieces_that_nobody_waited_for_are_not_in_the_way(rng: torch.Generator) -> None:
    pieces = Pieces(apart=True)
    for rows in (95, 40, 200):  # buffers grow while some are on their way
        store = filled(rng, rows, torch.int8)
        abandoned = pieces.of(store, LAYOUT, CPU, torch.float32)
        if rows == 40:
            next(abandoned)
        wanted = next(store.blocks(rows, CPU, torch.float32))
        assert all(torch.equal(a, b) for a, b in zip(whole(pieces, store, torch.float32), wanted, strict=True))


def test_what_fails_on_the_way_is_raised(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(rng, 20, torch.float32)
    pieces = Pieces(apart=True)

    def fails(*_: object) -> None:
        raise RuntimeError("no way")

    with monkeypatch.context() as broken:
        broken.setattr(lane, "_carry", fails)
        with pytest.raises(RuntimeError, match="no way"):
            whole(pieces, store, torch.float32)
    whole(pieces, store, torch.float32)


def test_a_quarter_of_the_processors_copies() -> None:
    assert [sizes.copying_threads(count) for count in (1, 2, 8, 16, 64)] == [1, 1, 2, 4, 8]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STORE_DTYPES)
@pytest.mark.parametrize("rows", [5, 10, 500])
def test_buffers_are_what_the_plan_says(rows: int, kind: str, dtype: str, device: str, rng: torch.Generator) -> None:
    """A GPU's buffers are counted on the CPU. With one piece only one of the two is ever there."""
    store = filled(rng, rows, STORE_DTYPES[kind])
    pieces = Pieces(apart=device != "cpu")
    for _ in range(3):  # used again, not allocated again
        for _ in pieces.of(store, LAYOUT, CPU, DTYPES[dtype]):
            pass
    model = Model(KVLayout((LAYOUT, replace(LAYOUT, sliding=4))), 1, 0, hidden=1, intermediate=1, vocabulary=1)
    choice = Choice(device, dtype, kind, context=rows + 20, window=16, sinks=4, chunk=8)
    there, pinned = pieces_bytes(model, choice)
    held = sum(buffer.nbytes for buffer in pieces.buffers.values())
    temporary = 2 * 4 * 24 * store.rows * 3 if (device, kind, dtype) == ("cpu", "int8", "bf16") else 0
    slack = 16 * len(pieces.buffers)  # each is rounded up
    assert held <= there + pinned + slack
    assert rows < 100 or there + pinned - temporary <= held
    if device == "cpu":
        assert pinned == 0 and (there == 0) == (kind == dtype)


def test_a_piece_is_bounded_however_long_the_text(rng: torch.Generator) -> None:
    for shape in (LAYOUT, LayerLayout(32, 8, 128, 128), LayerLayout(64, 64, 128, 128), LayerLayout(128, 1, 576, 512)):
        width = shape.key_dim + shape.value_dim
        for rows in (1, 1000, 8192, 131_072, 1 << 20):
            heads, each = shape.piece(rows)
            assert 1 <= heads <= shape.kv_heads and 1 <= each <= rows
            assert heads * each * width <= max(sizes.PIECE_NUMBERS, width * sizes.PIECE_ROWS)
    assert LayerLayout(64, 64, 128, 128).piece(1 << 20) == (16, 1024)
    assert LayerLayout(32, 8, 128, 128).piece(1 << 20) == (8, 2048)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", STORE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_every_row_comes_once_and_the_bound_holds(kind: str, dtype: str, rng: torch.Generator) -> None:
    device = torch.device("cuda")
    store = filled(rng, 200_000, STORE_DTYPES[kind])
    pieces = Pieces()
    model = Model(KVLayout((LAYOUT,)), 1, 0, hidden=1, intermediate=1, vocabulary=1)
    there, pinned = pieces_bytes(model, Choice("cuda:0", dtype, kind, 200_020, 16, 4, 8))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in pieces.of(store, LAYOUT, device, DTYPES[dtype]):
        pass
    torch.cuda.synchronize(device)
    assert torch.cuda.max_memory_allocated(device) - before <= there + 8 * 512
    assert sum(one.nbytes for one in pieces.buffers.values()) <= there + pinned + 16 * len(pieces.buffers)
    got = whole(pieces, store, DTYPES[dtype], device)
    wanted = next(store.blocks(store.rows, CPU, DTYPES[dtype]))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
