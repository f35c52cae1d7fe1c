"""Policies that follow the query, through a layer's steps: exact at a mass of 1, over segments, rewinds, prompts, sequences."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.select import cluster
from hgca_cli.attention.select.cluster import Cluster
from hgca_cli.attention.select.clusters import PATIENCE, SEGMENT
from hgca_cli.attention.select.scan import LEAST, Scan
from hgca_cli.attention.step import decode_attention
from hgca_cli.kv.layout import LayerLayout
from tests.test_attention_paths import GQA, SLIDING, WIDE, Text, run, state

POLICIES = ("scan", "cluster", "two-level")
SMALL = LayerLayout(heads=2, kv_heads=1, key_dim=8, value_dim=8)
DUE = SEGMENT + PATIENCE + 40  # tokens until a window of 16 rows leaves a segment that is due


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def clustered(layer: LayerState) -> int:
    return layer.selector._clusters.rows if isinstance(layer.selector, Cluster) else -1


def wanted_at(text: Text, first: int, count: int) -> Tensor:
    """text.wanted() for a few tokens of a long one."""
    group = text.layout.heads // text.layout.kv_heads
    key, value = (x.double().repeat_interleave(group, 0) for x in (text.key, text.value))
    score = text.query[:, first : first + count].double() @ key.transpose(-1, -2) * text.scale
    score = text.softcap * torch.tanh(score / text.softcap) if text.softcap else score
    at = torch.arange(first, first + count)
    score = score.masked_fill(torch.arange(key.shape[1]) > at[:, None], float("-inf"))
    return torch.softmax(score, -1) @ value


@pytest.mark.parametrize("layout", [GQA, WIDE, SLIDING], ids=["gqa", "wide keys", "sliding"])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_a_mass_of_one_is_exact(policy: str, layout: LayerLayout, softcap: float, rng: torch.Generator) -> None:
    text = Text(rng, 400, layout, softcap, torch.randn(layout.heads, generator=rng))
    layer = state(layout, window=16, context=400, select=policy, quality=1.0)
    got = run(text, layer, [1] * 20 + [150] + [1] * 100 + [30] + [1] * 100)
    assert (got - text.wanted()).abs().max() <= 1e-5
    if layout is SLIDING:
        assert layer.store is None
    else:
        assert layer.reads.share / layer.reads.steps > 0.99


def test_a_mass_of_one_is_exact_over_segments(policy: str, rng: torch.Generator) -> None:
    text = Text(rng, SEGMENT + DUE + 10, SMALL, 0.0, None)
    layer = state(SMALL, window=16, sinks=4, context=text.key.shape[1], select=policy, quality=1.0)
    first = DUE - 30
    text.feed(layer, 0, first)
    for step in (*range(first, first + 60), *range(SEGMENT + DUE - 10, SEGMENT + DUE + 5)):
        if step > layer.length:
            text.feed(layer, layer.length, step - layer.length)
        assert (text.feed(layer, step, 1) - wanted_at(text, step, 1)).abs().max() <= 1e-5
    assert clustered(layer) == (2 * SEGMENT if policy != "scan" else -1)


@pytest.mark.parametrize("quality", [0.9, 0.98])
def test_a_segment_is_used_from_one_step_on(policy: str, quality: float, rng: torch.Generator) -> None:
    """Every step stays near exact attention, and reads less than everything; a segment is due 256 rows after its end."""
    text = Text(rng, DUE + 40, GQA, 0.0, None)
    layer = state(GQA, window=16, sinks=4, context=DUE + 40, select=policy, quality=quality)
    text.feed(layer, 0, DUE - 30)
    seen, error, size = [], 0.0, 0.0
    for step in range(DUE - 30, DUE + 30):
        got, want = text.feed(layer, step, 1), wanted_at(text, step, 1)
        error, size = error + float((got - want).pow(2).sum()), size + float(want.pow(2).sum())
        assert layer.store is not None
        seen.append((layer.store.rows, clustered(layer)))
    if policy != "scan":
        assert all(rows == (SEGMENT if stored >= SEGMENT + PATIENCE else 0) for stored, rows in seen)
        assert {rows for _, rows in seen} == {0, SEGMENT}
    assert error / size < 0.6  # noise of a soft attention over random rows; dropping the store leaves about 40
    assert 0.0 < layer.reads.share / layer.reads.steps < 0.995


@pytest.mark.parametrize("back", [10, PATIENCE + 60, SEGMENT])
def test_rewind_then_other_tokens(policy: str, back: int, rng: torch.Generator) -> None:
    """Into the window, into what is behind the segment, into the segment; then a prompt, and until it is due again."""
    text = Text(rng, DUE + back + 120, SMALL, 0.0, None)
    layer = state(SMALL, window=16, sinks=4, context=text.key.shape[1], select=policy, quality=1.0)
    text.feed(layer, 0, DUE - 10)
    for step in range(DUE - 10, DUE + 10):
        text.feed(layer, step, 1)
    assert clustered(layer) in (SEGMENT, -1)
    length = layer.length - back
    layer.rewind(length)
    assert clustered(layer) in (0 if back == SEGMENT or length - 4 < SEGMENT else SEGMENT, -1)
    for tensor in (text.query, text.key, text.value):
        tensor[:, length:] = torch.randn(tensor[:, length:].shape, generator=rng)
    for size in (1, 1, 25, 1, back, 1, 20, *[1] * 20):
        first = layer.length
        got = text.feed(layer, first, size)
        assert (got - wanted_at(text, first, size)).abs().max() <= 1e-5
    assert clustered(layer) in (SEGMENT, -1)


def test_nothing_of_rows_that_were_rewound_is_left(policy: str, rng: torch.Generator) -> None:
    """Means of blocks would tell of them: a step after a rewind gives what one gives that never saw them."""
    text = Text(rng, 400, SMALL, 0.0, None)
    layers = [state(SMALL, window=16, context=400, select=policy, quality=0.5) for _ in range(2)]
    for layer in layers:
        text.feed(layer, 0, 300)
    text.value[:, 300:] = 1e4
    text.feed(layers[0], 300, 80)
    layers[0].rewind(300)
    for tensor in (text.query, text.key, text.value):
        tensor[:, 300:] = torch.randn(tensor[:, 300:].shape, generator=rng)
    for step in range(300, 330):
        got, want = (text.feed(layer, step, 1) for layer in layers)
        assert (got - want).abs().max() < 1.0 and got.abs().max() < 10.0


def test_an_int8_store_stays_within_the_bar(policy: str, rng: torch.Generator) -> None:
    text = Text(rng, DUE + 40, GQA, 0.0, None)
    text.key += torch.randn(GQA.kv_heads, 1, GQA.key_dim, generator=rng) * 2
    layer = state(GQA, torch.int8, window=16, context=DUE + 40, select=policy, quality=1.0)
    text.feed(layer, 0, DUE)
    got = torch.cat([text.feed(layer, step, 1) for step in range(DUE, DUE + 20)], 1)
    want = wanted_at(text, DUE, 20)
    assert 0 < (got - want).pow(2).sum() / want.pow(2).sum() <= 1e-3
    assert clustered(layer) in (SEGMENT, -1)


def test_the_same_tokens_give_the_same_bytes(policy: str) -> None:
    """However long the thread takes that clusters: a segment is used from the same step on."""
    outs = []
    for _ in range(2):
        text = Text(torch.Generator().manual_seed(5), DUE + 60, GQA, 0.0, None)
        layer = state(GQA, window=16, sinks=4, context=DUE + 60, select=policy, quality=0.9)
        text.feed(layer, 0, SEGMENT - 20)
        outs.append(torch.cat([text.feed(layer, step, 1) for step in range(SEGMENT - 20, DUE + 60)], 1))
        assert clustered(layer) in (SEGMENT, -1)
    assert torch.equal(outs[0], outs[1])


def test_a_long_prompts_segments_are_taken_in_as_they_are_made(rng: torch.Generator) -> None:
    text = Text(rng, 3 * SEGMENT + 900, SMALL, 0.0, None)
    layer = state(SMALL, window=16, context=3 * SEGMENT + 900, select="cluster", quality=0.9)
    layer.expect(3 * SEGMENT + 900)
    assert isinstance(layer.selector, Cluster)
    waiting = layer.selector._clusters._coming
    for first in range(0, 3 * SEGMENT + 900, 300):
        text.feed(layer, first, 300)
        for _, coming in waiting:
            coming.result()
        assert len(waiting) <= 1, "one may be too young to be used"
    assert clustered(layer) == 3 * SEGMENT, "before the first token"


def test_a_long_store_is_looked_at_block_by_block(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near exact attention as without, with fewer groups scored; nothing is left of a segment that was rewound."""
    text = Text(rng, SEGMENT + DUE, GQA, 0.0, None)
    centres = 3 * torch.randn(GQA.kv_heads, 16, GQA.key_dim, generator=rng)
    text.key += centres[:, torch.randint(16, text.key.shape[1:2], generator=rng)]
    text.query *= 2.0

    def made(blocks_from: int) -> LayerState:
        monkeypatch.setattr(cluster, "BLOCKS_FROM", blocks_from)
        return state(GQA, window=16, sinks=4, context=text.key.shape[1], select="two-level", quality=0.9)

    errors, groups = [], []
    for blocks_from in (1 << 30, SEGMENT):
        layer = made(blocks_from)
        text.feed(layer, 0, SEGMENT + DUE - 10)
        got, want = text.feed(layer, layer.length, 1), wanted_at(text, layer.length - 1, 1)
        errors.append(float((got - want).norm() / want.norm()))
        assert layer.reads.last is not None and clustered(layer) == 2 * SEGMENT
        groups.append(layer.reads.last.reads.groups)
    assert groups[0] == GQA.kv_heads * 2 * SEGMENT // 16 > groups[1] > 0
    assert errors[1] < errors[0] + 0.05 < 0.5
    layer.rewind(SEGMENT + PATIENCE + 40)
    once = made(SEGMENT)
    text.feed(once, 0, SEGMENT + PATIENCE + 39)
    text.feed(once, once.length, 1)
    assert clustered(once) == clustered(layer) == SEGMENT
    for mine, other in zip(blocks_of(layer), blocks_of(once), strict=True):
        assert torch.equal(mine[:, :1], other[:, :1])


def blocks_of(layer: LayerState) -> tuple[Tensor, Tensor]:
    assert isinstance(layer.selector, Cluster) and layer.selector._clusters.block_codes is not None
    return layer.selector._clusters.block_codes


def test_sequences_of_a_step_keep_apart(rng: torch.Generator) -> None:
    """One of each policy, and one without a store to speak of, in one call."""
    texts = [Text(rng, DUE + 20, GQA, 0.0, None) for _ in range(5)]
    kinds = [*POLICIES, "exact", "scan"]
    layers = [state(GQA, window=16, sinks=4, context=DUE + 20, select=kind) for kind in kinds]
    for layer in layers[:3]:
        assert isinstance(layer.selector, Scan)
        layer.selector.mass = 1.0
    for text, layer, length in zip(texts, layers, (DUE, DUE, DUE, 300, 5), strict=True):
        text.feed(layer, 0, length)
    for _ in range(15):
        at = [layer.length for layer in layers]
        query = torch.stack([t.query[:, n] for t, n in zip(texts, at, strict=True)])
        key = torch.stack([t.key[:, n : n + 1] for t, n in zip(texts, at, strict=True)])
        value = torch.stack([t.value[:, n : n + 1] for t, n in zip(texts, at, strict=True)])
        got = decode_attention(query, key, value, layers, scale=texts[0].scale)
        for out, text, n in zip(got, texts, at, strict=True):
            assert (out - wanted_at(text, n, 1)[:, 0]).abs().max() <= 1e-5


@pytest.mark.parametrize("depth", [60, SEGMENT // 2, SEGMENT + 100])
def test_a_needle_is_read(policy: str, depth: int, rng: torch.Generator) -> None:
    """One row unlike the others that the query asks for: alone in its group's mean it would drown."""
    text = Text(rng, DUE + 20, GQA, 0.0, None)
    text.query *= 0.05
    needle = torch.randn(GQA.kv_heads, GQA.key_dim, generator=rng)
    needle /= needle.norm(dim=-1, keepdim=True)
    text.key[:, depth], text.value[:, depth] = needle * 12, 7.0
    text.query[:, DUE + 10] = needle.repeat_interleave(3, 0) * 5
    layer = state(GQA, window=16, sinks=4, context=DUE + 20, select=policy, quality=0.9)
    text.feed(layer, 0, DUE)
    for step in range(DUE, DUE + 10):
        text.feed(layer, step, 1)
    got = text.feed(layer, DUE + 10, 1)
    assert (got - wanted_at(text, DUE + 10, 1)).abs().max() < 0.05 and got.mean() > 6.5
    assert layer.reads.last is not None and layer.store is not None
    if policy == "cluster":  # the mean of its group tells little of the needle: the others seem to hold the mass
        assert layer.reads.last.read < GQA.kv_heads * layer.store.rows * 0.9
    else:
        assert layer.reads.last.read <= GQA.kv_heads * LEAST * 1.2  # the last bin is read whole


@pytest.mark.parametrize("budget", [0.05, 0.2])
def test_a_budget_is_kept(policy: str, budget: float, rng: torch.Generator) -> None:
    text = Text(rng, DUE + 20, GQA, 0.0, None)
    layer = state(GQA, window=16, sinks=4, context=DUE + 20, select=policy, quality=1.0, budget=budget)
    text.feed(layer, 0, DUE)
    for step in range(DUE, DUE + 15):
        text.feed(layer, step, 1)
        assert layer.reads.last is not None and layer.store is not None
        most = max(1, round(budget * layer.store.rows))
        behind = 0 if policy != "cluster" else (8 + 1) * 16 + layer.store.rows - SEGMENT
        assert layer.reads.last.read <= GQA.kv_heads * (most + behind)


def test_a_forked_process_clusters_with_a_thread_of_its_own(rng: torch.Generator) -> None:
    text = Text(rng, DUE + 20, SMALL, 0.0, None)

    def whole() -> int:
        layer = state(SMALL, window=16, context=DUE + 20, select="cluster", quality=1.0)
        text.feed(layer, 0, DUE)
        text.feed(layer, DUE, 1)
        return clustered(layer)

    assert whole() == SEGMENT  # the thread is there
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not that of the test runner
        signal.alarm(30)
        os._exit(0 if whole() == SEGMENT else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_index_is_made_with_the_first_rows_of_a_store(policy: str, rng: torch.Generator) -> None:
    text = Text(rng, 60, GQA, 0.0, None)
    layer = state(GQA, window=16, sinks=2, context=60, select=policy, quality=0.9)
    text.feed(layer, 0, 10)
    layer.rewind(5)
    assert not layer.selector.__dict__.keys() & {"codes", "_clusters"}
    text.feed(layer, 5, 50)
    layer.settle()
    assert isinstance(layer.selector, Scan) and layer.store is not None
    assert layer.selector.codes.rows == layer.store.rows > 0
