"""The promises on a real model: the default one, over texts made here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.registry import DEFAULT, ModelFiles
from hgca_cli.hf.shape import kv_layout
from hgca_cli.kv.store import Store

pytestmark = pytest.mark.model
NEAR_TIE = 1e-3
WORDS = [
    "river",
    "mountain",
    "letter",
    "garden",
    "winter",
    "engine",
    "captain",
    "silver",
    "morning",
    "market",
    "yellow",
    "thunder",
    "window",
    "story",
    "teacher",
    "island",
    "forest",
    "candle",
    "bridge",
    "music",
    "paper",
    "ocean",
    "doctor",
    "evening",
]


@pytest.fixture(scope="module")
def loaded(default_model: Path) -> LoadedModel:
    return load_model(ModelFiles(DEFAULT, default_model), dtype="fp32")


def prose(count: int, seed: int) -> str:
    draw = random.Random(seed)
    lines = [
        f"The {draw.choice(WORDS)} near the {draw.choice(WORDS)} kept a {draw.choice(WORDS)}." for _ in range(count)
    ]
    return " ".join(lines)


def prompt(loaded: LoadedModel, text: str) -> torch.Tensor:
    ids = loaded.tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=True)
    return torch.tensor([ids])


@torch.inference_mode()
def greedy(loaded: LoadedModel, ids: torch.Tensor, cache: HybridCache | None, count: int) -> list[torch.Tensor]:
    """Logits of `count` greedy steps: by transformers' sdpa without a cache of ours, by hybrid attention with one."""
    loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME if cache else "sdpa")
    past: Any = cache
    if cache is not None:
        cache.expect(ids.shape[1])
    for piece in ids.split(ids.shape[1] if cache is None else 128, dim=1):
        output = loaded.forward(piece, past, logits_to_keep=1)
        past = output.past_key_values
    logits = [output.logits[0, -1]]
    while len(logits) < count:
        token = logits[-1].argmax().reshape(1, 1)
        logits.append(loaded.forward(token, past).logits[0, -1])
    return logits


def test_exact_gives_the_models_own_logits_and_tokens(loaded: LoadedModel) -> None:
    ids = prompt(loaded, prose(60, 1) + " Tell a story about the river.")
    theirs = greedy(loaded, ids, None, 24)
    cache = HybridCache(loaded.model.config, CacheSettings(window=64, context=2048))
    ours = greedy(loaded, ids, cache, 24)
    assert cache.rows().store > 400 and cache.rows().read_share == 1.0
    for a, b in zip(theirs, ours, strict=True):
        assert (a - b).abs().max() <= 1e-4
        if a.argmax() != b.argmax():
            first, second = a.topk(2).values.tolist()
            assert first - second < NEAR_TIE
            break


def test_a_passkey_is_found_by_exact_as_by_full_attention(loaded: LoadedModel) -> None:
    found = {"full": 0, "exact": 0, "window": 0}
    for seed in range(3):
        key = str(random.Random(seed).randrange(10000, 100000))
        hidden = f" The pass key is {key}. Remember it: {key} is the pass key. "
        text = (
            prose(20, seed) + hidden + prose(40, seed + 50) + "\n\nWhat is the pass key? Answer with the number only."
        )
        ids = prompt(loaded, text)
        for name in found:
            settings = CacheSettings(window=64, context=2048, select="window" if name == "window" else "exact")
            cache = None if name == "full" else HybridCache(loaded.model.config, settings)
            said = loaded.tokenizer.decode([int(row.argmax()) for row in greedy(loaded, ids, cache, 14)])
            found[name] += key in said
    assert found["exact"] == found["full"] >= 2
    assert found["window"] < found["full"]


@pytest.mark.parametrize(("kv_dtype", "most"), [("bf16", 1e-2), ("int8", 2e-2)])
def test_a_smaller_store_stays_close(loaded: LoadedModel, kv_dtype: str, most: float) -> None:
    ids = prompt(loaded, prose(40, 7))
    theirs = greedy(loaded, ids, None, 1)[0].log_softmax(-1)
    settings = CacheSettings(window=64, context=2048, kv_dtype=kv_dtype)
    token = torch.tensor([[5]])
    with torch.inference_mode():
        cache = HybridCache(loaded.model.config, settings)
        ours = greedy(loaded, ids, cache, 1)[0].log_softmax(-1)
        loaded.forward(token, cache)
    divergence = float((theirs.exp() * (theirs - ours)).sum())
    assert 0 <= divergence < most


def test_an_int8_store_keeps_the_attention(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real queries, keys and values of every layer, the store's rows quantised, against float64 on the rows themselves."""
    jobs: list[native.Attention] = []
    start = native.start

    def watched(given: Sequence[native.Attention | native.Step]) -> native.Pending:
        for step in given:
            # the store's part; the window's comes before it, a prompt's are no steps
            if isinstance(step, native.Step) and step.joins:
                key, value = (part[:, : step.count].clone() for part in step.rows.kept[:2] if part is not None)
                jobs.append(native.Attention(step.query.clone(), key, value, step.scale))
        return start(given)

    monkeypatch.setattr(native, "start", watched)
    cache = HybridCache(loaded.model.config, CacheSettings(window=16, context=2048))
    greedy(loaded, prompt(loaded, prose(60, 1)), cache, 4)
    layers = loaded.model.config.num_hidden_layers
    assert len(jobs) == 3 * layers
    monkeypatch.undo()
    errors: list[float] = []
    for index in range(layers):
        wrong = whole = 0.0
        for job in jobs[index::layers]:
            wanted = in_float64(job)
            got = over_int8(job, loaded)
            wrong += float((got - wanted).square().sum())
            whole += float(wanted.square().sum())
        errors.append(wrong / whole)
    assert 0 < sum(errors) / layers <= 2e-4 and max(errors) <= 1e-3, errors


def in_float64(job: native.Attention) -> torch.Tensor:
    group = len(job.query) // len(job.key)
    key, value = (rows.double().repeat_interleave(group, 0) for rows in (job.key, job.value))
    weight = torch.softmax(job.query.double()[:, None] @ key.transpose(1, 2) * job.scale, -1)
    return (weight @ value)[:, 0]


def over_int8(job: native.Attention, loaded: LoadedModel) -> torch.Tensor:
    store = Store(kv_layout(loaded.model.config).layers[0], job.key.shape[1], torch.int8)
    store.append(job.key, job.value)
    assert store.scales is not None
    key_scale, value_scale = store.scales.unbind(-1)
    quantised = replace(job, key=store.keys, value=store.values, key_scale=key_scale, value_scale=value_scale)
    return native.attend(quantised).out.double()


def test_it_knows_when_to_stop_and_how_to_chat(loaded: LoadedModel) -> None:
    assert loaded.trained_context == 8192 and loaded.tokenizer.has_template
    ends = [loaded.tokenizer.hf.convert_ids_to_tokens(token) for token in loaded.tokenizer.end_ids]
    assert "<|im_end|>" in ends
