"""Sessions from outside: chats that go on, and the commands that manage what was kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest

from hgca_cli.engine.session import Session
from hgca_cli.engine.session_record import read_record
from hgca_cli.units import format_bytes
from tests.cli_process import Done, environment, here, records, save_tiny
from tests.models import write_model

FLAGS = ["-n", "8", "--temp", "0", "--window", "32", "--ctx", "8k", "--yarn", "--prefill-chunk", "256"]
BOOK = "the cat sat on the mat. " * 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("sessions") / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def run(data: Path, *words: str, **env: str) -> Done:
    return here(*words, HGCA_DATA_DIR=str(data), **env)


def chat(data: Path, model: str, *words: str, **env: str) -> Done:
    return run(data, "chat", "-m", model, *FLAGS, *words, **env)


def names(data: Path) -> list[str]:
    return run(data, "sessions", "ls", "-q").stdout.decode().split()


def failed(done: Done, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"hgca: error: ")
    assert all(part in done.stderr.decode() for part in parts), done.stderr


def test_a_session_goes_on_where_it_was(data: Path, model: str, tmp_path: Path) -> None:
    first = chat(data, model, "--session", "notes", "-p", "the cat sat", "-s", "be brief")
    assert first.returncode == 0 and first.stderr == b""
    second = records(chat(data, model, "--session", "notes", "-p", "and?", "--json"))
    assert second[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 15
    assert next(one for one in second if one["type"] == "prefill")["cache"] > 15
    third = run(data, "chat", "-C", *FLAGS, "why?")
    assert third.returncode == 0 and b"session notes: 2 turns, " in third.stderr, "the model is the session's"
    shown = json.loads(run(data, "sessions", "show", "notes", "--json").stdout)
    assert shown["messages"] == 7 and shown["model"] == model and shown["rows"]["tokens"] > 50
    text = tmp_path / "text"
    for words in (("the cat sat", "--no-save-kv"), ("and?", "--no-save-kv"), ("why?",)):
        told = records(chat(text, model, "--session", "notes", "--json", "-p", *words))
        assert next(one for one in told if one["type"] == "prefill")["cache"] == 0, "its text is read again"
        rows = json.loads(run(text, "sessions", "show", "notes", "--json").stdout)["rows"]
        assert (rows is None) == (len(words) == 2)


def test_weights_are_packed_as_the_sessions_were(data: Path, tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "wide"))
    chat(data, model, "--session", "packed", "-p", "the cat sat", "--quant", "q4")
    shown = run(data, "sessions", "show", "packed").stdout.decode()
    assert (
        "weights in q4" in shown
        and '"quant": "q4"' in run(data, "sessions", "show", "packed", "--json").stdout.decode()
    )
    assert "json_schema -, " in shown and "in 1 file, " in shown
    for words in ((), ("-m", model)):
        told = records(run(data, "chat", "-C", *FLAGS, *words, "--json", "why?"))
        assert told[0]["quant"] == "q4" and told[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    told = records(run(data, "chat", "-C", *FLAGS, "--quant", "none", "--json", "why?"))
    assert told[0]["quant"] == "none" and told[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert any("of another model or --quant" in one.get("text", "") for one in told if one["type"] == "notice")


def test_what_is_saved_without_a_name(data: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    book = ["-f", str(tmp_path / "book.txt")]
    assert chat(data, model, "-p", "the cat").returncode == 0 and names(data) == [], "a short answer is not"
    for flag in ("--no-save", "--no-save-kv"):
        chat(data, model, *book, "-p", "who?", flag)
        assert names(data) == []
    chat(data, model, *book, "-p", "who?", "--raw")
    assert names(data) == []
    told = records(chat(data, model, *book, "-p", "who?", "--json"))
    assert told[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    (name,) = names(data)
    told = records(chat(data, model, *book, "-p", "where is it?", "--json"))
    notices = [one["text"] for one in told if one["type"] == "notice"]
    assert any(f"tokens were read before (session {name})" in text for text in notices)
    assert next(one for one in told if one["type"] == "prefill")["cache"] > 2048
    assert names(data) == [name], "what was read before is not saved again"
    told = records(chat(data, model, *book, "-p", "where is it?", "--json", "--no-cache"))
    assert next(one for one in told if one["type"] == "prefill")["cache"] == 0 and len(names(data)) == 2


def test_a_limit_on_the_disk(data: Path, model: str) -> None:
    done = chat(data, model, "--session", "notes", "-p", "the cat", HGCA_KV_DISK_LIMIT="100B")
    assert done.returncode == 0 and b"its rows are not: " in done.stderr and b"--kv-disk-limit 100 B" in done.stderr
    failed(chat(data, model, "-p", "x", "--kv-disk-limit", "lots"), 2, "--kv-disk-limit", "8GiB")


def test_contradictions_and_absences(data: Path, model: str) -> None:
    failed(chat(data, model, "-C", "-p", "x"), 5, "no session to continue", "--session NAME")
    failed(chat(data, model, "-C", "--session", "x", "-p", "x"), 2, "--continue and --session")
    failed(chat(data, model, "-C", "--raw", "-p", "x"), 2, "--continue and --raw")
    failed(chat(data, model, "--session", "x", "--raw", "-p", "x"), 2, "--raw and --session")
    failed(chat(data, model, "--reread", "-p", "x"), 2, "--reread needs a session")
    failed(chat(data, model, "--session", "../x", "-p", "x"), 2, "no name for a session")
    failed(chat(data, model, "--session", "x", "--no-save", "-p", "x"), 5, "there is no session x")
    for command in ("show", "export", "rm"):
        failed(run(data, "sessions", command, "x"), 5, "there is no session x", "hgca sessions ls")
        failed(run(data, "sessions", command, "a/b"), 2, "no name for a session")
    failed(run(data, "sessions", "prune"), 2, "--keep, --older-than or --max-size")
    failed(run(data, "sessions", "prune", "--older-than", "soon"), 2, "--older-than", "30d")
    assert chat(data, model, "--session", "x", "-p", "the cat").returncode == 0
    failed(chat(data, model, "--session", "x", "-p", "y", "-s", "be brief"), 2, "session x has its own beginning")
    failed(run(data, "sessions", "export", "x", "--format", "pdf"), 2, "md, json, openai")
    assert run(data, "sessions", "ls").returncode == 0 and not (data.parent / "x").exists()


def test_an_open_session_is_nobody_elses(data: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat(data, model, "--session", "notes", "-p", "the cat")
    monkeypatch.setenv("HGCA_DATA_DIR", str(data))
    held = Session("notes")
    failed(chat(data, model, "--session", "notes", "-p", "x"), 2, "session notes is open in another chat")
    failed(run(data, "sessions", "rm", "notes"), 2, "session notes is open in another chat")
    would = run(data, "sessions", "prune", "--keep", "0", "--dry-run")
    assert b"warning: session notes is open" in would.stderr and would.stdout == b"nothing to remove\n"
    pruned = run(data, "sessions", "prune", "--keep", "0")
    assert pruned.returncode == 0 and b"warning: session notes is open" in pruned.stderr and names(data) == ["notes"]
    held.close()
    assert chat(data, model, "--session", "notes", "--no-save", "-p", "x").returncode == 0
    assert json.loads(run(data, "sessions", "show", "notes", "--json").stdout)["turns"] == 2, "only read"


def test_damage_is_one_line_and_the_text_can_be_had(data: Path, model: str) -> None:
    first = chat(data, model, "--session", "notes", "-p", "the cat")
    record = data / "sessions" / "notes" / "session.json"
    record.write_bytes(record.read_bytes()[:-9])
    failed(
        chat(data, model, "--session", "notes", "-p", "x"), 5, "session notes is damaged", "--reread", "export notes"
    )
    listed = run(data, "sessions", "ls")
    assert listed.returncode == 0 and b"damaged" in listed.stdout and b"the cat" in listed.stdout
    assert b"damaged" in run(data, "sessions", "show", "notes").stdout
    text = run(data, "sessions", "export", "notes")
    assert (
        text.returncode == 0 and b"## user\n\nthe cat\n\n## assistant" in text.stdout and b"is damaged" in text.stderr
    )
    again = chat(data, model, "--session", "notes", "--reread", "-p", "and?")
    assert again.returncode == 0 and b"its text is read again" in again.stderr
    whole = json.loads(run(data, "sessions", "export", "notes", "--format", "openai").stdout)
    assert [message["role"] for message in whole["messages"]] == ["user", "assistant"] * 2
    assert whole["messages"][1]["content"] == first.stdout.decode().removesuffix("\n") and whole["model"] == model


def test_another_model_reads_the_text_again(data: Path, model: str, tmp_path: Path) -> None:
    chat(data, model, "--session", "notes", "-p", "the cat")
    other = save_tiny(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    told = records(chat(data, other, "--session", "notes", "-p", "and?", "--json"))
    assert any("are of another model or --quant: its text is read again" in one.get("text", "") for one in told)
    assert next(one for one in told if one["type"] == "prefill")["cache"] == 0
    assert read_record(data / "sessions" / "notes").model == other


def test_ls_rm_prune(data: Path, model: str) -> None:
    for age, name in enumerate(("c", "b", "a")):
        chat(data, model, "--session", name, "-p", f"the {name}")
        used = 1_700_000_000 - age * 86400
        os.utime(data / "sessions" / name / "session.json", (used, used))
    assert names(data) == ["c", "b", "a"]
    listed = json.loads(run(data, "sessions", "ls", "--json").stdout)
    assert [one["name"] for one in listed] == ["c", "b", "a"] and all(one["rows"]["tokens"] > 10 for one in listed)
    table = run(data, "sessions", "ls").stdout.decode().splitlines()
    assert table[0].split() == ["name", "tokens", "size", "used", "model", "begins"] and table[1].split()[-2:] == [
        "the",
        "c",
    ]
    would = run(data, "sessions", "prune", "--keep", "1", "--dry-run").stdout.decode()
    assert would.count("would remove") == 2 and len(names(data)) == 3
    size = listed[0]["bytes"]
    gone = json.loads(run(data, "sessions", "prune", "--max-size", str(int(2.5 * size)), "--json").stdout)
    assert [one["name"] for one in gone["removed"]] == ["a"] and names(data) == ["c", "b"]
    assert run(data, "sessions", "prune", "--older-than", "2000w").stdout == b"nothing to remove\n"
    failed(run(data, "sessions", "rm", "b", "zz"), 5, "there is no session zz")
    assert names(data) == ["c", "b"], "all of them, or none"
    assert run(data, "sessions", "rm", "b", "c").stdout.decode().startswith("removed b (")
    assert b"no sessions yet" in run(data, "sessions", "ls").stdout


def test_what_sessions_share_counts_once(data: Path, model: str, tmp_path: Path) -> None:
    """Chats about one document have the files of its rows in common: a limit is about what is on the disk."""
    (tmp_path / "book.txt").write_text(BOOK)
    for name in ("a", "b", "c"):
        chat(data, model, "--session", name, "-f", str(tmp_path / "book.txt"), "-p", f"the {name}")
    for age, name in enumerate(("c", "b", "a")):  # one whose rows are loaded is of use then
        used = 1_700_000_000 - age * 86400
        os.utime(data / "sessions" / name / "session.json", (used, used))
    told = json.loads(run(data, "sessions", "ls", "--json").stdout)
    size = max(one["bytes"] for one in told)
    assert min(one["bytes"] for one in told) > 0.9 * size
    limit = ("--max-size", str(int(1.5 * size)))
    assert run(data, "sessions", "prune", *limit).stdout == b"nothing to remove\n" and names(data) == ["c", "b", "a"]
    before = _on_disk(data)
    for dry in (True, False):
        done = run(data, "sessions", "prune", "--keep", "1", "--json", *(["--dry-run"] if dry else []))
        gone = json.loads(done.stdout)["removed"]
        assert [one["name"] for one in gone] == ["b", "a"] and all(0 < one["freed"] < size / 4 for one in gone)
    assert before - _on_disk(data) == sum(one["freed"] for one in gone)
    shown = json.loads(run(data, "sessions", "show", "c", "--json").stdout)
    assert run(data, "sessions", "rm", "c").stdout.decode() == f"removed c ({format_bytes(shown['bytes'])} freed)\n"


def _on_disk(data: Path) -> int:
    found = [path.lstat() for path in data.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in found}.values())


@pytest.fixture
def terminal(data: Path, model: str) -> pexpect.spawn:
    words = ["-m", "hgca_cli", "chat", "-m", model, *FLAGS, "--plain", "--session", "talk"]
    child = pexpect.spawn(sys.executable, words, env=environment(HGCA_DATA_DIR=str(data)), encoding="utf-8", timeout=60)
    child.expect(">>> ")
    return child


def test_slash_commands(data: Path, terminal: pexpect.spawn) -> None:
    def typed(line: str, *expected: str) -> None:
        terminal.sendline(line)
        for one in expected:
            terminal.expect(one)
        terminal.expect(">>> ")

    typed("the cat sat")
    assert names(data) == ["talk"]
    typed("/save copy", "saved as session copy")
    typed("and?")
    typed("/save talk", "there is a session talk already")
    typed("/load copy", "is the one you are in")
    typed("/load zz", "there is no session zz")
    typed("/load", "/load needs a name")
    typed("/sessions", "copy", "talk")
    (data / "sessions" / "bad").mkdir()
    (data / "sessions" / "bad" / "session.json").write_text("{")
    typed("/load bad", "session bad is damaged")
    typed("why?")  # the session is still the one it was
    typed("/load talk", "1 turn")
    typed("/clear")
    typed("other")
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    assert (data / "sessions" / "bad" / "session.json").read_text() == "{"
    copied = json.loads(run(data, "sessions", "export", "copy", "--format", "json").stdout)
    assert [one["content"] for one in copied["messages"][::2]] == ["the cat sat", "and?", "why?"]
    talked = json.loads(run(data, "sessions", "export", "talk", "--format", "json").stdout)
    assert [one["content"] for one in talked["messages"][::2]] == ["other"]


def test_an_answer_that_was_stopped_is_saved(data: Path, model: str) -> None:
    words = [
        "-m",
        "hgca_cli",
        "chat",
        "-m",
        model,
        "--window",
        "32",
        "--temp",
        "0",
        "--session",
        "talk",
        "--plain",
        "--ctx",
        "8k",
        "--yarn",
    ]
    child = pexpect.spawn(sys.executable, words, env=environment(HGCA_DATA_DIR=str(data)), encoding="utf-8", timeout=60)
    child.expect(">>> ")
    child.sendline("the cat sat")
    child.expect("\n.{8,}")
    child.sendintr()
    child.expect(">>> ")
    child.close(force=True)
    said = json.loads(run(data, "sessions", "export", "talk", "--format", "openai").stdout)["messages"]
    shown = json.loads(run(data, "sessions", "show", "talk", "--json").stdout)
    assert len(said) == 2 and len(said[1]["content"]) >= 8 and shown["rows"]["tokens"] > 15
