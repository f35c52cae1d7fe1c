"""Attention over chosen rows: lists per KV head and per query head, empty, full, repeated, in any order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgca_cli import native
from tests import reference


def job_of(
    lists: list[list[int]], *, kv_heads: int, group: int, rows: int, dtype: torch.dtype = torch.float32, width: int = 24
) -> native.Attention:
    generator = torch.Generator().manual_seed(rows + width)
    query = torch.randn(kv_heads * group, width, generator=generator)
    key, value = torch.randn(2, kv_heads, rows, width, generator=generator).to(dtype).unbind()
    ends = torch.tensor([0, *(len(rows_of) for rows_of in lists)]).cumsum(0)
    row = torch.tensor([row for rows_of in lists for row in rows_of], dtype=torch.int32)
    return native.Attention(query, key, value, 0.2, row_start=ends, row=row)


def check(job: native.Attention, lists: list[list[int]]) -> None:
    out, lse = native.attend(job)
    wanted, wanted_lse = reference.attend(job.query, job.key, job.value, job.scale, lists=lists)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [24, 64, 128])
def test_empty_for_one_head_full_for_another(isa: str, dtype: torch.dtype, width: int) -> None:
    everything = list(range(300))
    for lists in ([everything, [], [5]], [[], [], []], [[299], everything[::-1], everything[3:70]]):
        check(job_of(lists, kv_heads=3, group=3, rows=300, dtype=dtype, width=width), lists)


def test_empty_list_gives_zeros_and_no_mass(isa: str) -> None:
    out, lse = native.attend(job_of([[1, 2], []], kv_heads=2, group=2, rows=4))
    assert (out[2:] == 0).all() and (lse[2:] == float("-inf")).all()
    assert (out[:2] != 0).all() and lse[:2].isfinite().all()


def test_every_row_as_a_list_is_dense(isa: str) -> None:
    job = job_of([list(range(500))] * 2, kv_heads=2, group=4, rows=500)
    dense = native.Attention(job.query, job.key, job.value, job.scale)
    for got, want in zip(native.attend(job), native.attend(dense), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_order_does_not_matter_and_repeats_count_twice(isa: str) -> None:
    for lists in ([[7, 3, 3, 9, 0]], [[0, 3, 3, 7, 9]], [[5] * 100]):
        check(job_of(lists, kv_heads=1, group=4, rows=10), lists)


@pytest.mark.parametrize("lists_per_head", [1, 2, 6])
def test_lists_may_serve_fewer_heads_than_a_group(isa: str, lists_per_head: int) -> None:
    """One list per KV head, per half group, per query head."""
    lists = [list(range(n, 40 + 7 * n, n + 1)) for n in range(2 * lists_per_head)]
    check(job_of(lists, kv_heads=2, group=6, rows=150), lists)


def test_lists_may_start_after_the_first_row_entry(isa: str) -> None:
    """row_start[0] need not be 0: the entries before it are not read, whatever they hold."""
    job = job_of([[4, 2], [1]], kv_heads=2, group=1, rows=6)
    assert job.row is not None and job.row_start is not None
    shifted = native.Attention(
        job.query, job.key, job.value, job.scale,
        row_start=job.row_start + 2, row=torch.cat([torch.tensor([-5, 99], dtype=torch.int32), job.row]),
    )  # fmt: skip
    for got, want in zip(native.attend(shifted), native.attend(job), strict=True):
        assert torch.equal(got, want)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_lists(data: st.DataObject) -> None:
    kv_heads, per_head = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
    rows = data.draw(st.integers(1, 200))
    chosen = st.lists(st.integers(0, rows - 1), max_size=150)
    lists = [data.draw(chosen) for _ in range(kv_heads * per_head)]
    native.use_isa(data.draw(st.sampled_from(native.isas())))
    try:
        check(job_of(lists, kv_heads=kv_heads, group=4, rows=rows), lists)
    finally:
        native.use_isa(native.isas()[0])
