"""The paper's policy against its definition, token by token in plain Python."""

from __future__ import annotations

import pytest
import torch

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select import moving_average
from hgca_cli.attention.select.contract import EVERY as EVERY_ROW
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.config import CacheSettings
from hgca_cli.kv.layout import LayerLayout
from tests.test_attention_paths import CPU, Text, run

LAYOUT = LayerLayout(heads=6, kv_heads=2, key_dim=16, value_dim=16)
WINDOW, SINKS = 7, 2  # a window below 8 evicts row by row, as the definition below does


def make(**options: object) -> LayerState:
    settings = CacheSettings(window=WINDOW, sinks=SINKS, context=80, select="moving-average")
    selector = MovingAverage(LAYOUT, WINDOW, **{"alpha": 2 / (WINDOW + 1), **options})  # type: ignore[arg-type]
    return LayerState(LAYOUT, settings, selector, CPU, torch.float32, torch.float32)


def weights(text: Text) -> torch.Tensor:
    """Full causal softmax weights f64 [heads, n, n]."""
    score = text.query.double() @ text.key.double().repeat_interleave(3, 0).transpose(-1, -2) * text.scale
    return torch.softmax(score.masked_fill(torch.ones_like(score, dtype=torch.bool).triu(1), float("-inf")), -1)


def defined_sets(text: Text, n: int, alpha: float, beta: float, pool: str) -> list[list[int]]:
    """Store rows (position - sinks) that pass when evicted, by the definition."""
    weight = weights(text)
    lists: list[list[int]] = [[] for _ in range(6 if pool == "none" else 2)]
    for row in range(SINKS, n - WINDOW + 1):
        average = torch.zeros(6, dtype=torch.float64)
        leaves = row + WINDOW - 1  # the last token that finds it in the window
        if leaves >= n:
            continue
        for token in range(row, leaves + 1):
            average = (1 - alpha) * average + alpha * weight[:, token, row]
        grouped = average.view(2, 3)
        pooled = {"mean": grouped.mean(1), "max": grouped.amax(1), "none": average}[pool]
        for index, value in enumerate(pooled):
            if value > beta / (leaves + 1):
                lists[index].append(row - SINKS)
    return lists


def averages(layer: LayerState) -> torch.Tensor:
    selector = layer.selector
    assert isinstance(selector, MovingAverage)
    return selector.average


def watch_only(layer: LayerState) -> None:
    """Read every row, so that the weights are those of full attention whatever the policy chose."""
    layer.selector.choose = lambda query, store: EVERY_ROW  # type: ignore[method-assign]


@pytest.mark.parametrize("weighed", [1, 400, 1 << 22])
@pytest.mark.parametrize("feed", [[60], [13, 20, 27], [2, 1, 57], [60 - 9] + [1] * 9])
def test_chunks_and_steps_give_the_same_averages(
    feed: list[int], weighed: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_average, "WEIGHED", weighed)  # row by row, a few rows at a time, all at once
    text = Text(rng, 60, LAYOUT, 0.0, None)
    text.query *= 3
    by_token, by_chunk = make(), make()
    watch_only(by_token)
    watch_only(by_chunk)
    by_chunk.expect(sum(size for size in feed if size > 1))
    run(text, by_token, [1] * 60)
    run(text, by_chunk, feed)
    assert averages(by_token).shape == averages(by_chunk).shape == (6, WINDOW - 1)
    assert torch.allclose(averages(by_token), averages(by_chunk), atol=1e-6)
    worth = [list(layer.selector._worth) for layer in (by_token, by_chunk)]  # type: ignore[attr-defined]
    rows = [[r.tolist() for r in layer.selector._rows] for layer in (by_token, by_chunk)]  # type: ignore[attr-defined]
    common = [sorted(set(a) & set(b)) for a, b in zip(*rows, strict=True)]
    assert sum(map(len, common)) > 10  # the threshold 1 / length differs within a chunk: sets may, averages may not
    for index, shared in enumerate(common):
        mine = [dict(zip(r[index], w[index].tolist(), strict=True)) for r, w in zip(rows, worth, strict=True)]
        assert all(abs(mine[0][row] - mine[1][row]) < 1e-6 for row in shared)


@pytest.mark.parametrize("pool", ["mean", "max", "none"])
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_decoding_builds_the_sets_of_the_definition(pool: str, beta: float, rng: torch.Generator) -> None:
    """Exact selection for the outputs, so that weights are those of full attention; the policy only watches."""
    text = Text(rng, 60, LAYOUT, 0.0, None)
    text.query *= 3
    layer = make(beta=beta, pool=pool)
    selector = layer.selector
    assert isinstance(selector, MovingAverage)
    choose = selector.choose
    watch_only(layer)
    run(text, layer, [1] * 60)
    layer.settle()
    assert layer.store is not None
    wanted = defined_sets(text, 60, 2 / (WINDOW + 1), beta, pool)
    chosen = choose(torch.zeros(6, 16), layer.store)
    assert chosen is not None and chosen.row is not None and chosen.row_start is not None
    start = chosen.row_start.tolist()
    got = [chosen.row[start[i] : start[i + 1]].tolist() for i in range(len(start) - 1)]
    assert got == wanted
    assert 0 < sum(map(len, got)) < len(got) * layer.store.rows


@pytest.mark.parametrize("weighed", [1, 100, 1 << 22])
def test_an_appended_turn_judges_every_stored_row_again(
    weighed: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_average, "WEIGHED", weighed)
    text = Text(rng, 60, LAYOUT, 0.0, None)
    text.query *= 3
    layer = make(beta=1.0)
    layer.expect(40)
    run(text, layer, [40])
    layer.expect(12)
    text.feed(layer, 40, 8)  # the turn's last chunk judges, by its own queries
    text.feed(layer, 48, 4)
    assert layer.store is not None and isinstance(layer.selector, MovingAverage)
    stored = 48 - SINKS - (WINDOW - 1)  # rows in the store when the last chunk came
    mean = weights(text)[:, 48:52, SINKS : SINKS + stored].mean(1).view(2, 3, -1).mean(1)
    for rows, worth in zip(layer.selector._rows, mean, strict=True):
        assert [row for row in rows.tolist() if row < stored] == torch.nonzero(worth > 1 / 52).flatten().tolist()


def test_the_first_turn_is_not_judged_again(rng: torch.Generator) -> None:
    text = Text(rng, 60, LAYOUT, 0.0, None)
    first, second = make(), make()
    first.expect(40)
    second.expect(44)
    run(text, first, [40])
    run(text, second, [40])
    before = [rows.tolist() for rows in first.selector._rows]  # type: ignore[attr-defined]
    text.feed(second, 40, 4)
    after = [rows.tolist() for rows in second.selector._rows]  # type: ignore[attr-defined]
    assert before and all(now[: len(old)] == old for old, now in zip(before, after, strict=True))


@pytest.mark.parametrize("budget", [0.05, 0.2])
def test_a_budget_keeps_the_largest_averages(budget: float, rng: torch.Generator) -> None:
    text = Text(rng, 60, LAYOUT, 0.0, None)
    capped, free = make(beta=0.25, budget=budget), make(beta=0.25)
    run(text, capped, [59, 1])
    run(text, free, [59, 1])
    for layer in (capped, free):
        layer.settle()
        assert layer.store is not None
    some, every = (layer.selector.choose(torch.zeros(6, 16), layer.store) for layer in (capped, free))
    most = int(budget * capped.store.rows)
    assert some is not None and every is not None and some.row is not None and every.row is not None
    assert some.row_start is not None
    assert some.row_start.diff().tolist() == [most, most] and len(every.row) > 2 * most
    first = some.row[:most].tolist()
    ranked = sorted(zip(free.selector._worth[0].tolist(), free.selector._rows[0].tolist(), strict=True))  # type: ignore[attr-defined]
    assert first == sorted(row for _, row in ranked[len(ranked) - most :])


def test_rewinding_forgets_rows_that_are_gone(rng: torch.Generator) -> None:
    text = Text(rng, 60, LAYOUT, 0.0, None)
    layer = make(beta=0.25)
    run(text, layer, [50] + [1] * 10)
    layer.rewind(20)
    assert layer.store is not None
    chosen = layer.selector.choose(torch.zeros(6, 16), layer.store)
    assert chosen is not None and chosen.row is not None and int(chosen.row.max()) < layer.store.rows == 18
    text.feed(layer, 20, 1)
    assert layer.length == 21
