"""Chat from outside: one answer, JSON, plans, policies, and what ends a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hgca_cli import native
from hgca_cli.engine.balance import Balance
from hgca_cli.engine.sample import Sample
from hgca_cli.events import Balanced
from tests.cli_process import environment, here, hgca, records, save_tiny, shell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("chat") / "model")


def test_one_answer_and_nothing_else(model: str) -> None:
    once = hgca("chat", "-m", model, "-p", "the cat", "-n", "12", "--seed", "7")
    again = here("chat", "-m", model, "the", "cat", "-n", "12", "--seed", "7")
    assert once.returncode == again.returncode == 0 and once.stderr == again.stderr == b""
    assert once.stdout == again.stdout and once.stdout.endswith(b"\n") and len(once.stdout) > 5
    assert here("chat", "-m", model, "the cat", "-n", "12", "--seed", "8").stdout != once.stdout
    assert here("chat", "-m", model, "the cat", "-n", "12", "--seed", "7", "--no-stream").stdout == once.stdout


def test_json_events(model: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the cat sat on the mat. " * 20)
    words = ["chat", "-m", model, "-f", str(tmp_path / "long.txt"), "-p", "why?", "--json", "-n", "8", "--temp", "0"]
    run = here(*words, "--window", "32", "--prefill-chunk", "64", "--quality", "95%")
    told = records(run)
    assert run.returncode == 0 and run.stderr == b""
    kinds = [record["type"] for record in told]
    assert kinds[:2] == ["plan", "file"] and kinds.count("prefill") > 2 and kinds[-1] == "done"
    assert told[0]["window"] == 32 and told[0]["context"] == 512
    done = told[-1]
    assert "".join(record["text"] for record in told if record["type"] == "token") == done["text"]
    usage, timings = done["usage"], done["timings"]
    assert usage["completion_tokens"] == timings["predicted_n"] == 8 and timings["predicted_per_second"] > 0
    assert usage["prompt_tokens"] > 100 and done["hgca"]["store"] > 50
    assert told[0]["select"] == "scan" and told[0]["quality"] == 0.95
    assert 0.3 < done["hgca"]["read_share"] <= 1.0 and done["hgca"]["bytes_share"] > 0
    prefill = [record for record in told if record["type"] == "prefill"][-1]
    assert prefill["processed"] == prefill["total"] == usage["prompt_tokens"] and prefill["cache"] == 0
    short = records(here(*words, "--no-stream", "-q"))
    assert [record["type"] for record in short] == ["done"] and short[0]["text"] == done["text"]


def test_moves_are_told_with_their_reason_unless_the_answer_is_to_be_the_same(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Balanced("mass", 0.95, 0.94, "as an example")
    monkeypatch.setattr(Balance, "sample", lambda self, sample: [move] if isinstance(sample, Sample) else [])
    words = ["chat", "-m", model, "-p", "the cat", "-n", "5", "--temp", "1"]
    told = [record for record in records(here(*words, "--json")) if record["type"] == "balance"]
    assert (
        told == [{"type": "balance", "setting": "mass", "before": 0.95, "after": 0.94, "reason": "as an example"}] * 4
    ), "after every token but the first, which was the prompt's"
    for more in (["--balance", "off"], ["--seed", "3"], ["--temp", "0"], ["--quiet"]):
        assert "balance" not in {record["type"] for record in records(here(*words, "--json", *more))}
    assert "balance" not in {record["type"] for record in records(here(*words, "--json", HGCA_BALANCE="off"))}
    line = b"balance: mass 0.95 to 0.94: as an example\n"
    assert line in here(*words, "--verbose").stderr and line not in here(*words).stderr
    wrong = here(*words, HGCA_BALANCE="maybe")
    assert wrong.returncode == 2 and wrong.stderr.count(b"\n") == 1 and b"auto, off" in wrong.stderr


def test_no_tokens_and_errors_as_json(model: str) -> None:
    empty = records(here("chat", "-m", model, "-p", "x", "-n", "0", "--json"))[-1]
    assert empty["text"] == "" and empty["finish_reason"] == "length" and empty["usage"]["completion_tokens"] == 0
    done = here("chat", "-m", model, "-p", "the cat " * 900, "--json", "--ctx", "256")
    error = records(done)[-1]
    assert done.returncode == 2 and done.stderr.startswith(b"hgca: error: prompt is ")
    assert error["type"] == "error" and error["code"] == "context_overflow" and error["exit_code"] == 2
    assert "256" in error["message"] and "--ctx" in error["message"]
    usage = here("chat", "-p", "x", "--json", "--temp", "-1")
    assert records(usage)[-1]["code"] == "usage"


def test_the_window_does_not_change_a_greedy_answer(model: str) -> None:
    words = ["chat", "-m", model, "-p", "once upon a time " * 20, "-n", "30", "--temp", "0", "--json", "--exact"]
    done = {window: records(here(*words, "--window", window))[-1] for window in ("1", "16", "500")}
    assert len({record["text"] for record in done.values()}) == 1
    assert done["1"]["hgca"]["store"] > done["16"]["hgca"]["store"] > 0 == done["500"]["hgca"]["store"]


@pytest.mark.parametrize(
    ("words", "most"),
    [(["--select", "window"], 0.0), (["--budget", "0"], 0.0), (["--select", "moving-average", "--budget", "10%"], 0.3)],
)
def test_policies_and_budgets_reach_the_store(words: list[str], most: float, model: str) -> None:
    base = ["chat", "-m", model, "-p", "the cat " * 60, "--json", "-n", "4", "--window", "8"]
    rows = records(here(*base, *words))[-1]["hgca"]
    assert rows["store"] > 50 and rows["read_share"] <= most


def test_a_plan_loads_nothing(model: str) -> None:
    done = here("chat", "-m", model, "--plan", "--ctx", "2k", "--window", "64", "--kv-dtype", "bf16")
    assert done.returncode == 0 and b"weights" in done.stdout
    for flag in (b"--ctx 2048", b"--window 64", b"--kv-dtype bf16", b"--device cpu"):
        assert flag in done.stdout
    assert b"beyond the trained length 512" in done.stderr and b"--yarn" in done.stderr
    too_much = here("chat", "-m", model, "--plan", "--ctx", "900M")
    assert too_much.returncode == 4 and b"needs" in too_much.stderr and b"--ctx" in too_much.stderr
    assert here("chat", "-m", model, "-p", "x", "--ram-limit", "1M").returncode == 4
    as_json = records(here("chat", "-m", model, "--plan", "--json"))
    assert [record["type"] for record in as_json] == ["plan"] and as_json[0]["memory"][0]["weights"] > 0


@pytest.mark.parametrize("quant", ["q8", "int4"])
def test_packed_weights_answer(quant: str, model: str, tmp_path: Path) -> None:
    words = ("chat", "-m", model, "-p", "the cat", "-n", "8", "--temp", "0", "--session", "packed")
    place = {"HGCA_DATA_DIR": str(tmp_path)}
    done = here(*words, "--quant", quant, **place)
    assert done.returncode == 0 and len(done.stdout) > 8, done.stderr
    again = here(*words, "--quant", "none", **place)
    assert again.returncode == 0 and b"of another model or --quant" in again.stderr
    told = records(here("chat", "-m", model, "--plan", "--json", HGCA_QUANT=quant))[0]
    assert told["quant"] == ("q8" if quant == "q8" else "q4")


def test_tokens_that_are_guessed(tmp_path: Path) -> None:
    """A model whose layers are one call of the library, packed; one of others says that it computes tokens one by one."""
    if native.lib.hgca_most_vectors() < 8:
        pytest.skip("floats are faster here")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    grids = save_tiny(tmp_path / "llama", LlamaForCausalLM(config))
    shape = GPT2Config(vocab_size=320, n_positions=512, n_embd=32, n_layer=2, n_head=4)
    others = save_tiny(tmp_path / "gpt2", GPT2LMHeadModel(shape))
    words = (
        "chat",
        "-p",
        "the cat sat on the mat. " * 9,
        "--temp",
        "0",
        "-n",
        "60",
        "--json",
        "--quant",
        "q8",
        "--no-save",
    )
    done = [
        records(here(*words, "-m", grids, *more))[-1] for more in ((), ("--draft", "3"), ("--prompt-lookup", "off"))
    ]
    guessed = [one["timings"]["draft_n"] for one in done]
    assert guessed[0] >= guessed[1] > guessed[2] == 0 and done[0]["timings"]["draft_n_accepted"] <= guessed[0]
    assert {one["usage"]["completion_tokens"] for one in done} == {60}
    told = records(here(*words[:-3], "--no-save", "-m", others, "--prompt-lookup", "3"))
    assert "one token of an answer at a time" in next(one["text"] for one in told if one["type"] == "notice")
    assert told[-1]["timings"]["draft_n"] == 0
    watching = ("-m", grids, "--select", "moving-average", "--prompt-lookup", "3")
    told = records(here(*words[:-3], "--no-save", *watching))
    assert "--select moving-average computes one token" in next(one["text"] for one in told if one["type"] == "notice")
    (tmp_path / "rows.jsonl").write_text('"the cat"\n')
    job = here("batch", str(tmp_path / "rows.jsonl"), "-m", others, "--prompt-lookup", "3", "-n", "4", "--raw")
    assert job.returncode == 0 and b"--prompt-lookup has no effect" in job.stderr


def test_rows_in_files(model: str, tmp_path: Path) -> None:
    plan = ("chat", "-m", model, "--plan", "--store-dir")
    done = here(*plan, str(tmp_path), "--ctx", "2k", "--window", "64")
    assert done.returncode == 0 and f"disk {tmp_path}".encode() in done.stdout and b"store-dir: given" in done.stdout
    assert f"--store-dir {tmp_path}".encode() in done.stdout
    wrong = here(*plan, str(tmp_path / "none"))
    assert wrong.returncode == 2 and b"none: no such directory" in wrong.stderr
    base = ["chat", "-m", model, "-p", "the cat " * 60, "--json", "-n", "4", "--window", "8", "--seed", "1"]
    answers = [records(here(*base, *more))[-1] for more in ([], ["--store-dir", str(tmp_path)])]
    assert answers[0]["text"] == answers[1]["text"] and answers[1]["hgca"]["store"] > 50
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_trained_length(model: str) -> None:
    plain = here("chat", "-m", model, "-p", "x", "-n", "2", "--ctx", "1k")
    assert plain.returncode == 0 and b"beyond the trained length 512" in plain.stderr
    stretched = here("chat", "-m", model, "-p", "x", "-n", "2", "--ctx", "1k", "--yarn")
    assert stretched.returncode == 0 and stretched.stderr == b""
    silent = here("chat", "-m", model, "-p", "x", "-n", "2", "--ctx", "1k", "-q")
    assert silent.returncode == 0 and silent.stderr == b"" and silent.stdout


def test_too_many_threads_are_clamped_and_said(model: str) -> None:
    for count in ("1000", "10000"):
        done = here("chat", "-m", model, "-p", "x", "-n", "1", "--threads", count)
        assert done.returncode == 0 and f"--threads {count}: ".encode() in done.stderr and b"are used" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_threads_are_those_the_process_may_use(model: str) -> None:
    script = (
        "import os, sys; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); from hgca_cli.app import run; "
    )
    script += "sys.exit(run(sys.argv[1:]))"
    for more, told in (([], b""), (["--threads", "7"], b"--threads 7: this process may use 1 processor, so as many")):
        words = [sys.executable, "-c", script, "chat", "-m", model, "--plan", *more]
        done = subprocess.run(words, capture_output=True, check=False, env=environment(), stdin=subprocess.DEVNULL)
        assert done.returncode == 0 and b"--threads 1 " in done.stdout.replace(b"\n", b" ") and told in done.stderr


def test_raw_text_another_template_and_a_system_message(model: str, tmp_path: Path) -> None:
    base = ["chat", "-m", model, "-p", "the cat", "--json", "-n", "1", "--temp", "0"]
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (tmp_path / "system.txt").write_text("be terse\n")

    def prompt(*more: str) -> int:
        return int(records(here(*base, *more))[-1]["usage"]["prompt_tokens"])

    chat = prompt()
    assert prompt("--raw") == prompt("--chat-template", str(tmp_path / "t.jinja")) < chat
    assert prompt("-s", "be terse") == prompt("--system-file", str(tmp_path / "system.txt")) > chat


def test_stop_strings_end_the_answer(model: str) -> None:
    words = ["chat", "-m", model, "-p", "the cat", "-n", "30", "--temp", "0", "--json"]
    whole = records(here(*words))[-1]["text"]
    cut = records(here(*words, "--stop", "never said", "--stop", whole[10:13]))[-1]
    assert cut["text"] == whole[: whole.index(whole[10:13])] and cut["finish_reason"] == "stop"


def test_markdown_is_for_screens_unless_asked_for(model: str) -> None:
    words = ["chat", "-m", model, "-p", "the cat", "-n", "12", "--seed", "7"]
    raw = here(*words).stdout
    assert here(*words, "--markdown", "off").stdout == here(*words, "--markdown", "auto").stdout == raw
    rendered = here(*words, "--markdown", "on").stdout
    assert rendered and b"\x1b[2K" not in rendered
    assert here(*words, HGCA_MARKDOWN="maybe").returncode == 2
    both = here(*words, "--markdown", "on", "--json")
    assert both.returncode == 2 and b"--markdown on and --json exclude each other" in both.stderr


def test_thinking_where_there_is_no_switch(model: str) -> None:
    done = here("chat", "-m", model, "-p", "x", "-n", "1", "--no-think")
    assert done.returncode == 2 and b"no switch for thinking" in done.stderr


def test_what_is_likely_meant_otherwise_is_said(model: str) -> None:
    done = here("chat", "-m", model, "smollm2-135m", "why?", "-n", "1")
    assert done.returncode == 0 and b"-m smollm2-135m chooses the model" in done.stderr
    done = here("chat", "-m", model, "Qwen/Qwen3-8B", "-n", "1")
    assert done.returncode == 0 and b"-m Qwen/Qwen3-8B chooses the model" in done.stderr
    done = here("chat", "-m", model, model, "-n", "1")
    assert done.returncode == 0 and f"-m {model} chooses the model".encode() in done.stderr
    done = here("chat", "-m", model, __file__, "what is it?", "-n", "1")
    assert done.returncode == 0 and f"-f {__file__} reads it".encode() in done.stderr
    for question in ("and/or", "x" * 300, "TCP/IP"):
        assert here("chat", "-m", model, question, "-n", "1").stderr == b""
    done = here("chat", "-m", model, "-s", "42", "-p", "why?", "-n", "1")
    assert done.returncode == 0 and b"--seed sets the seed" in done.stderr
    assert here("chat", "-m", model, "-sys", "be brief", "-p", "why?", "-n", "1").stderr == b""


def test_figures_only_where_somebody_looks_or_asks(model: str) -> None:
    base = ["chat", "-m", model, "-p", "the cat", "-n", "5", "--seed", "3"]
    assert here(*base).stderr == b""
    shown = here(*base, "--stats").stderr.decode()
    assert shown.startswith("5 tokens, ") and "tok/s" in shown and "rows: window" in shown and "seed 3" in shown
    assert "\x1b" not in shown and "\x1b[2m" in here(*base, "--stats", "--color", "always").stderr.decode()
    assert "threads: " in here(*base, "-v").stderr.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_one_shot_that_is_stopped(number: int, code: int, model: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "hgca_cli", "chat", "-m", model, "-p", "the cat", "-n", "9999", "--ctx", "20k", "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )
    assert child.stdout is not None and child.stderr is not None
    first = child.stdout.read(1)  # it answers
    child.send_signal(number)
    assert child.wait(timeout=90) == code
    assert first and child.stdout.read().endswith(b"\n") and child.stderr.read() == b""  # what there is was printed


@pytest.mark.parametrize("stage", ["load", "prefill"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_before_the_first_word(stage: str, number: int, code: int, model: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the cat sat on the mat " * 3000)
    words = ["-f", str(tmp_path / "long.txt"), "--ctx", "40k", "--prefill-chunk", "16", "--session", "kept", "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "hgca_cli", "chat", "-m", model, "-p", "why?", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(HGCA_DATA_DIR=str(tmp_path / "data")),
    )
    assert child.stdout is not None and child.stderr is not None
    wanted = b'"plan"' if stage == "load" else b'"prefill"'  # the plan is told before torch is imported
    while wanted not in (line := child.stdout.readline()):
        assert line, child.stderr.read()
    child.send_signal(number)
    assert child.wait(timeout=90) == code
    assert b"Traceback" not in child.stderr.read() and b'"token"' not in child.stdout.read()
    again = here(
        "chat", "-m", model, "-p", "why?", "-n", "2", "--session", "kept", HGCA_DATA_DIR=str(tmp_path / "data")
    )
    assert again.returncode == 0, "whatever was saved opens"


def test_a_reader_that_leaves_and_a_full_disk(model: str) -> None:
    left = shell(f"hgca chat -m {model} -p x -n 9999 --ctx 20k -q | head -c 1")
    assert left.returncode == 0 and len(left.stdout) == 1 and left.stderr == b""
    if Path("/dev/full").exists():
        for buffered in ("PYTHONUNBUFFERED=", "PYTHONUNBUFFERED=1"):  # what is buffered is written once more at exit
            full = shell(f"export {buffered}; hgca chat -m {model} -p x -n 5 -q >/dev/full")
            assert full.returncode == 1 and full.stderr.startswith(
                b"hgca: error: cannot write the answer: No space left"
            )
            assert full.stderr.count(b"\n") == 1


def test_a_model_that_is_not_there() -> None:
    for name in ("./no/such/dir", "no-such-alias"):
        done = here("chat", "-m", name, "-p", "x", HF_HUB_OFFLINE="1")
        assert done.returncode == 5 and done.stderr.count(b"\n") == 1 and name.strip("./").encode() in done.stderr


def test_pull_says_where_a_model_is(model: str) -> None:
    done = here("pull", model, "-v")
    assert done.returncode == 0 and model.encode() in done.stdout and b"model.safetensors" in done.stderr
    assert here("pull", "./nowhere").returncode == 5
