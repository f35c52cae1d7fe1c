"""Blocks of 128 rows before groups: those that may hold some of the attention are looked into, the others are 128 rows of the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import native, selection
from hgca_cli.native import ffi, lib
from hgca_cli.selection import Aimed
from tests import reference
from tests.indexed import DTYPES, Indexed, cluster, index, random_query, with_blocks
from tests.test_native_selection import assert_dense, shares, threads, tolerance, true_scores

__all__ = ["threads"]  # a fixture
BLOCK, PAIR = 128, 256


def alike(rows: int, clustered: int, apart: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Indexed:
    """Rows of 2 KV heads about a few centres, so that blocks of like rows differ."""
    plain = index(2, rows, 24, 16, dtype, seed=seed)
    if dtype != torch.int8:
        rng = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(12, 24, generator=rng)
        plain.key.add_(centres[torch.randint(12, (2, rows), generator=rng)].to(dtype))
    return with_blocks(cluster(plain, clustered, apart))


def opening(mass: float, *, gate: str = "scan", groups: float = 1.0) -> dict[str, Any]:
    return {"gate": gate, "mass": groups, "open_mass": mass}


def reaching(made: Indexed, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scores f64 [heads, blocks] of 128 rows with the mean key, and of what blocks may hold."""
    c = made.clustering
    assert c is not None and c.block_codes is not None
    blocks = c.rows // BLOCK
    mean = reference.score_codes(query, c.block_codes[0], scale)[:, :blocks] + torch.tensor(128.0).log()
    variance = reference.score_codes(query.square(), c.block_codes[1], scale * scale)[:, :blocks].clamp(min=0)
    return mean, mean + torch.where(variance < 9.7, variance / 2, 3.115 * variance.sqrt() - 4.852)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", ["scan", "read"])
@pytest.mark.parametrize(("rows", "clustered"), [(256, 256), (2049, 2048), (4400, 4352), (40000, 38912)])
def test_open_blocks_are_dense_attention(isa: str, dtype: torch.dtype, gate: str, rows: int, clustered: int) -> None:
    made, query = with_blocks(cluster(index(1, rows, 20, 12, dtype), clustered, 8)), random_query(3, 20)
    got = made.choose(query, 0.1, mass=1.0, estimate=True, gate=opening(1.0, gate=gate))
    assert_dense(got, made, query, 0.1)
    assert (got.rows_read == rows).all() and got.reads.estimated == 0


@pytest.mark.parametrize("gate", ["scan", "read"])
@pytest.mark.parametrize("mass", [0.5, 0.7, 0.9])
def test_closed_blocks_are_estimated(isa: str, threads: int, gate: str, mass: float) -> None:
    made, query, scale = alike(8200, 8192, 8), random_query(6, 24), 0.15
    options: dict[str, Any] = {"mass": 1.0, "estimate": True, "gate": opening(mass, gate=gate)}
    read = made.chosen(query, scale, **options)
    c = made.clustering
    assert c is not None
    blocks = torch.gather(read[:, :8192], 1, c.order.long()).view(2, -1, BLOCK)
    taken = blocks.any(2)
    assert torch.equal(blocks.all(2), taken) and read[:, 8192:].all()  # whole blocks where every group is taken
    assert taken[:, -1].all() and 2 < taken.sum() < taken.numel() - 2  # the last block's groups stand apart
    # two blocks side by side are opened together: those that may hold most
    mean, reach = reaching(made, query, scale)
    weight = shares(reach, 2)
    weight[:, -1] = 0.0
    pairs, opened = weight.view(2, -1, 2), taken.view(2, -1, 2)[..., 0]
    for head in range(2):
        closed = pairs[head][~opened[head]]
        assert reference.left_out(closed.flatten(), 8.0, 4.0) <= 1.01 * (1 - mass) + 0.01
        assert closed.max() <= pairs[head][opened[head]].amax(1)[:-1].min() * 1.15 + 1e-9
    # what is closed enters with the mean value of its block
    got = made.choose(query, scale, **options)
    assert torch.equal(got.rows_read, read.sum(1)) and got.reads.estimated == 8 * (~taken).sum()
    every = torch.cat(
        [
            true_scores(made, query, scale).masked_fill(~read.repeat_interleave(3, 0), float("-inf")),
            mean.masked_fill(taken.repeat_interleave(3, 0), float("-inf")),
        ],
        1,
    )
    value = torch.cat([made.rows[1], made.block_means[:, :64].double()], 1).repeat_interleave(3, 0)
    out = (torch.softmax(every, 1)[:, None] @ value)[:, 0]
    torch.testing.assert_close(got.out.double(), out, rtol=0, atol=0.01)
    torch.testing.assert_close(got.lse.double(), torch.logsumexp(every, 1), rtol=0, atol=0.01)


def test_only_groups_of_open_blocks_are_looked_at(isa: str) -> None:
    made, query = alike(8200, 8192, 8), random_query(6, 24)
    wide, narrow = (made.choose(query, 0.25, mass=0.9, estimate=True, gate=opening(m, groups=0.9)) for m in (1.0, 0.8))
    assert wide.reads.groups == 1024 and narrow.reads.groups < 800 and narrow.reads.groups % 16 == 0
    assert narrow.reads.scanned < wide.reads.scanned and narrow.reads.bytes < wide.reads.bytes
    again = made.choose(query, 0.25, mass=0.9, estimate=True, gate=opening(0.8, groups=0.9))
    assert torch.equal(again.out, narrow.out) and torch.equal(again.lse, narrow.lse)


def test_what_does_not_enter_is_next_to_nothing(isa: str) -> None:
    """Estimates below a twentieth of their share of what is left out are dropped: the result stays near the one with all."""
    made, query = alike(16384, 16384, 8), random_query(6, 24)
    want, lse = reference.attend(query, *made.rows, 0.25)
    got = made.choose(query, 0.25, mass=0.97, estimate=True, gate=opening(0.99, groups=0.99))
    assert got.rows_read.max() < 6000
    assert (got.out - want).norm() < 0.05 * want.norm() and (got.lse - lse).abs().max() < 0.05


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_opens_the_same_blocks(dtype: torch.dtype) -> None:
    made, query = alike(5000, 4864, 8, dtype), random_query(10, 24)
    before, results = native.isa(), []
    try:
        for name in native.isas():
            native.use_isa(name)
            results.append(made.choose(query, 0.2, mass=0.8, estimate=True, gate=opening(0.9, groups=0.9)))
    finally:
        native.use_isa(before)
    for one in results[1:]:
        assert torch.equal(one.rows_read, results[0].rows_read)
        for name in ("scanned", "groups", "read", "estimated", "bytes"):
            assert getattr(one.reads, name) == getattr(results[0].reads, name)
        torch.testing.assert_close(one.out, results[0].out, rtol=0, atol=tolerance(made))


def test_a_block_that_is_no_number_is_not_hidden(isa: str) -> None:
    plain = index(1, 4096, 24, 16, torch.float32)
    plain.key[0, 100, 3] = float("nan")
    made = with_blocks(cluster(plain, 4096, 8))
    got = made.choose(random_query(3, 24), 0.2, mass=0.5, estimate=True, gate=opening(0.5, groups=0.5))
    assert got.out.isnan().all() and got.rows_read == 4096


def test_jobs_with_and_without_blocks_together(isa: str, threads: int) -> None:
    made, query = alike(8200, 8192, 8), random_query(6, 24)
    gate = opening(0.9, groups=0.9)
    single = [made.choose(query, 0.25, mass=0.9, estimate=True, gate=g) for g in (gate, {**gate, "block_codes": None})]
    both = [made.selection(6, mass=0.9, estimate=True, gate=g) for g in (gate, {**gate, "block_codes": None})]
    got = selection.start([Aimed(one, query, 0.25) for one in both]).wait()
    for one, partial, described in zip(single, got, both, strict=True):
        torch.testing.assert_close(partial.out, one.out, rtol=0, atol=0.02)  # other units round weights otherwise
        assert (described.rows_read - one.rows_read).abs().max() < 0.02 * 8200


@pytest.mark.parametrize(
    "change",
    [{"block_spread_codes": ffi.NULL}, {"block_mean": ffi.NULL}, {"open_mass": 0.0}, {"open_mass": 1.1},
     {"open_mass": float("nan")}, {"gate": lib.HGCA_GATE_NONE}],
    ids=str,
)  # fmt: skip
def test_blocks_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    made, query = alike(600, 512, 0), random_query(6, 24)
    one = made.selection(6, mass=0.5, estimate=True, gate=opening(0.9))
    selection.start([Aimed(one, query, 0.2)]).wait()
    kept, _ = one.aim(query, 0.2, 0.0, None, None)
    for name, value in change.items():
        setattr(one.job, name, value)
    assert lib.hgca_start_selected(one.job, 1, ffi.new("int64_t *")) == lib.HGCA_BAD_ARGUMENT and kept
