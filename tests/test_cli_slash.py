"""What is typed after a slash, without a terminal: what is taken, and what is said where it is not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest

from hgca_cli.commands.keeping import Keeper, Keeping
from hgca_cli.commands.slash import run_slash
from hgca_cli.commands.slash_settings import setting_of
from hgca_cli.commands.talk import Talk
from hgca_cli.config import NO_LIMIT, SamplingSettings
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Notice
from tests.tiny_engine import tiny_engine


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.setenv("HGCA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    origins = {field.name: "default" for field in fields(SamplingSettings)}
    sampling = SamplingSettings(temperature=0, max_tokens=4)
    return Talk(tiny_engine(), None, sampling, origins, Mock(), keeper=Keeper(Keeping(), "tiny", None))


def said(talk: Talk, line: str) -> str:
    """What a command answers: what it tells, a notice, or an error."""
    before = len(talk.sink.mock_calls)  # type: ignore[attr-defined]
    try:
        run_slash(talk, line)
    except HgcaError as error:
        return f"error: {error}"
    told = []
    for name, words, _ in talk.sink.mock_calls[before:]:  # type: ignore[attr-defined]
        if name == "tell":
            told.append(words[0])
        elif name == "show" and isinstance(words[0], Notice):
            told.append(words[0].text)
        elif name == "attached":
            told.append(f"{words[0]}: {words[1]} tokens")
    return "\n".join(told)


def test_settings_as_flags_take_them() -> None:
    assert [setting_of("max_tokens", word) for word in ("300", "4k", "-1")] == [300, 4096, NO_LIMIT]
    assert [setting_of("seed", word) for word in ("5", "-1", "random")] == [5, None, None]
    assert [setting_of("reasoning_budget", word) for word in ("2k", "-1", "none")] == [2048, None, None]
    assert [setting_of("stop", word) for word in ("###", '"User:"', "none")] == [("###",), ("User:",), ()]
    assert (setting_of("top_k", "-1"), setting_of("temperature", '"0.5"')) == (0, 0.5)
    with pytest.raises(UsageError, match=r"max_tokens: '4q' is not a number of tokens. Give 0 or more, like 200 or 4k"):
        setting_of("max_tokens", "4q")


def test_a_setting_without_a_value_is_shown(talk: Talk) -> None:
    assert said(talk, "/set temp") == "temperature = 0 (default); /set temp VALUE changes it"
    assert said(talk, "/set repetition_penalty 1.1") == "repetition_penalty = 1.1"
    assert said(talk, "/set parameter num_predict 2k") == "max_tokens = 2,048", "ollama's name"
    assert said(talk, "/set max_tokens -1") == "max_tokens = no limit"
    assert said(talk, "/set seed 12345") == "seed = 12345", "there to be copied"
    told = "seed = 12345 (set here); /set seed VALUE changes it; /set seed none takes it away"
    assert said(talk, "/set seed") == told and talk.sampling.seed == 12345
    assert said(talk, "/set seed none") == "seed = -" and "takes it away" not in said(talk, "/set seed")
    assert said(talk, "/set quality").startswith("quality = -; /set quality VALUE")
    assert "error: /set markdown needs a value. Like /set markdown off" in said(talk, "/set markdown")
    shown = said(talk, "/show")
    assert "max_tokens          no limit     set here" in shown and "json_schema         -" in shown
    said(talk, "/set max_tokens 12345")
    assert "max_tokens          12,345       set here" in said(talk, "/show")


def test_sessions_that_are_not_there_and_names_in_quotes(talk: Talk) -> None:
    assert said(talk, "/load tale") == "error: there is no session tale. There are none yet: /save NAME makes one."
    talk.answer("the cat")
    assert said(talk, '/save "tale"') == "saved as session tale"
    assert said(talk, "/load zz") == "error: there is no session zz. There is tale."
    assert said(talk, "/load 'taile'") == "error: there is no session taile. Did you mean tale? /sessions lists all."
    assert "error: 'my chat' is no name for a session." in said(talk, '/save "my chat"')
    assert said(talk, '/save "my chat"').endswith("like my-chat.")
    for number in range(6):
        said(talk, f"/save {'abcdef'[number]}")
    assert said(talk, "/load zz") == "error: there is no session zz. /sessions lists them."
    assert said(talk, '/load "tale"').startswith("session tale: ")


def test_a_file_is_not_read_twice(talk: Talk, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("the cat sat on the mat.\n")
    assert said(talk, "/file notes.txt") == "notes.txt: 10 tokens"
    assert said(talk, f"/file {notes}") == "notes.txt is attached already: it is not read twice"
    assert len(talk.attached) == len(talk.conversation.waiting) == 1
    talk.answer("who?")
    assert said(talk, "/file notes.txt") == "notes.txt is in the conversation already: it is not read twice"
    said(talk, "/undo")
    assert said(talk, "/file notes.txt") == "notes.txt is attached already: it is not read twice"
    notes.write_text("the dog\n")
    assert "tokens" in said(talk, "/file notes.txt"), "another text, though it is called the same"
    said(talk, "/detach")
    assert "tokens" in said(talk, "/file notes.txt")
    said(talk, "/clear")
    assert "tokens" in said(talk, "/file notes.txt")


def test_files_that_are_meant_are_named(talk: Talk, tmp_path: Path) -> None:
    for name in ("a b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    assert said(talk, "/file '*.txt'") == "error: *.txt: no such file. /glob '*.txt' reads what matches."
    assert said(talk, "/file 'a b.txt,c.txt'").endswith("no such file. Like /file 'a b.txt' c.txt")
    assert said(talk, "/file 'q*.txt'") == "error: q*.txt: no such file. Check the path."
    (tmp_path / "[c].txt").write_text("brackets")
    assert "tokens" in said(talk, "/file [c].txt"), "a file may be called like a pattern"


@pytest.mark.parametrize("words", [1, 12])
def test_rows_that_were_taken_back_are_none_of_the_conversations(words: int, talk: Talk) -> None:
    """What is shown is what is left once the cache goes back: one turn is within the window of 64, the other is longer."""
    talk = Talk(tiny_engine(window=64), None, talk.sampling, talk.origins, talk.sink)
    talk.answer("the cat sat on the mat. " * 10)
    before = talk.meter()
    talk.answer("who? " * words)
    during = talk.meter()
    said(talk, "/undo")
    shown, used = talk.meter(), talk.conversation.used_tokens
    assert shown[0] == before[0] != during[0] and shown[1] != during[1]
    assert talk.conversation.sequence.cached > used, "the rows are still there"
    assert talk.conversation.sequence.rewind(used)
    assert talk.meter() == shown and "store 0" not in shown[1]
    rows = talk.conversation.sequence.cache.rows()
    assert shown[1] == f" | window {rows.window:,} store {rows.store:,}"


def test_a_question_stopped_before_its_answer_can_be_had_again(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.ask("the first")
    answer, asked = talk.answer, []

    def stopped(text: str) -> int:
        asked.append(text)
        return 130

    monkeypatch.setattr(talk, "answer", stopped)
    talk.ask("the second")
    told = [call.args[0] for call in talk.sink.note.call_args_list]  # type: ignore[attr-defined]
    assert any("the question is taken back (/regen asks it again)" in text for text in told)
    said(talk, "/regen")
    assert asked == ["the second", "the second"]
    monkeypatch.setattr(talk, "answer", answer)
    said(talk, "/regen")
    assert [one["content"] for one in talk.conversation.messages if one["role"] == "user"] == [
        "the first",
        "the second",
    ]
    said(talk, "/regen")  # of an answer there is
    assert len(talk.conversation.messages) == 4
    monkeypatch.setattr(talk, "answer", stopped)
    talk.ask("the third")
    said(talk, "/undo")
    said(talk, "/regen")
    assert asked[2:] == ["the third"], "what was stopped is forgotten with a turn that is taken back"
