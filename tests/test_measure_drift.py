"""A policy's own text, beside exact attention over the same tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.measure.drift import by_quarter, distinct_runs, measure_drift
from tests.test_measure_fidelity import by_hand, text_ids
from tests.tiny_engine import tiny_engine

TOKENS = 22


def test_quarters_and_repetition() -> None:
    assert by_quarter([1.0, 2.0, 3.0, 4.0]) == (1.0, 2.0, 3.0, 4.0)
    assert by_quarter([float(one) for one in range(10)]) == (0.5, 3.0, 5.5, 8.0)
    assert distinct_runs([1, 2, 3, 4, 5, 6]) == 1.0 and distinct_runs([1, 2, 3]) == 1.0
    assert distinct_runs([7] * 11) == pytest.approx(1 / 8) and distinct_runs([1, 2] * 5) == pytest.approx(2 / 7)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_figures_are_of_the_tokens_that_were_written(temperature: float) -> None:
    engine = tiny_engine(window=16, context=80)
    ids = text_ids(50)
    policies = {one: replace(engine.settings, select=one) for one in ("window", "exact")}
    sampling = SamplingSettings(temperature=temperature, seed=4)
    found = dict(measure_drift(engine, ids, TOKENS, policies, sampling))
    assert found["exact"].kl == 0.0 and found["exact"].growth == found["exact"].agreement == 1.0

    written = list(ids)  # the same by hand, one forward pass for each token
    generator = torch.Generator().manual_seed(4)
    for _ in range(TOKENS):
        logits = by_hand(engine, policies["window"], written, len(ids) - 1)[-1]
        logits[list(engine.loaded.tokenizer.end_ids)] = -math.inf
        if temperature == 0.0:
            written.append(int(logits.argmax()))
            continue
        reached = torch.softmax(logits, 0).double().cumsum(0)
        mark = torch.rand(1, dtype=torch.float64, generator=generator) * reached[-1]
        written.append(int(torch.searchsorted(reached, mark, right=True)))
    one = found["window"]
    assert one.text == engine.loaded.tokenizer.decode(written[len(ids) :])
    exact = by_hand(engine, engine.settings, written[:-1], len(ids) - 1).log_softmax(-1)
    other = by_hand(engine, policies["window"], written[:-1], len(ids) - 1).log_softmax(-1)
    divergence = (exact.exp() * (exact - other)).sum(-1)
    assert one.kl == pytest.approx(float(divergence.mean()), abs=1e-5) and one.kl > 1e-3
    assert one.quarters == pytest.approx(by_quarter(divergence.tolist()), abs=1e-5)
    assert one.growth == pytest.approx(one.quarters[3] / one.quarters[0])
    assert one.agreement == pytest.approx(float((exact.argmax(-1) == other.argmax(-1)).float().mean()))
    assert one.distinct == distinct_runs(written[len(ids) :]) and one.read_share == 0.0
