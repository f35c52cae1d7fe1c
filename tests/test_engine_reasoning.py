"""What a model thinks stands apart from what it answers, and costs no reading again."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.engine import transcript
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.reasoning import ThoughtStream
from hgca_cli.events import Done, Event, Text, Thought
from tests.test_engine_conversation import read_tokens
from tests.tiny_engine import tiny_engine

# as Qwen3's: thoughts of earlier answers are left out, and a switch begins the answer with an empty one
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GREEDY = SamplingSettings(temperature=0, max_tokens=60)


def pieces(text: str, size: int, *, open: bool = False) -> tuple[str, str, list[Event]]:
    stream = ThoughtStream(open=open)
    events: list[Event] = []
    for at in range(0, len(text), size):
        events += stream.push(text[at : at + size])
    events += stream.finish()
    assert stream.thought == "".join(event.text for event in events if isinstance(event, Thought))
    assert stream.text == "".join(event.text for event in events if isinstance(event, Text))
    return stream.thought, stream.text, events


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "open", "want"),
    [
        ("<think>\nhm, 1 < 2\n</think>\n\nYes.", False, ("hm, 1 < 2\n", "Yes.")),
        ("hm\n</think>\n\nYes.", True, ("hm\n", "Yes.")),
        ("<think>\n\n</think>\n\nYes.", False, ("", "Yes.")),
        ("No <think> here </think>.", False, ("", "No <think> here </think>.")),
        ("  Yes.", False, ("", "  Yes.")),
        ("<thin air", False, ("", "<thin air")),
        ("<think>never done </thi", False, ("never done </thi", "")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
        ("<thi", False, ("", "<thi")),
    ],
)
def test_thoughts_are_told_apart_however_the_text_is_cut(text: str, open: bool, want: Any, size: int) -> None:
    assert pieces(text, size, open=open)[:2] == want


def scripted(conversation: Conversation, said: str) -> None:
    """The model says this from now on, and then ends."""
    loaded = conversation.engine.loaded
    ids = [*loaded.tokenizer.encode(said), next(iter(loaded.tokenizer.end_ids))]
    loaded.model.lm_head._forward_hooks.clear()

    def force(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(output, -1e4)
        forced[..., ids.pop(0)] = 1e4
        return forced

    loaded.model.lm_head.register_forward_hook(force)


def ask(conversation: Conversation, text: str, said: str) -> tuple[Done, list[Event]]:
    scripted(conversation, said)
    events = list(conversation.ask(text, GREEDY, threading.Event()))
    assert isinstance(events[-1], Done)
    return events[-1], events


def thinking(template: str = THINKING) -> Conversation:
    return Conversation(tiny_engine(template=template, chunk=512))  # a prompt asks for logits once


def test_a_thought_is_kept_apart_and_only_the_answer_is_read_again() -> None:
    conversation = thinking()
    done, events = ask(conversation, "the cat sat on the mat " * 6, "<think>\na cat\n</think>\n\nfur")
    assert done.text == "fur" and done.thought == "a cat\n" and done.finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, Text)) == "fur"
    assert conversation.messages[-1] == {"role": "assistant", "content": "fur", "reasoning_content": "a cat\n"}
    for said in ("<think>b</think>mat", "<think>c</think>sat"):
        before = len(conversation.history)
        thought_and_answer = len(conversation.engine.loaded.tokenizer.encode("<think>\na cat\n</think>\n\nfur"))
        done, events = ask(conversation, "why?", said)
        assert done.cached_tokens >= before - thought_and_answer - 1 and read_tokens(events) < 25
    tokens = conversation.engine.loaded.tokenizer.hf.decode(conversation.sequence.tokens, skip_special_tokens=False)
    assert tokens.count("<think>") == 1 and "<|assistant|>fur<|end|>" in tokens, "earlier thoughts are gone"


def test_an_answer_with_a_thought_can_be_given_again_and_taken_back() -> None:
    conversation = thinking()
    ask(conversation, "the cat", "<think>a</think>fur")
    first, _ = ask(conversation, "why?", "<think>b</think>mat")
    scripted(conversation, "<think>c</think>sat")
    events = list(conversation.regenerate(GREEDY, threading.Event()))
    assert read_tokens(events) == 1 and conversation.messages[-1]["reasoning_content"] == "c"
    conversation.undo()
    done, _ = ask(conversation, "why?", "<think>b</think>mat")
    assert done.prompt_tokens == first.prompt_tokens and len(conversation.messages) == 4


def test_the_switch_can_be_turned_between_turns() -> None:
    conversation = thinking()
    ask(conversation, "the cat", "<think>a</think>fur")
    conversation.options = {"enable_thinking": False}
    done, events = ask(conversation, "why?", "mat")
    assert done.text == "mat" and done.thought == "" and read_tokens(events) < 40
    done, events = ask(conversation, "and?", "sat")
    assert read_tokens(events) < 40 and "reasoning_content" not in conversation.messages[-1]


def test_a_prompt_that_ends_in_a_thought() -> None:
    template = THINKING.replace("<|assistant|>{% if", "<|assistant|><think>\n{% if")
    conversation = thinking(template)
    done, _ = ask(conversation, "the cat", "a</think>fur")
    assert done.thought == "a" and done.text == "fur"


def test_transcripts_keep_thoughts_and_lengths_of_documents() -> None:
    messages = [
        {"role": "user", "content": "a:\n\nb\n\nwhy?", "documents": [["a", 6]]},
        {"role": "assistant", "content": "fur", "reasoning_content": "a cat"},
    ]
    assert transcript.recovered(transcript.lines_of(messages)) == messages
    for bad in ([["a", 99]], [["a"]], "a", [[1, 2]], [["a", -1]], [["a", 4], ["b", 90]]):
        assert "documents" not in transcript.recovered(transcript.lines_of([messages[0] | {"documents": bad}]))[0]
    shown = transcript.exported(messages, "md", {})
    assert "## assistant\n\n> a cat\n\nfur" in shown
    assert "documents" not in transcript.exported(messages, "openai", {})
