"""Arrays, stores and indexes that begin as another: the same numbers, in the same memory until one writes, and never each other's."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.attention.select.cluster import Cluster, TwoLevel
from hgca_cli.attention.select.clusters import Clusters
from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.exact import Exact, Unwatching
from hgca_cli.attention.select.page import Page
from hgca_cli.attention.select.scan import Scan
from hgca_cli.errors import DoesNotFitError, NativeError
from hgca_cli.kv import layout, shared
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.kv.pinning import Pinning
from hgca_cli.kv.reservation import HUGE_PAGE, Reservation
from hgca_cli.kv.shared import SharedFiles
from hgca_cli.kv.store import Store
from tests.test_kv_pinning import Fake

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has files in memory")
LAYOUT = LayerLayout(heads=4, kv_heads=2, key_dim=32, value_dim=16)


def own_bytes() -> int:
    """Bytes of this process, each page counted once however often it is mapped."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def array_of(rows: torch.Tensor, folder: str | None = None, more: int = 100) -> GrowingArray:
    """Rows [heads, n, width] with room for more."""
    array = GrowingArray(rows.shape[0], rows.shape[1] + more, rows.shape[2], rows.dtype, folder=folder)
    array.commit(rows.shape[1], 0)
    array.whole[:, : rows.shape[1]] = rows
    return array


@LINUX
@pytest.mark.parametrize("rows", [3, 300, 9000, 40_000])  # too few, small pages, huge ones and a rest
@pytest.mark.parametrize("on_disk", [False, True])
def test_who_begins_as_another_has_its_rows_and_writes_to_its_own(rows: int, on_disk: bool, tmp_path: Path) -> None:
    folder = str(tmp_path) if on_disk else None
    numbers = torch.randn(3, rows, 64)
    first = array_of(numbers, folder)
    first.share(SharedFiles(), rows)
    others = [GrowingArray(3, rows + 50 * at, 64, torch.float32, folder=folder) for at in range(3)]
    for at, other in enumerate(others):
        other.begin_as(first, rows - at)
        assert torch.equal(other.whole[:, : rows - at], numbers[:, : rows - at])
    assert torch.equal(first.whole[:, :rows], numbers)
    others[1].whole[:, : rows - 1] = 7.0
    first.commit(rows + 40, rows)
    first.whole[:, rows : rows + 40] = 5.0
    first.whole[:, 0] = 3.0
    others[2].commit(rows + 90, rows - 2)
    others[2].whole[:, rows - 2 : rows + 90] = 9.0
    assert torch.equal(others[0].whole[:, :rows], numbers) and (others[1].whole[:, : rows - 1] == 7.0).all()
    assert torch.equal(others[2].whole[:, : rows - 2], numbers[:, : rows - 2])
    assert (first.whole[:, 0] == 3.0).all() and (first.whole[:, rows : rows + 40] == 5.0).all()
    if on_disk:
        assert not list(tmp_path.iterdir()), "the files have no names"
    del first
    gc.collect()
    assert torch.equal(others[0].whole[:, :rows], numbers), "whoever is left has them"


@LINUX
def test_the_memory_is_there_once() -> None:
    numbers = torch.randn(2, 1 << 16, 64)
    size = numbers.numel() * 4
    first = array_of(numbers)
    first.share(SharedFiles(), 1 << 16)
    before = own_bytes()
    others = [GrowingArray(2, 1 << 17, 64, torch.float32) for _ in range(4)]
    for other in others:
        other.begin_as(first, 1 << 16)
        assert torch.equal(other.whole[:, : 1 << 16], numbers)
    assert own_bytes() - before < size // 8
    others[0].whole[:, : 1 << 15] = 1.0
    assert size // 3 < own_bytes() - before < size * 3 // 4


@LINUX
def test_what_was_written_afterwards_is_not_taken_for_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third array would begin with the file's rows, which are no longer the second's."""
    monkeypatch.setattr(layout, "LEAST_SHARED", 1)
    numbers = torch.randn(2, 1000, 16)
    first, second, third = array_of(numbers), *(GrowingArray(2, 1000, 16, torch.float32) for _ in range(2))
    first.share(SharedFiles(), 1000)
    second.begin_as(first, 1000)
    second.commit(1000, 300)
    second.whole[:, 300:] = 2.0
    third.begin_as(second, 1000)
    assert torch.equal(third.whole, second.whole) and torch.equal(first.whole[:, :1000], numbers)


def test_without_files_in_memory_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shared, layout):
        monkeypatch.setattr(module, "IN_MEMORY", False)
    numbers = torch.randn(2, 5000, 16)
    first, second = array_of(numbers), GrowingArray(2, 6000, 16, torch.float32)
    first.share(SharedFiles(), 5000)
    second.begin_as(first, 5000)
    first.whole[:, :5000] = 1.0
    assert torch.equal(second.whole[:, :5000], numbers)
    assert KVLayout((LAYOUT,), index="scan").shared_bytes(100_000) == (0, 0)


@LINUX
@pytest.mark.parametrize("on_disk", [False, True])
def test_no_room_for_a_file_is_said_and_nothing_changes(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path) if on_disk else None
    numbers = torch.randn(2, 5000, 16)
    array, original, calls = array_of(numbers, folder), os.pwrite, [0]

    def full(file: int, content: Any, at: int) -> int:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, content[:5000], at)  # and a write may take less than all

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DoesNotFitError, match="no room" if on_disk else "no memory"):
        array.share(SharedFiles(), 5000)
    assert torch.equal(array.whole[:, :5000], numbers)
    array.share(SharedFiles(), 5000)
    other = GrowingArray(2, 5000, 16, torch.float32, folder=folder)
    other.begin_as(array, 5000)
    assert torch.equal(other.whole[:, :5000], numbers)


@LINUX
def test_what_is_no_whole_page_is_not_mapped(tmp_path: Path) -> None:
    """And what no file is, neither: what was there stays."""
    memory = Reservation(1 << 20)
    memory.commit(0, 1 << 20)
    numbers = memory.tensor(torch.uint8, (1 << 20,), (1,), 0).fill_(3)
    with (tmp_path / "file").open("w+b", buffering=0) as file, Path("/dev/null").open("rb", buffering=0) as nothing:
        file.truncate(1 << 20)
        for offset, size, at in ((1, 4096, 0), (0, 4097, 0), (0, 4096, 5), (0, 4096, -4096)):
            with pytest.raises(NativeError, match="out of range"):
                memory.map(offset, size, file, at)
        with pytest.raises(NativeError, match="no memory"):
            memory.map(0, 4096, nothing, 0)
        memory.map(0, 0, file, 0)
        assert (numbers[4096:] == 3).all()
        memory.map(8192, 4096, file, 4096)
    assert not numbers[8192:12288].any() and (numbers[12288:] == 3).all()


@LINUX
def test_pages_that_others_have_are_not_registered_with_a_driver() -> None:
    """One that locks pages for writing would have each of them copied; and a registered page may not be another one."""
    fake = Fake()
    rows, numbers = 70_000, torch.randn(2, 70_000, 64)
    first, second = (GrowingArray(2, rows, 64, torch.float32, pinning=Pinning(fake)) for _ in range(2))
    first.commit(rows, 0)
    first.whole[:] = numbers
    first.pin(rows)
    assert fake.ranges and first.registered(0, rows)
    first.share(SharedFiles(), rows)
    second.begin_as(first, rows)
    for one in (first, second):
        one.pin(rows)
        assert not one.registered(0, rows) and torch.equal(one.whole, numbers)
    assert not fake.ranges


def selectors() -> list[Any]:
    def make(kind: Any, **given: Any) -> Any:
        return lambda capacity: kind(LAYOUT, capacity, **given)

    return [
        pytest.param(lambda capacity: Exact(), id="exact"),
        pytest.param(make(Scan, mass=0.9), id="scan"),
        pytest.param(make(Cluster, mass=0.9), id="cluster"),
        pytest.param(make(TwoLevel, mass=0.9), id="two-level"),
        pytest.param(make(Page, budget=0.3), id="page"),
    ]


def filled(capacity: int, dtype: torch.dtype, make: Any, rows: torch.Tensor) -> tuple[Store, Unwatching]:
    store, selector = Store(LAYOUT, capacity, dtype), make(capacity)
    extend(store, selector, rows)
    return store, selector


def extend(store: Store, selector: Unwatching, rows: torch.Tensor) -> None:
    for piece in rows.split(500, dim=1):
        store.append(piece[..., :32], piece[..., 32:])
        selector.stored(store)


def index_of(selector: Unwatching, rows: int) -> list[torch.Tensor]:
    """What a policy knows of the first rows."""
    if isinstance(selector, Page):
        blocks = -(-rows // 256)
        return [selector.pages[:, : blocks - 1]]
    if not isinstance(selector, Scan):
        return []
    found = [selector.codes.whole[:, : rows // 128], selector.codes.means[:, : rows // 128]]
    if isinstance(selector, Cluster):
        groups = selector._clusters
        assert isinstance(groups, Clusters)
        for array, count in groups._arrays:
            found.append(array.whole[:, :count])
    return found


@pytest.mark.parametrize("make", selectors())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("length", [7000, 6500, 4700, 2100])
def test_an_index_goes_on_where_the_other_was(
    make: Any, dtype: torch.dtype, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it or a part: afterwards it is what the rows alone would have made, and the other is as before."""
    monkeypatch.setattr(layout, "LEAST_SHARED", 4096)
    rng = torch.Generator().manual_seed(7)
    rows = torch.randn(2, 9000, 48, generator=rng)
    store, selector = filled(8000, dtype, make, rows[:, :7000])
    files = SharedFiles()
    selector.share(files, store)
    store.share(files)
    before = [one.clone() for one in (store.packed[:, :7000], *index_of(selector, 7000))]
    mine, choice = Store(LAYOUT, 9000, dtype), make(9000)
    mine.begin_as(store, length)
    choice.begin_as(selector, length)
    extend(mine, choice, rows[:, length:])
    wanted_store, wanted = filled(9000, dtype, make, rows)
    query = torch.randn(4, 32, generator=rng)
    for held, policy in ((mine, choice), (wanted_store, wanted)):
        policy.choose(query, held)  # which takes in what was being made
    assert torch.equal(mine.packed[:, :9000], wanted_store.packed[:, :9000])
    for one, other in zip(index_of(choice, 9000), index_of(wanted, 9000), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before, (store.packed[:, :7000], *index_of(selector, 7000)), strict=True):
        assert torch.equal(one, other)


@LINUX
def test_the_planner_counts_what_is_in_common() -> None:
    wide = LayerLayout(heads=8, kv_heads=2, key_dim=64, value_dim=64)
    rows = 24_000
    store = Store(wide, rows, torch.bfloat16)
    selector = TwoLevel(wide, rows, mass=0.9)
    for piece in torch.randn(2, rows, 128, generator=torch.Generator().manual_seed(2)).split(4000, dim=1):
        store.append(piece[..., :64], piece[..., 64:])
        selector.stored(store)
    files = SharedFiles()
    selector.share(files, store)
    store.share(files)
    arrays = [*store._parts, selector.codes._memory, selector.codes._means]
    arrays += [array for array, _ in selector._clusters._arrays]
    held = [array._part.size * array._heads for array in arrays if array._part is not None]
    counted = sum(KVLayout((wide,), store_itemsize=2, index="two-level").shared_bytes(rows))
    assert 0.85 * sum(held) < counted <= sum(held)
    assert held[0] >= HUGE_PAGE


def test_codes_that_are_as_many_as_the_rows_are_not_made_again() -> None:
    store, codes = Store(LAYOUT, 300, torch.float32), Codes(LAYOUT, 300)
    store.append(torch.randn(2, 200, 32), torch.randn(2, 200, 16))
    codes.extend(store)
    codes.whole[:, 0] = 9
    codes.extend(store)
    assert (codes.whole[:, 0] == 9).all()
