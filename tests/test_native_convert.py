"""hgca_copy_rows against torch's conversions and a quantiser in float64: every pair, every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError
from hgca_cli.kv import convert

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
TINY = 2.0**-110  # a row below this counts as zeros


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65,536 of a 16-bit dtype; for f32 the neighbourhood of each bf16 number, whose ties are in it."""
    if dtype != torch.float32:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    high = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int64)[:, None] << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    return (high + low).to(torch.int32).view(torch.float32).flatten()


def strided(rows: Tensor, gap: int) -> Tensor:
    """The same rows with `gap` numbers between them, from an address that is no multiple of anything."""
    heads, n, dim = rows.shape
    whole = torch.empty(heads * n * (dim + gap) + 1, dtype=rows.dtype)[1:]
    view = whole[: heads * n * (dim + gap)].view(heads, n, dim + gap)[..., :dim]
    view.copy_(rows)
    return view


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, but for the digits of a NaN."""
    bits = BITS[a.dtype]
    nan = a.isnan()
    return bool(torch.equal(nan, b.isnan()) and torch.equal(a.view(bits)[~nan], b.view(bits)[~nan]))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_every_number_becomes_what_torch_makes_of_it(source: torch.dtype, target: torch.dtype, isa: str) -> None:
    rows = every_number(source).view(1, -1, 64)
    got = torch.empty(rows.shape, dtype=target)
    convert.copy_rows([convert.Copy(rows, got)])
    assert same_bytes(got, rows.to(target))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_any_size_and_stride(source: torch.dtype, target: torch.dtype, isa: str, rng: torch.Generator) -> None:
    for dim in (*range(1, 36), 64, 80, 127):
        rows = strided(torch.randn(2, 3, dim, generator=rng).to(source), gap=dim % 5)
        backing = torch.full((2, 3, dim + 3), 7.0).to(target)
        convert.copy_rows([convert.Copy(rows, backing[..., 1 : dim + 1])])
        assert same_bytes(backing[..., 1 : dim + 1], rows.to(target))
        assert bool((backing[..., 0] == 7).all() and (backing[..., dim + 1 :] == 7).all())  # nothing beside the rows


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    numbers = torch.full((*rows.shape[:2], rows.shape[2] + 2), 7, dtype=torch.int8)
    scales = torch.full((*rows.shape[:2], 3), 7.0)
    convert.copy_rows([convert.Copy(rows, numbers[..., 1:-1], scales[..., 1])])
    assert bool((numbers[..., 0] == 7).all() and (numbers[..., -1] == 7).all() and (scales[..., ::2] == 7).all())
    return numbers[..., 1:-1], scales[..., 1]


@pytest.mark.parametrize("source", FLOATS)
def test_int8_is_what_float64_makes_of_it(source: torch.dtype, isa: str, rng: torch.Generator) -> None:
    for dim in (*range(1, 36), 64, 80, 127):
        size = torch.logspace(-4, 3, 6).view(2, 3, 1)
        rows = strided((torch.randn(2, 3, dim, generator=rng) * size).to(source), gap=dim % 3)
        numbers, scales = quantised(rows)
        largest = rows.float().abs().amax(-1)
        assert torch.equal(scales, largest / 127)
        exact = rows.double() / (largest.double() / 127)[..., None]
        assert bool(((numbers - exact).abs() <= 0.5 + 1e-4).all())  # off by a digit of float32 at a tie
        assert bool((numbers.abs().amax(-1) == 127).all())


def test_ties_go_to_the_even_number(isa: str) -> None:
    halves = torch.arange(-126.5, 127.0, 1.0)
    rows = torch.cat([torch.tensor([127.0]), halves]).view(1, 1, -1)
    numbers, scales = quantised(rows)
    assert scales.item() == 1.0 and torch.equal(numbers[0, 0, 1:], halves.round().to(torch.int8))


def test_int8_rows_of_zeros_and_of_what_is_no_number(isa: str) -> None:
    rows = torch.ones(1, 8, 21)
    rows[0, 0] = 0.0
    rows[0, 1] = TINY / 2  # and what is even smaller: denormals
    rows[0, 2] = 1e-42
    rows[0, 3, 20] = math.nan
    rows[0, 4, 3] = math.inf
    rows[0, 5, 7] = -math.inf
    rows[0, 6] = -0.0
    rows[0, 7] = torch.finfo(torch.float32).max
    numbers, scales = quantised(rows)
    assert scales[0, [0, 1, 2, 6]].tolist() == [0.0] * 4 and bool(scales[0, 3:6].isnan().all())
    assert bool((numbers[0, :7] == 0).all()) and bool((numbers[0, 7] == 127).all())
    assert float(scales[0, 7]) == float(torch.finfo(torch.float32).max) / 127 or scales[0, 7].isfinite()


@pytest.mark.parametrize("dim", [64, 72])  # rows that fill cache lines are written past the caches
@pytest.mark.parametrize("target", [*FLOATS, torch.int8])
def test_all_instruction_sets_and_thread_counts_give_the_same_bytes(
    target: torch.dtype, dim: int, rng: torch.Generator
) -> None:
    rows = torch.randn(3, 5000, dim, generator=rng) * torch.logspace(-40, 30, dim)  # denormals too; large: many pieces
    rows[1, 17, 5] = math.nan
    found, before, threads = [], native.isa(), native.threads()
    try:
        for name in native.isas():
            for count in (1, 3):
                native.use_isa(name)
                native.set_threads(count)
                got = torch.zeros(rows.shape, dtype=target)
                scale = torch.zeros(3, 5000) if target == torch.int8 else None
                convert.copy_rows([convert.Copy(rows, got, scale)])
                parts = [got.view(BITS.get(target, torch.int8))]
                found.append(parts if scale is None else [*parts, scale.view(torch.int32)])
    finally:
        native.use_isa(before)
        native.set_threads(threads)
    assert all(torch.equal(a, b) for parts in found for a, b in zip(parts, found[0], strict=True))


def test_nothing_is_written_if_one_copy_is_refused() -> None:
    rows, target = torch.ones(1, 2, 4), torch.zeros(1, 2, 4)
    for wrong in (
        convert.Copy(rows, torch.zeros(1, 3, 4)),
        convert.Copy(rows.to(torch.int8), torch.zeros(1, 2, 4)),
        convert.Copy(rows, torch.zeros(1, 2, 4, dtype=torch.int8)),
        convert.Copy(rows, torch.zeros(1, 2, 4), torch.zeros(1, 2)),
        convert.Copy(rows, torch.zeros(1, 2, 4, dtype=torch.int8), torch.zeros(1, 3)),
        convert.Copy(rows.double(), torch.zeros(1, 2, 4)),
        convert.Copy(rows.transpose(1, 2), torch.zeros(1, 4, 2)),
        convert.Copy(torch.ones(1, 2, 0), torch.zeros(1, 2, 0)),
    ):
        with pytest.raises(NativeError):
            convert.copy_rows([convert.Copy(rows, target), wrong])
    assert not target.any()
    convert.copy_rows([])
    convert.copy_rows([convert.Copy(rows[:, :0], target[:, :0])])
