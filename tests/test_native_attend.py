"""Every kernel against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError, UsageError
from tests import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIMS = [1, 8, 40, 64, 80, 96, 128, 192, 256]
GROUPS = [1, 3, 4, 8]


@pytest.fixture(params=native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


def problem(
    rng: torch.Generator, dtype: torch.dtype, kv_heads: int, group: int, rows: int, key_dim: int, value_dim: int = 0
) -> native.Attention:
    value_dim = value_dim or key_dim
    return native.Attention(
        query=torch.randn(kv_heads * group, key_dim, generator=rng),
        key=torch.randn(kv_heads, rows, key_dim, generator=rng).to(dtype),
        value=torch.randn(kv_heads, rows, value_dim, generator=rng).to(dtype),
        scale=key_dim**-0.5,
    )


def with_lists(job: native.Attention, lists: list[list[int]]) -> native.Attention:
    job.row_start = torch.tensor([0, *(len(rows) for rows in lists)]).cumsum(0)
    job.row = torch.tensor([row for rows in lists for row in rows], dtype=torch.int32)
    return job


def worst(job: native.Attention, lists: list[list[int]] | None = None) -> float:
    got = native.attend(job)
    out, lse = reference.attend(job.query, job.key, job.value, job.scale, job.softcap, lists)
    assert torch.equal(got.lse.isneginf(), lse.isneginf())
    seen = ~lse.isneginf()
    assert not got.out[~seen].any()
    if not bool(seen.any()):
        return 0.0
    assert reference.nmse(got.out, out) <= 5e-4
    return max(float((got.out - out).abs().max()), float((got.lse[seen] - lse[seen]).abs().max()))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_matches_reference(isa: str, dtype: torch.dtype, dim: int, rng: torch.Generator) -> None:
    for group in GROUPS:
        for rows in [*range(0, 131, 1 if (dim, group) in ((64, 3), (40, 4)) else 13), 63, 64, 65, 128, 129]:
            assert worst(problem(rng, dtype, 2, group, rows, dim)) <= 1e-5, (group, rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_and_few_heads(isa: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    for kv_heads, group, rows, dim in ((1, 1, 20000, 64), (1, 71, 700, 40), (3, 3, 5000, 64), (8, 4, 1500, 128)):
        assert worst(problem(rng, dtype, kv_heads, group, rows, dim)) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_of_different_width(isa: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    for key_dim, value_dim in ((192, 128), (64, 8), (1, 96), (40, 80), (7, 13)):
        assert worst(problem(rng, dtype, 2, 4, 200, key_dim, value_dim)) <= 1e-5


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_softcap(isa: str, softcap: float, rng: torch.Generator) -> None:
    job = problem(rng, torch.float32, 2, 3, 300, 64)
    job.query *= 20
    job.softcap = softcap
    assert worst(job) <= 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_lists(isa: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    every = list(range(300))
    for lists in (
        [every, []],
        [[], []],
        [[5], every[::-1]],
        [[7, 7, 7, 9], every[::3]],
        [every, [1], [], [2, 3], every[100:], [299]],
    ):
        job = with_lists(problem(rng, dtype, 2, 3, 300, 40), lists)
        assert worst(job, lists) <= 1e-5, lists


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_lists_and_shapes(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, group, dim = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 70))
    rows = draw(st.integers(1, 400))
    per_head = draw(st.sampled_from([n for n in range(1, group + 1) if group % n == 0]))
    lists = [draw(st.lists(st.integers(0, rows - 1), max_size=300)) for _ in range(kv_heads * per_head)]
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(DTYPES))
    job = with_lists(problem(rng, dtype, kv_heads, group, rows, dim, draw(st.integers(1, 70))), lists)
    assert worst(job, lists) <= 1e-5


def test_strided_and_unaligned_rows(isa: str, rng: torch.Generator) -> None:
    for dtype in DTYPES:
        job = problem(rng, dtype, 2, 3, 100, 40, 24)
        together = torch.cat([job.key, job.value], dim=-1)
        job.key, job.value = together[..., :40], together[..., 40:]
        assert worst(job) <= 1e-5
        job.key, job.value = job.key[:, ::3], job.value[:, ::3]
        assert worst(job) <= 1e-5
        buffer = bytearray(together.numel() * dtype.itemsize + 1)  # one byte off: no number is aligned there
        odd = torch.frombuffer(buffer, dtype=dtype, count=together.numel(), offset=1).view(2, 100, 64)
        torch.frombuffer(buffer, dtype=torch.uint8)[1:] = together.contiguous().view(torch.uint8).flatten()
        assert odd.data_ptr() % dtype.itemsize == 1
        want = native.attend(native.Attention(job.query, together[..., :40], together[..., 40:], job.scale))
        got = native.attend(native.Attention(job.query, odd[..., :40], odd[..., 40:], job.scale))
        assert torch.equal(got.out, want.out) and torch.equal(got.lse, want.lse)


def test_one_huge_channel(isa: str, rng: torch.Generator) -> None:
    job = problem(rng, torch.float32, 1, 4, 500, 64)
    job.key[..., 3] *= 1000
    assert worst(job) <= 1e-3  # scores near 1e3: float32 has 1e-4 of them


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_scores_leave_one_winner(isa: str, size: float, rng: torch.Generator) -> None:
    job = problem(rng, torch.float32, 1, 2, 300, 8)
    job.key.zero_()
    job.key[0, 123, 0] = size
    job.query[:] = 0
    job.query[:, 0] = torch.tensor([1.0, -1.0])
    got = native.attend(job)
    assert torch.equal(got.out[0], job.value[0, 123])
    rest = [r for r in range(300) if r != 123]
    assert torch.allclose(got.out[1], job.value[0, rest].mean(0), atol=1e-5)


def test_all_scores_minus_infinity_is_empty(isa: str, rng: torch.Generator) -> None:
    job = problem(rng, torch.float32, 1, 2, 100, 8)
    job.key[..., 0] = float("-inf")
    job.query[0, 0], job.query[1, 0] = 1.0, 0.5
    got = native.attend(job)
    assert bool(got.lse.isneginf().all()) and not got.out.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_stays_in_its_head(isa: str, bad: float, rng: torch.Generator) -> None:
    clean = problem(rng, torch.float32, 3, 2, 700, 40)
    want = native.attend(clean)
    for where in ("key", "value", "query"):
        job = native.Attention(clean.query.clone(), clean.key.clone(), clean.value.clone(), clean.scale)
        if where == "query":
            job.query[2, 5] = bad
            spoiled = [2]
        else:
            getattr(job, where)[1, 333, 7] = bad
            spoiled = [2, 3]
        got = native.attend(job)
        others = [head for head in range(6) if head not in spoiled]
        assert torch.equal(got.out[others], want.out[others]) and torch.equal(got.lse[others], want.lse[others])
        assert all(not bool(got.out[head].isfinite().all()) for head in spoiled if where != "key" or bad != bad)


def test_weights_far_below_the_largest_vanish(isa: str) -> None:
    key = torch.tensor([[[0.0], [-200.0], [-1e38]]])
    value = torch.tensor([[[1.0], [1e30], [1e30]]])
    got = native.attend(native.Attention(torch.ones(1, 1), key, value, 1.0))
    assert got.out.item() == 1.0 and got.lse.item() == 0.0


def test_ties_are_deterministic(isa: str) -> None:
    job = native.Attention(torch.ones(8, 64), torch.ones(2, 3000, 64), torch.randn(2, 3000, 64), 0.1)
    first = native.attend(job)
    assert all(torch.equal(native.attend(job).out, first.out) for _ in range(5))


def test_what_does_not_fit_together_is_refused(rng: torch.Generator) -> None:
    def refused(**changes: Tensor) -> None:
        job = problem(rng, torch.float32, 2, 3, 10, 8)
        for name, value in changes.items():
            setattr(job, name, value)
        with pytest.raises(NativeError):
            native.attend(job)

    refused(query=torch.randn(5, 8))  # five query heads, two KV heads
    refused(query=torch.randn(6, 8).double())
    refused(key=torch.randn(2, 9, 8))
    refused(key=torch.randn(2, 10, 8).half())
    refused(key=torch.randn(2, 10, 16)[..., ::2])
    start = torch.tensor([0, 1, 2])
    refused(row_start=start, row=torch.tensor([0, 10], dtype=torch.int32))
    refused(row_start=start, row=torch.tensor([0, -1], dtype=torch.int32))
    refused(row_start=start, row=torch.tensor([0, 1]))
    refused(row_start=start, row=torch.tensor([0], dtype=torch.int32))
    refused(row_start=torch.tensor([0, 2, 1]), row=torch.tensor([0, 1], dtype=torch.int32))
    refused(row_start=torch.tensor([0, 1, 2, 2]), row=torch.tensor([0, 1], dtype=torch.int32))


def test_an_instruction_set_this_machine_lacks_is_named() -> None:
    assert native.isas()[-1] == "scalar" and native.isa() == native.isas()[0]
    with pytest.raises(UsageError, match=r"avx1024.*Choose from.*scalar"):
        native.use_isa("avx1024")
