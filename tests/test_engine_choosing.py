"""The tokens of an answer are drawn, allowed by a schema, or forced by a budget for thoughts; alone, and in a batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.choosing import CLOSED, Chooser
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.errors import UsageError
from hgca_cli.events import Done
from hgca_cli.hf.grammar import Grammars
from tests.tiny_engine import tiny_engine, tiny_tokenizer

OPEN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
GREEDY = SamplingSettings(temperature=0, max_tokens=60)


def written(chooser: Chooser, said: Iterator[int], most: int) -> str:
    """What comes of a model that says this."""
    tokenizer, tokens = tiny_tokenizer(), [1]
    for _ in range(most):
        logits = torch.zeros(320)
        logits[next(said)] = 5.0
        token = chooser(logits, tokens)
        chooser.take(token)
        tokens.append(token)
        if chooser.done:
            break
    return tokenizer.decode(tokens[1:])


def model(text: str) -> Iterator[int]:
    yield from tiny_tokenizer().encode(text)
    while True:
        yield tiny_tokenizer().encode("x")[0]


@pytest.mark.parametrize("budget", [None, 0, 1, 5, 50])
def test_a_thought_ends_with_its_budget(budget: int | None) -> None:
    settings = replace(GREEDY, reasoning_budget=budget)
    text = written(Chooser(settings, tiny_tokenizer(), thinks=True), model(""), 30)
    thought = 30 if budget in (None, 50) else budget
    assert text.startswith("x" * (thought or 0) + (CLOSED if thought != 30 else ""))
    assert text.count("</think>") == (thought != 30) and text.endswith("x")
    own = written(Chooser(settings, tiny_tokenizer()), model("<think>\n"), 40)
    assert own.count("</think>") == (thought != 30)
    text = written(Chooser(settings, tiny_tokenizer()), model("no thought, and <think>"), 40)
    assert "</think>" not in text  # an answer may quote the mark


def test_a_thought_that_ends_by_itself_is_left_alone() -> None:
    text = written(Chooser(replace(GREEDY, reasoning_budget=9), tiny_tokenizer(), thinks=True), model("ab</think>"), 60)
    assert text.count("</think>") == 1 and text.startswith("ab</think>x")


def test_a_schema_is_for_what_comes_after_the_budget() -> None:
    pytest.importorskip("llguidance")
    guide = Grammars(tiny_tokenizer()).guide('{"enum": ["yes"]}')
    settings = replace(GREEDY, reasoning_budget=3)
    assert written(Chooser(settings, tiny_tokenizer(), guide=guide, thinks=True), model(""), 90) == f'xxx{CLOSED}"yes"'


def answers(engine: Engine, sampling: SamplingSettings, count: int = 6) -> tuple[list[str], list[str]]:
    """Of a chat each, and of one batch."""
    alone, asked = [], []
    for at in range(count):
        conversation = Conversation(engine)
        *_, done = conversation.ask(f"the cat {at}", sampling, threading.Event())
        assert isinstance(done, Done)
        alone.append(f"{done.thought}|{done.text}")
        said = [{"role": "user", "content": f"the cat {at}"}]
        ids = engine.loaded.tokenizer.encode_chat(said, add_generation_prompt=True)
        asked.append(Request(at, ids, sampling, guide=engine.guide(sampling), thinks=True))
    events = Batch(engine, count).run(iter(asked), threading.Event())
    found = {event.request.key: event.text for event in events if isinstance(event, Answer)}
    return alone, [found[at] for at in range(count)]


def test_a_chat_and_a_batch_keep_to_a_budget_and_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setattr("hgca_cli.engine.together.pays_from", lambda loaded: 2)
    engine = tiny_engine(template=OPEN)
    free, _ = answers(engine, GREEDY)
    assert all(one.endswith("|") for one in free)  # nothing but thought
    settings = replace(GREEDY, reasoning_budget=7, json_schema='{"enum": ["yes", "no"]}')
    alone, together = answers(engine, settings)
    assert [one.replace(CLOSED, "|", 1) for one in together] == [one.replace("\n|", "|", 1) for one in alone]
    for one, other in zip(alone, free, strict=True):
        thought, _, text = one.partition("|")
        assert json.loads(text) in ("yes", "no") and 0 < len(thought) < len(other)


def test_an_answer_that_fits_a_schema_is_not_gone_on_with() -> None:
    pytest.importorskip("llguidance")
    conversation = Conversation(tiny_engine())
    sampling = replace(GREEDY, json_schema='{"type": "integer"}')
    list(conversation.ask("the cat", sampling, threading.Event()))
    with pytest.raises(UsageError, match="schema"):
        list(conversation.go_on(sampling, threading.Event()))
