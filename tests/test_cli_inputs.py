"""Files, pipes and prompts in any encoding: read exactly, or refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hgca_cli.commands.inputs import read_document
from tests.cli_process import here, hgca, records, save_tiny, shell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("inputs") / "model")


@pytest.mark.parametrize(
    ("name", "word", "code"),
    [("missing.txt", "no such file", 5), (".", "directory", 2), ("latin.txt", "not UTF-8", 2), ("binary", "NUL", 2)],
)
@pytest.mark.parametrize("flag", ["--file", "--system-file", "--chat-template"])
def test_files_that_are_no_text(name: str, word: str, code: int, flag: str, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "binary").write_bytes(b"text\0text")
    done = here("chat", "-p", "x", flag, str(tmp_path / name))
    err = done.stderr.decode()
    assert done.returncode == code
    assert word in err and str(tmp_path / name) in err and err.count("\n") == 1


def test_files_that_are_meant_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b c.txt", "d.md", "e.md", "f.md", "g.md"):
        (tmp_path / name).write_text(name)
    for given, remedy in (
        ("*.txt", "Name each: -f a.txt -f 'b c.txt'."),
        ("a.txt,b c.txt", "Name each: -f a.txt -f 'b c.txt'."),
        ("*.md", "Name each: -f d.md -f e.md -f f.md and so on; in a conversation /glob '*.md' reads all."),
        ("a.txt,none", "Check the path."),
        ("*.py", "Check the path."),
    ):
        done = here("chat", "-p", "x", "-f", given)
        assert (done.returncode, done.stderr.decode()) == (5, f"hgca: error: {given}: no such file. {remedy}\n")


def test_a_file_given_twice_is_read_once(model: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    words = ["chat", "-m", model, "-p", "x", "-n", "1", "--json", "-f", str(tmp_path / "a.txt")]
    once, twice = records(here(*words)), records(here(*words, *words[-2:]))
    assert once[-1]["usage"]["prompt_tokens"] == twice[-1]["usage"]["prompt_tokens"]
    assert {"type": "notice", "text": "a.txt is attached already: it is not read twice"} in twice


def test_a_byte_order_mark_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa\r\nb \n")
    assert read_document(str(tmp_path / "bom.txt")).text == "a\r\nb \n"


def test_names_of_files_are_text_whatever_their_bytes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9\n\x1b.txt"
    Path(os.fsdecode(raw)).write_text("x")
    name = read_document(os.fsdecode(raw)).name
    assert name.encode() and "\n" not in name and name.startswith("caf")


def test_prompts_in_any_encoding(model: str, tmp_path: Path) -> None:
    done = hgca(b"chat", b"-p", b"caf\xe9")
    assert done.returncode == 2 and b"not valid UTF-8" in done.stderr
    (tmp_path / "żółć.txt").write_text("naïve 🙂 שלום")
    words = ["chat", "-m", model, "-n", "40", "--temp", "1.5", "--seed", "3", "--stats"]
    for env in ({"LANG": "C", "LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}):
        done = hgca(*words, "-f", str(tmp_path / "żółć.txt"), "-p", "żółć 🙂", **env)
        assert done.returncode == 0 and b"UnicodeEncodeError" not in done.stderr and b"40 tokens" in done.stderr


def test_the_pipe_comes_before_the_words(model: str) -> None:
    base = ["chat", "-m", model, "--json", "-n", "6", "--temp", "0"]
    piped = records(here(*base, "what?", stdin="the mat\nsat\n"))[-1]
    written = records(here(*base, "-p", "the mat\nsat\n\nwhat?"))[-1]
    assert piped["usage"] == written["usage"] and piped["text"] == written["text"]
    alone = records(here(*base, stdin="the mat\nsat\n"))[-1]  # the whole of it is one prompt
    assert 0 < alone["usage"]["prompt_tokens"] < piped["usage"]["prompt_tokens"]


def test_documents_come_first_with_their_names_and_lengths(model: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat on the mat")
    base = ["chat", "-m", model, "--json", "-n", "4", "--temp", "0"]
    attached = records(here(*base, "-f", str(tmp_path / "notes.txt"), "-f", "-", "-p", "why?", stdin="def f(x)"))
    files = [record for record in attached if record["type"] == "file"]
    assert [file["name"] for file in files] == ["notes.txt", "standard input"] and files[0]["tokens"] > 5
    written = records(here(*base, "-p", "notes.txt:\n\nthe cat sat on the mat\n\nstandard input:\n\ndef f(x)\n\nwhy?"))
    assert attached[-1]["usage"] == written[-1]["usage"] and attached[-1]["text"] == written[-1]["text"]
    told = here("chat", "-m", model, "-n", "1", "-f", str(tmp_path / "notes.txt"), "-p", "why?").stderr
    assert told.startswith(b"notes.txt: ") and told.endswith(b" tokens\n")


def test_a_standard_input_that_gives_nothing(model: str) -> None:
    done = here("chat", "-m", model)
    assert done.returncode == 2 and b"the prompt is empty" in done.stderr
    for command in (f"hgca chat -m {model} <&-", f"hgca chat -m {model} -f - -p x <&-"):
        done = shell(command)
        assert done.returncode == 2 and b"closed" in done.stderr and b"Traceback" not in done.stderr
    assert shell(f"hgca chat -m {model} -n 1 -p x <&-").returncode == 0  # a prompt is enough
