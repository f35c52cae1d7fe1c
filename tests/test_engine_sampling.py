"""What is drawn: the distribution transformers' processors give, from seeds that repeat, and never a crash."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.sampling import Sampler, candidates, largest, penalise
from hgca_cli.errors import ModelError

VOCABULARY = 3000


def logits(seed: int = 0, spread: float = 3.0, size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def shares(row: torch.Tensor, chosen: SamplingSettings) -> torch.Tensor:
    weights, ids = candidates((row - row.max()).numpy(), chosen, np.empty(len(row), dtype=np.float32))
    share = torch.from_numpy(weights / weights.sum())
    return share if ids is None else torch.zeros(len(row)).scatter(0, torch.from_numpy(ids), share)


def theirs(row: torch.Tensor, chosen: SamplingSettings) -> torch.Tensor:
    scores = row[None]
    empty = torch.zeros(1, 0, dtype=torch.long)
    warpers = [TemperatureLogitsWarper(chosen.temperature)]
    if chosen.top_k:
        warpers.append(TopKLogitsWarper(min(chosen.top_k, len(row))))
    if chosen.top_p < 1:
        warpers.append(TopPLogitsWarper(chosen.top_p))
    if chosen.min_p > 0:
        warpers.append(MinPLogitsWarper(chosen.min_p))
    for warper in warpers:
        scores = warper(empty, scores)
    return torch.softmax(scores[0], 0)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.01, 1.0, 3.0, 10.0]),
    size=st.sampled_from([1, 2, 50, VOCABULARY]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 10**6]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_same_distribution_as_transformers(
    seed: int, spread: float, size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    chosen = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = logits(seed, spread, size)
    ours, wanted = shares(row, chosen), theirs(row, chosen)
    # both add thousands of float32 shares up: where the sum is top_p to the last digit, one more token or less is right
    differing = (ours > 0) != (wanted > 0)
    assert int(differing.sum()) <= 1 and float(torch.where(differing, ours + wanted, 0).sum()) < 2e-3
    torch.testing.assert_close(torch.where(differing, 0, ours), torch.where(differing, 0, wanted), atol=2e-3, rtol=2e-3)
    assert float(ours.sum()) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=200), st.sampled_from([0.5, 1.1, 2.0]))
def test_same_penalty_as_transformers(seen: list[int], penalty: float) -> None:
    row = logits(3, size=100)
    mask = torch.zeros(100, dtype=torch.bool)
    mask[seen] = True
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen], dtype=torch.long), row[None].clone())[0]
    torch.testing.assert_close(torch.from_numpy(penalise(row.numpy(), mask.numpy(), penalty)), wanted)
    assert torch.equal(row, logits(3, size=100)), "the model's own stay as they are"


def test_penalty_follows_the_growing_text() -> None:
    row = torch.tensor([3.0, 2.9, 2.8, -1.0])
    sampler = Sampler(SamplingSettings(temperature=0, repetition_penalty=1.5))
    seen: list[int] = []
    for _ in range(3):
        seen.append(sampler(row, seen))
    assert seen == [0, 1, 2]
    assert Sampler(SamplingSettings(temperature=0, repetition_penalty=1.5))(row, [0, 1, 2]) == 0


@pytest.mark.parametrize(
    ("presence", "frequency", "wanted"),
    [
        (1.0, 0.0, [0, 1, 0, 0]),  # once, however often
        (0.0, 1.0, [0, 1, 0, 2]),
        (0.0, 0.4, [0, 0, 1, 0]),
        (-2.0, 0.0, [0, 0, 0, 0]),
    ],
)
def test_penalties_for_what_is_in_the_answer(presence: float, frequency: float, wanted: list[int]) -> None:
    row = torch.tensor([3.0, 2.5, 1.9, -1.0])
    settings = SamplingSettings(temperature=0, presence_penalty=presence, frequency_penalty=frequency)
    sampler, seen = Sampler(settings), [0, 0, 0]  # a prompt costs nothing
    for _ in range(4):
        seen.append(sampler(row, seen))
    assert seen[3:] == wanted


@pytest.mark.parametrize(
    "chosen", [SamplingSettings(temperature=1.0), SamplingSettings(temperature=1.0, top_k=8, top_p=0.95)]
)
def test_draws_follow_the_shares(chosen: SamplingSettings) -> None:
    """Pearson's chi-square over 20,000 draws; 19 degrees of freedom exceed 43.8 once in a thousand seeds."""
    row = logits(7, spread=1.0, size=20)
    sampler = Sampler(SamplingSettings(**{**vars(chosen), "seed": 5}))
    draws = 20_000
    counts = torch.bincount(torch.tensor([sampler(row, []) for _ in range(draws)]), minlength=20)
    wanted = shares(row, chosen) * draws
    assert counts[wanted == 0].sum() == 0
    possible = wanted > 0
    assert float(((counts - wanted)[possible] ** 2 / wanted[possible]).sum()) < 43.8


def test_the_same_seed_draws_the_same() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingSettings(temperature=1.0, seed=seed))
        return [sampler(logits(n), []) for n in range(30)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    free = Sampler(SamplingSettings())
    assert tokens(free.seed) == tokens(free.seed)
    assert Sampler(SamplingSettings()).seed != Sampler(SamplingSettings()).seed
    assert Sampler(SamplingSettings(seed=2**63 - 1)).seed == 2**63 - 1


def test_greedy_takes_the_lowest_of_equals() -> None:
    row = torch.zeros(1000)
    row[[77, 300, 999]] = 4.0
    for dtype in (torch.float32, torch.bfloat16):
        assert Sampler(SamplingSettings(temperature=0))(row.to(dtype), []) == 77
        assert largest(row.to(dtype)) == 77, "as it is found on a GPU"


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-300])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_almost_no_temperature_is_greedy(temperature: float, scale: float) -> None:
    row = logits(2) * scale
    sampler = Sampler(SamplingSettings(temperature=temperature, seed=1))
    assert {sampler(row, []) for _ in range(20)} == {int(row.argmax())}


@pytest.mark.parametrize(
    "chosen",
    [
        SamplingSettings(temperature=1.0, top_k=10**9, seed=1),
        SamplingSettings(temperature=1.0, top_p=1e-12, seed=1),
        SamplingSettings(temperature=1.0, min_p=1.0, seed=1),
        SamplingSettings(temperature=1e-9, top_k=1, top_p=1e-9, min_p=1.0, seed=1),
        SamplingSettings(temperature=1e9, seed=1),
    ],
)
def test_filters_always_leave_a_token(chosen: SamplingSettings) -> None:
    row = logits(4)
    assert 0 <= Sampler(chosen)(row, []) < VOCABULARY
    one = torch.full((VOCABULARY,), -math.inf)
    one[123] = -5.0  # everything else is masked by the model itself
    assert Sampler(chosen)(one, []) == 123


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_none_are_an_error(bad: float, temperature: float) -> None:
    row = logits(5)
    row[1234] = bad
    with pytest.raises(ModelError, match=r"not finite.*fp32"):
        Sampler(SamplingSettings(temperature=temperature))(row, [])
    with pytest.raises(ModelError, match="not finite"):
        largest(row)
    with pytest.raises(ModelError):
        Sampler(SamplingSettings(temperature=temperature))(torch.full((10,), -math.inf), [])


def test_equals_at_the_edge_of_a_filter_stay_together() -> None:
    row = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert (shares(row, SamplingSettings(temperature=1.0, top_k=2)) > 0).tolist() == [True, True, True, True, False]
