"""The ring: every row in one place, found again, whatever the order of appends, evictions and rewinds."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgca_cli.errors import NativeError
from hgca_cli.kv.layout import KVLayout, LayerLayout, window_slots
from hgca_cli.kv.window import Window

LAYOUT = LayerLayout(heads=2, kv_heads=1, key_dim=2, value_dim=3)


def numbered(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose numbers are their positions."""
    at = torch.arange(first, first + count, dtype=torch.float32)[None, :, None]
    return at.expand(1, count, 2), at.expand(1, count, 3)


def held(window: Window) -> list[int]:
    """Positions attention would see."""
    pieces = window.pieces()
    assert len(pieces) <= 2
    assert all(torch.equal(keys[0, :, 0], values[0, :, 0]) for keys, values in pieces)
    return sorted(int(x) for keys, _ in pieces for x in keys[0, :, 0])


@settings(max_examples=200, deadline=None)
@given(
    sinks=st.integers(0, 5),
    ring=st.integers(1, 7),
    moves=st.lists(st.tuples(st.sampled_from(["append", "drop", "rewind"]), st.integers(0, 7)), max_size=40),
)
def test_window_holds_what_a_list_would(sinks: int, ring: int, moves: list[tuple[str, int]]) -> None:
    window = Window(LAYOUT, sinks + ring, sinks, torch.device("cpu"), torch.float32)
    head: list[int] = []
    tail: list[int] = []
    end = 0
    for move, size in moves:
        if move == "append":
            count = min(size, (sinks - len(head) if end < sinks else 0) + ring - len(tail))
            window.append(*numbered(end, count))
            for _ in range(count):
                (head if end < sinks else tail).append(end)
                end += 1
        elif move == "drop":
            count = min(size, len(tail))
            gone = [int(x) for keys, _ in window.oldest(count) for x in keys[0, :, 0]]
            assert gone == tail[:count]
            window.drop_oldest(count)
            tail = tail[count:]
        else:
            end = max(0, end - size)
            window.rewind(end)
            head, tail = [p for p in head if p < end], [p for p in tail if p < end]
        assert held(window) == head + tail
        assert (window.rows, window.ring_rows, window.end) == (len(head) + len(tail), len(tail), end)


def test_rows_that_pass_by_the_ring_keep_positions() -> None:
    window = Window(LAYOUT, 6, 2, torch.device("cpu"), torch.float32)
    window.append(*numbered(0, 2))
    window.skip(9)
    window.append(*numbered(11, 4))
    assert held(window) == [0, 1, 11, 12, 13, 14]
    assert window.end == 15


def test_layout_counts_bytes() -> None:
    full = LayerLayout(heads=9, kv_heads=3, key_dim=64, value_dim=64)
    sliding = LayerLayout(heads=9, kv_heads=3, key_dim=64, value_dim=32, sliding=100)
    layout = KVLayout((full, full, sliding), device_itemsize=4, store_itemsize=2)
    assert layout.row_bytes == 2 * 3 * 128 * 2
    assert layout.store_bytes(context=1000, window=200, sinks=4) == 796 * layout.row_bytes
    assert layout.store_bytes(context=100, window=200, sinks=4) == 0
    assert KVLayout((full, full, sliding), 4, 1, 8).row_bytes == 2 * 3 * (128 + 8)
    assert layout.window_bytes(window=200, sinks=4, context=1000) == (2 * 204 * 3 * 128 + 100 * 3 * 96) * 4
    assert window_slots(full, 200, 4, 50) == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_row_is_put_where_many_are(dtype: torch.dtype, rng: torch.Generator) -> None:
    layout = LayerLayout(4, 2, 24, 16)
    window = Window(layout, 9, 1, torch.device("cpu"), dtype)
    states = (
        torch.randn(1, 5, 3, 24, generator=rng).to(dtype).transpose(1, 2)
    )  # heads beside each other, as projections give them
    key, value = states[0, :2, :1], states[0, 1:, :1, :16]
    before = window.keys.clone(), window.values.clone()
    window.append(key, value)
    assert torch.equal(window.keys[:, 0], key[:, 0]) and torch.equal(window.values[:, 0], value[:, 0])
    assert torch.equal(window.keys[:, 1:], before[0][:, 1:]) and torch.equal(window.values[:, 1:], before[1][:, 1:])
    window.append(key.float() + 1, value.float() + 1)  # another dtype is converted
    assert torch.equal(window.keys[:, 1], (key.float() + 1).to(dtype)[:, 0])
    assert window.read is not None
    with pytest.raises(NativeError):
        window.read.put(9, key, value)
    scattered = states[0, :2, :1].repeat_interleave(2, -1)[..., ::2]
    assert window.read.put(8, scattered, value) is False


def test_a_window_that_was_put_away_is_as_it_was(tmp_path: Path) -> None:
    window = Window(LAYOUT, 7, 2, torch.device("cpu"), torch.float32)
    window.append(*numbered(0, 7))
    window.drop_oldest(2)
    window.append(*numbered(7, 1))
    before, keys = held(window), window.keys.clone()
    window.put_away()  # nothing is to be had
    assert window.read is not None
    window.put_away(str(tmp_path))
    window.put_away(str(tmp_path))
    assert window.read is None and held(window) == before and not list(tmp_path.iterdir())
    window.bring_back()
    window.bring_back()
    assert window.read is not None and held(window) == before and torch.equal(window.keys, keys)


def resident(at: int, size: int) -> int:
    """Bytes of some memory that have pages (mincore): of the process as a whole, others may give back meanwhile. 0: unmapped."""
    page = mmap.PAGESIZE
    first, count = at // page * page, -(-(at % page + size) // page)
    has = (ctypes.c_ubyte * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(count * page), has):
        return 0
    return page * sum(one & 1 for one in has)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore")
def test_a_window_takes_memory_as_rows_come() -> None:
    layout = LayerLayout(heads=8, kv_heads=8, key_dim=128, value_dim=128)
    window = Window(layout, 1 << 14, 4, torch.device("cpu"), torch.float32)  # 128 MiB
    places = [(one.data_ptr(), one.nbytes) for one in (window.keys, window.values)]
    assert window.read is not None and sum(size for _, size in places) == 128 << 20
    assert sum(resident(*place) for place in places) < 8 << 20
    window.append(torch.ones(8, 1 << 13, 128), torch.ones(8, 1 << 13, 128))
    assert 64 << 20 <= sum(resident(*place) for place in places) < 112 << 20
    del window
    gc.collect()
    assert sum(resident(*place) for place in places) < 32 << 20


@pytest.mark.gpu
def test_a_window_gives_a_gpu_its_memory_back() -> None:
    layout = LayerLayout(heads=8, kv_heads=8, key_dim=128, value_dim=128)
    window = Window(layout, 1 << 12, 4, torch.device("cuda"), torch.bfloat16)
    window.append(*torch.randn(2, 8, 1 << 12, 128, device="cuda", dtype=torch.bfloat16))
    keys, values, taken = window.keys.cpu(), window.values.cpu(), torch.cuda.memory_allocated()
    window.put_away()
    assert torch.cuda.memory_allocated() <= taken - keys.nbytes - values.nbytes
    window.bring_back()
    assert window.keys.is_cuda and torch.equal(window.keys.cpu(), keys) and torch.equal(window.values.cpu(), values)
