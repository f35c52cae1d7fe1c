"""Every instruction set against the float64 reference: dtypes, widths, groups, row counts, strides, softcap."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgca_cli import native
from tests import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 8, 40, 64, 80, 96, 128, 192, 256)
GROUPS = (1, 3, 4, 8)
ROWS = 130  # two tiles of 64 rows and two rows


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread() -> Iterator[None]:
    """The reference is many small products: torch's threads cost it more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_rows(seed: int, kv_heads: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(kv_heads, rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


@cache
def every_row_count(dtype: torch.dtype, width: int, group: int) -> tuple[list[native.Attention], list[tuple]]:
    """One job and one reference for each of 0 .. ROWS rows."""
    query = random_rows(1, 1, group, width, torch.float32)[0]
    key, value = random_rows(2, 1, ROWS, width, dtype), random_rows(3, 1, ROWS, width, dtype)
    scale = width**-0.5
    jobs = [native.Attention(query, key[:, :rows], value[:, :rows], scale) for rows in range(ROWS + 1)]
    return jobs, [reference.attend(job.query, job.key, job.value, scale) for job in jobs]


def assert_close(got: native.Partial, want: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.out.double(), want[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(got.lse.double(), want[1], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_row_count(isa: str, dtype: torch.dtype, width: int) -> None:
    """The rows are rounded before both sides see them, so 16-bit rows are held to what float32 arithmetic gives."""
    for group in GROUPS:
        jobs, wanted = every_row_count(dtype, width, group)
        for got, want in zip(native.start(jobs).wait(), wanted, strict=True):
            assert_close(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "kv_heads", "group", "width"), [(1000, 3, 3, 64), (5000, 2, 4, 128), (700, 1, 71, 16)]
)
def test_many_rows(isa: str, dtype: torch.dtype, rows: int, kv_heads: int, group: int, width: int) -> None:
    """Enough rows to be cut into pieces that are merged."""
    query = random_rows(1, 1, kv_heads * group, width, torch.float32)[0]
    key, value = random_rows(2, kv_heads, rows, width, dtype), random_rows(3, kv_heads, rows, width, dtype)
    got = native.attend(native.Attention(query, key, value, width**-0.5))
    assert_close(got, reference.attend(query, key, value, width**-0.5))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rounding_rows_costs_little(isa: str, dtype: torch.dtype) -> None:
    """Against rows that were never rounded: what a 16-bit store costs."""
    query = random_rows(1, 1, 9, 64, torch.float32)[0]
    key, value = random_rows(2, 3, 1000, 64, torch.float32), random_rows(3, 3, 1000, 64, torch.float32)
    got = native.attend(native.Attention(query, key.to(dtype), value.to(dtype), 0.125))
    assert reference.nmse(got.out, reference.attend(query, key, value, 0.125)[0]) < 5e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("key_width", "value_width"), [(192, 128), (64, 65), (1, 40), (33, 1), (17, 15)])
def test_widths_differ(isa: str, dtype: torch.dtype, key_width: int, value_width: int) -> None:
    query = random_rows(1, 1, 6, key_width, torch.float32)[0]
    key, value = random_rows(2, 2, 90, key_width, dtype), random_rows(3, 2, 90, value_width, dtype)
    got = native.attend(native.Attention(query, key, value, 0.2))
    assert got.out.shape == (6, value_width)
    assert_close(got, reference.attend(query, key, value, 0.2))


@pytest.mark.parametrize("softcap", [0.5, 20.0, 50.0, 1e4])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_softcap(isa: str, softcap: float, size: float) -> None:
    """Scores far below, around and far above the cap."""
    query, key = random_rows(1, 1, 4, 64, torch.float32)[0] * size, random_rows(2, 1, 200, 64, torch.float32)
    value = random_rows(3, 1, 200, 64, torch.float32)
    got = native.attend(native.Attention(query, key, value, 1.0, softcap))
    # a score of softcap * tanh(x) has softcap's rounding, or that of the raw score of up to about 30 * size
    assert_close(got, reference.attend(query, key, value, 1.0, softcap), 1e-5 + 3e-7 * min(softcap, 100 * size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(isa: str, dtype: torch.dtype) -> None:
    """Rows apart, rows that share memory with values, tokens before heads, one row for all, nothing aligned."""
    query = random_rows(1, 1, 8, 24, torch.float32)[0]
    plain = random_rows(2, 4, 100, 24 * 2 + 1, dtype)
    byte_shifted = torch.empty(4 * 100 * 24 * dtype.itemsize + 4, dtype=torch.uint8)
    odd = torch.frombuffer(byte_shifted.numpy(), dtype=dtype, count=4 * 100 * 24, offset=1).view(4, 100, 24)
    odd.copy_(plain[..., :24])
    tokens_first = plain[..., :24].transpose(0, 1).contiguous().transpose(0, 1)
    for key, value in (
        (plain[..., :24], plain[..., 24:48]),  # [key | value | gap]
        (plain[..., 1:25], plain[..., 25:]),  # the same, one number on
        (tokens_first, tokens_first),
        (plain[:, ::3, :24], plain[:, ::3, 20:44]),
        (plain[:, :1, :24].expand(4, 100, 24), plain[..., :24]),
        (plain[:1, :, :24].expand(4, 100, 24), plain[..., :24]),
        (odd, odd),
    ):
        got = native.attend(native.Attention(query, key, value, 0.2))
        assert_close(got, reference.attend(query, key, value, 0.2))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rows, dtype = draw(st.integers(0, 300)), draw(st.sampled_from(DTYPES))
    key_width, value_width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    gap, softcap = draw(st.integers(0, 3)), draw(st.sampled_from([0.0, 0.0, 5.0]))
    native.use_isa(draw(st.sampled_from(native.isas())))
    try:
        query = random_rows(1, 1, kv_heads * group, key_width, torch.float32)[0]
        key = random_rows(2, kv_heads, rows, key_width + gap, dtype)[..., :key_width]
        value = random_rows(3, kv_heads, rows, value_width + gap, dtype)[..., gap:]
        got = native.attend(native.Attention(query, key, value, 0.25, softcap))
    finally:
        native.use_isa(native.isas()[0])
    assert_close(got, reference.attend(query, key, value, 0.25, softcap))
