"""One prefill for all policies is as good as one each, and the figures are those of the definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.config import SELECTORS, CacheSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.events import Event, Worked
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.measure.fidelity import Fidelity, kl_divergence, mean_fidelity, measure_fidelity, tokens_of
from hgca_cli.measure.prompt import Prompt, feed
from tests.tiny_engine import tiny_engine

POSITIONS = 24


def text_ids(count: int, seed: int = 3) -> list[int]:
    return torch.randint(10, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_hand(engine: Engine, settings: CacheSettings, ids: list[int], first: int) -> torch.Tensor:
    """Logits [positions, vocabulary] after ids[first:], the rest read by a cache of its own."""
    sequence = engine.new_sequence(settings)
    sequence.cache.expect(first)
    for chunk in torch.tensor([ids[:first]]).split(engine.prefill_chunk, dim=1):
        sequence.forward(engine.loaded, chunk)
    return torch.stack([sequence.forward(engine.loaded, torch.tensor([[token]])) for token in ids[first:]])


@pytest.mark.parametrize("kv_dtype", [None, "bf16", "int8"])
@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("length", [1, 2, 17, 100])  # nothing but sinks, sinks full, ring full, a store
def test_rows_that_are_given_on_are_rows_that_were_read(select: str, kv_dtype: str | None, length: int) -> None:
    engine = tiny_engine(window=16, context=160)
    settings = replace(engine.settings, select=select, kv_dtype=kv_dtype)
    ids = text_ids(length + 40)
    prompt = Prompt(engine, ids[:length])
    prompt.sequence(replace(settings, select="exact")).close()
    ours = torch.stack([logits for logits, _ in feed(engine, prompt.sequence(settings), ids[length:])])
    torch.testing.assert_close(ours, by_hand(engine, settings, ids, length), rtol=0, atol=1e-4)


def test_a_model_that_slides_reads_again() -> None:
    engine = tiny_engine(window=16, sliding=12)
    ids = text_ids(90)
    heard: list[Event] = []
    prompt = Prompt(engine, ids[:60], heard.append)
    for _ in range(2):
        ours = torch.stack([logits for logits, _ in feed(engine, prompt.sequence(engine.settings), ids[60:])])
    torch.testing.assert_close(ours, by_hand(engine, engine.settings, ids, 60), rtol=0, atol=1e-4)
    read = sum(event.tokens for event in heard if isinstance(event, Worked) and event.stage == "read")
    assert read == 120 == prompt.reads([engine.settings, engine.settings])


@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_its_definition(seed: int, rng: torch.Generator) -> None:
    p, q = torch.randn(2, 5, 40, generator=rng).double().log_softmax(-1)
    wanted = [
        sum(math.exp(a) * (a - b) for a, b in zip(x.tolist(), y.tolist(), strict=True))
        for x, y in zip(p, q, strict=True)
    ]
    assert kl_divergence(p, q).tolist() == pytest.approx(wanted)
    assert kl_divergence(p + 3, q - 1).tolist() == pytest.approx(wanted)  # logits will do
    assert kl_divergence(p, p).tolist() == [0.0] * 5
    p[0, 0] = -math.inf  # what exact attention rules out costs nothing, the other way round everything
    assert math.isfinite(kl_divergence(p, q)[0]) and kl_divergence(q, p)[0] == math.inf


def test_every_figure_of_a_policy() -> None:
    engine = tiny_engine(window=16, context=128)
    ids = text_ids(129)
    policies = {
        name: replace(engine.settings, select=select, budget=budget)
        for name, select, budget in (
            ("w", "window", None),
            ("m", "moving-average", None),
            ("m5", "moving-average", 0.05),
        )
    }
    heard: list[Event] = []
    found = dict(measure_fidelity(engine, ids, POSITIONS, policies, heard.append))
    assert list(found) == ["exact", "w", "m", "m5"]
    first = 128 - POSITIONS
    exact = by_hand(engine, engine.settings, ids[:-1], first).log_softmax(-1)
    truth = torch.tensor(ids[first + 1 :])
    for name, settings in policies.items():
        one = found[name]
        other = by_hand(engine, settings, ids[:-1], first).log_softmax(-1)
        divergence = (exact.exp() * (exact - other)).sum(-1)
        assert one.kl == pytest.approx(float(divergence.mean()), abs=1e-5) and one.kl > 1e-3
        assert one.kl_error == pytest.approx(float(divergence.std()) / math.sqrt(POSITIONS), abs=1e-5)
        assert one.agreement == pytest.approx(float((exact.argmax(-1) == other.argmax(-1)).float().mean()))
        nll = -float(other.gather(1, truth[:, None]).mean())
        assert one.nll == pytest.approx(nll, abs=1e-5) and one.perplexity == pytest.approx(math.exp(nll), rel=1e-4)
        exact_nll = -float(exact.gather(1, truth[:, None]).mean())
        assert one.exact_perplexity == pytest.approx(math.exp(exact_nll), rel=1e-4)
        assert one.perplexity_change == pytest.approx(math.exp(nll - exact_nll) - 1, abs=1e-4)
        assert one.positions == POSITIONS and one.exact_seconds == found["exact"].seconds > 0
    assert found["exact"].kl == 0.0 and found["exact"].agreement == found["exact"].read_share == 1.0
    assert found["w"].read_share == found["w"].bytes_read == 0.0
    assert 0 < found["m5"].read_share <= 0.05 < found["m"].read_share < 1
    stored = 2 * 2 * (128 - 2 - 16) * 2 * 8 * 4  # layers, KV heads, rows, key and value, fp32: give or take a block
    assert found["exact"].bytes_read == pytest.approx(stored, rel=0.05)
    done = {
        stage: sum(e.tokens for e in heard if isinstance(e, Worked) and e.stage == stage)
        for stage in ("read", "decode")
    }
    assert done == tokens_of(engine, len(ids), POSITIONS, list(policies.values()))


def test_reading_everything_is_exact_attention() -> None:
    engine = tiny_engine(window=16, context=128)
    everything = replace(engine.settings, select="moving-average", budget=None)
    kept: list[object] = []

    class KeepsAll(MovingAverage):
        def __init__(self, layout: LayerLayout, window: int, **more: object) -> None:
            super().__init__(layout, window, beta=-1.0)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgca_cli.attention.select.MovingAverage", KeepsAll)
        found = dict(measure_fidelity(engine, text_ids(129), POSITIONS, {"all": everything}))
    assert kept and found["all"].read_share == 1.0
    assert found["all"].kl < 1e-6 and found["all"].agreement == 1.0


def test_texts_together() -> None:
    one = Fidelity(100, 0.01, 0.001, 0.9, 2.0, 1.9, 0.1, 0.2, 10.0, 0.05, 0.06)
    other = Fidelity(300, 0.03, 0.002, 0.7, 3.0, 3.0, 0.3, 0.4, 30.0, 0.07, 0.08)
    both = mean_fidelity([one, other])
    assert both.positions == 400 and both.kl == pytest.approx(0.025) and both.agreement == pytest.approx(0.75)
    assert both.kl_error == pytest.approx(math.sqrt((0.25 * 0.001) ** 2 + (0.75 * 0.002) ** 2))
    assert both.perplexity_change == pytest.approx(math.exp(0.25 * 0.1) - 1)
    assert both.bytes_read == pytest.approx(25.0) and both.seconds == pytest.approx(0.065)
