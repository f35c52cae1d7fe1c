"""A conversation at a terminal: turns, slash commands, Ctrl-C and Ctrl-D, with the line editor and without."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli_process import ROOT, environment, save_tiny

pexpect = pytest.importorskip("pexpect")
PROMPT = ">>>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("terminal") / "model")


@pytest.fixture
def spawn(model: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    children = []

    def start(*words: str, **env: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "hgca_cli", "chat", "-m", model, *words],
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
            dimensions=(30, 160),
            env=environment(HGCA_DATA_DIR=str(tmp_path / "data"), PROMPT_TOOLKIT_NO_CPR="1", **env),
            cwd=str(ROOT),
        )
        children.append(child)
        child.expect(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def say(child: pexpect.spawn, text: str) -> None:
    time.sleep(0.3)  # the editor has drawn its prompt
    child.send(text + "\r")


def complete(child: pexpect.spawn, text: str, rest: str = "") -> None:
    time.sleep(0.3)
    child.send(text + "\t")
    time.sleep(1.0)  # completions come when they come
    child.send(rest + "\r")


def leave(child: pexpect.spawn, code: int = 0) -> None:
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == code


def test_a_conversation(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my notes.txt").write_text("the cat sat on the mat. " * 5)
    child = spawn("--plain", "-n", "5", "--temp", "0")
    child.sendline("the cat")
    child.expect(r"5 tokens, .* tok/s.*prompt (\d+) \|")
    first = int(child.match[1])
    child.expect(PROMPT)
    child.sendline("and the mat?")
    child.expect(r"prompt (\d+) \((\d+) cached\)")  # only what is new is read
    assert int(child.match[1]) > first + 5 and int(child.match[2]) >= first + 4
    for said, answered in (
        (f"/file '{tmp_path}/my notes.txt'", r"my notes.txt: \d+ tokens"),
        ("/ctx", r"attached +\d+ tokens"),
        ("/hepl", r"no command /hepl. Did you mean /help\?"),
        ("/help", "what fills the context"),
        ("/file", "needs a path"),
        ("/file ./nowhere", "no such file"),
        ("/set temp 0.5", "temperature = 0.5"),
        ("/set temp hot", "'hot' is not a number"),
        ("/set temp -1", "out of range"),
        ("/set tempp 1", "Did you mean temp"),
        ("/set parameter top_p 0.5", "top_p = 0.5"),  # as ollama has it
        ("/set nothink", "has no switch for thinking"),
        ("/set num_ctx 4096", "begin a chat with --ctx"),
        ("/set system x", "/system TEXT"),
        ("/set", "needs a name and a value"),
        (f"/file {tmp_path}/my notes.txt", "my notes.txt is attached already: it is not read twice"),
        ("/show", r"budget +-\r?\n[\s\S]*temperature +0.5 +set here[\s\S]*seed +-  +default"),
        ("/stats", "5 tokens"),
        ("/system be terse", "begins anew"),
        ("/system", "be terse"),
        ("/clear", "forgotten"),
        ("/ctx", r"0 of 512 tokens"),
        ("/new", "forgotten"),
    ):
        child.expect(PROMPT)
        child.sendline(said)
        child.expect(answered)
    child.expect(PROMPT)
    child.sendline("/exit")
    leave(child)


def test_answers_are_given_again_gone_on_with_and_taken_back(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} cat sat on the mat. " * 5)
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'w').write('from an editor')\n")
    editor.chmod(0o700)
    child = spawn("--plain", "-n", "5", "--temp", "0", "--quality", "0.9", "--window", "16", EDITOR=str(editor))
    for said, answered in (
        ("/regen", "there is no answer to give again"),
        ("/undo", "there is no answer to take back"),
        ("/copy", "there is no answer yet"),
        (f"/glob '{tmp_path}/*.txt'", r"one.txt: \d+ tokens?.*two.txt: \d+ tokens?"),
        ("/detach", r"no longer attached: .*one.txt,\s+.*two.txt"),
        ("/ctx", r"\n  0 of \d+ tokens"),
        ("/detach", "nothing is attached"),
        (f"/glob '{tmp_path}/*.txt'", r"one.txt: \d+ tokens?.*two.txt: \d+ tokens?"),
        ("/glob ./nowhere/*", "no file matches"),
        ("what?", r"5 tokens, .*prompt (\d+) \|"),
        ("/regen", r"the answer will be the same.*5 tokens, .*prompt (\d+) \((\d+) cached\)"),
        ("/continue", r"5 tokens, "),
        ("/undo", r"taken back: 'what\?'; 2 documents are attached again"),
        ("/ctx", r"attached +\d+ tokens.*attached +\d+ tokens"),
        ("why?", r"5 tokens, .*prompt (\d+) \((\d+) cached\)"),
        ("/copy", "characters sent"),
        ("/edit", r"from an editor\r\n.*5 tokens"),
        ("/exact", "rows are chosen by scan"),
        ("/exact on", "every row is read"),
        ("/exact maybe", "neither on nor off"),
        ("/regen", r"100% of it read"),
        ("/exact off", "rows are chosen by scan"),
        ("/set quality 0.5", "quality = 0.5"),
        ("/set quality 2", "is not a share|out of range"),
        ("/set markdown off", "markdown = off"),
        ("/set markdown maybe", "no such choice"),
        ("/think on", "has no switch for thinking"),
        ("/plan", r"window: given"),
        (f"/export {tmp_path}/talk.md", "4 messages written"),
        (f"/export {tmp_path}/talk.md", "is there already"),
        (f"/export {tmp_path}/talk.json", "4 messages written"),
        ("/export talk.doc", "neither in .md nor in .json"),
        (f"/export {tmp_path}/none/talk.md", "cannot write .*No such file"),
    ):
        child.sendline(said)
        child.expect(answered)
        if said in ("/regen", "why?") and child.match.lastindex == 2:
            assert int(child.match[2]) >= int(child.match[1]) - 20, "what was read is not read again"
        child.expect(PROMPT)
    child.sendline("/exit")
    leave(child)
    assert "## user" in (tmp_path / "talk.md").read_text()
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2 and messages[2]["content"] == "from an editor"


def test_a_context_that_fills_up(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("--plain", "-n", "20", "--ctx", "128", "--overflow", "trim-oldest")
    said = []
    for number in range(9):
        child.sendline(f"question {number}")
        child.expect(r"tokens?, .*tok/s")
        said.append(child.before)
        child.expect(PROMPT)
        said.append(child.before)
    told = "".join(said)
    assert "the context is full: the oldest" in told and "'question 0'" in told and "are dropped" in told
    assert "full, " in told and "the oldest turns will be dropped" in told
    child.sendline("/exit")
    leave(child)


def test_a_document_that_does_not_fit_can_be_taken_away(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "long.txt").write_text("the cat sat on the mat. " * 40)
    child = spawn("--plain", "-n", "2", "--ctx", "128", "-f", str(tmp_path / "long.txt"))
    assert " too many: /detach takes away what is attached, a larger --ctx has more\r\n" in child.before
    child.sendline("why?")
    child.expect(r"error: prompt is .* Shorten it, or raise --ctx")
    child.sendline("/clear")
    child.expect("forgotten")
    child.sendline("why?")
    child.expect(r"2 tokens, ")
    child.sendline("/exit")
    leave(child)


def test_turns_are_not_said_to_go_where_it_is_a_document_that_does_not_fit(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "long.txt").write_text("the cat sat on the mat. " * 40)
    child = spawn("--plain", "-n", "2", "--ctx", "128", "--overflow", "trim-oldest")
    child.sendline("why?")
    child.expect(r"2 tokens, ")
    child.sendline(f"/file {tmp_path / 'long.txt'}")
    child.expect(r" too many: /detach, /undo or /clear make room, a larger --ctx has more\r\n")
    child.expect(PROMPT)
    child.sendline("why?")
    child.expect(r"error: prompt is")
    assert "dropped" not in child.before
    child.sendline("/exit")
    leave(child)


def test_what_begins_with_a_slash_can_be_said(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("--plain", "-n", "2")
    for said in ("//hepl", " /hepl", '"""', "one", '/two"""'):
        child.sendline(said)
    for _ in range(3):
        child.expect("2 tokens")
    child.sendline("/ctx")
    for said in ("/hepl", "/hepl", "one /two"):
        child.expect(rf"user +\d+ tokens +{said}")
    child.sendline("quit")
    leave(child)


def test_an_error_ends_the_turn_and_keeps_the_session(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("--plain", "-n", "3", "--ctx", "64")
    child.sendline("the cat")
    child.expect("3 tokens")
    child.expect(PROMPT)
    child.sendline("the cat " * 60)
    child.expect(r"error: prompt is \d+ tokens, context is 64")
    child.expect(PROMPT)
    child.sendline("go on")
    child.expect(r"3 tokens.*cached")
    child.sendeof()
    leave(child)


@pytest.mark.parametrize("words", [["--plain"], []], ids=["plain", "editor"])
def test_ctrl_c_stops_the_answer_and_keeps_the_session(words: list[str], spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn(*words, "--ctx", "20k", "-n", "19000")
    say(child, "the cat")
    time.sleep(4.0)  # it answers, also on a busy machine
    child.sendintr()
    child.expect(r"([\d,]+) tokens?.*interrupted")
    assert int(child.match[1].replace(",", "")) > 0
    child.expect(PROMPT)
    for _ in range(5):
        time.sleep(
            1.5
        )  # the line editor has taken the terminal over; on a busy machine it may still be the turn's end that is stopped
        child.sendintr()  # nothing to stop
        if child.expect(["Ctrl-D or /exit leaves", pexpect.TIMEOUT], timeout=20) == 0:
            break
    else:
        pytest.fail("an idle Ctrl-C is not answered")
    say(child, "/set max_tokens 4")
    child.expect("max_tokens = 4")
    say(child, "more")
    child.expect(r"4 tokens.*cached")
    time.sleep(0.3)
    child.sendeof()
    leave(child)


def test_the_editor_keeps_a_paste_whole_and_its_history(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    child = spawn("-n", "2")
    for said in (
        "\x1b[200~first\nsecond\n\nthird\x1b[201~ end",
        '"""\rone\rtwo"""',
        "a\x1b\rb",  # Esc Enter begins a new line
    ):
        say(child, said)
        child.expect("2 tokens")
    say(child, "/ctx")
    for shown in ("first second third end", "one two", "a b"):
        child.expect(rf"user +\d+ tokens +{shown}")
    time.sleep(0.3)
    child.sendeof()
    leave(child)
    history = tmp_path / "data" / "history"
    assert "third end" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_the_editor_completes_and_finds_and_its_history_is_there_next_time(spawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a-long-name.txt").write_text("the cat")
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'a').write(' and more')\n")
    editor.chmod(0o700)
    child = spawn("-n", "2", "--session", "notes", EDITOR=str(editor))
    say(child, "something rare")
    child.expect("2 tokens")
    say(child, "/clear")
    child.expect("forgotten")
    complete(child, f"/file {tmp_path}/a-lo")
    child.expect(r"a-long-name.txt: \d+ tokens")
    complete(child, "/sta")
    child.expect("2 tokens, ")
    complete(child, "/load no")
    child.expect("session notes is the one you are in")
    complete(child, "/set max_t", " 3")
    child.expect("max_tokens = 3")
    time.sleep(0.3)
    child.send("edit this\x07")  # Ctrl-G
    time.sleep(1.0)
    say(child, "")
    child.expect("3 tokens")
    say(child, "/ctx")
    child.expect("edit this and more")
    time.sleep(0.3)
    child.sendeof()
    leave(child)
    child = spawn("-n", "2")
    time.sleep(0.3)
    child.send("\x12rare")  # Ctrl-R
    time.sleep(0.5)
    child.send("\r")  # takes it
    say(child, "")
    child.expect("2 tokens")
    say(child, "/ctx")
    child.expect(r"user +\d+ tokens +something rare")
    time.sleep(0.3)
    child.sendeof()
    leave(child)


def test_answers_are_rendered_where_a_person_looks(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("-n", "12", "--temp", "0")
    say(child, "the cat")
    child.expect("12 tokens")
    assert "\x1b[2K" in child.before, "what was written was replaced"
    say(child, "/set markdown off")
    child.expect("markdown = off")
    time.sleep(0.3)
    child.sendeof()
    leave(child)


def test_a_dumb_terminal_gets_no_escape_codes(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn("-n", "3", TERM="dumb")
    said = child.before
    say(child, "the cat")
    child.expect("3 tokens.*\n")
    assert "\x1b" not in said + child.before + child.after
    child.sendeof()
    leave(child)


def test_terminated_at_the_prompt(spawn) -> None:  # type: ignore[no-untyped-def]
    child = spawn()
    time.sleep(0.3)
    child.kill(signal.SIGTERM)
    leave(child, 143)


def test_a_terminal_is_not_waited_for_where_a_text_is_expected(model: str) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "hgca_cli", "chat", "-m", model, "-f", "-", "-p", "x"],
        encoding="utf-8",
        timeout=60,
        env=environment(),
        cwd=str(ROOT),
    )
    child.expect("hgca: error: standard input is a terminal.")
    leave(child, 2)
