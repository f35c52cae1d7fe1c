"""Tokens that are guessed and computed together: the logits of one by one, whatever was guessed, and nothing left of what was wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hgca_cli import native
from hgca_cli.attention.following import Following
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.guessing import Guessing
from hgca_cli.engine.lookup import PromptLookup
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.sequence import DeviceFullError, Sequence
from hgca_cli.events import Done
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel
from tests.tiny_engine import Endless, tiny_loaded, tiny_tokenizer
from tests.tiny_grids import grid_loaded

POLICIES = ["exact", "scan", "two-level", "page", "window"]
ALONE = 8  # tokens until all layers are one call, and were seen to be
pytestmark = pytest.mark.skipif(native.lib.hgca_most_vectors() < 8, reason="floats are faster here")


@pytest.fixture
def loaded(rng: torch.Generator) -> LoadedModel:
    return grid_loaded(rng)


class Scripted(PromptLookup):
    """Guesses of a text that is known, wrong from a place on that is drawn."""

    def __init__(self, text: list[int], seed: int = 4) -> None:
        super().__init__(7)
        self.text, self.dice, self.told = text, random.Random(seed), []  # type: ignore[var-annotated]

    def guess(self, tokens: list[int], most: int) -> list[int]:
        guess = self.text[len(tokens) : len(tokens) + min(most, self.dice.randrange(8))]
        wrong = self.dice.randrange(12)
        return [token if at < wrong else (token + 1) % 300 for at, token in enumerate(guess)]

    def tell(self, guessed: int, right: int) -> None:
        super().tell(guessed, right)
        self.told.append((guessed, right))


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass of several."""
    counts: list[int] = []
    take = Following.take

    def counted(self: Following, tokens: int) -> Any:
        taken = take(self, tokens)
        counts.extend([tokens] if taken is not None else [])
        return taken

    monkeypatch.setattr(Following, "take", counted)
    return counts


def sequence_of(loaded: LoadedModel, ids: list[int], **settings: Any) -> Sequence:
    made = Sequence(
        HybridCache(loaded.model.config, CacheSettings(**{"window": 64, "sinks": 2, "context": 500} | settings))
    )
    made.cache.expect(len(ids))
    made.tokens += ids
    made.forward(loaded, torch.tensor([ids]))
    return made


def facts_of(sequence: Sequence) -> list[Any]:
    told: list[Any] = [sequence.cached, len(sequence.tokens)]
    for layer in sequence.cache.layers:
        one = layer.states[0]
        told.append((one.length, one.window.start, one.window.end, one.store.rows if one.store else 0))
    return told


@pytest.mark.parametrize("select", POLICIES)
@pytest.mark.parametrize("kv_dtype", [None, "bf16", "int8"])
@pytest.mark.parametrize("length", [3, 20, 200])  # all in the window, or a store from the beginning
def test_logits_of_one_by_one(
    select: str, kv_dtype: str | None, length: int, loaded: LoadedModel, together: list[int]
) -> None:
    quality = None if select in ("exact", "window", "page") else 0.9
    text = random.Random(length).choices(range(300), k=length + 160)
    ours, alone = (
        sequence_of(loaded, text[:length], select=select, quality=quality, kv_dtype=kv_dtype) for _ in range(2)
    )
    lookup = Scripted(text)
    guessing = Guessing(loaded, ours, lookup, 500)
    none = Guessing(loaded, alone, None, 500)
    apart: list[float] = []
    for token in text[length : length + 150]:
        for one in (ours, alone):
            one.tokens.append(token)
        got, want = guessing.after(99), none.after(99)
        apart.append(float((got - want).abs().max()))
        assert ours.cached >= len(ours.tokens)
    guessing.close()
    # of numbers around 1; vectors have 16 bits beside others, so a row's last bit differs, and rows at the border of a choice tip, or
    # at that of light ones, of which there are many where a random model looks everywhere
    apart.sort()
    assert apart[75] < 0.015 and apart[134] < 0.05
    assert apart[-1] < 0.005 or select not in ("exact", "window") or kv_dtype is not None
    assert facts_of(ours) == facts_of(alone)
    assert lookup.right > 40 and lookup.guessed > lookup.right, "some were right, and some were not"
    assert sum(together) - len(together) == lookup.guessed and max(together) == 8
    measured, wanted = (one.cache.meter.count for one in (ours, alone))
    assert wanted <= measured <= 1.5 * wanted, "wrong guesses count as tokens"
    if select != "window" and length > 100:
        read, all_read = (one.cache.layers[1].states[0].reads for one in (ours, alone))
        assert 0 < read.steps < all_read.steps and read.share / read.steps == pytest.approx(
            all_read.share / all_read.steps, rel=0.1
        )


@pytest.mark.parametrize("loose", [True, False])
def test_an_answer_is_the_same(loose: bool, loaded: LoadedModel, together: list[int]) -> None:
    """Greedy and drawn, stopped by a string, by the number of tokens, by the context, and by whoever asked."""
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))  # type: ignore[arg-type]
    prompt = [40 + (7 * n) % 90 for n in range(50)]
    settings = CacheSettings(window=64, sinks=2, context=150, select="scan", quality=0.9)
    for sampling in (
        SamplingSettings(temperature=0, max_tokens=60),
        SamplingSettings(temperature=0, max_tokens=500),
        SamplingSettings(temperature=0, max_tokens=60, repetition_penalty=1.3, frequency_penalty=0.5),
        SamplingSettings(temperature=0.05 if loose else 0.8, max_tokens=60, seed=5),
        SamplingSettings(temperature=0.2, top_k=3, max_tokens=1, seed=6),
    ):
        written = []
        for guesses in (0, 7):
            engine = Engine(loaded, settings, prefill_chunk=16, guesses=guesses)
            sequence = engine.new_sequence()
            *_, done = engine.answer(sequence, prompt, sampling, threading.Event())
            assert isinstance(done, Done)
            assert sequence.cached == len(sequence.tokens) - 1 or done.completion_tokens == 0
            assert (done.guessed > 0) == (guesses > 0 and done.guessed_right + done.guessed > 0)
            written.append((sequence.tokens, done.text, done.finish_reason, done.completion_tokens, done.prompt_tokens))
            sequence.close()
        assert written[0] == written[1]
    assert together, "some were guessed"


def answer_of(engine: Engine, sampling: SamplingSettings, then: Callable[[Sequence], None]) -> Sequence:
    sequence = engine.new_sequence()
    events = engine.answer(sequence, [60, 61, 62] * 12, sampling, threading.Event())
    for at, _ in enumerate(events):
        if at == 45:
            then(sequence)
            break
    events.close()
    return sequence


def test_whoever_has_heard_enough_leaves_what_was_written(loaded: LoadedModel) -> None:
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))  # type: ignore[arg-type]
    engine = Engine(loaded, CacheSettings(window=64, sinks=2, context=300), guesses=7)
    ahead: list[int] = []
    sampling = SamplingSettings(temperature=0, max_tokens=200)
    sequence = answer_of(engine, sampling, lambda one: ahead.append(one.cached - len(one.tokens)))
    assert sequence.cached <= len(sequence.tokens) and len(sequence.tokens) > 36
    *_, done = engine.answer(sequence, [70, 71], SamplingSettings(temperature=0, max_tokens=5), threading.Event())
    assert isinstance(done, Done) and done.completion_tokens == 5


def test_what_is_refused_leaves_no_row(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = random.Random(1).choices(range(300), k=80)
    sequence = sequence_of(loaded, text[:40], select="scan", quality=0.9)
    guessing = Guessing(loaded, sequence, Scripted(text), 500)
    for token in text[40 : 40 + ALONE]:
        sequence.tokens.append(token)
        guessing.after(99)
    guessing.close()
    before = facts_of(sequence)

    def refuse(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Following, "end", refuse)
        with pytest.raises(DeviceFullError, match="ran out of memory at token 51"):
            sequence.forward_following(loaded, text[48:51])
    assert facts_of(sequence) == before
    sequence.tokens += text[48:51]
    logits = sequence.forward_following(loaded, text[48:51])
    assert logits is not None and logits.shape == (3, 320) and sequence.cached == 51


def test_nothing_leaves_a_window_in_a_pass_of_several(loaded: LoadedModel, together: list[int]) -> None:
    """The ring is filled by a token alone, whose end takes the oldest block over."""
    text = random.Random(2).choices(range(300), k=200)
    sequence = sequence_of(loaded, text[:40])
    guessing = Guessing(loaded, sequence, Scripted(text), 500)
    left = 0
    for token in text[40:180]:
        start = sequence.cache.layers[0].states[0].window.start
        passes = len(together)
        sequence.tokens.append(token)
        guessing.after(99)
        moved = sequence.cache.layers[0].states[0].window.start - start
        left += moved > 0
        assert not moved or len(together) == passes
    assert left >= 5


def test_who_computes_one_token_at_a_time_is_not_asked_for_more(loaded: LoadedModel) -> None:
    shape = GPT2Config(vocab_size=320, n_positions=512, n_embd=32, n_layer=2, n_head=4)
    torch.manual_seed(3)
    other = replace(tiny_loaded(Endless(tiny_tokenizer())), model=GPT2LMHeadModel(shape).eval())  # type: ignore[arg-type]
    engine = Engine(other, CacheSettings(window=16, sinks=2, context=200), guesses=7)
    assert not engine.may_guess and Engine(loaded, CacheSettings(context=100)).may_guess
    told = []
    for guesses in (7, 0):
        engine.guesses = guesses
        sequence = engine.new_sequence()
        sampling = SamplingSettings(temperature=0, max_tokens=40)
        *_, done = engine.answer(sequence, [60, 61, 62] * 12, sampling, threading.Event())
        assert isinstance(done, Done) and done.guessed == 0
        told.append(sequence.tokens)
    assert told[0] == told[1]


@pytest.mark.parametrize("sliding", [None, 40])
def test_weights_that_are_no_grids_and_layers_that_slide(sliding: int | None, together: list[int]) -> None:
    """Of layers that slide tokens are guessed as long as they see all."""
    written = []
    for guesses in (0, 7):
        engine = Engine(
            tiny_loaded(Endless(tiny_tokenizer()), sliding),  # type: ignore[arg-type]
            CacheSettings(window=64, sinks=2, context=200),
            guesses=guesses,
        )
        assert engine.may_guess
        sequence = engine.new_sequence()
        sampling = SamplingSettings(temperature=0, max_tokens=100)
        *_, done = engine.answer(sequence, [60, 61, 62] * 4, sampling, threading.Event())
        assert isinstance(done, Done) and done.completion_tokens == 100
        written.append(sequence.tokens)
    assert written[0] == written[1]
    assert together and (sliding is None or sum(together) < sliding)


@pytest.mark.parametrize("more", [0, 1, 3])  # of the guess came before the last token
@pytest.mark.parametrize("last", [True, False])  # whether that one was guessed
def test_the_token_that_ends_an_answer_may_have_been_guessed(more: int, last: bool, loaded: LoadedModel) -> None:
    text = random.Random(1).choices(range(300), k=80)
    sequence = sequence_of(loaded, text[:40])
    for token in text[40 : 40 + ALONE]:
        sequence.tokens.append(token)
        Guessing(loaded, sequence, None, 500).after(99)

    class Four(PromptLookup):
        def guess(self, tokens: list[int], most: int) -> list[int]:
            return text[len(tokens) :][:4]

    lookup = Four(7)
    guessing = Guessing(loaded, sequence, lookup, 500)
    for token in text[48 : 49 + more]:
        sequence.tokens.append(token)
        guessing.after(99)
    sequence.tokens.append(text[49 + more] if last else 301)
    guessing.close()
    assert (lookup.guessed, lookup.right) == (4, more + last)
    assert sequence.cached == len(sequence.tokens) - 1


def test_a_guess_is_cut_to_what_a_pass_takes(together: list[int]) -> None:
    """Of floats that is less than the longest guess: one pass goes on after another."""

    class Known(PromptLookup):
        def guess(self, tokens: list[int], most: int) -> list[int]:
            return text[len(tokens) :][: min(self._length, most)]

    loaded = tiny_loaded(Endless(tiny_tokenizer()))  # type: ignore[arg-type]
    Engine(loaded, CacheSettings(context=400))
    text = random.Random(3).choices(range(300), k=300)
    sequence = sequence_of(loaded, text[:20], window=256)
    guessing = Guessing(loaded, sequence, Known(63), 400)
    for token in text[20:200]:
        sequence.tokens.append(token)
        guessing.after(99)
    guessing.close()
    assert sequence.cached == 200
    assert together[:5] == [3, 5, 9, 17, 32] and together.count(32) >= 4


def test_rows_of_a_job_are_guessed_while_they_run_alone(loaded: LoadedModel, together: list[int]) -> None:
    """One after the other, or the last one of several, whose guesses are given up whenever another comes."""
    loaded = replace(loaded, tokenizer=Endless(loaded.tokenizer))  # type: ignore[arg-type]
    texts: list[dict[int, str]] = []
    guessed: list[int] = []
    for guesses, slots in ((0, 1), (7, 1), (7, 2)):
        engine = Engine(loaded, CacheSettings(window=64, sinks=2, context=300, select="exact"), guesses=guesses)
        requests = [
            Request(key, [60 + key, 61, 62] * 8, SamplingSettings(max_tokens=30 + 40 * key, temperature=0))
            for key in range(3)
        ]
        told = [one for one in Batch(engine, slots).run(iter(requests), threading.Event()) if isinstance(one, Answer)]
        assert all(one.done is not None and one.error is None for one in told)
        texts.append({one.request.key: one.done.text for one in told if one.done is not None})
        guessed.append(sum(one.done.guessed for one in told if one.done is not None))
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 3
    assert guessed[0] == 0 < guessed[2] < guessed[1] and together


def test_what_is_read_is_looked_at_anew_after_a_step_back(loaded: LoadedModel) -> None:
    text = random.Random(3).choices(range(300), k=80)
    settings = CacheSettings(window=3, sinks=1, context=100)
    sequence = Sequence(HybridCache(loaded.model.config, settings))
    for end in range(1, 27):
        if end == 18:  # there is no room for two: what they would read is known, and not used
            assert sequence.forward_following(loaded, text[17:19]) is None
        sequence.tokens.append(text[end - 1])
        sequence.forward(loaded, torch.tensor([[text[end - 1]]]))
    assert sequence.rewind(15)  # the ring begins where it did then, and there are as many rows before it
    sequence.tokens += text[40:42]
    got = sequence.forward_following(loaded, text[40:42])
    other = Sequence(HybridCache(loaded.model.config, settings))
    wanted = other.forward(loaded, torch.tensor([text[:15] + text[40:41]]))
    assert got is not None and (got[0] - wanted).norm() < 1e-3 * wanted.norm()
