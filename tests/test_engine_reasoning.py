"""What a model thinks stands apart from what it answers, and costs no reading again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.engine import transcript
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.reasoning import ThoughtStream, written_out
from hgca_cli.engine.session_record import read_record
from hgca_cli.events import Done, Event, Text, Thought
from tests.saved_sessions import resumed, rewrite_record, save
from tests.test_engine_conversation import read_tokens
from tests.tiny_engine import tiny_engine

# as Qwen3's: thoughts of earlier answers are left out, and a switch begins the answer with an empty one
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# as SmolLM3's: how to think stands in front of everything
MODE = (
    "<|system|>{{ 'think' if enable_thinking is not defined or enable_thinking else 'do not think' }}<|end|>" + THINKING
)
OFF: dict[str, Any] = {"enable_thinking": False}
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


def asked_rightly(conversation: Conversation, text: str, said: str) -> tuple[Done, list[Event]]:
    """A turn whose prompt is what the template makes of the messages with the present options."""
    done, events = ask(conversation, text, said)
    tokenizer = conversation.engine.loaded.tokenizer
    plain = [{"role": one["role"], "content": one["content"]} for one in conversation.messages[:-1]]
    want = tokenizer.render(plain, add_generation_prompt=True, **conversation.options)
    assert tokenizer.hf.decode(conversation.sequence.tokens[: done.prompt_tokens], skip_special_tokens=False) == want
    return done, events


@pytest.mark.parametrize("template", [THINKING, MODE], ids=["at the end", "in front"])
@pytest.mark.parametrize("said", ["<think>b</think>mat", "mat"], ids=["thought", "no thought"])
@pytest.mark.parametrize("before", [{}, OFF], ids=["on", "off"])
@pytest.mark.parametrize("after", [{}, OFF, {"enable_thinking": True}], ids=["none", "off", "on"])
@pytest.mark.parametrize("kept", ["rows", "no rows", "older"])
def test_a_session_goes_on_with_another_switch(
    template: str, said: str, before: dict[str, Any], after: dict[str, Any], kept: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever the switch was when it was saved: prompts are the template's, and what did not change is not read again."""
    monkeypatch.setenv("HGCA_DATA_DIR", str(tmp_path))
    first = thinking(template)
    first.options = before
    ask(first, "the cat sat on the mat " * 6, "<think>a</think>fur")
    asked_rightly(first, "and?", said)
    save("notes", first, rows=kept != "no rows")
    if kept == "older":  # saved before options were written down
        rewrite_record(tmp_path / "sessions" / "notes", lambda table: table["saved"].pop("asked_with"))
        assert read_record(tmp_path / "sessions" / "notes").saved.asked_with is None  # type: ignore[union-attr]
    engine = tiny_engine(template=template, chunk=512)
    conversation, notices = resumed("notes", engine)
    assert notices == [] and conversation.messages == first.messages
    conversation.options = after
    done, _ = asked_rightly(conversation, "why?", "<think>c</think>sat")
    same = template == THINKING or before == OFF == after or OFF not in (before, after)
    if kept != "no rows" and same:
        assert done.cached_tokens > 60, "the question and its document are not read again"
    scripted(conversation, "<think>d</think>hat")
    list(conversation.regenerate(GREEDY, threading.Event()))
    assert conversation.messages[-1] == {"role": "assistant", "content": "hat", "reasoning_content": "d"}
    conversation.undo()
    asked_rightly(conversation, "why not?", "sat")
    conversation.options = {"enable_thinking": after == OFF}  # and once more in the midst of it
    asked_rightly(conversation, "so?", "sat")
    asked_rightly(conversation, "so what?", "sat")


@pytest.mark.parametrize("said", ["<think>b</think>ma", "ma", "<think>b"])
@pytest.mark.parametrize("opened", [False, True], ids=["bare", "<think> in the prompt"])
@pytest.mark.parametrize("options", [{}, OFF], ids=["on", "off"])
def test_an_answer_is_gone_on_with_where_only_its_text_is_known(
    said: str, opened: bool, options: dict[str, Any]
) -> None:
    template = THINKING.replace("<|assistant|>{% if", "<|assistant|><think>\n{% if") if opened else THINKING
    if opened and (options or not said.startswith("<think>")):
        pytest.skip("models that always think have no switch")
    first = thinking(template)
    ask(first, "the cat", said.removeprefix("<think>") if opened else said)
    conversation = thinking(template)
    conversation.resume(first.messages, [], None)
    conversation.options = options
    scripted(conversation, "t" if "b" not in said or "</think>" in said or options else "t</think>x")
    list(conversation.go_on(GREEDY, threading.Event()))
    tokens = conversation.engine.loaded.tokenizer.hf.decode(conversation.history, skip_special_tokens=False)
    assert tokens.count("<think>") == tokens.count("</think>") == (0 if said == "ma" and not options else 1)
    last = conversation.messages[-1]
    assert last["content"] == ("mat" if "ma" in said else "t" if "t</think>" not in tokens else "x")
    assert last.get("reasoning_content", "").startswith("b") == ("b" in said)


def test_written_out() -> None:
    assert written_out("b\n", "c", open=False) == "<think>\nb\n</think>\n\nc"
    assert written_out("b", "", open=True) == "b" and written_out("", "c", open=False) == "c"
    assert written_out("", "c", open=True) == "\n</think>\n\nc"


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
