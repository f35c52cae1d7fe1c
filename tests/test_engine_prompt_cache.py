"""Prompts that were read before are not read again, and what is loaded says what reading would say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hgca_cli.config import SELECTORS
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.prompt_cache import PromptCache
from hgca_cli.engine.session import Session
from hgca_cli.engine.session_record import read_record
from hgca_cli.engine.sessions import every_session, kept_bytes, one_session, remove
from hgca_cli.events import Event, Notice, PrefillProgress
from tests.saved_sessions import ABOUT, PLENTY, ask, engine_of, one_turn, resumed, rewrite_record, save

BOOK = "the cat sat on the mat. " * 60


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_DATA_DIR", str(tmp_path))
    return tmp_path / "sessions"


def asked(engine: Engine, question: str, *, cache: bool = True) -> tuple[Conversation, list[Event]]:
    """A new conversation whose first question is about the book."""
    conversation = Conversation(engine, "be brief")
    if cache:
        conversation.reuse = PromptCache(engine)
    conversation.attach("book", BOOK)
    return conversation, ask(conversation, question)[1]


def cached(events: list[Event]) -> int:
    return next(event.cached for event in events if isinstance(event, PrefillProgress))


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_another_question_about_the_same_text(select: str, kv_dtype: str | None) -> None:
    engine = engine_of(select, kv_dtype)
    first, events = asked(engine, "who?")
    assert cached(events) == 0
    save("book", first)
    second, events = asked(engine, "where is it?")
    plain, _ = asked(engine, "where is it?", cache=False)
    shared = next(
        at for at, (a, b) in enumerate(zip(first.sequence.tokens, plain.sequence.tokens, strict=False)) if a != b
    )
    assert cached(events) == shared > 500
    told = [event.text for event in events if isinstance(event, Notice)]
    assert len(told) == 1 and f"{shared:,} tokens were read before (session book)" in told[0]
    assert second.sequence.tokens[: len(plain.sequence.tokens) - 10] == plain.sequence.tokens[:-10], "the prompt"
    if kv_dtype is None and select == "exact":
        assert second.messages == plain.messages


def test_sliding_layers_reuse_what_they_still_have() -> None:
    """Their rows are of the newest tokens of a turn: a beginning that ends elsewhere cannot be gone on from."""
    engine = engine_of(sliding=8)
    first, _ = asked(engine, "who?")
    save("book", first)
    assert cached(asked(engine, "where is it?")[1]) == 0
    ends = len(first.sequence.tokens) - 1
    conversation = Conversation(engine)
    conversation.resume(first.messages, first.history, None, first.asked_with)  # its text, without its rows
    conversation.reuse = PromptCache(engine)
    done, events = ask(conversation, "and?")
    assert cached(events) == ends
    plain = Conversation(engine)
    plain.resume(first.messages, first.history, None, first.asked_with)
    assert ask(plain, "and?")[0].text == done.text


def test_a_token_without_a_row_may_be_another() -> None:
    """The last token of an answer has no row yet: it is no reason to believe that it comes next."""
    engine = engine_of()
    first, _ = asked(engine, "who?")
    save("book", first)
    rows = first.sequence.cached
    assert len(first.sequence.tokens) == rows + 1
    prompt = [*first.sequence.tokens[:rows], first.sequence.tokens[rows] + 1, 5]
    sequence, notices = PromptCache(engine)(prompt, 0)
    assert sequence is not None and sequence.tokens == prompt[:rows] and len(notices) == 1


def test_shards_are_shared_and_counted_once(data: Path) -> None:
    engine = engine_of()
    first, _ = asked(engine, "who?")
    save("one", first)
    ask(first, "and?" * 30)
    save("one", first)
    once = kept_bytes(data)
    second, _ = asked(engine, "who?")
    assert second.sequence.on_disk is not None
    save("two", second)
    shared = [path for path in (data / "two" / "kv").iterdir() if path.stat().st_nlink == 2]
    assert len(shared) == 1 and kept_bytes(data) < 1.2 * once
    assert ask(resumed("two", engine)[0], "why")[0].text == ask(second, "why")[0].text
    remove(one_session("one"))
    assert resumed("two", engine)[0].sequence.cached > 500, "its shards are its own, too"


def test_a_limit_counts_shared_shards_once(data: Path) -> None:
    engine = engine_of()
    one_turn("other", engine=engine)
    os.utime(data / "other" / "session.json", (1000, 1000))
    first, _ = asked(engine, "who?")
    save("one", first)
    second, _ = asked(engine, "where is it?")
    session, limit = Session("two"), int(1.2 * kept_bytes(data))
    assert session.save(second, ABOUT, rows=True, limit=limit) == [] and kept_bytes(data) <= limit
    session.close()
    assert all(one.record is not None and one.record.saved is not None for one in every_session())
    ask(second, "and?" * 30)
    session, limit = Session("two"), kept_bytes(data)
    notices = session.save(second, ABOUT, rows=True, limit=limit)
    session.close()
    assert [notice.text.split()[4] for notice in notices] == ["other"] and kept_bytes(data) <= limit
    assert resumed("one", engine)[0].sequence.cached == first.sequence.cached


@pytest.mark.parametrize(
    "other", [{"fingerprint": "another"}, {"kv_dtype": "fp16"}, {"select": "moving-average"}, {"context": 500}]
)
def test_rows_of_another_kind_are_not_looked_at(other: dict[str, object]) -> None:
    save("book", asked(engine_of(), "who?")[0])
    engine = engine_of(**other)  # type: ignore[arg-type]
    if engine.context == 500:
        assert PromptCache(engine).find(asked(engine_of(), "who?")[0].sequence.tokens, 0) is None
    else:
        assert cached(asked(engine, "who?")[1]) == 0


def test_only_what_pays_is_loaded(data: Path) -> None:
    engine = engine_of()
    first, _ = asked(engine, "who?")
    save("book", first)
    prompt = first.sequence.tokens
    cache = PromptCache(engine)
    found = cache.find(prompt, 0)
    assert found is not None and found.rows == len(prompt) - 1 and cache.find(prompt, len(prompt) - 200) is None
    assert cache.find([prompt[0] + 1, *prompt[1:]], 0) is None and cache.find(prompt[:200], 0) is None

    def faster(table: dict[str, dict[str, object]]) -> None:
        table["saved"]["seconds_per_token"] = 1e-9

    rewrite_record(data / "book", faster)
    assert cache.find(prompt, 0) is None, "reading is faster"


def test_damage_is_told_and_the_prompt_is_read(data: Path) -> None:
    engine = engine_of()
    first, _ = asked(engine, "who?")
    save("book", first)
    shard = next((data / "book" / "kv").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    conversation, events = asked(engine, "who?")
    told = [event.text for event in events if isinstance(event, Notice)]
    assert cached(events) == 0 and len(told) == 1 and "session book is not reused" in told[0]
    assert conversation.messages == first.messages


def test_what_was_not_used_for_longest_goes_first_and_its_text_stays(data: Path) -> None:
    engine = engine_of()
    for age, name in enumerate(("old", "older", "oldest", "open")):
        one_turn(name, f"{name} is it " * 40, engine)
        os.utime(data / name / "session.json", (1000 - age, 1000 - age))
    size = kept_bytes(data) // 4
    held = Session("open")
    conversation = Conversation(engine)
    ask(conversation, "the newest is it " * 40)
    session = Session("new")
    notices = session.save(conversation, ABOUT, rows=True, limit=int(size * 4.2))
    session.close()
    held.close()
    assert [notice.text.split()[4] for notice in notices] == ["oldest"], notices
    assert kept_bytes(data) <= size * 4.2
    found = {one.name: one.record for one in every_session()}
    assert found["oldest"].saved is None and found["old"].saved is not None  # type: ignore[union-attr]
    again, notices = resumed("oldest", engine)
    assert notices == [] and len(again.messages) == 3 and again.sequence.cached == 0
    assert read_record(data / "new").saved is not None and size < PLENTY
