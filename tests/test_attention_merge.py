"""Promise: any split of the rows, merged, is one softmax over all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hgca_cli.attention import dense
from hgca_cli.attention.merge import Partial, absorb_sink, merge, take_in


def softmax64(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    score = query.double() @ key.double().transpose(-1, -2) * scale
    return torch.softmax(score, -1) @ value.double()


def taken_in(a: Partial, b: Partial) -> Partial:
    """`take_in` as a function of both."""
    whole = Partial(a.out.clone(), a.lse.clone())
    take_in(whole, b)
    return whole


both_ways = pytest.mark.parametrize("merge", [merge, taken_in], ids=["merge", "take_in"])
Merge = Callable[[Partial, Partial], Partial]


@both_ways
@pytest.mark.parametrize("cut", [0, 1, 7, 50, 99, 100])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_merge_of_any_split_is_the_whole(cut: int, spread: float, merge: Merge, rng: torch.Generator) -> None:
    query = torch.randn(4, 3, 16, generator=rng) * spread
    key, value = torch.randn(4, 100, 16, generator=rng), torch.randn(4, 100, 8, generator=rng)
    scale = 0.25
    parts = [dense.attend(query, key[:, p], value[:, p], scale=scale) for p in (slice(0, cut), slice(cut, 100))]
    both = merge(*parts)
    assert (both.out - softmax64(query, key, value, scale)).abs().max() <= 1e-5
    score = query.double() @ key.double().transpose(-1, -2) * scale
    assert torch.allclose(both.lse.double(), torch.logsumexp(score, -1), rtol=1e-6, atol=1e-5)


@both_ways
def test_an_empty_part_gives_exactly_the_other(merge: Merge, rng: torch.Generator) -> None:
    some = Partial(torch.randn(5, 7, generator=rng), torch.randn(5, generator=rng) * 50)
    empty = Partial(torch.zeros(5, 7), torch.full((5,), float("-inf")))
    for merged in (merge(some, empty), merge(empty, some)):
        assert torch.equal(merged.out, some.out)
        assert torch.equal(merged.lse, some.lse)
    both = merge(empty, empty)
    assert torch.equal(both.out, torch.zeros(5, 7))
    assert bool(both.lse.isneginf().all())


@both_ways
@pytest.mark.parametrize("gap", [91.0, 1e4, 1e38])
def test_a_far_larger_side_wins_exactly(gap: float, merge: Merge) -> None:
    big = Partial(torch.full((2, 3), 1.25), torch.full((2,), gap))
    small = Partial(torch.full((2, 3), -9.0), torch.full((2,), 0.0))
    for merged in (merge(big, small), merge(small, big)):
        assert torch.equal(merged.out, big.out)
        assert torch.equal(merged.lse, big.lse)


def test_a_sink_takes_its_share(rng: torch.Generator) -> None:
    query, key = torch.randn(2, 1, 8, generator=rng), torch.randn(2, 5, 8, generator=rng)
    value, logit = torch.randn(2, 5, 8, generator=rng), torch.tensor([0.5, -2.0])
    got = absorb_sink(dense.attend(query, key, value, scale=1.0), logit)
    score = torch.cat([query.double() @ key.double().transpose(-1, -2), logit.double().reshape(2, 1, 1)], -1)
    want = torch.softmax(score, -1)[..., :-1] @ value.double()
    assert (got.out - want).abs().max() < 1e-6


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 16, 16), (40, 16, 16), (5, 16, 24)])
@pytest.mark.parametrize("masked", ["no", "bias", "causal"])
def test_dense_matches_float64(
    softcap: float, shape: tuple[int, int, int], masked: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, key_dim, value_dim = shape
    rows = queries if masked == "causal" else 33
    monkeypatch.setattr(dense, "SCORE_BYTES", 4 * 3 * rows * 2)  # two queries at a time in the plain path
    query, key = torch.randn(3, queries, key_dim, generator=rng), torch.randn(3, rows, key_dim, generator=rng)
    value = torch.randn(3, rows, value_dim, generator=rng)
    bias = None
    if masked == "bias":
        bias = torch.zeros(rows).masked_fill(torch.rand(rows, generator=rng) < 0.5, float("-inf"))
    got = dense.attend(query, key, value, scale=0.3, softcap=softcap, bias=bias, causal=masked == "causal")
    score = query.double() @ key.double().transpose(-1, -2) * 0.3
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    if bias is not None:
        score = score + bias.double()
    if masked == "causal":
        score = score.masked_fill(torch.ones(queries, rows, dtype=torch.bool).triu(1), float("-inf"))
    assert (got.out - torch.softmax(score, -1) @ value.double()).abs().max() < 1e-5
    assert (got.lse - torch.logsumexp(score, -1)).abs().max() < 1e-5


def test_dense_over_no_rows_is_empty() -> None:
    got = dense.attend(torch.ones(2, 3, 8), torch.ones(2, 0, 8), torch.ones(2, 0, 4), scale=1.0)
    assert got.out.shape == (2, 3, 4) and not got.out.any()
    assert bool(got.lse.isneginf().all())


@pytest.mark.parametrize("value_dim", [16, 8], ids=["torch's kernel", "plain products"])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("n", [1, 5, 70])
@pytest.mark.parametrize("group", [1, 3])
def test_a_chunk_over_itself(group: int, n: int, softcap: float, value_dim: int, rng: torch.Generator) -> None:
    query, key = torch.randn(2 * group, n, 16, generator=rng), torch.randn(2, n, 16, generator=rng)
    value = torch.randn(2, n, value_dim, generator=rng)
    got = dense.attend_causal(query, key, value, scale=0.25, softcap=softcap)
    score = query.double() @ key.double().repeat_interleave(group, 0).transpose(-1, -2) * 0.25
    score = softcap * torch.tanh(score / softcap) if softcap else score
    score.masked_fill_(torch.ones(n, n).triu(1).bool(), float("-inf"))
    wanted = torch.softmax(score, -1) @ value.double().repeat_interleave(group, 0)
    assert (got.out - wanted).abs().max() <= 1e-5
    assert (got.lse - torch.logsumexp(score, -1)).abs().max() <= 1e-5
