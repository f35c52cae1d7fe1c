"""Numbers at the edge: huge scores, infinities, NaN, denormals, outliers, sums beyond the range of half precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hgca_cli import native
from tests import reference

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=native.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


def scored(scores: list[float], width: int = 8) -> native.Attention:
    """Two heads of two KV heads: head 0's scores are as given, head 1's are row number / 10."""
    key = torch.zeros(2, len(scores), width)
    key[0, :, 0] = torch.tensor(scores)
    key[1, :, 0] = torch.arange(len(scores)) / 10
    query = torch.zeros(2, width)
    query[:, 0] = 1.0
    value = torch.randn(2, len(scores), 5, generator=torch.Generator().manual_seed(1))
    return native.Attention(query, key, value, 1.0)


def assert_head_is_right(job: native.Attention, got: native.Partial, head: int, tolerance: float = 1e-5) -> None:
    out, lse = reference.attend(job.query, job.key, job.value, job.scale, job.softcap)
    torch.testing.assert_close(got.out[head].double(), out[head], rtol=0, atol=tolerance)
    torch.testing.assert_close(got.lse[head].double(), lse[head], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 70, 1000])
@pytest.mark.parametrize("size", [1e4, 1e30, 1e38])
@pytest.mark.parametrize("at", [0, -1])
def test_huge_scores(rows: int, size: float, at: int) -> None:
    """One row wins and its value comes out; scores below it by more than the range of exp vanish."""
    scores = [-size] * rows
    scores[at] = size
    job = scored(scores)
    got = native.attend(job)
    assert_head_is_right(job, got, 0)
    assert_head_is_right(job, got, 1)


@pytest.mark.parametrize("size", [-1e38, -1e4, 88.0, 1e4, 1e38])
def test_equal_huge_scores_share_alike(size: float) -> None:
    job = scored([size] * 600)
    assert_head_is_right(job, native.attend(job), 0)


@pytest.mark.parametrize("rows", [1, 64, 700])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_all_scores_minus_infinity(rows: int, softcap: float) -> None:
    """No mass at all: zeros and -inf, as over no rows. A softcap makes them -softcap, and that is a score."""
    job = scored([-INF] * rows)
    job.softcap = softcap
    got = native.attend(job)
    assert_head_is_right(job, got, 0)
    assert_head_is_right(job, got, 1)
    assert (got.lse[0] == -INF) == (softcap == 0)


def test_some_scores_minus_infinity() -> None:
    """Whole pieces of nothing beside pieces of something, in either order."""
    for scores in ([-INF] * 640 + [1.0, 2.0], [1.0, 2.0] + [-INF] * 640, [-INF, 3.0] * 300):
        job = scored(scores)
        assert_head_is_right(job, native.attend(job), 0)


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("rows", [1, 70, 700])
def test_one_bad_score_stays_in_its_head(bad: float, rows: int) -> None:
    scores = [0.5] * rows
    scores[rows // 2] = bad
    job = scored(scores)
    got = native.attend(job)
    assert_head_is_right(job, got, 1)
    if bad is NAN:  # not hidden either
        assert got.out[0].isnan().all() and got.lse[0].isnan()


@pytest.mark.parametrize("width", [8, 64, 72])
def test_nan_in_one_query_stays_in_its_head(width: int) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(4, width, generator=generator), torch.randn(1, 100, width, generator=generator)
    job = native.Attention(query, key, key, 0.2)
    clean = native.attend(job)
    job.query = query.clone()
    job.query[2, 3] = NAN
    got = native.attend(job)
    assert got.out[2].isnan().all() and got.lse[2].isnan()
    for head in (0, 1, 3):
        assert torch.equal(got.out[head], clean.out[head]) and torch.equal(got.lse[head], clean.lse[head])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_not_read_does_not_matter(dtype: torch.dtype) -> None:
    """NaN in rows of no list, in another KV head, and between the rows."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 50, 24, generator=generator).to(dtype)
    poisoned = torch.full((2, 50, 40), NAN, dtype=dtype)
    poisoned[..., 7:31] = rows
    query = torch.randn(2, 24, generator=generator)
    start, row = torch.tensor([0, 3, 5]), torch.tensor([4, 20, 49, 0, 1], dtype=torch.int32)
    clean = native.attend(native.Attention(query, rows, rows, 0.2, row_start=start, row=row))
    unread = torch.ones(50, dtype=torch.bool)
    unread[row.long()] = False
    poisoned[:, unread] = NAN
    poisoned[0, :2] = NAN  # chosen by the other KV head only
    view = poisoned[..., 7:31]
    got = native.attend(native.Attention(query, view, view, 0.2, row_start=start, row=row))
    assert torch.equal(got.out, clean.out) and torch.equal(got.lse, clean.lse)


def test_nan_value_spoils_only_its_channel() -> None:
    job = scored([0.1] * 100)
    job.value[0, 30, 2] = NAN
    got = native.attend(job)
    assert got.out[0].isnan().tolist() == [False, False, True, False, False]
    assert got.lse.isfinite().all() and got.out[1].isfinite().all()


def test_denormals_are_flushed_and_the_caller_keeps_its_own_rules() -> None:
    """Threads flush denormal numbers, which slow kernels down; the calling thread's arithmetic is left as it was."""
    tiny = torch.tensor([1e-40])
    before = tiny * 0.5
    assert before.item() != 0, "denormals must be on for this test to mean something"
    value = torch.full((1, 700, 4), 1e-40)
    got = native.attend(native.Attention(torch.ones(1, 4), torch.ones(1, 700, 4), value, 1.0))
    assert (got.out == 0).all()
    assert torch.equal(tiny * 0.5, before)


def test_denormal_keys_and_queries() -> None:
    job = scored([1e-40, -1e-40, 1e-39] * 50)
    assert_head_is_right(job, native.attend(job), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_huge_channel(dtype: torch.dtype) -> None:
    """A key channel a thousand times the others, as some models have: scores share a large offset."""
    generator = torch.Generator().manual_seed(4)
    key = torch.randn(1, 500, 64, generator=generator)
    key[..., 17] = 1000.0
    job = native.Attention(torch.randn(4, 64, generator=generator), key.to(dtype), key.to(dtype), 0.125)
    # scores near 300 have a float32 spacing of 3e-5, and weights that relative error, on values of 1 (1,000 cancels)
    got = native.attend(job)
    for head in range(4):
        assert_head_is_right(job, got, head, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_beyond_half_precision(dtype: torch.dtype) -> None:
    """60,000 is near the largest fp16 number: a sum or a score of several of them must not be an fp16."""
    value = torch.full((1, 3000, 8), 6e4).to(dtype)
    got = native.attend(native.Attention(torch.ones(1, 8), value, value, 1e-3))
    torch.testing.assert_close(got.out, value[0, :1].float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        got.lse[0], 8e-3 * value[0, 0, 0].float() + torch.tensor(3000.0).log(), rtol=1e-6, atol=0
    )
