"""Answers in channels come as thoughts and answers, however their tokens come."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.reasoning import ThoughtStream, written_out
from hgca_cli.engine.text import TextStream
from hgca_cli.events import Done
from hgca_cli.hf.harmony import as_channels, as_marks
from hgca_cli.hf.tokenizer import Tokenizer
from tests.test_engine_reasoning import scripted
from tests.tiny_engine import tiny_engine, tiny_tokenizer

CONTROL = ["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|constrain|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THOUGHT = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


def tokenizer() -> Tokenizer:
    one = tiny_tokenizer(TEMPLATE)
    one.hf.add_special_tokens({"additional_special_tokens": [*one.hf.all_special_tokens, *CONTROL]})
    return Tokenizer(one.hf, frozenset([one.hf.convert_tokens_to_ids("<|return|>")]))


SAID = [
    (f"{THOUGHT}hm, 1 < 2{NEXT}{FINAL}Yes.", ("hm, 1 < 2\n", "Yes.")),
    (f"{FINAL}Yes.", ("", "Yes.")),
    (f"{THOUGHT}hm{NEXT}<|channel|>commentary<|message|>ho{NEXT}{FINAL}Yes.", ("hm\n\nho\n", "Yes.")),
    (f"{THOUGHT}never done", ("never done", "")),
    (f"{THOUGHT}hm{NEXT}<|channel|>fin", ("hm", "")),
    ("Yes, without a channel.", ("", "Yes, without a channel.")),
    (f"{THOUGHT}hm{NEXT}<|channel|>final <|constrain|>json<|message|>{{}}", ("hm\n", "{}")),
    (f"{THOUGHT}naïve ☃{NEXT}{FINAL}☃ a < b and <|this|>", ("naïve ☃\n", "☃ a < b and <|this|>")),
]


@pytest.mark.parametrize(("written", "want"), SAID)
def test_a_thought_and_an_answer_token_by_token(written: str, want: tuple[str, str]) -> None:
    own = tokenizer()
    ids = own.encode(written, special=True)
    stream, thoughts, pieces = TextStream(own.decode), ThoughtStream(), []
    for token in ids:
        pieces.append(stream.push(token))
        thoughts.push(pieces[-1])
    pieces.append(stream.finish())
    thoughts.push(pieces[-1])
    thoughts.finish()
    assert (thoughts.thought, thoughts.text) == want
    assert "".join(pieces) == own.decode(ids) == as_marks(written)


def test_what_was_written_is_written_so_again() -> None:
    own = tokenizer()
    for written, (thought, text) in SAID[:2]:
        again = own.encode_answer(written_out(thought, text, open=False))
        assert again == own.encode(written, special=True)
    assert as_channels("<think>\nhm") == f"{THOUGHT}hm"
    plain = tiny_tokenizer()
    assert not plain.in_channels and plain.encode_answer("<think>") == plain.encode("<think>")


def test_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    own, engine = tokenizer(), tiny_engine(template=TEMPLATE, chunk=256)
    engine.loaded = replace(engine.loaded, tokenizer=own)
    conversation = Conversation(engine)

    def ask(text: str, written: str) -> Done:
        encode = own.encode
        monkeypatch.setattr(Tokenizer, "encode", lambda self, text, **_: encode(text, special=True))
        scripted(conversation, written)
        monkeypatch.undo()
        events: list[Any] = list(
            conversation.ask(text, SamplingSettings(temperature=0, max_tokens=60), threading.Event())
        )
        return next(event for event in events if isinstance(event, Done))

    first = ask("who?", f"{THOUGHT}hm{NEXT}{FINAL}Me.")
    assert (first.thought, first.text) == ("hm\n", "Me.")
    second = ask("why?", f"{FINAL}So.")
    assert (second.thought, second.text) == ("", "So.")
    assert [one["content"] for one in conversation.messages] == ["who?", "Me.", "why?", "So."]
