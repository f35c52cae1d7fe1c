"""Chat from outside: one answer, pipes, JSON, documents, plans, and a conversation at a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgca_cli.ui.inert import inert
from tests.models import save_tiny
from tests.test_cli_outside import hgca

pexpect = pytest.importorskip("pexpect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("chat") / "model"))


def lines(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_answer_and_nothing_else_on_stdout(model: str) -> None:
    once = hgca("chat", "-m", model, "-p", "the cat", "-n", "12", "--seed", "7")
    again = hgca("chat", "-m", model, "the", "cat", "-n", "12", "--seed", "7")
    assert once.returncode == 0 and once.stdout and once.stderr == b""
    assert once.stdout == again.stdout


def test_json_events(model: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the cat sat on the mat. " * 30)
    words = ["chat", "-m", model, "-f", str(tmp_path / "long.txt"), "-p", "why?", "--json", "-n", "8", "--temp", "0"]
    told = lines(hgca(*words, "--window", "32", "--prefill-chunk", "64"))
    kinds = [record["type"] for record in told]
    assert kinds[0] == "plan" and kinds.count("prefill") > 2 and kinds[-1] == "done"
    done = told[-1]
    assert "".join(str(r["text"]) for r in told if r["type"] == "token") == done["text"]
    usage, timings, hgca_ = done["usage"], done["timings"], done["hgca"]
    assert isinstance(usage, dict) and isinstance(timings, dict) and isinstance(hgca_, dict)
    assert usage["completion_tokens"] == timings["predicted_n"] <= 8
    assert usage["prompt_tokens"] > 200 and hgca_["store"] > 100 and hgca_["read_share"] == 1.0
    prefill = [r for r in told if r["type"] == "prefill"][-1]
    assert prefill["processed"] == prefill["total"] == usage["prompt_tokens"]


def test_a_window_as_long_as_the_context_stores_nothing(model: str) -> None:
    done = lines(hgca("chat", "-m", model, "-p", "the cat", "--json", "-n", "5", "--window", "512"))[-1]
    assert done["hgca"]["store"] == 0 and done["hgca"]["read_share"] == 0.0  # type: ignore[index]


def test_the_window_does_not_change_a_greedy_answer(model: str) -> None:
    words = ["chat", "-m", model, "-p", "once upon a time " * 20, "-n", "30", "--temp", "0"]
    answers = {hgca(*words, "--window", window).stdout for window in ("1", "16", "500")}
    assert len(answers) == 1


def test_a_pipe_comes_before_the_words(model: str) -> None:
    piped = lines(hgca("chat", "-m", model, "--json", "-n", "1", "what?", stdin="the mat\n"))[-1]
    written = lines(hgca("chat", "-m", model, "--json", "-n", "1", "-p", "the mat\n\nwhat?"))[-1]
    assert piped["usage"] == written["usage"]


def test_no_tokens_and_errors_as_json(model: str) -> None:
    empty = lines(hgca("chat", "-m", model, "-p", "x", "-n", "0", "--json"))[-1]
    assert empty["text"] == "" and empty["finish_reason"] == "length"
    done = hgca("chat", "-m", model, "-p", "the cat " * 900, "--json", "--ctx", "256")
    assert done.returncode == 2
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["type"] == "error" and error["code"] == "context_overflow" and "256" in error["message"]


def test_a_plan_loads_nothing(model: str) -> None:
    done = hgca("chat", "-m", model, "--plan", "--ctx", "2k", "--window", "64")
    assert done.returncode == 0
    assert b"--ctx 2048" in done.stdout and b"--window 64" in done.stdout and b"beyond" in done.stderr
    too_much = hgca("chat", "-m", model, "--plan", "--ctx", "900M")
    assert too_much.returncode == 4 and b"GiB" in too_much.stderr and b"--ctx" in too_much.stderr


def test_beyond_the_trained_length(model: str) -> None:
    plain = hgca("chat", "-m", model, "-p", "x", "-n", "2", "--ctx", "1k")
    assert plain.returncode == 0 and b"beyond the trained length 512" in plain.stderr and b"--yarn" in plain.stderr
    stretched = hgca("chat", "-m", model, "-p", "x", "-n", "2", "--ctx", "1k", "--yarn")
    assert stretched.returncode == 0 and b"--yarn stretches" not in stretched.stderr


def test_raw_text_and_another_template(model: str, tmp_path: Path) -> None:
    raw = lines(hgca("chat", "-m", model, "--raw", "-p", "the cat", "--json", "-n", "1"))[-1]
    chat = lines(hgca("chat", "-m", model, "-p", "the cat", "--json", "-n", "1"))[-1]
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    other = lines(
        hgca("chat", "-m", model, "-p", "the cat", "--json", "-n", "1", "--chat-template", f"{tmp_path}/t.jinja")
    )
    prompt = [record["usage"]["prompt_tokens"] for record in (raw, chat, other[-1])]  # type: ignore[index]
    assert prompt[0] == prompt[2] < prompt[1]


def test_stop_strings_and_policies(model: str) -> None:
    whole = hgca("chat", "-m", model, "-p", "the cat", "-n", "30", "--temp", "0").stdout.decode().rstrip("\n")
    stop = whole[10:13]
    cut = hgca("chat", "-m", model, "-p", "the cat", "-n", "30", "--temp", "0", "--stop", stop).stdout.decode()
    assert cut.rstrip("\n") == whole[: whole.index(stop)].rstrip("\n")
    for policy in (
        ["--select", "window"],
        ["--select", "moving-average"],
        ["--select", "moving-average", "--budget", "10%"],
    ):
        record = lines(hgca("chat", "-m", model, "-p", "the cat " * 60, "--json", "-n", "4", "--window", "8", *policy))[
            -1
        ]
        assert record["hgca"]["read_share"] < 1.0  # type: ignore[index]


def test_escape_sequences_are_inert() -> None:
    evil = "\x1b]52;c;aGk=\x07 \x1b[2J \x1b]8;;http://x\x1b\\link \x9b31m over\rwrite \x07 \u202egnp.exe ok\n\ttab 🙂 שלום é"
    shown = inert(evil)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown) and "\u202e" not in shown
    assert shown.endswith("ok\n\ttab 🙂 שלום é") and "overwrite" in shown
    pieces = "".join(inert(c) for c in evil)
    assert pieces == shown  # whatever the pieces


def spawn(model: str, *words: str) -> pexpect.spawn:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "hgca_cli", "chat", "-m", model, "--ctx", "4k", "--plain", *words],
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 80),
    )
    child.expect(">>> ")
    return child


def test_a_conversation_at_a_terminal(model: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat on the mat. " * 10)
    child = spawn(model, "-n", "5", "--temp", "0")
    child.sendline("the cat")
    child.expect(r"5 tokens, .* tok/s.*prompt (\d+) \|")
    first = int(child.match[1])
    child.expect(">>> ")
    child.sendline("and the mat?")
    child.expect(r"prompt (\d+) \((\d+) cached\)")
    assert int(child.match[1]) > first and int(child.match[2]) >= first
    child.expect(">>> ")
    child.sendline(f"/file {tmp_path}/notes.txt")
    child.expect(r"notes.txt: \d+ tokens")
    child.sendline("/hepl")
    child.expect("no command /hepl. Did you mean /help")
    child.sendline("/set temp 0.5")
    child.expect("temperature = 0.5")
    child.sendline("/set temp hot")
    child.expect("'hot' is not a number")
    child.sendline("/ctx")
    child.expect(r"user .*tokens")
    child.sendline("/clear")
    child.expect("forgotten")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session(model: str) -> None:
    child = spawn(model, "-n", "4000")
    child.sendline("the cat")
    time.sleep(1.5)
    child.sendintr()
    child.expect("interrupted")
    child.expect(">>> ")
    child.sendline("/stats")
    child.expect(r"\d+ tokens")
    child.sendline("more")
    time.sleep(1.0)
    child.sendintr()
    child.expect("cached")
    child.expect(">>> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_interrupted_one_shot_ends_with_130_and_a_terminated_one_with_143(model: str) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        child = subprocess.Popen(
            [sys.executable, "-m", "hgca_cli", "chat", "-m", model, "-p", "the cat", "-n", "100000", "--ctx", "200k"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        child.stdout.read(1)  # it answers
        child.send_signal(number)
        assert child.wait(timeout=20) == code
        assert b"Traceback" not in (child.stderr.read() if child.stderr else b"")
