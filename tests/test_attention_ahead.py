"""Tokens whose readings go on from the token before: bit for bit what looking at every layer anew gives, and counted as that."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.attention.ahead import Ahead
from hgca_cli.attention.reading import Reading
from hgca_cli.config import CacheSettings
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.joint import JointCache, joint_forward
from hgca_cli.hf.load import LoadedModel
from tests.tiny_grids import grid_loaded

POLICIES = ["exact", "scan", "two-level", "page", "window"]


@pytest.fixture
def loaded(rng: torch.Generator) -> LoadedModel:
    return grid_loaded(rng)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every token of one call, whether it went on from the one before."""
    seen: list[bool] = []
    take = Ahead.take

    def watched(self: Ahead) -> Any:
        seen.append((found := take(self)) is not None)
        return found

    monkeypatch.setattr(Ahead, "take", watched)
    return seen


def sequence_of(loaded: LoadedModel, length: int, seed: int = 3, **settings: Any) -> Sequence:
    given = CacheSettings(**{"window": 64, "sinks": 2, "context": 900} | settings)
    made = Sequence(HybridCache(loaded.model.config, given))
    read(loaded, made, torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(seed)))
    return made


def read(loaded: LoadedModel, sequence: Sequence, ids: torch.Tensor) -> torch.Tensor:
    """A turn's prompt."""
    sequence.cache.expect(ids.shape[1])
    sequence.tokens += ids[0].tolist()
    return sequence.forward(loaded, ids)


def facts_of(sequence: Sequence) -> list[Any]:
    told: list[Any] = [sequence.cache.rows(), sequence.cache.meter._left, sequence.cache.meter.count]
    for layer in sequence.cache.layers:
        one = layer.states[0]
        told.append((one.length, one.window.start, one.reads.steps, one.reads.share, one.reads.share_bytes))
    return told


@pytest.mark.parametrize("select", POLICIES)
@pytest.mark.parametrize("kv_dtype", [None, "bf16", "int8"])
@pytest.mark.parametrize("length", [20, 400])  # nothing leaves at first; a store from the beginning
def test_whatever_happens_between_tokens(
    select: str, kv_dtype: str | None, length: int, loaded: LoadedModel, taken: list[bool]
) -> None:
    quality = None if select in ("exact", "window", "page") else 0.9
    ours, wanted = (sequence_of(loaded, length, select=select, quality=quality, kv_dtype=kv_dtype) for _ in range(2))
    dice, tokens = random.Random(length), torch.Generator().manual_seed(8)

    def both(act: Any) -> list[Any]:
        return [act(one) for one in (ours, wanted)]

    def turn(count: int) -> Any:
        ids = torch.randint(0, 300, (1, count), generator=tokens)
        return lambda one: read(loaded, one, ids)

    for step in range(260):
        chance = dice.random()
        if chance < 0.02:
            back = dice.choice([1, 3, 20])
            both(lambda one, back=back: one.rewind(one.cached - back))
        elif chance < 0.04:
            got, want = both(turn(dice.choice([1, 2, 40])))
            assert torch.equal(got, want)
        elif chance < 0.05:
            both(lambda one, on=bool(step % 2): one.cache.set_read_all(on))
        elif chance < 0.06:
            mass = dice.choice([0.5, 0.95, 1.0])
            both(lambda one, mass=mass: one.cache.aim_at(mass))
        elif chance < 0.07:
            both(lambda one: one.cache.put_away())
            both(lambda one: one.cache.bring_back())
        elif chance < 0.08:
            both(lambda one: one.cache.reset_counters())
        token = torch.randint(0, 300, (1, 1), generator=tokens)
        both(lambda one, token=token: one.tokens.append(int(token)))
        wanted.cache.ahead = None
        got, want = both(lambda one, token=token: one.forward(loaded, token))
        assert torch.equal(got, want), step
        assert facts_of(ours) == facts_of(wanted), step
    assert 150 < sum(taken) < 260


@pytest.mark.parametrize("select", POLICIES)
@pytest.mark.skipif(native.lib.hgca_most_vectors() < 3, reason="floats are faster here")
def test_several_sequences(select: str, loaded: LoadedModel, taken: list[bool]) -> None:
    """One is rewound, and one takes a token by itself, while the others go on."""
    quality = None if select in ("exact", "window", "page") else 0.9
    sides = [
        [sequence_of(loaded, length, length, select=select, quality=quality) for length in (30, 300, 410)]
        for _ in range(2)
    ]
    joints = [JointCache([one.cache for one in side]) for side in sides]
    tokens = torch.Generator().manual_seed(8)
    for step in range(90):
        ids = torch.randint(0, 300, (3,), generator=tokens).tolist()
        results = []
        for side, joint in zip(sides, joints, strict=True):
            if step % 30 == 17:
                side[1].rewind(side[1].cached - 2)
            if step % 30 == 23:
                side[2].tokens.append(7)
                side[2].forward(loaded, torch.tensor([[7]]))
            if joint is joints[1]:
                joint.ahead = None
            for one, token in zip(side, ids, strict=True):
                one.tokens.append(token)
            results.append(joint_forward(loaded, joint, ids, [one.cached for one in side]))
        assert torch.equal(*results), step
        for one, other in zip(*sides, strict=True):
            assert facts_of(one) == facts_of(other)
    assert 40 < sum(taken) < 90


def test_few_layers_are_looked_at(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where rows come to the store, or one layer is measured: that is what it is for."""
    sequence, looked = sequence_of(loaded, 400, select="scan", quality=0.9), [0]
    sequence.cache.meter.early = 0
    choose = Reading.choose

    def counted(self: Reading, layer: Any) -> bool:
        looked[0] += 1
        return choose(self, layer)

    monkeypatch.setattr(Reading, "choose", counted)
    for _ in range(64):
        sequence.tokens.append(5)
        sequence.forward(loaded, torch.tensor([[5]]))
    layers = len(sequence.cache.layers)
    assert looked[0] <= layers * (2 + 2 * 64 // sequence.cache.settings.block + 64 // 16 + 1)


def test_a_full_context_is_refused_as_before(loaded: LoadedModel) -> None:
    sequence = sequence_of(loaded, 300, context=310)
    with pytest.raises(Exception, match="do not fit into a context of 310"):
        for _ in range(20):
            sequence.tokens.append(5)
            sequence.forward(loaded, torch.tensor([[5]]))
    assert sequence.cached == 310


def test_memory_is_given_back_with_the_rows(loaded: LoadedModel) -> None:
    sequence = sequence_of(loaded, 300)
    for _ in range(5):
        sequence.tokens.append(5)
        sequence.forward(loaded, torch.tensor([[5]]))
    assert sequence.cache.ahead is not None
    sequence.close()
    assert sequence.cache.ahead is None
