"""Sessions: opened again they go on as if they had never been closed, and killed at any moment they open."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from hgca_cli.config import SELECTORS, CacheSettings, SamplingSettings
from hgca_cli.engine import shards
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import shared
from hgca_cli.engine.session import Session
from hgca_cli.engine.session_record import read_record
from hgca_cli.errors import DoesNotFitError, UsageError
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import ModelFiles
from tests.saved_sessions import ABOUT, LONG, PLENTY, ask, engine_of, one_turn, resumed, save, tree

TEXTS = ("the cat sat on the mat " * 12, "naïve café", "and then? " * 5, "why")
CASES = [
    *((select, kv_dtype, None) for select, kv_dtype in itertools.product(SELECTORS, (None, "bf16", "int8"))),
    ("exact", None, 8), ("scan", "fp16", None), ("exact", None, 64),
]  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_DATA_DIR", str(tmp_path))
    return tmp_path / "sessions"


def rows_of(conversation: Conversation) -> list[tuple[int, int, torch.Tensor]]:
    cache = conversation.sequence.cache
    pieces = cache.held(0, conversation.sequence.cached)
    return [(index, piece.first, one) for index, piece in pieces for one in piece[1:] if one is not None]


def worst_of_shared_rows(one: Conversation, other: Conversation) -> float:
    """How far rows of the tokens that two texts have in common are apart: in other chunks they are rounded at other moments."""
    length = shared(one.sequence.tokens, other.sequence.tokens)
    assert length > 0.9 * len(other.sequence.tokens)
    pairs = zip(one.sequence.cache.every_row() or (), other.sequence.cache.every_row() or (), strict=True)
    return max(
        float((mine - theirs).abs().max() / theirs.abs().max())
        for both in pairs
        for mine, theirs in zip(*both, strict=True)
        for mine, theirs in [(mine[:, : length - 1], theirs[:, : length - 1])]
    )


@pytest.mark.parametrize(("select", "kv_dtype", "sliding"), CASES)
def test_a_resumed_conversation_is_the_uninterrupted_one(
    select: str, kv_dtype: str | None, sliding: int | None
) -> None:
    """Closed and opened before every turn: the same answers, and the same rows in the same places, bit for bit."""
    whole = Conversation(engine_of(select, kv_dtype, sliding=sliding), "be brief")
    expected = [ask(whole, text)[0] for text in TEXTS]
    for text, wanted in zip(TEXTS, expected, strict=True):
        session, engine = Session("notes"), engine_of(select, kv_dtype, sliding=sliding)
        conversation = Conversation(engine, "be brief")
        if session.record is not None:
            assert session.resume(engine, conversation) == []
        done, _ = ask(conversation, text)
        assert (done.text, done.cached_tokens) == (wanted.text, wanted.cached_tokens)
        session.save(conversation, ABOUT, rows=True, limit=PLENTY)
        session.close()
    assert conversation.sequence.tokens == whole.sequence.tokens and conversation.messages == whole.messages
    for (layer, first, ours), (_, other, theirs) in zip(rows_of(conversation), rows_of(whole), strict=True):
        assert first == other and torch.equal(ours, theirs), (layer, first)


@pytest.mark.parametrize(("window", "context"), [(4, 2048), (64, 2048), (1, 2048), (16, 600), (2000, 2048)])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_rows_serve_another_window_and_context(window: int, context: int, kv_dtype: str | None) -> None:
    """What was evicted comes back into a larger window, and what was not goes to the store of a smaller one."""
    one_turn(engine=engine_of(kv_dtype=kv_dtype))
    conversation, notices = resumed("notes", engine_of(kv_dtype=kv_dtype, window=window, context=context))
    assert notices == []
    done, _ = ask(conversation, "and?")
    assert done.cached_tokens > 250
    if kv_dtype is None:  # nothing was rounded
        other = Conversation(engine_of(kv_dtype=None, window=window, context=context), "be brief")
        ask(other, LONG)
        assert ask(other, "and?")[0].text == done.text


def test_a_turn_costs_its_own_rows_and_small_shards_are_joined() -> None:
    conversation, session = Conversation(engine_of()), Session("notes")
    names: set[str] = set()
    written = 0
    for turn in range(24):
        ask(conversation, LONG if turn == 0 else "and?")
        session.save(conversation, ABOUT, rows=True, limit=PLENTY)
        shards = session.record.saved.shards  # type: ignore[union-attr]
        written += sum(shard.tokens for shard in shards if shard.file not in names)
        names |= {shard.file for shard in shards}
        assert [shard.first for shard in shards] == [0, *(shard.end for shard in shards[:-1])]
    assert len(shards) < 10 and shards[0].tokens >= 250
    assert written < 5 * conversation.sequence.cached, "each row is written a few times at most"
    assert {path.name for path in (session.folder / "kv").iterdir()} == {Path(shard.file).name for shard in shards}
    session.close()


def test_text_that_was_saved_without_rows_is_read_and_the_rows_before_it_are_not() -> None:
    conversation = one_turn()
    ask(conversation, "and?")
    save("notes", conversation, rows=False)
    again, notices = resumed("notes", engine_of())
    assert again.messages == conversation.messages and notices == []
    done, _ = ask(again, "why?")
    assert 250 < done.cached_tokens < done.prompt_tokens - 20


def test_a_cleared_conversation_replaces_the_text() -> None:
    conversation = one_turn()
    conversation.clear("be long")
    ask(conversation, "other")
    session = save("notes", conversation)
    assert [path.name for path in session.folder.glob("messages*")] == ["messages-000003.jsonl"]
    again, _ = resumed("notes", engine_of())
    assert again.messages == conversation.messages and again.messages[0]["content"] == "be long"
    assert ask(again, "why")[0].text == ask(conversation, "why")[0].text


def test_rows_of_another_text_say_nothing_of_the_history() -> None:
    """As many messages as there were when rows were saved, and others."""
    conversation = one_turn()
    conversation.clear("be brief")
    ask(conversation, "def f(x)")
    save("notes", conversation, rows=False)
    again, _ = resumed("notes", engine_of())
    assert again.messages == conversation.messages and again.history == []
    assert ask(again, "why")[0].prompt_tokens < 100, "nothing of the other text is read"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fingerprint": "of another"}, "of another model"),
        ({"kv_dtype": "int8"}, "of other numbers"),
        ({"select": "moving-average"}, "of no use with these settings"),
    ],
)
def test_rows_of_no_use_are_told_and_the_text_is_read_again(other: dict[str, str], why: str) -> None:
    before = one_turn()
    conversation, notices = resumed("notes", engine_of(**other))  # type: ignore[arg-type]
    assert len(notices) == 1 and why in notices[0].text
    done, _ = ask(conversation, "and?")
    assert done.cached_tokens == 0 and conversation.messages[:3] == before.messages


def test_one_writer(data: Path) -> None:
    one_turn()
    first = Session("notes")
    with pytest.raises(UsageError, match="session notes is open in another chat"):
        Session("notes")
    if (child := os.fork()) == 0:
        try:
            Session("notes")
        except UsageError:
            os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    first.close()
    if (child := os.fork()) == 0:
        Session("notes")
        os.kill(os.getpid(), signal.SIGKILL)  # its lock file stays, its lock does not
    os.waitpid(child, 0)
    assert (data / "notes" / "lock").exists()
    Session("notes").close()


def test_a_new_session_leaves_nothing_unless_it_is_saved(data: Path) -> None:
    Session("notes").close()
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".hidden", "-x", "a b", "a\nb", "a\0b", "x" * 101, "\x1b[2J"]
)
def test_names_are_names(name: str, data: Path) -> None:
    with pytest.raises(UsageError, match="no name for a session"):
        Session(name)
    assert not data.exists()


def test_killed_at_any_moment_the_session_opens(data: Path) -> None:
    """A child asks and saves until it is killed while saving, fifty times: what opens is whole turns, and their rows are right."""
    chance = random.Random(7)
    short = SamplingSettings(temperature=0, max_tokens=2)
    one_turn(text="the cat")
    engine, turns = engine_of(), 0
    killed_while_saving = 0
    for round_number in range(50):
        ours, childs = os.pipe()
        if (child := os.fork()) == 0:
            try:
                torch.set_num_threads(1)  # OpenMP's other threads are not in a forked child
                session, conversation = Session("notes"), Conversation(engine)
                session.resume(engine, conversation)
                while True:
                    ask(conversation, "and then?", short)
                    os.write(childs, b"b")
                    session.save(conversation, ABOUT, rows=True, limit=PLENTY)
                    os.write(childs, b"e")
            finally:
                os._exit(1)
        os.close(childs)  # a child that ends by itself is noticed: nothing more comes
        assert os.read(ours, 1) == b"b"
        began = time.perf_counter()
        assert os.read(ours, 1) == b"e"
        took = time.perf_counter() - began
        assert os.read(ours, 1) == b"b"
        time.sleep(chance.uniform(0.0, took))  # in the midst of the second save, however busy the machine is
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        os.close(ours)
        names = {path.name for path in (data / "notes").rglob("*") if path.is_file()}
        killed_while_saving += len(names) > len(read_record(data / "notes").files)
        conversation, notices = resumed("notes", engine)
        assert notices == [] and conversation.sequence.cached
        assert [message["role"] for message in conversation.messages[1:]] == ["user", "assistant"] * (
            len(conversation.messages) // 2
        )
        assert len(conversation.messages) // 2 >= turns, "what was committed stays"
        turns = len(conversation.messages) // 2
        names = {path.name for path in (data / "notes").rglob("*") if path.is_file()}
        assert names == {Path(name).name for name in read_record(data / "notes").files}, "what a kill left is swept"
        if round_number % 10 == 9:
            fresh = Conversation(engine)
            fresh.resume(conversation.messages, conversation.history, None)
            ask(fresh, "why?")
            ask(conversation, "why?")
            assert worst_of_shared_rows(fresh, conversation) < 0.02
        if conversation.sequence.cached > 1500:
            one_turn(text="the cat", engine=engine)
            turns = 1
    assert killed_while_saving > 0, "or the moments were no good"


@pytest.mark.parametrize("failing", ["fsync", "_write"])
def test_a_full_disk_at_any_write_leaves_the_session(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = one_turn()
    ask(conversation, "and?")
    where = os if failing == "fsync" else shards
    right = getattr(where, failing)
    failed = 0
    for number in range(1, 40):
        calls = 0

        def write(*given: object, number: int = number) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(28, "No space left on device")
            return right(*given)

        session = Session("notes")
        with monkeypatch.context() as patch:
            patch.setattr(where, failing, write)
            try:
                session.save(conversation, ABOUT, rows=True, limit=PLENTY)
            except DoesNotFitError as error:
                assert "No space left" in str(error) and "prune" in str(error)
                failed += 1
        session.close()
        again, _ = resumed("notes", engine_of())
        assert again.messages[:3] == conversation.messages[:3] and again.sequence.cached > 250
        if calls < number:
            break
    assert failed >= 3 and calls < number
    assert again.messages == conversation.messages and again.sequence.cached == conversation.sequence.cached


def test_a_limit_of_file_sizes_is_a_full_disk(data: Path) -> None:
    conversation = one_turn(text="the cat")
    ask(conversation, LONG)
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            save("notes", conversation)
        except DoesNotFitError as error:
            os._exit(error.exit_code)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    again, _ = resumed("notes", engine_of())
    assert again.messages == conversation.messages, "the text fits"
    assert 0 < again.sequence.cached < 60


def test_rows_beyond_the_limit_or_the_disk_are_not_saved_and_the_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(engine_of())
    ask(conversation, LONG)
    session = Session("notes")
    (notice,) = session.save(conversation, ABOUT, rows=True, limit=1000)
    assert "KiB are more than --kv-disk-limit 1000 B" in notice.text
    monkeypatch.setattr("hgca_cli.engine.saving.free_bytes", lambda path: 50_000)
    (notice,) = session.save(conversation, ABOUT, rows=True, limit=PLENTY)
    assert "48.8 KiB of the disk are free" in notice.text
    session.close()
    assert list((session.folder / "kv").iterdir()) == []
    again, _ = resumed("notes", engine_of())
    assert again.messages == conversation.messages and again.sequence.cached == 0


def test_saving_writes_nothing_outside_its_directory(data: Path) -> None:
    one_turn("one")
    before = tree(data / "one")
    one_turn("two")
    assert tree(data / "one") == before and sorted(path.name for path in data.iterdir()) == ["one", "two"]
    assert {path.stat().st_mode & 0o077 for path in data.rglob("*") if path.is_file()} == {0}


@pytest.mark.model
@pytest.mark.parametrize("select", ["exact", "scan"])
def test_the_default_model_goes_on_with_the_same_tokens(select: str, default_model: Path) -> None:
    """Rows of a real model in a bf16 store, its newest ones in fp32."""
    settings = CacheSettings(window=64, context=1024, select=select, kv_dtype="bf16")
    engine = Engine(load_model(ModelFiles("default", default_model)), settings, prefill_chunk=128)
    sampling = SamplingSettings(temperature=0, max_tokens=24)
    whole = Conversation(engine)
    ask(
        whole,
        "Here is a list of animals: " + ", ".join(["cat", "dog", "sparrow", "salmon"] * 40) + ". How many?",
        sampling,
    )
    save("notes", whole)
    again, notices = resumed("notes", engine)
    assert notices == []
    ours, theirs = (ask(one, "Which of them can fly?", sampling)[0] for one in (again, whole))
    assert ours.text == theirs.text and len(ours.text) > 20 and ours.cached_tokens == theirs.cached_tokens > 300
    assert again.sequence.tokens == whole.sequence.tokens
