"""Groups of like rows and the gate before them: what goes through is read, what does not is 16 rows of the mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import native, selection
from hgca_cli.errors import NativeError
from hgca_cli.native import ffi, lib
from hgca_cli.selection import Aimed
from tests import reference
from tests.indexed import DTYPES, Indexed, cluster, index, near_rows, random_query, row_bytes, with_shared_scales
from tests.test_native_selection import assert_dense, code_scores, shares, true_scores

GROUP = 16


def in_groups(made: Indexed, read: Tensor) -> Tensor:
    """Which rows are read, bool [kv_heads, groups, 16], by position."""
    assert made.clustering is not None
    return torch.gather(read, 1, made.clustering.order.long()).view(read.shape[0], -1, GROUP)


def with_estimates(
    made: Indexed, query: Tensor, scale: float, read: Tensor, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention over the rows read and, for each group of which none is read, 16 rows with its means."""
    c, group, dim = made.clustering, query.shape[0] // made.key.shape[0], made.key.shape[2]
    assert c is not None
    means = c.means.double().repeat_interleave(group, 0)
    score = torch.einsum("hd,hgd->hg", query.double(), means[..., :dim]) * scale
    score = softcap * torch.tanh(score / softcap) if softcap else score
    score = (score + torch.tensor(16.0).log()).masked_fill(
        in_groups(made, read).any(2).repeat_interleave(group, 0), float("-inf")
    )
    rows = true_scores(made, query, scale, softcap).masked_fill(~read.repeat_interleave(group, 0), float("-inf"))
    every = torch.cat([rows, score], 1)
    value = torch.cat([made.rows[1].repeat_interleave(group, 0), means[..., dim:]], 1)
    return (torch.softmax(every, 1)[:, None] @ value)[:, 0], torch.logsumexp(every, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", ["none", "scan", "read"])
@pytest.mark.parametrize(("rows", "clustered"), [(256, 256), (2049, 2048), (2400, 2304), (1000, 512)])
def test_an_open_gate_is_dense_attention(isa: str, dtype: torch.dtype, gate: str, rows: int, clustered: int) -> None:
    made, query = cluster(index(2, rows, 20, 12, dtype), clustered, 2), random_query(6, 20)
    got = made.choose(query, 0.1, mass=1.0, gate={"gate": gate, "mass": 1.0})
    assert_dense(got, made, query, 0.1)
    assert (got.rows_read == rows).all() and got.reads.estimated == 0


@pytest.mark.parametrize("means", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("gate", ["scan", "read"])
@pytest.mark.parametrize("mass", [0.7, 0.9])
def test_groups_not_taken_are_estimated(isa: str, mass: float, gate: str, softcap: float, means: torch.dtype) -> None:
    made, query = cluster(index(2, 600, 24, 16, torch.float32), 512, 1, means), random_query(6, 24)
    options: dict[str, Any] = {"mass": 1.0, "gate": {"gate": gate, "mass": mass}}
    read = made.chosen(query, 0.2, softcap, **options)
    groups = in_groups(made, read)
    taken = groups.any(2)
    assert torch.equal(groups.all(2), taken)  # whole groups, with a mass of 1 behind the gate
    assert taken[:, -1].all()  # the group that stands apart
    assert 1 < taken.sum() < taken.numel() / 2 * 1.9 and read[:, 512:].all()
    got = made.choose(query, 0.2, softcap, **options)
    out, lse = with_estimates(made, query, 0.2, read, softcap)
    torch.testing.assert_close(got.out.double(), out, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.lse.double(), lse, rtol=0, atol=1e-5)
    assert got.reads.estimated == (~taken).sum() and torch.equal(got.rows_read, read.sum(1))
    # the groups taken are those that weigh most by the codes of their mean keys, until the others may be left out
    c = made.clustering
    assert c is not None
    weight = shares(reference.score_codes(query, c.group_codes, 0.2, softcap)[:, :32], 2)
    for head in range(2):
        inside, outside = weight[head][taken[head]], weight[head][~taken[head]]
        assert reference.left_out(outside, 8.0, 4.0) <= 1.01 * (1 - mass) + 1e-4
        assert outside.max() <= inside[:-1].min() * 1.15 + 1e-9


@pytest.mark.parametrize("most", [0, 1, 5, 16, 30, 31, 1000])
@pytest.mark.parametrize("gate", ["scan", "read"])
def test_no_more_groups_than_most_and_those_apart(isa: str, gate: str, most: int) -> None:
    made, query = cluster(index(2, 600, 24, 16, torch.float32), 512, 2), random_query(6, 24)
    options: dict[str, Any] = {"mass": 1.0, "gate": {"gate": gate, "mass": 1.0, "most": most}}
    got = made.choose(query, 0.02, **options)  # so flat that many groups share a bin
    taken = (got.rows_read - 88) // GROUP
    assert (taken <= most + 2).all() and (taken >= min(most, 32)).all()
    assert in_groups(made, made.chosen(query, 0.02, **options))[:, -2:].all()


def test_rows_behind_the_gate_are_chosen_by_mass(isa: str) -> None:
    made, query = cluster(index(2, 1100, 24, 16, torch.float32), 1024, 2), random_query(6, 24)
    gate = {"gate": "scan", "mass": 0.9}
    some, every = (made.choose(query, 0.3, mass=mass, gate=gate) for mass in (0.8, 1.0))
    assert (some.rows_read < every.rows_read).all() and (every.rows_read < 1100).all()
    assert some.reads.scanned == every.reads.scanned == every.reads.read
    got = made.choose(query, 0.3, mass=0.8, gate=gate, least=20, most=20)
    assert (got.rows_read == 20).all()
    plain = made.choose(query, 0.3, mass=0.8)
    assert (plain.rows_read <= 1100).all() and plain.reads.scanned == 2200 and plain.reads.groups == 0


def test_a_cluster_order_changes_no_choice(isa: str) -> None:
    """Without a gate positions in groups are only another order; their codes are coarser or finer by block."""
    plain = index(2, 600, 24, 16, torch.float32)
    made, query = cluster(plain, 512, 1), random_query(6, 24)
    read = made.chosen(query, 0.3, mass=0.7)
    assert (shares(true_scores(made, query, 0.3), 2) * read).sum(1).min() > 0.65
    other = plain.chosen(query, 0.3, mass=0.7)
    assert (read & other).sum() > 0.8 * other.sum() and code_scores(plain, query, 0.3).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", ["none", "scan", "read"])
def test_bytes_behind_a_gate_are_counted(dtype: torch.dtype, gate: str) -> None:
    """One thread and so few rows that a head is one unit."""
    made, query = cluster(index(1, 300, 20, 12, dtype), 256, 1), random_query(3, 20)
    read = made.choose(query, 0.2, mass=0.9, gate={"gate": gate, "mass": 0.4}).rows_read
    before = native.threads()
    try:
        native.set_threads(1)
        reads = made.choose(query, 0.2, mass=0.9, gate={"gate": gate, "mass": 0.4}).reads
    finally:
        native.set_threads(before)
    taken = 16 - reads.estimated  # all that is not taken is estimated here
    assert reads.groups == (0 if gate == "none" else 16) and read[0] == reads.read
    assert reads.scanned == (0 if gate == "read" else taken * 16 + 44)
    wanted = reads.read * row_bytes(dtype, 32) + reads.estimated * 2 * 32
    if gate != "none":
        wanted += 16 * 12 + 96  # codes of 16 groups
    if gate == "read":
        assert reads.bytes == wanted + 4 * 16 * taken  # and where the rows of the groups are
        return
    codes = (taken + 3) * 16 * 12
    listed = reads.bytes - wanted - codes
    blocks = {listed - 4 * n for n in range(reads.read - 44, reads.read + 1)} & {96 * n for n in (2, 3)}
    assert blocks  # 4 bytes for a row of the clustering, 96 for a block's scales


@pytest.mark.parametrize("gate", ["none", "scan"])
@pytest.mark.parametrize(("span", "shared"), [(2, 2), (4, 3), (16, 16)])
def test_scales_that_blocks_share_are_looked_up_once(isa: str, span: int, shared: int, gate: str) -> None:
    rows = 2 * span * 128 + 300
    made, query = (
        with_shared_scales(cluster(index(2, rows, 20, 12, torch.float32), rows - 300, 8), span, shared),
        random_query(8, 20),
    )
    assert made.clustering is not None
    each_its_own = replace(made, clustering=replace(made.clustering, shared=(0, 0)))
    options: dict[str, Any] = {"mass": 0.9, "gate": {"gate": gate, "mass": 0.8}}
    before = native.threads()
    try:
        native.set_threads(1)
        got, other = (one.choose(query, 0.2, **options) for one in (made, each_its_own))
    finally:
        native.set_threads(before)
    assert torch.equal(got.out, other.out) and torch.equal(got.lse, other.lse)
    assert torch.equal(got.rows_read, other.rows_read) and got.reads.scanned == other.reads.scanned
    saved = other.reads.bytes - got.reads.bytes
    assert 0 < saved <= 2 * 2 * (shared - 1) * 96  # once for each unit that looks into a span


@pytest.mark.parametrize("shared", [(3, 1), (4, 5), (-4, 0), (0, 1)])
def test_no_such_shares_of_scales(shared: tuple[int, int]) -> None:
    made = cluster(index(2, 600, 20, 12, torch.float32), 512, 1)
    assert made.clustering is not None
    with pytest.raises(NativeError):
        replace(made, clustering=replace(made.clustering, shared=shared)).choose(random_query(6, 20), 0.2, mass=0.9)


def test_nothing_of_a_group_that_is_no_number_is_hidden(isa: str) -> None:
    plain = index(1, 512, 24, 16, torch.float32)
    key = plain.key.clone()
    key[0, 100, 3] = float("nan")
    made = cluster(Indexed(key, plain.value, None, plain.codes, plain.block_means, 512), 512, 1)
    for gate in ("scan", "read"):
        got = made.choose(random_query(3, 24), 0.2, mass=0.5, gate={"gate": gate, "mass": 0.2})
        assert got.out.isnan().all() and got.rows_read == 512


REFUSED: list[dict[str, Any]] = [
    {"mass": 0.0}, {"mass": 1.01}, {"mass": -1.0}, {"mass": float("nan")}, {"least": -1}, {"most": -1},
    {"indexed": -1}, {"indexed": 601}, {"codes": ffi.NULL}, {"clustered": -256}, {"clustered": 128}, {"clustered": 768},
    {"gate": -1}, {"gate": 3}, {"order": ffi.NULL}, {"group_codes": ffi.NULL}, {"mean": ffi.NULL}, {"mean_dtype": -1},
    {"mean_dtype": lib.HGCA_I8}, {"gate_mass": 0.0}, {"gate_mass": 1.1}, {"gate_mass": float("nan")}, {"gate_most": -1},
    {"rows.tokens": 2}, {"rows.causal": 1}, {"rows.lists": 2}, {"rows.key_dim": 1025}, {"rows.rows": -1}, {"rows.dtype": 4},
    {"rows.rows": 1 << 31}, {"rows.heads": 5}, {"rows.heads": 2 * 257}, {"rows.key": ffi.NULL}, {"rows.softcap": -1.0},
    {"near.heads": 4}, {"near.kv_heads": 1}, {"near.key_dim": 8}, {"near.value_dim": 8}, {"near.tokens": 2},
    {"near.rows": -1}, {"near.lists": 6}, {"near.dtype": 7},
]  # fmt: skip


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_a_choice_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    made, query = cluster(index(2, 600, 24, 16, torch.float32), 512, 1), random_query(6, 24)
    one = made.selection(6, mass=0.5, gate={"gate": "scan", "mass": 0.5})
    near = near_rows(index(2, 5, 24, 16, torch.float32), query, 0.2)
    selection.start([Aimed(one, query, 0.2, near=near)]).wait()
    kept, result = one.aim(query, 0.2, 0.0, near, None)
    result.out.fill_(42.0)
    for name, value in change.items():
        at, _, field = name.rpartition(".")
        setattr(getattr(one.job, at) if at else one.job, field, value)
    ticket = ffi.new("int64_t *", -7)
    assert lib.hgca_start_selected(one.job, 1, ticket) == lib.HGCA_BAD_ARGUMENT
    assert ticket[0] == -7 and (result.out == 42.0).all() and kept


def test_no_jobs_and_queries_of_other_heads_are_refused() -> None:
    made = index(2, 600, 24, 16, torch.float32)
    one = made.selection(6, mass=0.5)
    for query in (random_query(4, 24), random_query(6, 24).double(), random_query(24, 6).T):
        with pytest.raises(NativeError, match="does not fit a choice for 6 heads"):
            selection.start([Aimed(one, query, 0.2)])
    assert lib.hgca_start_selected(one.job, 0, ffi.new("int64_t *")) == lib.HGCA_BAD_ARGUMENT
