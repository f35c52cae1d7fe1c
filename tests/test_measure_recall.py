"""Cases hide what they ask for where they say, and policies are asked the same from the same rows."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace

import pytest
import torch

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import UsageError
from hgca_cli.events import Done
from hgca_cli.measure.prompt import Prompt
from hgca_cli.measure.recall import ask, candidate_ids, candidate_log_probs, room_for
from hgca_cli.measure.recall_cases import TASKS, Case, Haystack, made_up_text, make_case, parse_cases
from tests.tiny_engine import tiny_engine


def words(text: str) -> list[int]:
    """A token per word or space: enough for what is counted."""
    return [BOOK.setdefault(word, len(BOOK)) for word in re.findall(r"\s+|\S+", text)]


def unwords(ids: list[int]) -> str:
    names = list(BOOK)
    return "".join(names[one] for one in ids)


BOOK: dict[str, int] = {}
HAYSTACK = Haystack(words(made_up_text(1, 400)), words, unwords)


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_at_its_depth(task: str, depth: float) -> None:
    case = make_case(task, HAYSTACK, 600, depth, 7)
    assert isinstance(case.prompt, str) and len(case.answers) == 1
    length = len(words(case.prompt))
    assert 550 < length < 800
    place = len(words(case.prompt[: case.prompt.index(case.answers[0])])) / length
    assert place == pytest.approx(depth, abs=0.12)
    assert len({case.answers[0], *case.others}) == 10
    if task in ("uuid", "lines"):
        assert all(other in case.prompt for other in case.others)
    assert case == make_case(task, HAYSTACK, 600, depth, 7) != make_case(task, HAYSTACK, 600, depth, 8)


def test_the_right_pair_line_and_needle_is_asked_for() -> None:
    pairs = str(make_case("uuid", HAYSTACK, 500, 0.5, 1).prompt)
    key = re.findall(r'Key: "(.+)"', pairs)[0]
    assert (
        json.loads(pairs[pairs.index("{") : pairs.index("}") + 1])[key]
        == make_case("uuid", HAYSTACK, 500, 0.5, 1).answers[0]
    )
    lines = make_case("lines", HAYSTACK, 500, 0.5, 1)
    name = re.findall(r"of line (\S+)\?", str(lines.prompt))[0]
    assert f"line {name}: the number is {lines.answers[0]}\n" in str(lines.prompt)
    needles = make_case("needles", HAYSTACK, 500, 0.5, 1, needles=3)
    hidden = re.findall(r"The number of the \w+ \w+ is (\d+)\. Remember", str(needles.prompt))
    assert (
        len(hidden) == 3 and needles.answers[0] in hidden and set(hidden) - {needles.answers[0]} <= set(needles.others)
    )
    assert f"{needles.lead}{needles.answers[0]}. Remember" in str(needles.prompt)


def test_json_lines() -> None:
    lines = [
        {"prompt": "a", "answer": "x"},
        {"messages": [{"role": "user", "content": "b"}], "answer": ["y", "z"]},
        {"prompt": "c", "expected_number": 17, "more": 1},
        {"ordered_kv_records": [["k", "v"], ["l", "w"]], "key": "l", "value": "w"},
    ]
    one, two, three, four = parse_cases("\n\n".join(map(json.dumps, lines)), "cases.jsonl")
    assert one == Case("cases.jsonl", "a", ("x",))
    assert two.prompt == lines[1]["messages"] and two.answers == ("y", "z") and three.answers == ("17",)
    assert '"l": "w"' in str(four.prompt) and four.answers == ("w",) and four.others == ("v",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: there is no prompt"),
        ('{"answer": "x"}', "line 2: there is no prompt"),
        ('{"prompt": " ", "answer": "x"}', "line 2: there is no prompt"),
        ('{"messages": [{"role": "user"}], "answer": "x"}', "line 2: there is no prompt"),
        ('{"prompt": "a"}', "line 2: there is no answer"),
        ('{"prompt": "a", "answer": ""}', "line 2: there is no answer"),
        ('{"prompt": "a", "answer": []}', "line 2: there is no answer"),
        ('{"ordered_kv_records": [1], "key": "a", "value": "b"}', "line 2: its pairs are damaged"),
    ],
)
def test_a_damaged_line_is_named(line: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"c.jsonl, {told}")):
        parse_cases('{"prompt": "a", "answer": "b"}\n' + line, "c.jsonl")
    with pytest.raises(UsageError, match="holds no cases"):
        parse_cases("\n", "c.jsonl")


def plain_answer(engine: Engine, ids: list[int], tokens: int) -> str:
    greedy = SamplingSettings(temperature=0.0, max_tokens=tokens, top_p=1.0)
    *_, done = engine.answer(engine.new_sequence(), ids, greedy, threading.Event())
    assert isinstance(done, Done)
    return done.text


@pytest.fixture
def asked() -> tuple[Engine, list[int], Case]:
    engine = tiny_engine(window=16, context=200)
    ids = torch.randint(10, 300, (90,), generator=torch.Generator().manual_seed(5)).tolist()
    case = Case("t", "", ("the cat sat",), "", "on ", ("the mat sat", "def f(x)", "naïve"))
    return engine, ids, case


def test_exact_answers_as_the_engine_does(asked: tuple[Engine, list[int], Case]) -> None:
    engine, ids, case = asked
    policies = {"exact": engine.settings, "window": replace(engine.settings, select="window")}
    found = dict(ask(engine, ids, case, policies, 12))
    said = plain_answer(engine, ids, 12)
    assert found["exact"].said == said != found["window"].said and not found["exact"].right
    assert found["exact"].place is None and found["exact"].log_prob is None
    assert found["exact"].bytes_read > 0 == found["window"].bytes_read
    right = replace(case, answers=("no such text", said[:3]))
    short = dict(ask(engine, ids, right, policies, 12))["exact"]
    assert short.right and said.startswith(short.said) and len(short.said) < len(said)


def test_candidates_are_scored_as_one_forward_pass_scores_them(asked: tuple[Engine, list[int], Case]) -> None:
    engine, ids, case = asked
    shared, rests = candidate_ids(engine, case)
    encode = engine.loaded.tokenizer.encode
    assert [shared + rest for rest in rests] == [encode("on " + one) for one in (*case.answers, *case.others)]
    found = candidate_log_probs(engine, Prompt(engine, ids[:-1]).sequence(engine.settings), ids[-1], case)
    for rest, log_prob in zip(rests, found, strict=True):
        whole = [*ids, *shared, *rest]
        engine.loaded.model.set_attn_implementation("sdpa")
        logits = engine.loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        engine.loaded.model.set_attn_implementation("hgca")
        wanted = sum(float(logits[place - 1, whole[place]]) for place in range(len(whole) - len(rest), len(whole)))
        assert log_prob == pytest.approx(wanted, abs=1e-3)
    policies = {"exact": replace(engine.settings, context=room_for(engine, ids, case, 2, score=True))}
    one = dict(ask(engine, ids, case, policies, 2, score=True))["exact"]
    assert one.log_prob == pytest.approx(found[0], abs=1e-4)
    assert one.place == 1 + sum(other > found[0] for other in found[1:])
