"""Rows chosen by their codes: against dense attention where everything is read, and against what the codes say elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import native, selection
from hgca_cli.selection import Aimed
from tests import reference
from tests.indexed import DTYPES, Indexed, Result, index, near_rows, random_query, reindex, row_bytes

WIDTHS = ((8, 8), (20, 12), (64, 64), (128, 96), (64, 130))  # of keys and values
ROWS = (0, 1, 15, 16, 17, 127, 128, 129, 700)


def tolerance(made: Indexed) -> float:
    """As of the attention kernels: queries and weights of int8 rows have 15 and 16 bits."""
    return 3e-4 if made.scales is not None else 1e-5


def assert_dense(got: Result, made: Indexed, query: Tensor, scale: float, softcap: float = 0.0) -> None:
    out, lse = reference.attend(query, *made.rows, scale, softcap)
    torch.testing.assert_close(got.out.double(), out, rtol=0, atol=tolerance(made))
    torch.testing.assert_close(got.lse.double(), lse, rtol=1e-6, atol=tolerance(made))


def shares(score: Tensor, kv_heads: int) -> Tensor:
    """The largest softmax weight of each row in a KV head's group, f64 [kv_heads, rows]."""
    return torch.softmax(score, 1).view(kv_heads, -1, score.shape[1]).amax(1)


def true_scores(made: Indexed, query: Tensor, scale: float, softcap: float = 0.0) -> Tensor:
    key = made.rows[0].repeat_interleave(query.shape[0] // made.key.shape[0], 0)
    score = torch.einsum("hd,hrd->hr", query.double(), key) * scale
    return softcap * torch.tanh(score / softcap) if softcap else score


def code_scores(made: Indexed, query: Tensor, scale: float, softcap: float = 0.0) -> Tensor:
    return reference.score_codes(query, made.codes, scale, softcap)[:, : made.indexed]


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = native.threads()
    native.set_threads(request.param)
    yield request.param
    native.set_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_a_mass_of_one_is_dense_attention(isa: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    for turn, rows in enumerate(ROWS):
        made = index(2, rows, *widths, dtype, seed=turn + 1)
        query, scale = random_query(2 * (1, 3, 4, 8)[turn % 4], widths[0]), widths[0] ** -0.5
        got = made.choose(query, scale, mass=1.0, estimate=turn % 2 == 1)
        assert_dense(got, made, query, scale)
        assert (got.rows_read == rows).all()
        torch.testing.assert_close(got.read_lse, got.lse, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [2047, 2048, 2049, 5000])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_many_rows_and_threads(isa: str, threads: int, rows: int, group: int) -> None:
    made = index(2, rows, 20, 16, torch.float32)
    query = random_query(2 * group, 20)
    got, again = (made.choose(query, 0.3, mass=1.0) for _ in range(2))
    assert_dense(got, made, query, 0.3)
    assert torch.equal(got.out, again.out) and torch.equal(got.lse, again.lse)
    some, more = (made.choose(query, 0.3, mass=0.8, estimate=True) for _ in range(2))
    assert torch.equal(some.out, more.out) and torch.equal(some.rows_read, more.rows_read)
    assert (some.rows_read < rows).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_chooses_the_same_rows(dtype: torch.dtype) -> None:
    made, query = index(2, 700, 36, 16, dtype), random_query(10, 36)
    before, results, rows = native.isa(), [], []
    try:
        for name in native.isas():
            native.use_isa(name)
            results.append(made.choose(query, 0.2, mass=0.7, estimate=True))
            if dtype != torch.int8:  # unit vectors as values need scales of their own
                rows.append(made.chosen(query, 0.2, mass=0.7))
    finally:
        native.use_isa(before)
    for one in results[1:]:
        assert torch.equal(one.rows_read, results[0].rows_read)
        torch.testing.assert_close(one.out, results[0].out, rtol=0, atol=tolerance(made))
    assert all(torch.equal(one, rows[0]) for one in rows[1:])
    assert results[0].rows_read.min() > 0 and results[0].rows_read.max() < 700


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("mass", [0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("estimate", [False, True])
def test_the_heaviest_rows_are_read_until_the_others_may_be_left(
    isa: str, estimate: bool, mass: float, group: int, softcap: float
) -> None:
    made, query = index(2, 600, 40, 16, torch.float32, seed=group), random_query(2 * group, 40)
    read = made.chosen(query, 0.3, softcap, mass=mass, estimate=estimate)
    alike = (50.0, 8.0) if estimate else (0.0, 1.0)
    result = made.choose(query, 0.3, softcap, mass=mass, estimate=estimate)
    assert torch.equal(read.sum(1), result.rows_read)
    weight = shares(code_scores(made, query, 0.3, softcap), 2)
    for head in range(2):
        # bins are an eighth of an octave wide, and the last one is taken whole; weights are cut to bf16
        assert reference.left_out(weight[head][~read[head]], *alike) <= 1.01 * (1 - mass) + 1e-4
        taken = weight[head][read[head]].sort().values
        if len(taken) > 20:
            few = torch.cat([weight[head][~read[head]], taken[taken <= 1.2 * taken[0]]])
            assert reference.left_out(few, *alike) >= 0.99 * (1 - mass) - 1e-4, "no bin more than needed"
        if (~read[head]).any():
            assert weight[head][~read[head]].max() <= weight[head][read[head]].min() * 1.15
    kept = torch.exp(result.read_lse.double() - torch.logsumexp(true_scores(made, query, 0.3, softcap), 1))
    score = true_scores(made, query, 0.3, softcap)
    true = torch.softmax(score, 1).masked_fill(~read.repeat_interleave(group, 0), 0.0).sum(1)
    torch.testing.assert_close(kept, true, rtol=0, atol=1e-5)
    if not estimate:
        picked = [r.nonzero()[:, 0].tolist() for r in read]
        out, _ = reference.attend(query, *made.rows, 0.3, softcap, picked)
        torch.testing.assert_close(result.out.double(), out, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 17, 300, 599, 600, 10_000])
def test_least_and_most(isa: str, threads: int, count: int) -> None:
    made, query = index(2, 600, 24, 16, torch.float32), random_query(8, 24)
    assert (made.choose(query, 0.05, mass=1.0, most=count).rows_read == min(count, 600)).all()
    assert (made.choose(query, 0.05, mass=0.01, least=count, most=count).rows_read == min(count, 600)).all()
    at_least = made.choose(query, 0.05, mass=0.01, least=count).rows_read
    assert (at_least >= min(count, 600)).all()
    if count < 300:
        assert (at_least < 600).all()


def test_most_holds_for_sharp_heads_too(isa: str) -> None:
    """Rows of next to no weight are neither counted nor read: else the search for `least` rows ends with all of them."""
    made, query = index(1, 2000, 16, 16, torch.float32), random_query(2, 16) * 3
    weight = shares(code_scores(made, query, 1.0), 1)[0]
    counted = int((weight >= 0.05 * 0.5 / 2000).sum())
    assert 10 < counted < 1000 and int((weight >= 2**-32).sum()) > counted + 100
    for most in (8, counted + 50):
        got = made.choose(query, 1.0, mass=0.95, least=most, most=most).rows_read
        assert got <= most and abs(int(got) - min(most, counted)) <= 2
    assert made.choose(query, 1.0, mass=1.0).rows_read <= int((weight >= 2**-31.2).sum())


@pytest.mark.parametrize("indexed", [0, 1, 128, 500, 600])
def test_rows_behind_the_index_are_read(isa: str, threads: int, indexed: int) -> None:
    made, query = index(2, 600, 24, 16, torch.bfloat16, indexed=indexed), random_query(6, 24)
    assert_dense(made.choose(query, 0.2, mass=1.0), made, query, 0.2)
    got = made.choose(query, 0.2, mass=0.9, most=3)
    assert (got.rows_read == min(3, indexed) + 600 - indexed).all()
    assert got.reads.read == got.rows_read.sum() and got.reads.scanned == 2 * indexed


@pytest.mark.parametrize("how", ["all", "rows", "runs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_rows_are_joined_and_count_as_kept(isa: str, dtype: torch.dtype, how: str) -> None:
    made, query = index(2, 300, 24, 16, torch.float32), random_query(6, 24)
    other = index(2, 90, 24, 16, dtype, seed=2)
    starts = torch.tensor([0, 3, 5])
    row, run = torch.tensor([[4, 40, 80, 3, 9], [5, 0, 10, 1, 2]], dtype=torch.int32)
    lists = {"all": None, "rows": native.Lists(starts, row), "runs": native.Lists(starts, row, run)}[how]
    near = near_rows(other, query, 0.2, lists)
    got = made.choose(query, 0.2, mass=1.0, near=near)
    picked = [list(range(90))] * 2
    if how != "all":
        parts = [range(r, r + (n if how == "runs" else 1)) for r, n in zip(row.tolist(), run.tolist(), strict=True)]
        picked = [[r for part in half for r in part] for half in (parts[:3], parts[3:])]
    near_out, near_lse = reference.attend(query, *other.rows, 0.2, lists=picked)
    out, lse = reference.attend(query, *made.rows, 0.2)
    both = torch.logaddexp(lse, near_lse)
    want = out * torch.exp(lse - both)[:, None] + near_out * torch.exp(near_lse - both)[:, None]
    torch.testing.assert_close(got.out.double(), want, rtol=0, atol=tolerance(other))
    torch.testing.assert_close(got.lse.double(), both, rtol=0, atol=tolerance(other))
    torch.testing.assert_close(got.read_lse.double(), lse, rtol=0, atol=1e-5)
    less = made.choose(query, 0.2, mass=0.9, near=near).rows_read
    assert torch.equal(less, made.choose(query, 0.2, mass=0.9, beside=near_lse.float()).rows_read)
    if how == "all":
        assert (less < made.choose(query, 0.2, mass=0.9).rows_read).all()


@pytest.mark.parametrize("more", [0.0, 2.0, 3.0, 100.0, float("-inf")])
def test_what_is_attended_elsewhere_counts_as_kept(isa: str, more: float) -> None:
    made, query = index(2, 300, 24, 16, torch.float32), random_query(6, 24)
    lse = torch.logsumexp(true_scores(made, query, 0.2), 1)
    beside = (lse + more).float()
    got = made.choose(query, 0.2, mass=0.9, beside=beside).rows_read
    share = 1 / (1 + math.exp(more))  # of the store in everything
    for rows, weight in zip(got.tolist(), shares(code_scores(made, query, 0.2), 2) * share, strict=True):
        heaviest = weight.sort(descending=True).values
        left = weight.sum() - heaviest.cumsum(0)
        assert rows == 0 if share <= 0.03 and more > 50 else weight.sum() - heaviest[:rows].sum() <= 0.101
        enough = heaviest[int((left > 0.1).sum())]
        assert rows <= (weight >= enough / 1.15).sum()


@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("mass", [0.7, 0.9])
def test_rows_scored_and_not_read_enter_as_their_blocks_mean_and_as_light_rows(
    isa: str, mass: float, dtype: torch.dtype, softcap: float
) -> None:
    made, query = index(2, 600, 40, 24, dtype, indexed=590), random_query(6, 40)
    got = made.choose(query, 0.3, softcap, mass=mass, estimate=True)
    read = made.chosen(query, 0.3, softcap, mass=mass, estimate=True)
    codes = code_scores(made, query, 0.3, softcap)
    scored = torch.full((6, 600), float("-inf"), dtype=torch.float64)
    scored[:, :590] = codes
    each = torch.nn.functional.pad(shares(codes, 2), (0, 10))
    light = [torch.stack([lightest(w, r, more) for w, r in zip(each, read, strict=True)]) for more in (0.99, 1.01)]
    read, (light, other) = read.repeat_interleave(3, 0), (one.repeat_interleave(3, 0) for one in light)
    score = torch.where(read, true_scores(made, query, 0.3, softcap), scored)
    value = made.rows[1].repeat_interleave(3, 0)
    mean = made.block_means.double().repeat_interleave(128, 1)[:, :600].repeat_interleave(3, 0)
    weight = torch.softmax(score, 1)
    left = (weight * ~read).sum(1)  # bf16 cuts a weight by up to 2^-7
    assert left.max() > 0.01 and light.any(1).all() and (read & ~light)[:, :590].any(1).all()
    out, same = (standing(weight, value, mean, read, one) for one in (light, other))
    wrong = 1e-5 + 0.01 * left[:, None] * (value.abs().amax() + 1) + 2 * (out - same).abs()
    assert ((got.out.double() - out).abs() <= wrong).all()
    assert ((got.lse.double() - torch.logsumexp(score, 1)).abs() <= 1e-5 + 0.01 * left).all()
    kept = torch.logsumexp(torch.where(read, score, float("-inf")), 1)
    torch.testing.assert_close(got.read_lse.double(), kept, rtol=0, atol=1e-5)


def lightest(weight: Tensor, read: Tensor, more: float) -> Tensor:
    """Rows below twice the least weight that is read: where its bin of an eighth of an octave begins."""
    least = weight[: len(weight) - 10][read[:-10]].min().float()
    begins = (least.view(torch.int32) >> 20 << 20).view(torch.float32)
    return (read & (weight < 2 * more * begins)).index_fill(0, torch.arange(590, 600), False)


def standing(weight: Tensor, value: Tensor, mean: Tensor, read: Tensor, light: Tensor) -> Tensor:
    """What is read, and of what is left half by its blocks' means and half by the light rows that were read."""
    left, some = weight * ~read, weight * light
    near = (some[:, None] @ value)[:, 0] / some.sum(1, keepdim=True)
    guessed = 0.5 * (left[:, None] @ mean)[:, 0] + 0.5 * left.sum(1, keepdim=True) * near
    return ((weight * read)[:, None] @ value)[:, 0] + guessed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimate", [False, True])
def test_bytes_are_counted(threads: int, dtype: torch.dtype, estimate: bool) -> None:
    made, query = index(3, 1300, 20, 12, dtype, indexed=1250), random_query(6, 20)
    reads = made.choose(query, 0.2, mass=0.5, estimate=estimate).reads
    codes = -(-1250 // 128) * 4 * 24 + -(-1250 // 16) * 16 * 12  # scales and zeros of a block; 24 numbers of 4 bits
    means = 10 * 2 * 12 if estimate else 0
    assert reads.bytes == 3 * (codes + means) + reads.read * row_bytes(dtype, 32)
    assert reads.scanned == 3 * 1250 and reads.groups == reads.estimated == 0
    assert min(reads.scan_seconds, reads.choose_seconds, reads.read_seconds) > 0


def test_several_jobs_at_once(isa: str, threads: int) -> None:
    cases = [index(2, 300, 20, 16, torch.float32), index(1, 5, 8, 8, torch.bfloat16), index(3, 0, 64, 30, torch.float16),
             index(4, 2049, 128, 128, torch.int8)]  # fmt: skip
    queries = [random_query(heads, case.key.shape[2]) for heads, case in zip((6, 8, 3, 4), cases, strict=True)]
    made = [c.selection(q.shape[0], mass=1.0) for c, q in zip(cases, queries, strict=True)]
    pending = selection.start([Aimed(m, q, 0.05) for m, q in zip(made, queries, strict=True)])
    for case, query, one, got in zip(cases, queries, made, pending.wait(), strict=True):
        assert_dense(Result(got.out, got.lse, one.read_lse, one.rows_read, one.reads), case, query, 0.05)
        assert (one.rows_read == case.key.shape[1]).all() and one.reads.read == case.key.shape[0] * case.key.shape[1]


STRANGE = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("where", ["key", "value", "query", "near", "beside"])
@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_number_is_not_hidden(isa: str, strange: float, where: str) -> None:
    """Where dense attention is no number the result is none, and elsewhere it is the same."""
    made, query = index(2, 300, 24, 16, torch.float32), random_query(6, 24)
    key, value = made.key.clone(), made.value.clone()
    options: dict[str, Any] = {}
    if where == "key":
        key[1, int(shares(true_scores(made, query, 0.2), 2)[1].argmin()), 3] = strange  # a row nobody would read
    elif where == "value":
        value[1, 200, 3] = strange
    elif where == "query":
        query[4, 3] = strange
    elif where == "near":
        rows = torch.zeros(2, 3, 24)
        rows[1, 1, 5] = strange
        options["near"] = near_rows(reindex(rows, torch.zeros(2, 3, 16), None, 3), query, 0.2)
    else:
        options["beside"] = torch.zeros(6)
        options["beside"][4] = strange
    made = reindex(key, value, None, 300)
    got = made.choose(query, 0.2, mass=0.05, estimate=True, **options)
    jobs: list[Any] = [native.Step(query, native.Rows(key, value), 300, 0.2)]
    if "near" in options:
        jobs.append(native.Step(query, options["near"].rows, 3, 0.2, joins=True))
    want = native.start(jobs).wait()[0]
    assert torch.equal(got.out.isfinite(), want.out.isfinite())
    first = got.out[:3] if where != "value" else got.out[:, 4:]
    assert first.isfinite().all()
    if where == "beside" and strange != strange:
        assert got.rows_read[1] == 300  # nothing is known of what is kept


@pytest.mark.parametrize("count", [1, 2, 3])
def test_torchs_own_threads_choose_the_same(count: int) -> None:
    made, query, before = index(2, 3000, 20, 16, torch.float32), random_query(6, 20), native.threads()
    try:
        native.set_threads(count)
        want = made.choose(query, 0.3, mass=0.8, estimate=True)
        if not native.share_openmp(True):
            pytest.skip("this torch has no GNU OpenMP")
        for _ in range(5):
            got = made.choose(query, 0.3, mass=0.8, estimate=True)
            assert torch.equal(got.out, want.out) and torch.equal(got.rows_read, want.rows_read)
    finally:
        native.share_openmp(False)
        native.set_threads(before)
