"""Reserved memory: grows in place, outlives its owner as long as a view does, and no kernel reads past its end."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hgca_cli import native
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.reservation import HUGE_PAGE, Reservation
from tests import reference

PAGE = resource.getpagesize()
GIB = 1 << 30


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def test_committed_memory_is_zero_and_stays_where_it_is() -> None:
    memory = Reservation(64 << 20)
    memory.commit(0, 1 << 20)
    first = memory.tensor(torch.int32, (1 << 18,), (1,), 0)
    assert not first.any()
    first.fill_(7)
    memory.commit(1 << 20, 8 << 20)
    whole = memory.tensor(torch.int32, (9 << 18,), (1,), 0)
    assert whole.data_ptr() == first.data_ptr()
    assert (whole[: 1 << 18] == 7).all() and not whole[1 << 18 :].any()


def test_overlapping_commits_keep_what_is_there() -> None:
    memory = Reservation(10 * PAGE)
    memory.commit(PAGE // 2, PAGE)  # rounded outwards to two pages
    view = memory.tensor(torch.uint8, (2 * PAGE,), (1,), 0)
    view.fill_(9)
    memory.commit(0, 3 * PAGE)
    assert (view == 9).all()


def test_pages_that_are_joined_keep_what_is_there() -> None:
    memory = Reservation(4 << 20)
    memory.commit(2 << 20, 1 << 20)
    numbers = torch.arange(1 << 18, dtype=torch.int32)
    memory.tensor(torch.int32, (1 << 18,), (1,), 2 << 20).copy_(numbers)
    memory.join_pages(2 << 20)
    whole = memory.tensor(torch.int32, (1 << 19,), (1,), 2 << 20)
    assert torch.equal(whole[: 1 << 18], numbers) and not whole[1 << 18 :].any()
    whole.fill_(3)
    assert (whole == 3).all()


def huge_bytes(address: int) -> int:
    """Of the mapping with this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            first, end = (int(x, 16) for x in name.split("-"))
            inside = first <= address < end
        elif inside and name == "AnonHugePages:":
            return int(rest[0]) << 10
    return 0


def gives_huge_pages() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = tuple(int(x) for x in os.uname().release.split(".")[:2])
    return setting.exists() and "[never]" not in setting.read_text() and version >= (6, 1)


@pytest.mark.skipif(not gives_huge_pages(), reason="the system joins no pages when it is asked to")
@pytest.mark.parametrize("capacity", [7700, 8192])
def test_rows_that_nearly_fill_a_huge_page_get_one(capacity: int) -> None:
    """Not before, as a short chat is to take little; one that is to be not quite full is enough."""
    array = GrowingArray(2, capacity, 128, torch.bfloat16)
    for first in range(0, 7168, 128):
        array.commit(first + 128 - (first == 7040), first)
        array.whole[:, first : first + 128] = first // 128
    assert [huge_bytes(head.data_ptr()) for head in array.whole] == [0, 0]
    array.commit(7168, 7167)
    assert all(huge_bytes(head.data_ptr()) >= HUGE_PAGE for head in array.whole)
    assert all((array.whole[:, first : first + 128] == first // 128).all() for first in range(0, 7168, 128))


@pytest.mark.skipif(not gives_huge_pages(), reason="the system has no huge pages")
@pytest.mark.parametrize(("coming", "huge"), [(7000, False), (7168, True), (8192, True), (15_000, True)])
def test_a_page_that_a_prompt_will_fill_is_huge_from_its_first_row_on(coming: int, huge: bool) -> None:
    """Nothing is copied later; and the next page only once it is begun."""
    array = GrowingArray(2, 40_000, 128, torch.bfloat16)
    array.expect(coming)
    array.commit(512, 0)
    array.whole[:, :512] = 1
    assert [huge_bytes(head.data_ptr()) for head in array.whole] == [HUGE_PAGE if huge else 0] * 2
    array.commit(8000, 512)
    array.whole[:, 512:8000] = 2
    assert [huge_bytes(head.data_ptr()) for head in array.whole] == [HUGE_PAGE] * 2
    assert array.whole[:, :512].eq(1).all() and array.whole[:, 512:8000].eq(2).all()


@pytest.mark.skipif(not gives_huge_pages(), reason="the system has no huge pages")
def test_heads_get_their_next_huge_page_one_after_another() -> None:
    """Before they need it, as all of them, of all layers, need it in the same token."""
    array = GrowingArray(8, 20_000, 128, torch.bfloat16)  # 8,192 rows a page
    array.commit(7000, 0)
    array.whole[:, :7000] = 1
    held = []
    for rows in range(7064, 8193, 64):
        array.commit(rows, rows - 64)
        array.whole[:, rows - 64 : rows] = 2
        held.append(sum(huge_bytes(head[8192].data_ptr()) >= 2 * HUGE_PAGE for head in array.whole))
    assert held[0] == 0 and held[-1] == 8, held
    assert all(0 <= b - a <= 2 for a, b in itertools.pairwise(held)), "not all at once"
    assert (
        array.whole[:, :7000].eq(1).all() and array.whole[:, 7000:rows].eq(2).all() and array.whole[:, 8192].eq(0).all()
    )
    long = GrowingArray(8, 20_000, 128, torch.bfloat16)
    long.commit(8192, 0)
    long.whole[:, :8192] = 1
    assert all(huge_bytes(head.data_ptr()) < 2 * HUGE_PAGE for head in long.whole), "a prompt may end there"


def test_strides_and_offset() -> None:
    memory = Reservation(PAGE)
    memory.commit(0, PAGE)
    memory.tensor(torch.int16, (100,), (1,), 0).copy_(torch.arange(100, dtype=torch.int16))
    view = memory.tensor(torch.int16, (2, 3), (10, 2), 8)
    assert view.tolist() == [[4, 6, 8], [14, 16, 18]]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
def test_memory_lives_as_long_as_a_view() -> None:
    gc.collect()  # what other tests left
    before = address_space()
    memory = Reservation(256 * GIB)
    memory.commit(0, PAGE)
    view = memory.tensor(torch.float32, (8,), (1,), 0)
    slice_of_it = view[2:5]
    del memory, view
    gc.collect()
    slice_of_it.fill_(3.0)
    assert slice_of_it.tolist() == [3.0, 3.0, 3.0]
    assert address_space() - before >= 250 * GIB
    del slice_of_it
    gc.collect()
    assert address_space() - before < GIB


def test_reservation_without_a_view_is_released() -> None:
    before = address_space() if Path("/proc/self/statm").exists() else pytest.skip("no /proc")
    for _ in range(200):  # 25 TiB in all
        Reservation(128 * GIB)
    gc.collect()
    assert address_space() - before < GIB


def test_too_much_is_an_error_not_a_crash() -> None:
    with pytest.raises(native.OutOfMemoryError, match="no memory"):
        Reservation(1 << 60)
    with pytest.raises(native.NativeError, match="out of range"):
        Reservation(-1)


def test_commit_refused_by_the_system() -> None:
    """Under a limit on data memory the commit fails with an error that a caller can act on."""
    code = """
import resource
from hgca_cli import native
from hgca_cli.kv.growing import GrowingArray
from hgca_cli.kv.reservation import HUGE_PAGE, Reservation
memory = Reservation(1 << 40)
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
try:
    memory.commit(0, 1 << 35)
except native.OutOfMemoryError as error:
    print("refused:", error)
memory.commit(0, 1 << 20)
print("small commits still work")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout and "still work" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_is_read_outside_the_rows(isa: str, dtype: torch.dtype) -> None:
    """The rows end where the process's memory ends, or start where it starts: a stray read would kill the test."""
    for width in (1, 3, 7, 8, 15, 17, 31, 40, 64, 100, 129):
        for rows in (1, 2, 5, 66):
            count = rows * width
            size = count * dtype.itemsize
            pages = -(-size // PAGE)
            memory = Reservation((pages + 2) * PAGE)
            memory.commit(PAGE, pages * PAGE)
            for offset in (PAGE, (pages + 1) * PAGE - size):
                key = memory.tensor(dtype, (1, rows, width), (count, width, 1), offset)
                key.copy_(torch.randn(1, rows, width))
                query = torch.randn(3, width)
                for lists in ({}, {"row_start": torch.tensor([0, 1]), "row": torch.tensor([rows - 1]).int()}):
                    got = native.attend(native.Attention(query, key, key, 0.3, **lists))
                    wanted, _ = reference.attend(query, key, key, 0.3, lists=[[rows - 1]] if lists else None)
                    torch.testing.assert_close(got.out.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lists", [False, True])
def test_rows_more_than_4_gib_apart(isa: str, lists: bool) -> None:
    """Offsets beyond 2^32 bytes, between rows, heads and keys and values; little of it is ever committed."""
    width, rows, heads = 16, 5, 2
    row_bytes, head_bytes, value_offset = 3 * GIB, 16 * GIB, 40 * GIB
    memory = Reservation(80 * GIB)
    for side in (0, value_offset):
        for head in range(heads):
            for row in range(rows):
                memory.commit(side + head * head_bytes + row * row_bytes, width * 4)
    shape, strides = (heads, rows, width), (head_bytes // 4, row_bytes // 4, 1)
    key, value = (memory.tensor(torch.float32, shape, strides, offset) for offset in (0, value_offset))
    generator = torch.Generator().manual_seed(6)
    for side in (key, value):
        side.copy_(torch.randn(shape, generator=generator))
    query = torch.randn(4, width, generator=generator)
    job = native.Attention(query, key, value, 0.25)
    chosen = [[4, 0], [3, 4, 1]] if lists else None
    if chosen:
        job.row_start, job.row = torch.tensor([0, 2, 5]), torch.tensor([4, 0, 3, 4, 1]).int()
    got = native.attend(job)
    wanted, _ = reference.attend(query, key.clone(), value.clone(), 0.25, lists=chosen)
    torch.testing.assert_close(got.out.double(), wanted, rtol=0, atol=1e-5)
