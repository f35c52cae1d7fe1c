"""ln p of continuations is what one forward pass of the model gives, and policies read from the context's end on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hgca_cli.engine.engine import Engine
from hgca_cli.measure.likelihood import LikelihoodScorer
from tests.test_measure_fidelity import by_hand, text_ids
from tests.tiny_engine import tiny_engine


def whole(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] by transformers' own attention."""
    engine.loaded.model.set_attn_implementation("sdpa")
    logits: Any = engine.loaded.model(torch.tensor([ids])).logits[0]
    engine.loaded.model.set_attn_implementation("hgca")
    return logits.log_softmax(-1)


@pytest.mark.parametrize(("context", "continuation"), [(1, 1), (1, 70), (40, 1), (60, 30)])
def test_exact_is_the_models_own(context: int, continuation: int) -> None:
    engine = tiny_engine(window=16, context=100)
    ids = text_ids(context + continuation)
    scorer = LikelihoodScorer(engine)
    rows = whole(engine, ids)[context - 1 : -1]
    found = scorer.score(ids[:context], ids[context:])
    assert found.log_prob == pytest.approx(float(rows.gather(1, torch.tensor(ids[context:])[:, None]).sum()), abs=2e-3)
    assert not found.greedy
    likeliest = int(rows[0].argmax())
    assert scorer.score(ids[:context], [likeliest]).greedy  # the same context again, from the kept prompt


@pytest.mark.parametrize("select", ["window", "moving-average"])
@pytest.mark.parametrize(("context", "continuation"), [(1, 60), (50, 20)])
def test_a_policy_reads_from_the_contexts_end_on(select: str, context: int, continuation: int) -> None:
    engine = tiny_engine(window=16, context=100)
    engine.settings = replace(engine.settings, select=select)
    ids = text_ids(context + continuation)
    first = max(context - 1, 1)
    rows = by_hand(engine, engine.settings, ids[:-1], first).log_softmax(-1)
    wanted = float(rows.gather(1, torch.tensor(ids[first + 1 :])[:, None]).sum())
    if context == 1:  # the first token's own prediction, which the hand leaves out
        wanted += float(whole(engine, ids[:2])[0, ids[1]])
    found = LikelihoodScorer(engine).score(ids[:context], ids[context:]).log_prob
    assert found == pytest.approx(wanted, abs=2e-3)
    exact = tiny_engine(window=16, context=100)
    assert abs(found - LikelihoodScorer(exact).score(ids[:context], ids[context:]).log_prob) > 1e-2


def test_what_does_not_fit_loses_its_beginning() -> None:
    engine = tiny_engine(window=16, context=40)
    ids = text_ids(80)
    scorer = LikelihoodScorer(engine)
    assert scorer.score(ids[:75], ids[75:]) == scorer.score(ids[39:75], ids[75:])


def test_rolling_predicts_every_token_once_with_much_context() -> None:
    engine = tiny_engine(window=16, context=32)
    ids = text_ids(70)
    wanted = 0.0
    for before, piece in (([5], ids[:32]), (ids[31:32], ids[32:64]), (ids[37:64], ids[64:])):
        rows = whole(engine, [*before, *piece])[len(before) - 1 : -1]
        wanted += float(rows.gather(1, torch.tensor(piece)[:, None]).sum())
    assert LikelihoodScorer(engine).rolling(5, ids) == pytest.approx(wanted, abs=5e-3)
    assert LikelihoodScorer(engine).rolling(5, []) == 0.0
