"""Jobs that join the one before them, and rows described once: the same as one job over all rows."""

from __future__ import annotations

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import NativeError

HEADS, KV_HEADS, DIM, SCALE = 6, 2, 48, 0.3


@pytest.mark.parametrize("counts", [(5, 7), (0, 7), (5, 0), (0, 0), (300, 1, 700), (0, 4, 0, 9)])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_joined_parts_are_one_attention(counts: tuple[int, ...], softcap: float, rng: torch.Generator) -> None:
    key, value = torch.randn(2, KV_HEADS, sum(counts) + 3, DIM, generator=rng)
    query = torch.randn(HEADS, DIM, generator=rng) * 4
    jobs, first = [], 0
    for index, count in enumerate(counts):
        rows = native.Rows(key[:, first : first + count + 1], value[:, first : first + count + 1])  # room for one more
        jobs.append(native.Step(query, rows, count, SCALE, softcap, joins=index > 0))
        first += count
    alone = native.Step(query, native.Rows(key, value), 2, SCALE, softcap)
    results = native.start([alone, *jobs, alone]).wait()
    seen = key[:, : sum(counts)], value[:, : sum(counts)]
    want = native.attend(native.Attention(query, *seen, SCALE, softcap))
    assert all(torch.equal(result.out, results[1].out) for result in results[1:-1])
    assert torch.allclose(results[1].out, want.out, atol=2e-6)
    assert torch.allclose(results[1].lse, want.lse, atol=2e-6)
    for result in (results[0], results[-1]):  # neighbours are left alone
        assert torch.equal(
            result.out, native.attend(native.Attention(query, key[:, :2], value[:, :2], SCALE, softcap)).out
        )


def test_an_empty_part_changes_nothing(rng: torch.Generator) -> None:
    key, value = torch.randn(2, KV_HEADS, 40, DIM, generator=rng)
    query, rows = torch.randn(HEADS, DIM, generator=rng), native.Rows(key, value)
    want = native.attend(native.Attention(query, key, value, SCALE))
    for counts in ((40, 0), (0, 40)):
        jobs = [native.Step(query, rows, count, SCALE, joins=index == 1) for index, count in enumerate(counts)]
        got = native.start(jobs).wait()[0]
        assert torch.equal(got.out, want.out) and torch.equal(got.lse, want.lse)


def test_lists_are_described_once(rng: torch.Generator) -> None:
    key, value = torch.randn(2, KV_HEADS, 50, DIM, generator=rng)
    query, rows = torch.randn(HEADS, DIM, generator=rng), native.Rows(key, value)
    row_start, row, run = torch.tensor([0, 2, 3]), torch.tensor([1, 30, 10]).int(), torch.tensor([7, 20, 3]).int()
    want = native.attend(native.Attention(query, key, value, SCALE, row_start=row_start, row=row, run=run))
    lists = native.Lists(row_start, row, run)
    for _ in range(2):
        assert torch.equal(native.start([native.Step(query, rows, 50, SCALE, lists=lists)]).wait()[0].out, want.out)
    with pytest.raises(NativeError):
        native.start([native.Step(query, rows, 29, SCALE, lists=lists)])  # row 30 is not in use


def test_what_does_not_fit_is_refused(rng: torch.Generator) -> None:
    key, value = torch.randn(2, KV_HEADS, 20, DIM, generator=rng)
    query, rows = torch.randn(HEADS, DIM, generator=rng), native.Rows(key, value)
    fine = native.Step(query, rows, 20, SCALE)
    other_heads = native.Step(query[:4], rows, 20, SCALE, joins=True)
    other_width = native.Step(query, native.Rows(key, value[..., :8]), 20, SCALE, joins=True)
    nothing_before = native.Step(query, rows, 20, SCALE, joins=True)
    for jobs in ([fine, other_heads], [fine, other_width], [nothing_before]):
        with pytest.raises(NativeError):
            native.start(jobs)
    for wrong in (query.double(), query[:, :32], query.T.contiguous().T, query.half()):
        with pytest.raises(NativeError):
            native.start([native.Step(wrong, rows, 20, SCALE)])
    for count in (-1, 21):
        with pytest.raises(NativeError):
            native.start([native.Step(query, rows, count, SCALE)])
    with pytest.raises(NativeError):
        native.Rows(key, value[:1])
