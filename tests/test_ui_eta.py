"""Seconds left: told early, and right although every chunk takes longer than the one before it."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from hgca_cli.events import PrefillProgress
from hgca_cli.ui.eta import Eta

TOTAL, CHUNK = 32768, 512
GROWTH = 3e-4  # by operations, of the default model


def seconds(growth: float, start: int = 0, *, noise: float = 0.0) -> list[float]:
    """Of each chunk from `start` on: a millisecond a token at first, and `growth` of it more for every row before."""
    rng = random.Random(7)
    return [
        CHUNK * 1e-3 * (1 + growth * (first + CHUNK / 2)) * (1 + rng.uniform(-noise, noise))
        for first in range(start, TOTAL, CHUNK)
    ]


def told(chunks: list[float], growth: float, start: int = 0) -> list[float | None]:
    """What is left, as it is told before the first chunk and after each."""
    eta = Eta()
    spent = [0.0, *accumulate(chunks)]
    events = [PrefillProgress(TOTAL, start, start + i * CHUNK, at, growth) for i, at in enumerate(spent)]
    return [eta.add(event) for event in events]


@pytest.mark.parametrize("start", [0, 8192], ids=["whole prompt", "a part was cached"])
@pytest.mark.parametrize("growth", [0.0, GROWTH, 3e-3])
def test_what_costs_what_was_predicted_is_told_from_the_first_chunk(growth: float, start: int) -> None:
    chunks = seconds(growth, start)
    first, *rest = told(chunks, growth, start)
    assert first is None
    for done, left in enumerate(rest, 1):
        assert left == pytest.approx(sum(chunks[done:]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("wrong", [0.6, 1.0, 1.7])
def test_chunks_that_were_seen_put_a_wrong_prediction_right(wrong: float) -> None:
    chunks = seconds(GROWTH, noise=0.05)
    left = told(chunks, wrong * GROWTH)
    flat = [sum(chunks[:done]) / done * (len(chunks) - done) if done else 0.0 for done in range(len(chunks))]
    for done, bound in ((16, 0.25), (32, 0.08), (56, 0.08)):
        true = sum(chunks[done:])
        assert abs(left[done] - true) <= bound * true, done
        assert abs(left[done] - true) < abs(flat[done] - true), "a flat rate would have been as good"


def test_a_machine_that_gets_faster_is_no_reason_for_less_than_nothing() -> None:
    left = told([1.0 / (1 + i) for i in range(TOTAL // CHUNK)], GROWTH)
    assert all(one is None or one >= 0.0 for one in left)
    assert left[-1] == 0.0


def test_every_prompt_is_its_own() -> None:
    eta = Eta()
    eta.add(PrefillProgress(1000, 0, 0, 0.0))
    eta.add(PrefillProgress(1000, 0, 500, 50.0))
    assert eta.add(PrefillProgress(1000, 0, 0, 0.0)) is None
    assert eta.add(PrefillProgress(1000, 0, 500, 5.0)) == pytest.approx(5.0)
