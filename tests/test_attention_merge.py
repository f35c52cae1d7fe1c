"""Promise: any split of the rows, merged, is one softmax over all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hgca_cli.attention import cudnn, dense
from hgca_cli.attention import merge as merging
from hgca_cli.attention.merge import Partial, absorb_sink, merge, take_in, take_in_plainly


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


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 12287, 12288, 16384, 60000])
def test_blocks_are_every_row_once(rows: int) -> None:
    key = torch.arange(rows).view(1, rows, 1)
    parts = list(cudnn.blocks(key, key + 1))
    sizes = [one.shape[1] for one, _ in parts]
    assert sizes == sorted(sizes, reverse=True) and all(size in cudnn.BLOCKS for size in sizes[:-1])
    assert sum(sizes) == rows and min(sizes, default=1) > 0
    if parts:
        assert torch.equal(torch.cat([one for one, _ in parts], 1), key)
        assert torch.equal(torch.cat([one for _, one in parts], 1), key + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [128, 96])
def test_the_kernel_takes_in_what_torch_does(width: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    heads, n = 3, merging.KERNEL_PAYS // width + 5
    device = torch.device("cuda")
    whole = Partial(torch.randn(heads, n, width, generator=rng), torch.randn(heads, n, generator=rng) * 9)
    more = Partial(torch.randn(n, heads, width, generator=rng).to(dtype), torch.randn(heads, n, generator=rng) * 9)
    whole.lse[0, :9] = more.lse[0, 5:20] = float("-inf")
    more.lse[1, 3], whole.lse[1, 5] = float("nan"), 1e4
    mine, other = (Partial(*(one.to(device) for one in part)) for part in (whole, more))
    other = Partial(other.out.transpose(0, 1), other.lse)  # as flash kernels lay it
    take_in(mine, other)
    take_in_plainly(whole, Partial(more.out.transpose(0, 1), more.lse))
    assert merging._kernel_works(device), "Triton is not there"
    torch.testing.assert_close(mine.out.cpu(), whole.out, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(mine.lse.cpu(), whole.lse, rtol=1e-6, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cudnn_attends_as_flash_does(dtype: torch.dtype, dim: int, rng: torch.Generator) -> None:
    """On GPUs whose flash kernels are as fast it is not asked."""
    device = torch.device("cuda")
    works = cudnn.works(device, dtype, dim)
    assert works == (torch.cuda.get_device_capability()[0] in cudnn.GENERATIONS)
    query = torch.randn(2, 4 * cudnn.WHOLE, dim, generator=rng).to(device, dtype)
    rows = torch.randn(2, cudnn.BLOCKS[-1], 2 * dim, generator=rng).to(device, dtype)
    how = {"scale": dim**-0.5, "planned": works}
    for given in ((query, rows[..., :dim], rows[..., dim:]), (query, rows[..., dim:], rows[..., :dim])):
        got = dense.attend(*given, **how)
        wanted = dense._plain(*given, dim**-0.5, 0.0, None, False)
        assert (got.out.float() - wanted.out).abs().max() <= 0.01 and (got.lse - wanted.lse).abs().max() <= 0.01
    several = torch.randn(8, cudnn.WHOLE, dim, generator=rng).to(device, dtype)
    own = rows[:, : cudnn.WHOLE, :dim], rows[:, : cudnn.WHOLE, dim:]
    got = dense.attend_causal(several, *own, **how)
    wanted = dense._plain(several, *(one.repeat_interleave(4, 0) for one in own), dim**-0.5, 0.0, None, True)
    assert (got.out.float() - wanted.out).abs().max() <= 0.03 and (got.lse - wanted.lse).abs().max() <= 0.02
