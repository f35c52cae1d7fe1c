"""Answers given again, gone on with or taken back, and a context that is full: what is read again, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.engine import turns
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.prefill import check_room
from hgca_cli.errors import ContextOverflowError, UsageError
from hgca_cli.events import Done, Event, Notice, Text
from tests.test_engine_conversation import anew, ask, next_logits, read_tokens
from tests.tiny_engine import FORGETFUL, tiny_engine

GREEDY = SamplingSettings(temperature=0, max_tokens=10)
DRAWN = SamplingSettings(temperature=1.0, seed=5, max_tokens=10)


def run(events: Iterator[Event]) -> tuple[Done, list[Event]]:
    heard = list(events)
    assert isinstance(heard[-1], Done)
    return heard[-1], heard


def regenerate(conversation: Conversation, sampling: SamplingSettings = GREEDY) -> tuple[Done, list[Event]]:
    return run(conversation.regenerate(sampling, threading.Event()))


def go_on(conversation: Conversation, sampling: SamplingSettings = GREEDY) -> tuple[Done, list[Event]]:
    return run(conversation.go_on(sampling, threading.Event()))


def test_an_answer_is_given_again_without_reading_the_question_again() -> None:
    conversation = Conversation(tiny_engine(), "be brief")
    ask(conversation, "the cat sat on the mat " * 5)
    first, _ = ask(conversation, "and then")
    again, events = regenerate(conversation)
    assert read_tokens(events) == 1, "the last token of the prompt alone: its logits are needed"
    assert again.text == first.text and again.prompt_tokens == first.prompt_tokens
    other, events = regenerate(conversation, DRAWN)
    assert read_tokens(events) == 1 and other.text != first.text
    assert [m["role"] for m in conversation.messages] == ["system"] + ["user", "assistant"] * 2
    assert conversation.messages[-1]["content"] == other.text
    ask(conversation, "go on")
    torch.testing.assert_close(next_logits(conversation), anew(conversation.sequence.tokens), atol=1e-4, rtol=0)


def test_an_answer_that_was_stopped_before_a_word_leaves_the_old_one() -> None:
    conversation = Conversation(tiny_engine())
    first, _ = ask(conversation, "the cat")
    stop = threading.Event()
    stop.set()
    done, _ = run(conversation.regenerate(DRAWN, stop))
    assert done.finish_reason == "interrupted" and conversation.messages[-1]["content"] == first.text
    _, events = ask(conversation, "and?")
    assert read_tokens(events) < 30


def test_an_answer_goes_on_where_it_ended() -> None:
    whole, parts = Conversation(tiny_engine()), Conversation(tiny_engine())
    said, _ = ask(whole, "the cat sat", SamplingSettings(temperature=0, max_tokens=20))
    ask(parts, "the cat sat")
    more, events = go_on(parts)
    assert read_tokens(events) <= 1 and more.completion_tokens == 10
    assert parts.messages == whole.messages and parts.messages[-1]["content"] == said.text
    assert "".join(event.text for event in events if isinstance(event, Text)) == more.text
    assert parts.sequence.tokens == whole.sequence.tokens and parts.history == whole.history


def test_a_turn_is_taken_back_and_nothing_before_it_is_read_again() -> None:
    conversation = Conversation(tiny_engine(), "be brief")
    ask(conversation, "the cat sat on the mat " * 5)
    before, messages = list(conversation.history), list(conversation.messages)
    ask(conversation, "and then")
    assert conversation.undo() == ("and then", [])
    assert conversation.messages == messages and conversation.history == before
    done, events = ask(conversation, "what else?")
    fresh = Conversation(tiny_engine(), "be brief")
    ask(fresh, "the cat sat on the mat " * 5)
    expected, _ = ask(fresh, "what else?")
    assert done.text == expected.text and read_tokens(events) < 30
    assert conversation.sequence.tokens == fresh.sequence.tokens


def test_what_is_detached_is_not_read() -> None:
    conversation = Conversation(tiny_engine())
    conversation.attach("a.txt", "the cat sat on the mat. " * 8)
    conversation.detach()
    ask(conversation, "what?")
    assert conversation.waiting == [] and conversation.messages[0]["content"] == "what?"


def test_documents_of_a_turn_that_is_taken_back_are_attached_again() -> None:
    conversation = Conversation(tiny_engine())
    conversation.attach("a.txt", "the cat sat on the mat. " * 8)
    conversation.attach("b.txt", "def f")
    ask(conversation, "what?")
    text, documents = conversation.undo()
    assert text == "what?" and documents == [("a.txt", ("the cat sat on the mat. " * 8).strip()), ("b.txt", "def f")]
    _, events = ask(conversation, "who?")
    assert conversation.messages[0]["content"].endswith("b.txt:\n\ndef f\n\nwho?")
    assert read_tokens(events) < 20, "the documents were read before"


def test_documents_wait_for_the_next_question_whatever_the_last_one_does() -> None:
    conversation = Conversation(tiny_engine())
    ask(conversation, "the cat")
    conversation.attach("a.txt", "a dog")
    regenerate(conversation, DRAWN)
    go_on(conversation)
    assert conversation.waiting == [("a.txt", "a dog")]
    events = conversation.ask("what?", GREEDY, threading.Event())
    next(event for event in events if isinstance(event, Text))
    events.close()  # type: ignore[attr-defined]
    assert conversation.waiting == [], "it was asked with them, and some of an answer was heard"


def test_a_template_that_rewrites_history_can_go_back_too() -> None:
    conversation = Conversation(tiny_engine(template=FORGETFUL))
    ask(conversation, "the cat")
    first, _ = ask(conversation, "and then")
    again, events = regenerate(conversation)
    assert again.text == first.text and read_tokens(events) == 1
    conversation.undo()
    done, _ = ask(conversation, "and then")
    assert done.text == first.text
    torch.testing.assert_close(next_logits(conversation), anew(conversation.sequence.tokens), atol=1e-4, rtol=0)


def test_a_template_that_rewrites_history_reads_no_more_than_the_last_answer_again() -> None:
    conversation = Conversation(tiny_engine(template=FORGETFUL))
    for text in ("the cat sat on the mat", "naïve café 東京", "and then"):
        before = conversation.used_tokens
        done, _ = ask(conversation, text)
        assert done.cached_tokens >= before - 11, "its answer has 10 tokens"


@pytest.mark.parametrize("word", ["regenerate", "go_on", "undo"])
def test_without_an_answer(word: str) -> None:
    conversation = Conversation(tiny_engine(), "be brief")
    with pytest.raises(UsageError, match="there is no answer"):
        conversation.undo() if word == "undo" else getattr(conversation, word)(GREEDY, threading.Event())


def test_rows_can_all_be_read_from_the_next_token_on_and_back() -> None:
    engine = tiny_engine(window=8)
    object.__setattr__(engine.settings, "select", "window")
    chosen, exact = Conversation(engine), Conversation(tiny_engine(window=8))
    for conversation in (chosen, exact):
        ask(conversation, "the cat sat on the mat " * 5)
    assert chosen.sequence.cache.rows().read_share == 0.0
    chosen.exact = True
    done, _ = regenerate(chosen)
    assert done.rows.read_share == 1.0
    assert done.text == regenerate(exact)[0].text
    chosen.exact = False
    assert regenerate(chosen)[0].rows.read_share == 0.0
    chosen.exact = True
    chosen.clear()
    assert ask(chosen, "the cat sat on the mat " * 5)[0].rows.read_share == 1.0, "also in a new sequence"


def test_a_full_context_is_refused_with_choices() -> None:
    conversation = Conversation(tiny_engine(context=120))
    ask(conversation, "the cat sat on the mat. " * 7)
    with pytest.raises(ContextOverflowError, match=r"--ctx .*or use --overflow trim-oldest, /undo or /clear"):
        ask(conversation, "the cat sat on the mat. " * 7)
    assert len(conversation.messages) == 2


@pytest.mark.parametrize("trim", [False, True])
def test_what_is_too_long_without_any_turn_drops_none_and_is_told_no_such_remedy(trim: bool) -> None:
    conversation = Conversation(tiny_engine(context=120), trim=trim)
    ask(conversation, "the cat")
    conversation.attach("a.txt", "東京 " * 60)
    told: list[Event] = []
    with pytest.raises(ContextOverflowError, match=r"--ctx .*or use /detach, /undo or /clear") as caught:
        told.extend(conversation.ask("why?", GREEDY, threading.Event()))
    assert "trim-oldest" not in str(caught.value) and told == [] and len(conversation.messages) == 2


@pytest.mark.parametrize("trim", [False, True])
def test_where_there_are_no_turns_none_can_be_dropped(trim: bool) -> None:
    conversation = Conversation(tiny_engine(context=120), trim=trim)
    conversation.attach("a.txt", "東京 " * 60)
    with pytest.raises(ContextOverflowError, match=r"Shorten it, or raise --ctx") as caught:
        ask(conversation, "the cat")
    assert "trim-oldest" not in str(caught.value) and "/undo" not in str(caught.value)


def test_a_prompt_beyond_the_trained_length_is_told_of_yarn() -> None:
    with pytest.raises(ContextOverflowError, match=r"made for 4,096\)"):
        check_room(4095, 120, 4096)
    with pytest.raises(ContextOverflowError, match=r"made for 4,096; --yarn stretches that\)"):
        check_room(4096, 120, 4096)


def test_the_oldest_turns_are_dropped_and_named_and_documents_stay() -> None:
    conversation = Conversation(tiny_engine(context=220), "be brief", trim=True)
    conversation.attach("a.txt", "the cat sat on the mat. " * 3)
    notices: list[str] = []
    for number in range(8):
        _, events = ask(conversation, f"question {number} " * 2)
        notices += [event.text for event in events if isinstance(event, Notice)]
    dropped = [text for text in notices if "dropped" in text]
    assert dropped and "'question 0 question 0'" in dropped[0] and "documents stay" in dropped[0]
    assert conversation.messages[0] == {"role": "system", "content": "be brief"}
    first = conversation.messages[1]
    assert first["content"].startswith("a.txt:\n\nthe cat sat") and "question 0" not in first["content"]
    assert "question 7" in conversation.messages[-2]["content"] and conversation.used_tokens < 220
    torch.testing.assert_close(next_logits(conversation), anew(conversation.sequence.tokens), atol=1e-4, rtol=0)
    with pytest.raises(ContextOverflowError, match="prompt is"):
        ask(conversation, "東京 " * 200)  # too long with every turn dropped
    assert conversation.messages[1] is first


def test_messages_are_put_together_and_taken_apart() -> None:
    documents = [("a.txt", "one\n\ntwo"), ("a.txt", "b")]
    message = turns.question("why?", documents)
    assert message["content"] == "a.txt:\n\none\n\ntwo\n\na.txt:\n\nb\n\nwhy?"
    assert turns.taken_apart(message) == ("why?", documents)
    assert turns.taken_apart({"role": "user", "content": "why?"}) == ("why?", [])
    assert turns.for_template([message]) == [{"role": "user", "content": message["content"]}]


def test_trimming_takes_whole_turns_and_never_the_newest_question() -> None:
    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    messages = [said("system", "s"), turns.question("q1", [("d", "x")]), said("assistant", "a1")]
    messages += [said("user", "q2"), said("assistant", "a2"), said("user", "q3")]
    sizes = [1, 10, 10, 10, 10, 10]
    one = turns.trim_oldest(messages, sizes, 5)
    assert one.gone == ["q1"] and [m["content"] for m in one.messages] == ["s", "d:\n\nx\n\nq2", "a2", "q3"]
    two = turns.trim_oldest(messages, sizes, 21)
    assert two.gone == ["q1", "q2"] and [m["content"] for m in two.messages] == ["s", "d:\n\nx\n\nq3"]
    assert turns.trim_oldest(messages, sizes, 999).messages == two.messages
    assert turns.trim_oldest(messages, sizes, 0).messages == messages
