"""4-bit codes, means and groups of like keys: what native/hgca.h says of them, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import indexing, native
from hgca_cli.errors import NativeError
from hgca_cli.native import ffi, lib
from tests import reference
from tests.indexed import DTYPES, Indexed, index

COUNTS = (1, 15, 16, 17, 127, 128, 129, 300)
WIDTHS = (1, 8, 20, 64, 128)


def keys_of(made: Indexed, order: Tensor | None = None) -> Tensor:
    key = made.rows[0]
    return key if order is None else torch.stack([k[o.long()] for k, o in zip(key, order, strict=True)])


def assert_codes(codes: Tensor, key: Tensor) -> None:
    """Every number within half a step of its key, and steps no larger than a block's range makes them."""
    numbers, scales, zeros = reference.decode(codes, key.shape[2])
    for block, rows in enumerate(key.split(128, dim=1)):
        step, count = scales[:, block], rows.shape[1]
        got = zeros[:, block] + step * numbers[:, block, :count]
        assert ((got - rows).abs() <= step * 0.5001 + 1e-30).all()
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        assert (step <= (high - low + low.abs() / 128) / 15 * (1 + 1 / 128) + 1e-38).all()
        assert (numbers[:, block, count:] == 0).all()  # what a last block lacks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_within_half_a_step(dtype: torch.dtype, width: int) -> None:
    for count in COUNTS:
        made = index(3, count, width, 4, dtype)
        assert_codes(made.codes, keys_of(made))


def test_constant_and_extreme_keys_have_codes() -> None:
    key = torch.zeros(1, 128, 16)
    key[..., 1], key[..., 2], key[..., 3] = 5.5, -1e-38, 1e38 * torch.linspace(-1, 1, 128)
    key[0, 0, 4] = 1e30
    codes = torch.empty(1, 1, indexing.block_bytes(16), dtype=torch.uint8)
    indexing.encode(key, codes, 0)
    assert_codes(codes, key.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_grow_block_by_block_and_follow_an_order(dtype: torch.dtype) -> None:
    made = index(2, 3000, 20, 4, dtype)  # enough blocks for the worker threads
    scale = None if made.scales is None else made.scales[..., 0]
    codes, first = torch.full_like(made.codes, 255), 0
    for count in (0, 5, 128, 300, 2999, 3000):
        indexing.encode(made.key[:, :count], codes, first, scale=None if scale is None else scale[:, :count])
        first = count // 128 * 128
    assert torch.equal(codes, made.codes)
    order = torch.stack([torch.randperm(3000, generator=torch.Generator().manual_seed(h)) for h in range(2)]).int()
    indexing.encode(made.key, codes, 0, scale=scale, order=order)
    assert_codes(codes, keys_of(made, order))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_may_share_their_scales(dtype: torch.dtype) -> None:
    made = index(2, 3000, 20, 4, dtype)
    scale, codes = None if made.scales is None else made.scales[..., 0], made.codes.clone()
    indexing.encode(made.key, codes, 256, scale=scale, shared=10)  # 2 .. 11, 12 .. 21, and the last 2
    assert torch.equal(codes[:, :2], made.codes[:, :2])
    numbers, scales, zeros = reference.decode(codes, 20)
    for first, end in ((2, 12), (12, 22), (22, 24)):
        assert (scales[:, first:end] == scales[:, first : first + 1]).all()
        assert (zeros[:, first:end] == zeros[:, first : first + 1]).all()
        keys = keys_of(made)[:, 128 * first : 128 * end]
        step, span = scales[:, first], keys.amax(1, keepdim=True) - keys.amin(1, keepdim=True)
        got = zeros[:, first] + step * numbers[:, first:end].flatten(1, 2)[:, : keys.shape[1]]
        assert ((got - keys).abs() <= step * 0.5001 + 1e-30).all()
        assert (step <= (span + keys.amin(1, keepdim=True).abs() / 128) / 15 * (1 + 1 / 128) + 1e-38).all()


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_a_key_that_is_no_number_leaves_its_block_no_numbers(strange: float) -> None:
    key = index(1, 300, 20, 4, torch.float32).key.clone()
    key[0, 130, 3] = strange
    codes = torch.empty(1, 3, indexing.block_bytes(20), dtype=torch.uint8)
    indexing.encode(key, codes, 0)
    _, scales, zeros = reference.decode(codes, 20)
    assert scales[0, 1].isnan().all() and zeros[0, 1].isnan().all()
    assert scales[0, ::2].isfinite().all() and zeros[0, ::2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("each", "count"), [(1, 7), (16, 160), (16, 3003), (128, 129), (5, 1)])
def test_means(dtype: torch.dtype, each: int, count: int) -> None:
    made = index(2, count, 8, 20, dtype)
    order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(h)) for h in range(2)]).int()
    value = torch.stack([v[o.long()] for v, o in zip(made.rows[1], order, strict=True)])
    scale = None if made.scales is None else made.scales[..., 1]
    got = torch.empty(2, -(-count // each), 20, dtype=torch.bfloat16)
    indexing.average(made.value, got, 0, each=each, scale=scale, order=order)
    want = torch.stack([part.mean(1) for part in value.split(each, dim=1)], 1)
    assert ((got.double() - want).abs() <= want.abs() / 256 + 1e-6).all()
    if count > each:
        again = got.clone()
        again[:, 1:] = 0
        indexing.average(made.value, again, each, each=each, scale=scale, order=order)
        assert torch.equal(got, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "apart", "heads"), [(16, 0, 1), (48, 1, 2), (256, 1, 3), (2048, 8, 2), (272, 8, 1)])
def test_a_clustering_is_an_order_of_its_rows(dtype: torch.dtype, rows: int, apart: int, heads: int) -> None:
    made = index(heads, rows + 37, 20, 4, dtype)
    scale = None if made.scales is None else made.scales[..., 0]
    order = torch.empty(heads, rows, dtype=torch.int32)
    indexing.cluster(made.key, order, 37, apart=apart, scale=scale)
    assert (order.sort(dim=1).values == torch.arange(37, 37 + rows)).all()
    again = torch.empty_like(order)
    indexing.cluster(made.key, again, 37, apart=apart, scale=scale)
    assert torch.equal(order, again)


def test_groups_hold_like_keys_and_the_last_ones_those_like_no_other() -> None:
    rng = torch.Generator().manual_seed(3)
    centre = torch.randn(64, 32, generator=rng) * 4
    key = (centre.repeat(15, 1) + torch.randn(960, 32, generator=rng) * 0.2)[torch.randperm(960, generator=rng)]
    stray = torch.randperm(960, generator=rng)[:30]
    key[stray] = torch.randn(30, 32, generator=rng) * 40
    order = torch.empty(1, 960, dtype=torch.int32)
    indexing.cluster(key[None], order, 0, apart=2)
    grouped = key[order[0].long()].view(60, 16, 32)
    within = grouped[:-2].var(1).sum() / grouped[:-2].reshape(-1, 32).var(0).sum() / 58
    assert within < 0.25  # of rows in any order it is near 1
    assert set(stray.tolist()) <= set(order[0, -32:].tolist())


def test_rows_that_are_no_numbers_stand_apart() -> None:
    key = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(1))
    key[0, 5, 0], key[0, 77, 3], key[0, 200, 7] = float("nan"), float("inf"), float("-inf")
    order = torch.empty(1, 256, dtype=torch.int32)
    indexing.cluster(key, order, 0, apart=4)
    assert (order.sort(dim=1).values == torch.arange(256)).all()
    assert {5, 77, 200} <= set(order[0, -64:].tolist())


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0}, {"dim": 0}, {"dim": 1025}, {"first": -128}, {"first": 64}, {"count": -1}, {"dtype": -1}, {"dtype": 4},
        {"rows": ffi.NULL}, {"codes": ffi.NULL}, {"dtype": native.DTYPES[torch.int8]}, {"heads": 1 << 30, "count": 1 << 30},
    ],
)  # fmt: skip
def test_codes_refuse(change: dict[str, Any]) -> None:
    job, kept = ffi.new("hgca_codes *"), ffi.new("char[4096]")
    job.of.rows, job.codes, job.of.count, job.of.heads, job.of.dim = kept, kept, 1, 1, 8
    assert lib.hgca_encode(job) == lib.HGCA_OK
    for name, value in change.items():
        setattr(job if hasattr(job, name) else job.of, name, value)
    assert lib.hgca_encode(job) == lib.HGCA_BAD_ARGUMENT


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0}, {"dim": 0}, {"dim": 1025}, {"first": -16}, {"first": 8}, {"count": -1}, {"each": 0}, {"dtype": 4},
        {"rows": ffi.NULL}, {"mean": ffi.NULL}, {"dtype": native.DTYPES[torch.int8]},
    ],
)  # fmt: skip
def test_means_refuse(change: dict[str, Any]) -> None:
    job, kept = ffi.new("hgca_means *"), ffi.new("char[4096]")
    job.of.rows, job.mean, job.of.count, job.each, job.of.heads, job.of.dim = kept, kept, 1, 16, 1, 8
    assert lib.hgca_average(job) == lib.HGCA_OK
    for name, value in change.items():
        setattr(job if hasattr(job, name) else job.of, name, value)
    assert lib.hgca_average(job) == lib.HGCA_BAD_ARGUMENT


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0}, {"dim": 0}, {"dim": 1025}, {"first": -1}, {"first": (1 << 31) - 16}, {"count": 0}, {"count": 24},
        {"count": 65552}, {"apart": -1}, {"apart": 2}, {"dtype": 4}, {"rows": ffi.NULL}, {"order": ffi.NULL},
        {"dtype": native.DTYPES[torch.int8]},
    ],
)  # fmt: skip
def test_clusterings_refuse(change: dict[str, Any]) -> None:
    job, kept, order = ffi.new("hgca_clustering *"), ffi.new("char[4096]"), ffi.new("int32_t[32]")
    job.of.rows, job.order, job.of.count, job.of.heads, job.of.dim, job.apart = kept, order, 32, 1, 8, 1
    assert lib.hgca_cluster(job) == lib.HGCA_OK
    for name, value in change.items():
        setattr(job if hasattr(job, name) else job.of, name, value)
    assert lib.hgca_cluster(job) == lib.HGCA_BAD_ARGUMENT


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = index(2, 200, 20, 4, torch.float32)
    order = torch.zeros(2, 200, dtype=torch.int64)
    with pytest.raises(NativeError, match="cannot be those of"):
        indexing.encode(made.key, made.codes[:, :1], 0)
    with pytest.raises(NativeError, match="cannot be those of"):
        indexing.encode(made.key, made.codes, 0, order=order)  # type: ignore[arg-type]
    with pytest.raises(NativeError, match="cannot be those of"):
        indexing.average(made.value, made.block_means.float(), 0, each=128)
    with pytest.raises(NativeError, match="cannot be ordered"):
        indexing.cluster(made.key, torch.zeros(2, 208, dtype=torch.int32), 0, apart=1)
