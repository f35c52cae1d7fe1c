"""Several query tokens in one pass, causal masks among them, runs of rows, and int8 rows, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError
from tests import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def random_job(
    seed: int, tokens: int, heads: int, kv_heads: int, rows: int, width: int, dtype: torch.dtype, **more
) -> tuple:
    """A job, and its keys and values as float64 sees them."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(tokens, heads, width, generator=generator)
    if seed % 2:
        query = query.bfloat16().float()  # what a bf16 model asks with, which may have a kernel of its own
    key, value = (torch.randn(kv_heads, rows, width, generator=generator) for _ in range(2))
    if dtype != torch.int8:
        key, value = key.to(dtype), value.to(dtype)
        return native.Attention(query, key, value, width**-0.5, **more), key.double(), value.double()
    scales = torch.stack([key.abs().amax(-1), value.abs().amax(-1)], -1) / 127 if rows else torch.empty(kv_heads, 0, 2)
    whole = [(side / scales[..., i, None]).round().to(torch.int8) for i, side in enumerate((key, value))]
    job = native.Attention(
        query, *whole, width**-0.5, key_scale=scales[..., 0], value_scale=scales[..., 1], **more
    )  # scales of key and value beside each other: strides of 2
    return job, *(side.double() * scales[..., i, None].double() for i, side in enumerate(whole))


def assert_tokens(
    got: native.Partial, job: native.Attention, key: Tensor, value: Tensor, lists: list | None = None
) -> None:
    tolerance = 3e-4 if job.key.dtype == torch.int8 else 1e-5  # queries of 15 bits, weights of 16
    tokens, rows = len(job.query), key.shape[1]
    for token in range(tokens):
        seen = rows - tokens + token + 1 if job.causal else rows
        visible = None if lists is None else [[row for row in chosen if row < seen] for chosen in lists]
        out, lse = reference.attend(job.query[token], key[:, :seen], value[:, :seen], job.scale, job.softcap, visible)
        torch.testing.assert_close(got.out[token].double(), out, rtol=0, atol=tolerance)
        torch.testing.assert_close(got.lse[token].double(), lse, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_tokens(isa: str, dtype: torch.dtype, causal: bool, tokens: int) -> None:
    for seed, (heads, kv_heads, rows, width) in enumerate(
        [(9, 3, 700, 64), (8, 2, 65, 128), (5, 1, 8, 17), (2, 2, 64, 1)]
    ):
        job, key, value = random_job(seed, tokens, heads, kv_heads, rows, width, dtype, causal=causal)
        assert_tokens(native.attend(job), job, key, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal_masks_stand_after_the_softcap(isa: str, dtype: torch.dtype) -> None:
    job, key, value = random_job(1, 4, 4, 2, 70, 32, dtype, causal=True, softcap=2.0)
    assert_tokens(native.attend(job), job, key, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 5, 16, 64, 300])
def test_runs(isa: str, dtype: torch.dtype, length: int) -> None:
    """Runs of one length and empty ones between them; enough rows that a piece begins within a run."""
    first = torch.arange(0, 1500, length + 7, dtype=torch.int32).repeat_interleave(2)
    run = torch.tensor([0, length], dtype=torch.int32).repeat(len(first) // 2)
    run = torch.minimum(run, 1500 - first).int()
    starts = torch.tensor([0, len(first) // 2, len(first)])
    job, key, value = random_job(2, 2, 6, 2, 1500, 40, dtype, row_start=starts, row=first, run=run)
    lists = [
        [row + i for row, count in zip(first[a:b].tolist(), run[a:b].tolist(), strict=True) for i in range(count)]
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    assert_tokens(native.attend(job), job, key, value, lists)


def test_a_run_of_everything_is_dense(isa: str) -> None:
    job, _, _ = random_job(3, 1, 8, 2, 900, 64, torch.bfloat16)
    whole = torch.tensor([900, 900], dtype=torch.int32)
    runs = native.Attention(
        job.query, job.key, job.value, job.scale, row_start=torch.arange(3), row=torch.zeros_like(whole), run=whole
    )
    assert torch.equal(native.attend(runs).out, native.attend(job).out)


def test_several_tokens_are_one_after_another(isa: str) -> None:
    """Eight tokens in one pass and eight passes: the same numbers."""
    job, _, _ = random_job(4, 8, 8, 2, 600, 64, torch.bfloat16)
    together = native.attend(job)
    for token, query in enumerate(job.query):
        alone = native.attend(native.Attention(query.contiguous(), job.key, job.value, job.scale))
        torch.testing.assert_close(together.out[token], alone.out, rtol=0, atol=1e-6)


def test_bf16_queries_have_nothing_rounded(isa: str) -> None:
    """Whatever kernel serves the queries of a bf16 model, it is as exact as the one for other queries."""
    job, key, value = random_job(5, 1, 32, 8, 1000, 128, torch.bfloat16)
    assert torch.equal(job.query, job.query.bfloat16().float())
    assert_tokens(native.attend(job), job, key, value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_scales_that_are_not_finite_stay_in_their_head(isa: str, bad: float) -> None:
    job, _, _ = random_job(6, 1, 4, 2, 100, 64, torch.int8)
    assert job.value_scale is not None
    job.value_scale[1, 50] = bad
    got = native.attend(job)
    first, _, _ = random_job(6, 1, 4, 2, 100, 64, torch.int8)
    assert torch.equal(got.out[0, :2], native.attend(first).out[0, :2])
    assert not got.out[0, 2:].isfinite().any()


def test_int8_weights_far_apart(isa: str) -> None:
    """One row takes nearly everything; the others' weights are below a step of the largest."""
    job, key, value = random_job(7, 1, 2, 1, 300, 64, torch.int8)
    job.query *= 40
    want, _ = reference.attend(job.query[0], key, value, job.scale)
    torch.testing.assert_close(native.attend(job).out[0].double(), want, rtol=0, atol=5e-3)


@pytest.mark.parametrize("width", [1023, 1024, 1025, 1100])
def test_int8_rows_of_many_numbers(isa: str, width: int) -> None:
    job, key, value = random_job(8, 1, 2, 1, 70, width, torch.int8)
    assert_tokens(native.attend(job), job, key, value)


def test_refusals() -> None:
    job, _, _ = random_job(9, 3, 4, 2, 10, 8, torch.int8)
    good = {"row_start": torch.arange(3), "row": torch.tensor([8, 0], dtype=torch.int32)}
    args = (job.query, job.key, job.value, job.scale)
    scales = {"key_scale": job.key_scale, "value_scale": job.value_scale}
    for more in (
        {"key_scale": job.key_scale},  # no scales of values
        {"key_scale": job.key_scale, "value_scale": job.value_scale.contiguous()},  # other strides
        {"key_scale": job.key_scale[:, :9], "value_scale": job.value_scale[:, :9]},
        scales | good | {"run": torch.tensor([3, 1], dtype=torch.int32)},  # past the end
        scales | good | {"run": torch.tensor([1, -1], dtype=torch.int32)},
        scales | good | {"run": torch.tensor([1], dtype=torch.int32)},
        scales | good | {"run": torch.tensor([1, 1])},
    ):
        with pytest.raises(NativeError):
            native.attend(native.Attention(*args, **more))
    with pytest.raises(NativeError):  # more tokens than rows cannot be their own
        native.attend(native.Attention(torch.zeros(11, 4, 8), *args[1:], **scales, causal=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, group, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rows, width, dtype = draw(st.integers(0, 300)), draw(st.integers(1, 70)), draw(st.sampled_from(DTYPES))
    causal = rows >= tokens and draw(st.booleans())
    lists, more = None, {}
    if draw(st.booleans()):
        runs = [
            [
                (first, draw(st.integers(0, min(9, rows - first))))
                for first in draw(st.lists(st.integers(0, rows - 1), max_size=9))
            ]
            if rows
            else []
            for _ in range(kv_heads)
        ]
        lists = [[first + i for first, count in of for i in range(count)] for of in runs]
        flat = torch.tensor([entry for of in runs for entry in of], dtype=torch.int32).view(-1, 2)
        more = {"row_start": torch.tensor([0, *(len(of) for of in runs)]).cumsum(0), "row": flat[:, 0].contiguous()}
        more["run"] = flat[:, 1].contiguous()
    native.use_isa(draw(st.sampled_from(native.isas())))
    try:
        job, key, value = random_job(
            draw(st.integers(0, 9)), tokens, kv_heads * group, kv_heads, rows, width, dtype, causal=causal, **more
        )
        got = native.attend(job)
    finally:
        native.use_isa(native.isas()[0])
    assert_tokens(got, job, key, value, lists)
