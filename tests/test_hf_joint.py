"""A token of each of several sequences in one call a layer: what each gives alone, whatever length it has."""

from __future__ import annotations

import threading
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine import together
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.batch_metrics import BatchReadings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.sequence import Sequence
from hgca_cli.errors import ContextOverflowError
from hgca_cli.hf import decoder, straight
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.joint import JointCache, joint_forward, most_in_a_call, pays_from
from hgca_cli.hf.linear import FEW
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.stack import Stack
from tests.tiny_engine import tiny_loaded
from tests.tiny_grids import grid_loaded

LENGTHS = [3, 70, 9, 150, 17]
STEPS = 6
pytestmark = pytest.mark.skipif(native.lib.hgca_most_vectors() < len(LENGTHS), reason="floats are faster here")


@pytest.fixture
def loaded(rng: torch.Generator) -> LoadedModel:
    return grid_loaded(rng)


def sequences(loaded: LoadedModel, rng: torch.Generator, **settings: Any) -> list[Sequence]:
    """One of each length, read."""
    made = []
    for length in LENGTHS:
        given = CacheSettings(**{"window": 16, "sinks": 2, "context": 160} | settings)
        made.append(Sequence(HybridCache(loaded.model.config, given)))
        made[-1].cache.expect(length)
        ids = torch.randint(0, 300, (1, length), generator=rng)
        made[-1].tokens += ids[0].tolist()
        made[-1].forward(loaded, ids)
    return made


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences every layer had that was done together, by itself or with all others."""
    counts: list[int] = []

    def count(owner: Any, name: str, layers: int) -> None:
        run = getattr(owner, name)

        def counted(self: Any, x: torch.Tensor, *more: Any) -> Any:
            out = run(self, x, *more)
            counts.extend([x.size(0)] * (layers if out is not None and x.size(0) > 1 else 0))
            return out

        monkeypatch.setattr(owner, name, counted)

    count(decoder.Parts, "_run_several", 1)
    count(Stack, "_through", 3)
    return counts


@pytest.mark.parametrize(
    "window", [16, 155, 256]
)  # of the longest one rows leave from the first token on, the fifth, or not
@pytest.mark.parametrize("select", ["exact", "scan", "two-level", "page", "window", "moving-average"])
def test_together_as_alone(
    select: str, window: int, loaded: LoadedModel, rng: torch.Generator, joined: list[int]
) -> None:
    quality = None if select in ("exact", "window", "page") else 0.9
    settings: dict[str, Any] = {"select": select, "quality": quality, "window": window, "context": 300}
    alone, together = (sequences(loaded, torch.Generator().manual_seed(5), **settings) for _ in range(2))
    joint = JointCache([one.cache for one in together])
    for step in range(STEPS):
        tokens = torch.randint(0, 300, (len(LENGTHS),), generator=rng).tolist()
        got = joint_forward(loaded, joint, tokens, [length + step for length in LENGTHS])
        want = [one.forward(loaded, torch.tensor([[token]])) for one, token in zip(alone, tokens, strict=True)]
        assert got.shape == (len(LENGTHS), 320)
        worst = (got - torch.stack([one.flatten() for one in want])).abs().max()
        # vectors have 16 bits: a row at the border tips
        assert worst < (0.002 if select in ("exact", "window") else 0.02)
    assert joined == ([] if select == "moving-average" else [len(LENGTHS)] * 3 * STEPS)
    assert (joint.ahead is None) == (select == "moving-average")
    for one, other in zip(alone, together, strict=True):
        assert one.cached == other.cached
        for layer, of_other in zip(one.cache.layers, other.cache.layers, strict=True):
            assert layer.states[0].reads.steps == of_other.states[0].reads.steps
            assert layer.states[0].reads.share == pytest.approx(of_other.states[0].reads.share, rel=0.05)


def test_tokens_that_were_seen_need_no_function_of_the_model(
    loaded: LoadedModel, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = (sequences(loaded, torch.Generator().manual_seed(5), window=256, context=300) for _ in range(2))
    joint = JointCache([one.cache for one in together])
    asked: list[int] = []
    own = straight.forward

    def counted(model: Any, ids: torch.Tensor, *more: Any, **named: Any) -> Any:
        asked.append(len(ids))
        return own(model, ids, *more, **named)

    monkeypatch.setattr(straight, "forward", counted)
    for step in range(8):
        tokens = torch.randint(0, 300, (len(LENGTHS),), generator=rng).tolist()
        got = joint_forward(loaded, joint, tokens, [length + step for length in LENGTHS])
        assert sum(one > 1 for one in asked) == min(step + 1, 1 + straight.ALIKE)
        want = [one.forward(loaded, torch.tensor([[token]])) for one, token in zip(alone, tokens, strict=True)]
        assert (got - torch.stack(want)).abs().max() < 0.002
    listener = loaded.model.model.register_forward_hook(lambda *_: None)
    joint_forward(loaded, joint, [1] * len(LENGTHS), [length + 8 for length in LENGTHS])
    assert sum(one > 1 for one in asked) == 2 + straight.ALIKE
    listener.remove()


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 64, 65, 150])
def test_tokens_of_a_chunk_are_what_they_are_alone(tokens: int, loaded: LoadedModel, rng: torch.Generator) -> None:
    parts = loaded.model.model.layers[1].parts

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, tokens, *shape, generator=rng)

    x, cosine, sine = random(parts.width), random(parts.dim), random(parts.dim)
    attended = random(parts.heads, parts.value_dim)
    got = *parts.before(x, cosine, sine), parts.after(x, attended)
    for at in range(tokens):
        one = slice(at, at + 1)
        alone = parts.before(x[:, one], cosine[:, one], sine[:, one])
        for part, want in zip(got, alone, strict=False):
            assert (part[:, :, one] - want).norm() < 2e-4 * want.norm()
        want = parts.after(x[:, one], attended[:, one])
        assert (got[3][:, one] - want).norm() < 2e-4 * want.norm()


@pytest.mark.parametrize("chunk", [150, 64, 7])
def test_a_prompt_is_two_calls_a_layer_and_its_attention(
    chunk: int, loaded: LoadedModel, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, 300, (1, 150), generator=rng)
    plain = LlamaForCausalLM(deepcopy(loaded.model.config)).eval()
    plain.load_state_dict(loaded.model.state_dict())
    plain.set_attn_implementation("sdpa")
    with torch.inference_mode():
        wanted = plain(input_ids=ids).logits
    lengths: list[int] = []
    run = decoder.Parts._run_around

    def counted(self: Any, x: torch.Tensor, *more: Any) -> Any:
        lengths.append(x.size(1))
        return run(self, x, *more)

    monkeypatch.setattr(decoder.Parts, "_run_around", counted)
    cache = HybridCache(loaded.model.config, CacheSettings(window=16, sinks=2, context=160, select="exact"))
    cache.expect(150)
    with torch.inference_mode():
        pieces = ids.split(chunk, dim=1)
        got = torch.cat([loaded.forward(piece, cache).logits for piece in pieces], dim=1)
    assert (got - wanted).norm() < 1e-3 * wanted.norm()
    assert lengths == [piece.size(1) for piece in pieces for _ in range(3)]


def test_what_is_worth_it(loaded: LoadedModel) -> None:
    assert pays_from(loaded) == 2 and pays_from(tiny_loaded()) == 16


def test_the_meter_measures_each(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = sequences(loaded, torch.Generator().manual_seed(5), select="scan", quality=0.5)
    for one in together:
        monkeypatch.setattr(one.cache.meter, "due", lambda *_: True)
    joint_forward(loaded, JointCache([one.cache for one in together]), [1] * len(LENGTHS), LENGTHS)
    for one, length in zip(together, LENGTHS, strict=True):
        assert one.cache.meter.count == (3 if length > 20 else 0)


def test_a_full_sequence_is_told(loaded: LoadedModel) -> None:
    together = sequences(loaded, torch.Generator().manual_seed(5), select="exact", context=151)
    joint = JointCache([one.cache for one in together])
    joint_forward(loaded, joint, [1] * len(LENGTHS), LENGTHS)
    with pytest.raises(ContextOverflowError):
        joint_forward(loaded, joint, [1] * len(LENGTHS), [length + 1 for length in LENGTHS])


def test_what_does_not_fit_together_is_refused(loaded: LoadedModel) -> None:
    described, lib = loaded.model.model.layers[0].parts.described, native.lib
    at = torch.zeros(1024).data_ptr()
    several = native.ffi.new("hgca_reading *[]", [native.ffi.new("hgca_reading *")])
    for readings, count in ((several, 1), (several, 0), (native.ffi.NULL, 1)):
        assert lib.hgca_decode_layer_several(described, readings, count, at, at, at, at) == lib.HGCA_BAD_ARGUMENT
    for layer, tokens, given in ((native.ffi.NULL, 2, at), (described, 0, at), (described, 2, 0)):
        assert lib.hgca_before_attention_several(layer, tokens, at, at, given, at) == lib.HGCA_BAD_ARGUMENT
        assert lib.hgca_after_attention_several(layer, tokens, at, given, at) == lib.HGCA_BAD_ARGUMENT


def test_how_long_attention_took_is_told_of_tokens_in_one_pass(loaded: LoadedModel) -> None:
    batch = Batch(Engine(loaded, CacheSettings(window=64, sinks=2, context=512), prefill_chunk=64), 4)
    readings = BatchReadings(batch)
    sampling = SamplingSettings(max_tokens=40, temperature=0)
    told = 0
    for _ in batch.run(iter([Request(key, [5, 6, 7], sampling) for key in range(4)]), threading.Event()):
        found = readings.take()
        told += batch.joint and found is not None and (found.spent.attention or 0.0) > 0.0
    assert told > 5


def test_more_than_a_call_takes_are_several_passes(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, joined: list[int]
) -> None:
    def answers(most: int) -> dict[int, str]:
        monkeypatch.setattr(together, "most_in_a_call", lambda _: most)
        batch = Batch(Engine(loaded, CacheSettings(window=64, sinks=2, context=512), prefill_chunk=64), 7)
        requests = [
            Request(key, [5 + key, 6, 7], SamplingSettings(max_tokens=12 + 3 * key, temperature=0)) for key in range(7)
        ]
        told = [one for one in batch.run(iter(requests), threading.Event()) if isinstance(one, Answer)]
        return {one.request.key: one.done.text for one in told if one.done is not None}

    wanted = answers(100)
    assert max(joined) == 7 and len(wanted) == 7
    joined.clear()
    assert answers(3) == wanted
    assert set(joined) == {2, 3}, "7 are 2, 2 and 3, 6 are 3 and 3, 5 are 2 and 3, 4 are 2 and 2"


def test_a_model_without_grids_is_one_call_a_layer_of_few(joined: list[int]) -> None:
    made = []
    for _ in range(2):
        one = tiny_loaded()
        quicken(one.model)
        one.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
        made.append(one)
    one = made[0]
    assert pays_from(one) == 2 and most_in_a_call(one) == FEW
    alone, others = (sequences(of, torch.Generator().manual_seed(5), select="exact") for of in made)
    joint = JointCache([each.cache for each in others])
    for step in range(STEPS):
        tokens = [7 + step + at for at in range(len(LENGTHS))]
        got = joint_forward(made[1], joint, tokens, [length + step for length in LENGTHS])
        want = [each.forward(one, torch.tensor([[token]])) for each, token in zip(alone, tokens, strict=True)]
        assert (got - torch.stack(want)).abs().max() < 1e-4
    assert len(joined) >= STEPS
