"""`hgca eval`: results for people and programs, files, and one line for every mistake."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.commands.eval_cases import made_cases, prompt_ids, question_tokens
from hgca_cli.commands.eval_policies import Policy, policies_of
from hgca_cli.config import SELECTORS
from hgca_cli.errors import UsageError
from hgca_cli.measure import fidelity
from hgca_cli.measure.recall import Answer
from hgca_cli.measure.recall_cases import TASKS
from tests.cli_process import Done, here, hgca, records, save_tiny
from tests.models import write_model
from tests.tiny_engine import tiny_engine

TEXT = "the cat sat on the mat, and nobody knew why naïve cats sit. " * 40
FIDELITY = ("fidelity", "--ctx", "120", "--positions", "16", "--window", "16")
DRIFT = ("drift", "--length", "60", "--tokens", "8", "--window", "16", "--select", "window")
RECALL = ("recall", "--length", "100", "--count", "2", "--window", "16", "--max-tokens", "4", "--select", "window")
GIVEN = (RECALL[0], *RECALL[3:])  # of files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "book.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = native.threads(), torch.get_num_threads()
    yield
    native.set_threads(before[0])
    torch.set_num_threads(before[1])
    native.share_openmp(False)


def evaluate(*words: str, model: str, threads: str = "1") -> Done:
    return here("eval", *words, "--model", model, "--threads", threads)


def refused(*words: str, model: str = "no/such/dir", code: int = 2) -> str:
    done = evaluate(*words, model=model)
    told = done.stderr.decode()
    assert done.returncode == code and told.startswith("hgca: error: ") and told.count("\n") == 1 and not done.stdout
    return told


def test_fidelity_for_programs(model: str, book: str, tmp_path: Path) -> None:
    other, file = tmp_path / "book.txt", tmp_path / "kl.jsonl"
    other.write_text(TEXT[7:], encoding="utf-8")
    picture = tmp_path / "kl.svg"
    words = (*FIDELITY, "--text", book, str(other), "--select", "window,moving-average", "--budget", "5%", "0.5")
    done = evaluate(*words, "--json", "--record", str(file), "--plot", str(picture), model=model)
    assert done.returncode == 0, done.stderr
    machine, *lines = records(done)
    assert (
        machine["type"] == "machine"
        and machine["ctx"] == 120
        and machine["positions"] == 16
        and machine["threads"] == 1
    )
    names = ["exact", "window", "moving-average:budget=0.05", "moving-average:budget=0.5"]
    texts = ["book.txt", "book.txt #2", "all texts"]
    assert [(line["text"], line["policy"]) for line in lines] == [(text, name) for text in texts for name in names]
    by = {(line["text"], line["policy"]): line for line in lines}
    assert by["book.txt", "exact"]["kl"] == 0.0 and by["book.txt", "exact"]["read_share"] == 1.0
    window = [by[text, "window"] for text in texts]
    assert (
        window[2]["kl"] == pytest.approx((window[0]["kl"] + window[1]["kl"]) / 2) and window[0]["kl"] != window[1]["kl"]
    )
    assert window[2]["positions"] == 32 and window[0]["perplexity"] > 1
    assert window[0]["perplexity_change"] == pytest.approx(window[0]["perplexity"] / window[0]["exact_perplexity"] - 1)
    recorded = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["policy"] for one in recorded] == names * 3 and recorded[0]["type"] == "fidelity"
    assert (
        recorded[1]["kl"] == pytest.approx(window[0]["kl"], rel=1e-4)
        and recorded[1]["processor"] == machine["processor"]
    )
    assert picture.read_bytes().startswith(b"<?xml")


def test_fidelity_for_people(model: str, book: str) -> None:
    done = evaluate(*FIDELITY, "--text", book, "--skip", "9", "--select", "window", "exact", "--verbose", model=model)
    out = done.stdout.decode()
    assert (
        done.returncode == 0
        and out.count("book.txt") == 1
        and out.count("100.0%") == 3
        and "KL(exact || policy)" in out
    )
    assert "context 120" in done.stderr.decode()


def test_recall_for_programs(model: str, book: str, tmp_path: Path) -> None:
    file = tmp_path / "recall.jsonl"
    words = (*RECALL, "--task", "passkey", "uuid", "--text", book, "--score", "--ctx", "3000", "--record", str(file))
    done = evaluate(*words, "--json", model=model)
    assert done.returncode == 0, done.stderr
    lines = records(done)[1:]
    assert [line["type"] for line in lines] == [*["answer"] * 4, "recall", "recall"] * 2
    assert [(line["task"], line["policy"]) for line in lines if line["type"] == "recall"] == [
        (task, policy) for task in ("passkey", "uuid") for policy in ("exact", "window")
    ]
    for first in (0, 6):
        answers, exact = lines[first : first + 4], lines[first + 4]
        assert exact["count"] == exact["scored"] == 2 and exact["length"] == 100 and exact["tokens"] > 100
        mine = [one for one in answers if one["policy"] == "exact"]
        assert exact["right"] == sum(one["right"] for one in mine) and exact["first"] == sum(
            one["place"] == 1 for one in mine
        )
        assert exact["lost"] == 0
        assert exact["log_prob"] == pytest.approx(sum(one["log_prob"] for one in mine) / 2)
        assert exact["read_share"] == 1.0 and exact["bytes_read"] > 0
    assert len(file.read_text().splitlines()) == 4


def test_what_is_lost_is_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"exact": [True, True, False], "window": [False, True, True]}

    def answered(*given: Any, **more: Any) -> Iterator[tuple[str, Answer]]:
        for name, verdicts in right.items():
            yield name, Answer("so", verdicts.pop(0), None, None, 1.0, 1.0, 1.0)

    monkeypatch.setattr("hgca_cli.measure.recall.ask", answered)
    done = evaluate(*RECALL, "--count", "3", "--json", model=model)
    lines = [line for line in records(done) if line["type"] == "recall"]
    assert [(line["policy"], line["right"], line["lost"]) for line in lines] == [("exact", 2, 0), ("window", 2, 1)]
    told = b"full attention answers none of these"
    for whole, said in (([False, True], False), ([False, False], True)):
        right |= {"exact": whole, "window": [True, False]}
        assert (told in evaluate(*RECALL, "--count", "2", model=model).stdout) == said


def test_the_question_is_found_in_its_prompt(model: str) -> None:
    engine = tiny_engine()
    for task in TASKS:
        case = made_cases(engine, task, 100, [0.5], None, {"seed": 0, "count": 1, "needles": 2})[0]
        for raw in (False, True):
            ids = prompt_ids(engine, case, raw=raw)
            asks = engine.loaded.tokenizer.decode(ids[len(ids) - question_tokens(engine, case, ids, raw=raw) :])
            assert len(asks) > 20 and case.question.endswith(asks) and len(case.question) - len(asks) <= 2


def test_an_appended_question_is_judged_by(model: str) -> None:
    words = (*RECALL[:-1], "moving-average", "--task", "lines", "--length", "200", "--ctx", "1k", "--score", "--json")
    whole, apart = (records(evaluate(*words, *more, model=model))[-1] for more in ((), ("--appended",)))
    assert whole["policy"] == apart["policy"] == "moving-average" and whole["tokens"] == apart["tokens"]
    assert 0 < apart["read_share"] < 1 and apart["log_prob"] != whole["log_prob"]  # other rows were worth keeping


def test_cases_from_files(model: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_text("".join(json.dumps({"prompt": TEXT[:200] + str(one), "answer": one}) + "\n" for one in range(3)))
    pairs = [[f"key{one}", f"value{one}"] for one in range(12)]
    with gzip.open(packed, "wt") as stream:
        stream.write(json.dumps({"ordered_kv_records": pairs, "key": "key3", "value": "value3"}))
    done = evaluate(*GIVEN, "--cases", str(plain), str(packed), "--verbose", model=model)
    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert (
        out.count("a.jsonl, ") == out.count("b.jsonl.gz, ") == 1 and out.count("expected 0") + out.count("right: ") >= 2
    )
    assert out.count("/2") == 2 and out.count("/1 ") == 2 and out.count("expected value3") <= 2


def test_files_of_one_name_and_answers_beside_wrong_ones(model: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl"
    case = {"prompt": TEXT[:200], "answer": "cat", "others": ["dog", 7]}
    first.write_text(json.dumps(case))
    second.write_text(json.dumps(case | {"answer": "the mat"}) + "\n" + json.dumps({**case, "others": []}))
    done = evaluate(*GIVEN, "--cases", str(first), str(second), "--score", "--json", model=model)
    assert done.returncode == 0, done.stderr
    lines = [line for line in records(done) if line["type"] == "recall" and line["policy"] == "exact"]
    assert [(line["task"], line["count"], line["scored"]) for line in lines] == [
        ("a.jsonl", 1, 1),
        ("a.jsonl #2", 2, 1),
    ]
    places = [line["place"] for line in records(done) if line["type"] == "answer" and line["policy"] == "exact"]
    assert places[0] in (1, 2, 3) and places[2] is None


def test_what_was_measured_before_an_interruption_is_drawn(
    model: str, book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = fidelity.measure_fidelity

    def interrupted(*given: Any) -> Iterator[tuple[str, fidelity.Fidelity]]:
        for count, one in enumerate(measured(*given)):
            if count == until:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(fidelity, "measure_fidelity", interrupted)
    words = (*FIDELITY, "--text", book, "--select", "window,scan", "--quiet")
    for until, drawn in ((1, False), (2, True)):
        picture, file = tmp_path / f"{until}.svg", tmp_path / f"{until}.jsonl"
        done = evaluate(*words, "--plot", str(picture), "--record", str(file), model=model)
        assert done.returncode == 130 and not done.stderr and picture.exists() == drawn
        assert len(file.read_text().splitlines()) == until


def test_a_conversation_is_asked_by_its_template(tmp_path: Path) -> None:
    talk = [{"role": role, "content": TEXT[:150]} for role in ("system", "user", "assistant", "user")]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": talk, "answer": "x"}))
    done = evaluate(
        *RECALL[:1], *RECALL[5:], "--cases", str(file), "--json", model=str(write_model(tmp_path / "model"))
    )
    assert done.returncode == 0, done.stderr
    assert next(line["tokens"] for line in records(done) if line["type"] == "recall") > 4 * 150 / 8


def test_drift_for_programs_and_people(model: str, book: str) -> None:
    done = evaluate(*DRIFT, "--text", book, "--json", model=model)
    assert done.returncode == 0, done.stderr
    machine, line = records(done)
    assert machine["length"] == 60 and machine["tokens"] == 8 and machine["seed"] == 0
    assert line["type"] == "drift" and len(line["quarters"]) == 4 and line["tokens"] == 8
    assert line["growth"] == pytest.approx(line["quarters"][3] / line["quarters"][0])
    assert line["kl"] == pytest.approx(sum(line["quarters"]) / 4)
    again = evaluate(*DRIFT, "--text", book, "--json", model=model)
    assert records(again)[1]["begins"] == line["begins"] and records(again)[1]["kl"] == line["kl"]
    shown = evaluate(*DRIFT, "--text", book, "--seed", "1", "--verbose", model=model)
    assert shown.returncode == 0 and b"growth" in shown.stdout and line["begins"] not in shown.stdout.decode()


def test_policies() -> None:
    names = [one.name for one in policies_of(["moving-average:budget=20%,window", "moving-average"], ["0.1", "5%"], [])]
    assert names == ["moving-average:budget=0.2", "window", "moving-average:budget=0.1", "moving-average:budget=0.05"]
    assert policies_of([], [], []) == [Policy(name) for name in SELECTORS if name != "exact"]
    assert [one.name for one in policies_of(["window", "window,exact"], [], [])] == ["window"]
    assert [one.name for one in policies_of(["window,scan"], [], ["0.9"])] == ["window", "scan:quality=0.9"]


def test_qualities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.commands.eval_policies.SELECTORS", ("exact", "window", "moving-average", "scan"))
    found = policies_of(["scan", "moving-average", "scan:quality=0.99:budget=0.3"], ["0.1"], ["0.9", "95%"])
    assert [one.name for one in found] == [
        "scan:budget=0.1",
        "scan:quality=0.9",
        "scan:quality=0.95",
        "moving-average:budget=0.1",
        "scan:budget=0.3:quality=0.99",
    ]
    with pytest.raises(UsageError, match="a quality of 0"):
        policies_of(["scan:quality=0"], [], [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (FIDELITY, "--text book.txt"),
        ((*FIDELITY, "--select", "scann"), "no policy 'scann'. Choose from exact, "),
        ((*FIDELITY, "--select", "moving-average:budget=2"), "'2' is not a share"),
        ((*FIDELITY, "--select", "moving-average:alpha=2"), "is no policy. Write it like scan:quality=0.95"),
        ((*FIDELITY, "--select", "window:budget=0.5"), "window takes no budget"),
        ((*FIDELITY, "--select", "moving-average:quality=0.5"), "moving-average takes no quality"),
        ((*FIDELITY, "--budget", "7"), "--budget: '7' is not a share"),
        ((*FIDELITY, "--quality", "0"), "--quality: a quality of 0"),
        (
            (*FIDELITY, "--select", "moving-average", "window", "--quality", "0.9"),
            "--quality: no policy that is compared",
        ),
        (
            (*FIDELITY, "--select", "window", "scan:quality=0.9", "--budget", "5%"),
            "--budget: no policy that is compared",
        ),
        ((*FIDELITY, "--positions", "120"), "--positions 120 leaves nothing of --ctx 120"),
        ((*FIDELITY, "--window", "104"), "--window 104 and 4 sinks hold all of the 104 tokens"),
        ((*FIDELITY, "--window", "auto"), "--window: auto does not say how many"),
        (
            (*FIDELITY, "--ctx", "many"),
            "--ctx: 'many' is not a whole number. Give 1 to 1,073,741,824, like 8192 or 32k.\n",
        ),
        ((*FIDELITY, "--plot", "kl.pdf"), ".svg nor .png"),
        ((*FIDELITY, "--record", "/no/such/folder/kl.jsonl"), "--record: cannot write"),
        ((*RECALL, "--task", "haystack"), "--task: no such choice 'haystack'. Choose from passkey"),
        ((*RECALL, "--count", "0"), "--count: 0 is out of range"),
        ((*RECALL, "--needles", "0"), "--needles: 0 is out of range"),
        ((*RECALL, "--max-tokens", "0"), "--max-tokens: 0 is out of range"),
        ((*RECALL, "--depth", "1.5"), "--depth: '1.5' is not a share"),
        ((*RECALL, "--length", "10"), "--length: 10 is too few. Give 64 or more"),
        ((*FIDELITY, "--window", "100"), "--window 100 and 4 sinks hold all of the 104 tokens"),
        ((*FIDELITY, "--window", "104", "--sinks", "0"), "--window 104 holds all of the 104 tokens"),
        ((*RECALL, "--window", "96"), "--window 96 and 4 sinks hold all of --length 100"),
        ((*RECALL, "--cases", "a.jsonl"), "--length says how cases are made"),
        ((*GIVEN, "--cases", "a.jsonl", "--depth", "0.5"), "--depth says how cases are made"),
        ((*GIVEN, "--cases", "a.jsonl", "--text", "b.txt"), "--text: nothing is hidden in it"),
        ((*RECALL, "--task", "uuid", "--text", "b.txt"), "--text: nothing is hidden in it"),
        ((*RECALL, "--needles", "5"), "--needles: no needles are hidden"),
        ((*RECALL, "--appended", "--cases", __file__ + "l"), "where the prompts of --cases ask is not known"),
        ((*DRIFT, "--tokens", "3"), "--tokens: 3 is too few"),
        ((*DRIFT, "--temp", "-1"), "--temp: -1.0 is out of range"),
        ((*DRIFT[:-1], "exact"), "does not drift from itself"),
        (("fidelity", "book.txt"), "Texts are named by --text FILE."),
        (("recall", "cases.jsonl"), "Prompts are named by --cases FILE."),
        ((*RECALL, "--limit", "3"), "no such option: --limit. It is --count here."),
        ((*DRIFT, "--window", "60"), "--window 60 and 4 sinks hold all of --length 60"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(words: tuple[str, ...], told: str) -> None:
    assert told in refused(*words)


def test_mistakes_in_files(model: str, book: str, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    assert "c.jsonl, line 2: there is no answer" in refused(*GIVEN, "--cases", str(file))
    told = refused(*GIVEN, "--cases", str(_copy(file, "c.gz")))
    assert "not a gzip" in told.lower() and "name it without .gz if it is not packed" in told.lower()
    packed = bytearray(gzip.compress(file.read_bytes()))
    packed[10] ^= 0xFF  # the first block's kind
    (tmp_path / "e.gz").write_bytes(packed)
    assert "while decompressing" in (told := refused(*GIVEN, "--cases", str(tmp_path / "e.gz"))) and "again" in told
    assert "No such file or directory. Check the path." in refused(*GIVEN, "--cases", str(tmp_path / "d.gz"))
    assert "no such file" in refused(*GIVEN, "--cases", str(tmp_path / "d.jsonl"), code=5)
    (tmp_path / "kl.svg").mkdir()
    assert "--plot: cannot write" in refused(*FIDELITY, "--plot", str(tmp_path / "kl.svg"))
    assert "is a directory. Name its files one by one." in refused(*GIVEN, "--cases", str(tmp_path))
    file.write_text(
        json.dumps({"prompt": TEXT[:200], "answer": "b"}) + "\n" + json.dumps({"prompt": TEXT, "answer": 1})
    )
    asked = (*GIVEN, "--cases", str(file))
    assert "c.jsonl has no wrong answers beside the right ones" in refused(*asked, "--score")
    told = refused(*asked, "--ctx", "300", "--quiet", model=model)
    assert "c.jsonl: prompt 2 has 1,6" in told and "Leave it out, or raise --ctx." in told
    told = refused(*asked, "--count", "1", "--window", "250", "--quiet", model=model)
    assert "window and sinks hold all rows of its prompts: nothing is in the store. Lower --window." in told
    told = refused(*FIDELITY, "--ctx", "5000", "--quiet", "--text", book, model=model)
    assert "tokens, and 5,001 are needed. Name a longer text, or lower --ctx." in told
    told = refused(*DRIFT, "--skip", "9k", "--quiet", "--text", book, model=model)
    assert "9,276 are needed. Name a longer text, or lower --skip or --length." in told
    assert "fewer than --length 5,000" in refused(*RECALL, "--length", "5000", "--quiet", "--text", book, model=model)
    assert "the context is 200" in refused(*RECALL, "--ctx", "200", "--length", "400", "--quiet", model=model)


def test_variables_are_named() -> None:
    done = hgca("eval", *FIDELITY[:-2], "--text", "x", HGCA_WINDOW="auto")
    assert done.returncode == 2 and b"(set by HGCA_WINDOW in the environment)" in done.stderr


def _copy(file: Path, name: str) -> Path:
    other = file.with_name(name)
    other.write_bytes(file.read_bytes())
    return other
