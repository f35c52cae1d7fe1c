"""`hgca batch` as a person or a script uses it: formats, exit codes, going on after whatever happened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hgca_cli.hf.tokenizer import Tokenizer
from tests.cli_process import ROOT, environment, here, hgca, rows_in, save_tiny, shell, write_rows

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def openai_row(name: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"the cat {name}"}]
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "gpt", "messages": messages, **body}}


def test_each_row_is_answered_in_its_form_and_bad_ones_say_why(tiny: str, tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        openai_row("a", max_tokens=3, temperature=0), {"id": "b", "prompt": "the mat", "max_tokens": 4, "n": 2, "odd": 1},
        '"bare"', "nonsense", {"id": "long", "prompt": "naïve café " * 200},
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "def f(x)", "max_tokens": 2}},
    )  # fmt: skip
    done = here("batch", source, "-m", tiny, "-n", "5", "--json", "--metrics", str(tmp_path / "metrics.json"))
    assert done.returncode == 3, done.stderr
    found = {one.get("custom_id", one.get("id")): one for one in rows_in(tmp_path / "in.out.jsonl")}
    assert set(found) == {"a", "b", "line-3", "line-4", "long", "c"}
    body = found["a"]["response"]["body"]
    assert body["usage"]["completion_tokens"] == 3 and body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == "gpt" and body["choices"][0]["message"]["role"] == "assistant"
    assert len(found["b"]["texts"]) == 2 and found["b"]["usage"]["completion_tokens"] == 8
    assert found["line-3"]["usage"]["completion_tokens"] == 5 and found["line-3"]["hgca"]["timings"]["ttft_seconds"] > 0
    assert found["line-4"]["error"]["code"] == "invalid_row" and found["long"]["error"]["code"] == "context_overflow"
    assert found["c"]["response"]["body"]["object"] == "text_completion"
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["done"], summary["failed"], summary["missing"]) == (6, 4, 2, 0)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert b"answers are in " in done.stderr and b"in.out.jsonl" in done.stderr
    assert b"line 5 failed: prompt is" in done.stderr
    assert b"line 4" in done.stderr and b"'odd'" in done.stderr and b"'gpt'" in done.stderr


def test_packed_weights_answer_rows_and_a_job_goes_on_with_the_same(tiny: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", '"the cat"', '"the mat"', "nonsense")
    words = ("batch", source, "-m", tiny, "-n", "3", "--temp", "0", "-np", "2")
    assert here(*words, "--quant", "int8").returncode == 3
    assert sum(one.get("error") is None for one in rows_in(tmp_path / "in.out.jsonl")) == 2
    other = here(*words)
    assert other.returncode == 2 and b'quant was "q8" and is not given' in other.stderr
    assert here(*words, "--load-in-8bit").returncode == 3


def test_a_job_goes_on_with_the_weights_that_were_chosen_for_it(tiny: str, tmp_path: Path) -> None:
    """Whatever would fit by now: as on a GPU where less or more memory is free than when it began."""
    source = write_rows(tmp_path / "in.jsonl", '"the cat"')
    words = ("batch", source, "-m", tiny, "-n", "3", "--temp", "0")
    assert here(*words).returncode == 0
    manifest = tmp_path / "in.out.jsonl.manifest.json"
    told = json.loads(manifest.read_text())
    assert told["quant chosen"] is None
    manifest.write_text(json.dumps(told | {"quant chosen": "q8"}))
    write_rows(tmp_path / "in.jsonl", '"the cat"', '"the mat"')
    done = here(*words, "-v")
    assert done.returncode == 0 and b"weights in q8" in done.stderr, done.stderr
    assert json.loads(manifest.read_text())["quant chosen"] == "q8" and len(rows_in(tmp_path / "in.out.jsonl")) == 2


def test_the_same_command_again_does_nothing_and_loads_nothing(tiny: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", '"a"', "nonsense")
    words = ("batch", source, "-m", tiny, "-n", "3", "--temp", "0")
    assert here(*words).returncode == 3
    before = (tmp_path / "in.out.jsonl").read_bytes()
    code = f"import sys; from hgca_cli.app import run; code = run({list(words)!r}); assert 'torch' not in sys.modules; sys.exit(code)"
    again = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, check=False)
    assert again.returncode == 3 and b"all 2 rows are done, 1 failed" in again.stderr
    assert (tmp_path / "in.out.jsonl").read_bytes() == before
    write_rows(tmp_path / "in.jsonl", '"a"', "nonsense", '"b"')  # a row more
    done = here(*words)
    assert done.returncode == 3 and b"2 of 3 rows are done already, 1 of them failed" in done.stderr
    assert (tmp_path / "in.out.jsonl").read_bytes().startswith(before) and len(rows_in(tmp_path / "in.out.jsonl")) == 3


def test_another_job_is_refused_and_named(tiny: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", '"a"')
    words = ("batch", source, "-m", tiny, "-n", "3")
    assert here(*words).returncode == 0
    before = (tmp_path / "in.out.jsonl").read_bytes()
    for more, named in ((("--seed", "5"), b"sampling"), (("--window", "8"), b"window"), (("-s", "be kind"), b"system")):
        done = here(*words, *more)
        assert done.returncode == 2 and named in done.stderr and b"--overwrite" in done.stderr
    write_rows(tmp_path / "in.jsonl", '"b"')
    done = here(*words)
    assert done.returncode == 2 and b"line 1" in done.stderr
    write_rows(tmp_path / "in.jsonl", '"a"', '"b"')
    model = Path(tiny) / "generation_config.json"
    assert (tmp_path / "in.out.jsonl").read_bytes() == before and model.exists()
    assert here(*words, "--overwrite").returncode == 0
    assert len(rows_in(tmp_path / "in.out.jsonl")) == 2


def test_weights_that_changed_are_another_model(tiny: str, tmp_path: Path) -> None:
    own = save_tiny(tmp_path / "own")
    source = write_rows(tmp_path / "in.jsonl", '"a"')
    assert here("batch", source, "-m", own, "-n", "3").returncode == 0
    weights = next(Path(own).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert here("batch", source, "-m", own, "-n", "3").returncode == 0  # all is done: nobody looks
    write_rows(tmp_path / "in.jsonl", '"a"', '"b"')
    done = here("batch", source, "-m", own, "-n", "3")
    assert done.returncode == 2 and b"fingerprint" in done.stderr


def test_rows_that_failed_are_done_again_when_asked(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    content = [{"file": "a.txt"}, {"type": "text", "text": "Who?"}]
    source = write_rows(tmp_path / "in.jsonl", {"id": "x", "messages": [{"role": "user", "content": content}]}, '"b"')
    words = ("batch", source, "-m", tiny, "-n", "3", "--root", str(tmp_path / "files"))
    assert here(*words).returncode == 3
    assert here(*words).returncode == 3
    (tmp_path / "files" / "a.txt").write_text("the cat sat")
    done = here(*words, "--retry-errors")
    assert done.returncode == 0, done.stderr
    assert {one["id"]: one["error"] for one in rows_in(tmp_path / "in.out.jsonl")} == {"x": None, "line-2": None}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "none.txt"])
def test_files_outside_the_root_are_not_read(tiny: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    source = write_rows(tmp_path / "in.jsonl", {"messages": [{"role": "user", "content": [{"file": name}]}]})
    assert here("batch", source, "-m", tiny, "-n", "2", "--root", str(tmp_path / "root")).returncode == 3
    assert rows_in(tmp_path / "in.out.jsonl")[0]["error"]["code"] == "file"


def test_order_errors_and_standard_output(tiny: str, tmp_path: Path) -> None:
    rows = [{"id": str(at), "prompt": "the cat", "max_tokens": 1 + (7 * at) % 12} for at in range(9)]
    source = write_rows(tmp_path / "in.jsonl", *rows[:5], "nonsense", *rows[5:])
    out, bad = tmp_path / "o", tmp_path / "e"
    assert here("batch", source, "-o", str(out), "--errors", str(bad), "-m", tiny, "--ordered").returncode == 3
    assert [one["id"] for one in rows_in(out)] == [row["id"] for row in rows]
    assert [one["id"] for one in rows_in(bad)] == ["line-6"]
    done = here(
        "batch", "-", "--text", "-m", tiny, "-n", "2", "-q", "--output-format", "openai", stdin="the cat\nthe mat\n"
    )
    assert done.returncode == 0 and done.stderr == b""
    assert {json.loads(line)["custom_id"] for line in done.stdout.splitlines()} == {"line-1", "line-2"}


def test_rows_that_are_done_again_get_their_places(tiny: str, tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": "the cat"} for name in "abcde"]
    source = write_rows(tmp_path / "in.jsonl", rows[0], {"id": "b"}, rows[2])
    words = ("batch", source, "-m", tiny, "-n", "2")
    assert here(*words, "--ordered").returncode == 3
    write_rows(tmp_path / "in.jsonl", *rows[:3])
    assert here(*words, "--ordered", "--retry-errors").returncode == 0
    assert [one["id"] for one in rows_in(tmp_path / "in.out.jsonl")] == ["a", "b", "c"]
    write_rows(tmp_path / "in.jsonl", rows[3], *rows[:3], rows[4])
    assert here(*words).returncode == 0
    assert [one["id"] for one in rows_in(tmp_path / "in.out.jsonl")][:3] == ["a", "b", "c"]
    assert here(*words, "--ordered").returncode == 0, "all are done: they are only put in order"
    assert [one["id"] for one in rows_in(tmp_path / "in.out.jsonl")] == ["d", "a", "b", "c", "e"]


def test_more_errors_than_may_be_and_rows_that_take_too_long(tiny: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", "nonsense", "nonsense", '"a"')
    done = here("batch", source, "-m", tiny, "-n", "2", "--max-errors", "1")
    assert done.returncode == 3 and b"2 rows failed" in done.stderr and len(rows_in(tmp_path / "in.out.jsonl")) == 2
    source = write_rows(tmp_path / "slow.jsonl", '"a"')
    assert here("batch", source, "-m", tiny, "--timeout", "0").returncode == 3
    assert rows_in(tmp_path / "slow.out.jsonl")[0]["error"]["code"] == "timeout"


def test_rows_that_begin_alike_are_put_next_to_each_other_unless_they_are_not_to_be(tiny: str, tmp_path: Path) -> None:
    books = [f"{'the cat sat on the mat ' * 30}{at}" for at in "ab"]
    rows = [{"id": f"{at}{book}", "prompt": books[book], "max_tokens": 1} for at in range(3) for book in (0, 1)]
    source = write_rows(tmp_path / "in.jsonl", *({**row, "prompt": f"{row['id'][-1]} {row['prompt']}"} for row in rows))
    words = ("batch", source, "-m", tiny, "--concurrency", "1", "--overwrite")
    found = {}
    for flag in ("--group-prefix", "--no-group-prefix"):
        assert here(*words, flag).returncode == 0
        lines = rows_in(tmp_path / "in.out.jsonl")
        found[flag] = (
            [one["id"] for one in lines],
            sum(one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in lines),
        )
    assert found["--no-group-prefix"] == ([row["id"] for row in rows], 0)
    assert found["--group-prefix"][0] == sorted((row["id"] for row in rows), key=lambda name: (name[-1], name))
    assert found["--group-prefix"][1] > 200


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_a_log_has_what_was_told_and_how_it_ended(tiny: str, tmp_path: Path, quiet: tuple[str, ...]) -> None:
    source = write_rows(tmp_path / "in.jsonl", '"a"', "nonsense\x1b[2J")
    words = ("batch", source, "-n", "2", *quiet, "--log-file", str(tmp_path / "log"))
    assert here(*words, "-m", "no/such-model", "--offline").returncode == 5
    assert here(*words, "-m", tiny).returncode == 3
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* .", line) for line in lines)
    told = [line.split(" ", 2)[2] for line in lines]
    assert any("error: " in one and "no/such-model" in one for one in told) and told[-1] == "exit code 3"
    assert any(one.startswith("line 2: the line is not JSON") for one in told)
    assert any("1 of 2 rows done, 1 failed" in one for one in told) and "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--quantization=nf4",), b"Choose from auto, none, file, q8, q4"), (("--resume",), b"The same command"),
        (("-i", "in"), b"hgca batch prompts.jsonl"), (("--gpu-memory-utilization", "0.9"), b"--gpu-mem"), (("-p", "hi"), b"hgca chat"),
        (("--vram-margin", "much"), b"--vram-margin"), (("--log-file", "none/x"), b"--log-file"),
        (("--log-file", "in.jsonl"), b"input"),
        (("-np", "0"), b"--concurrency"), (("--parallel=x",), b"--concurrency"),
    ],
)  # fmt: skip
def test_what_other_tools_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], named: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_rows(tmp_path / "in.jsonl", '"a"')
    done = here("batch", source, "-m", "no/such", "--offline", *words)
    assert done.returncode == 2 and named in done.stderr and done.stderr.count(b"error") == 1, done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


def test_shares_of_a_job_are_the_job(tiny: str, tmp_path: Path) -> None:
    last = '{"id": "x", "prompt": "mat"}'
    source = write_rows(tmp_path / "in.jsonl", *(f'"the cat {at}"' for at in range(4)), "nonsense", last, '"e"')
    words = ("batch", source, "-m", tiny, "-n", "3", "--temp", "0")
    assert [here(*words, "--shard", f"{at}/3").returncode for at in (1, 2, 3)] == [0, 3, 0]
    assert here(*words).returncode == 3
    shares = [rows_in(tmp_path / f"in.{at}of3.out.jsonl") for at in (1, 2, 3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    found = {one["id"]: one.get("text") for share in shares for one in share}
    assert found == {one["id"]: one.get("text") for one in rows_in(tmp_path / "in.out.jsonl")} and "line-5" in found
    assert b"all 2 rows are done, 1 failed" in here(*words, "--shard", "2/3").stderr
    write_rows(tmp_path / "in.jsonl", last, '"a"', '"b"', last)
    assert here(*words, "--shard", "2/3", "--overwrite").returncode == 2  # the same id in two shares


def test_a_dry_run_counts_and_writes_nothing(tiny: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", '"the cat"', openai_row("a", max_tokens=7, n=2), "nonsense")
    weights = next(Path(tiny).glob("*.safetensors"))
    done = here("batch", source, "-m", tiny, "-n", "4", "--dry-run", "--json")
    assert done.returncode == 3 and sorted(one.name for one in tmp_path.iterdir()) == ["in.jsonl"]
    told = json.loads(done.stdout)
    assert (told["rows"], told["invalid"], told["most_completion_tokens"]) == (3, 1, 18) and weights.exists()
    assert told["prompt_tokens"] > told["longest_prompt"] > 0 and told["seconds"] >= 0


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("in.jsonl", "-o", "in.jsonl"), 2, b"input"), (("in.jsonl", "-o", "link"), 2, b"input"), (("none",), 5, b"no such file"),
        ((".",), 2, b"directory"), (("/",), 2, b"directory"), (("..", "-o", "x"), 2, b"directory"),
        (("in.jsonl", "-o", "none/out"), 2, b"none/out"), (("in.jsonl", "-o", "."), 2, b"cannot write"),
        (("in.jsonl", "-o", "notes"), 2, b"--overwrite"), (("in.jsonl", "--strict"), 2, b"line 2"),
        (("twice",), 2, b"lines 1 and 2"), (("in.jsonl", "--concurrency", "0"), 2, b"--concurrency"),
        (("in.jsonl", "--root", "none"), 2, b"--root"), (("in.jsonl", "-o", "-", "--json"), 2, b"--json"),
        (("in.jsonl", "--errors", "in.out.jsonl"), 2, b"two things"), (("in.jsonl", "-o", "-", "--overwrite"), 2, b"--overwrite"),
        (("in.jsonl", "--shard", "3/2"), 2, b"1/2 to 2/2"), (("in.jsonl", "--shard", "2"), 2, b"--shard"),
        (("in.jsonl", "--shard", "0/0"), 2, b"--shard"), (("in.jsonl", "--metrics", "none/m.json"), 2, b"--metrics"),
        (("in.jsonl", "--limit", "0"), 2, b"--limit: that is less than 1. See"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, named: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "in.jsonl", '"a"', "nonsense")
    write_rows(tmp_path / "twice", {"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"})
    (tmp_path / "link").symlink_to("in.jsonl")
    (tmp_path / "notes").write_text("notes")
    before = (tmp_path / "in.jsonl").read_bytes()
    done = here("batch", *words, "-m", "no/such-model", "--offline")
    assert done.returncode == code and named in done.stderr and done.stderr.count(b"error") == 1, done.stderr
    assert (tmp_path / "in.jsonl").read_bytes() == before and (tmp_path / "notes").read_text() == "notes"


@pytest.mark.parametrize("more", [(), ("--errors", "bad"), ("--overwrite",), ("--retry-errors",)])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_model_that_is_refused_costs_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], damaged: bool
) -> None:
    model = save_tiny(tmp_path / "model") if damaged else "no/such-model"
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "in.jsonl", '"a"', "nonsense")
    if damaged:  # what no header tells: found when weights are loaded
        weights = tmp_path / "model" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-4000:] = b"\xff" * 4000
        weights.write_bytes(content)
    there = {"in.jsonl", "model"} if damaged else {"in.jsonl"}
    done = here("batch", "in.jsonl", "-m", model, "--offline", *(() if more == ("--overwrite",) else more))
    assert done.returncode == 5 and {one.name for one in tmp_path.iterdir()} == there, done.stderr
    good = save_tiny(tmp_path / "good")
    assert here("batch", "in.jsonl", "-m", good, "-n", "2").returncode == 3
    before = {name: (tmp_path / name).read_bytes() for name in ("in.out.jsonl", "in.out.jsonl.manifest.json")}
    write_rows(tmp_path / "in.jsonl", '"a"', "nonsense", '"b"')
    done = here("batch", "in.jsonl", "-m", model, "--offline", *more)
    assert done.returncode == (5 if more == ("--overwrite",) else 2), done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert {one.name for one in tmp_path.iterdir()} == there | {"good", *before}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_text_that_no_context_holds_is_not_taken_apart(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: tuple[str, ...]
) -> None:
    seen: list[int] = []
    original = Tokenizer.encode_chat
    monkeypatch.setattr(
        Tokenizer, "encode_chat", lambda self, said, **more: seen.append(len(str(said))) or original(self, said, **more)
    )
    source = write_rows(tmp_path / "in.jsonl", {"id": "huge", "prompt": "a b " * 200_000}, '"the cat"')
    done = here("batch", source, "-m", tiny, "-n", "2", *dry)
    assert done.returncode == 3 and b"800,000 characters" in done.stderr and max(seen) < 1000, done.stderr
    if not dry:
        found = {one["id"]: one for one in rows_in(tmp_path / "in.out.jsonl")}
        assert found["huge"]["error"]["code"] == "context_overflow" and found["line-2"]["error"] is None


def test_an_empty_input_is_no_work(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    done = here("batch", str(tmp_path / "in.jsonl"), "-m", "no/such-model")
    assert done.returncode == 0 and b"all 0 rows are done" in done.stderr


def test_without_a_name_the_input_is_what_is_piped_in(tiny: str) -> None:
    named, unnamed = (here("batch", *words, "-m", tiny, "-n", "2", stdin='"the cat"\n') for words in (["-"], []))
    assert unnamed.returncode == named.returncode == 0
    assert [json.loads(done.stdout)["id"] for done in (named, unnamed)] == ["line-1"] * 2
    text = here("batch", "-m", "no/such-model", stdin="hi\n")
    assert text.returncode == 2 and b"error: standard input is a text, not JSON lines. With --text" in text.stderr


def test_without_a_name_and_a_pipe_there_is_no_input() -> None:
    done = shell("hgca batch </dev/null")
    assert done.returncode == 2 and done.stderr.startswith(b"hgca: error: Missing argument 'INPUT'. Name a file")


def test_help_names_what_can_be_a_row() -> None:
    assert b"OpenAI" in hgca("batch", "--help").stdout
