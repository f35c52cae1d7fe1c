"""What is hidden and asked for: passkeys, needles, key-value pairs and lines, made here by a seed, or read from JSON lines.

Sources: passkey, arXiv:2305.16300; several needles, arXiv:2404.06654 (RULER); UUID pairs, arXiv:2307.03172 (Lost in the
Middle); lines, LongEval (lmsys.org/blog/2023-06-29-longchat). The wordings are our own.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hgca_cli.errors import UsageError

TASKS = ("passkey", "needles", "uuid", "lines")
CANDIDATES = 10  # the right answer and nine that look like it

WORDS = {
    "place": "harbour meadow library mill orchard chapel market bridge tower garden quarry station forest museum inn",
    "person": "baker sailor teacher doctor farmer painter miller judge weaver gardener poet soldier smith widow clerk",
    "deed": "watched described remembered repaired avoided praised visited measured sold borrowed counted drew",
    "kind": "old quiet narrow bright empty famous wooden distant cold busy small forgotten tall white strange",
}
PLACES, PEOPLE, DEEDS, KINDS = (tuple(words.split()) for words in WORDS.values())


@dataclass(frozen=True)
class Case:
    """One question with one answer.

    prompt    what is asked: a text, or a conversation of messages
    answers   any of them in the answer makes it right
    question  how the prompt ends, from where it asks; "" if that is not known
    lead      how an answer begins, before the first of the answers; others: wrong answers that look like it. Both only
              where the right one is to be found among ten
    """

    task: str
    prompt: str | list[dict[str, str]]
    answers: tuple[str, ...]
    question: str = ""
    lead: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Haystack:
    """Text to hide things in: its token ids, and the way to tokens and back."""

    ids: Sequence[int]
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]

    def piece(self, first: int, count: int) -> str:
        """The text of some of its tokens; it begins anew where it ends."""
        return self.decode([self.ids[(first + index) % len(self.ids)] for index in range(count)])


def made_up_text(seed: int, sentences: int) -> str:
    """Sentences that say nothing, for who has no text at hand."""
    draw = random.Random(seed)
    said = []
    for _ in range(sentences):
        one, other = draw.choice(PEOPLE), draw.choice(PEOPLE)
        there = f"the {draw.choice(KINDS)} {draw.choice(PLACES)}"
        said.append(
            draw.choice(
                [
                    f"The {draw.choice(KINDS)} {one} {draw.choice(DEEDS)} {there}.",
                    f"Near {there} the {one} {draw.choice(DEEDS)} a {draw.choice(KINDS)} {other}.",
                    f"Nobody at {there} knew why the {one} {draw.choice(DEEDS)} the {other}.",
                ]
            )
        )
    return " ".join(said)


def make_case(task: str, haystack: Haystack, length: int, depth: float, seed: int, *, needles: int = 4) -> Case:
    """A case of about `length` tokens; what is asked for lies at `depth` (0: the beginning, 1: the end).

    needles  numbers hidden by "needles". The same arguments give the same case.
    """
    draw = random.Random(f"{task} {length} {depth} {seed}")
    if task == "passkey":
        return _hidden(task, haystack, length, depth, draw, ["the pass key"])
    if task == "needles":
        names = draw.sample([f"the number of the {kind} {place}" for kind in KINDS for place in PLACES], needles)
        return _hidden(task, haystack, length, depth, draw, names)
    if task == "uuid":
        return _pairs(haystack.encode, length, depth, draw)
    assert task == "lines"
    return _lines(haystack.encode, length, depth, draw)


def parse_cases(text: str, called: str) -> list[Case]:
    """Cases from JSON lines: {"prompt" or "messages", "answer" or "expected_number", "others" if there are any}, or Lost in
    the Middle's pairs.

    Raises UsageError naming the line.
    """
    cases = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{called}, line {number}: not JSON ({error.msg}).", "Give one object a line.") from error
        cases.append(_parsed(record, f"{called}, line {number}", called))
    if not cases:
        raise UsageError(f"{called} holds no cases.", 'Give lines like {"prompt": ..., "answer": ...}.')
    return cases


def _parsed(record: Any, where: str, task: str) -> Case:
    if isinstance(record, dict) and "ordered_kv_records" in record:
        return _given_pairs(record, where, task)
    answer = record.get("answer", record.get("expected_number")) if isinstance(record, dict) else None
    answers, others = _texts(answer), _texts(record.get("others") if isinstance(record, dict) else None)
    prompt = record.get("messages", record.get("prompt")) if isinstance(record, dict) else None
    good = isinstance(prompt, str) and bool(prompt.strip())
    if isinstance(prompt, list) and prompt:
        good = all(
            isinstance(one, dict) and all(isinstance(one.get(name), str) for name in ("role", "content"))
            for one in prompt
        )
    if not good or not answers:
        missing = "answer" if good else "prompt"
        raise UsageError(
            f"{where}: there is no {missing}.",
            'It takes "prompt" (a text) or "messages", and "answer" (a text or a list) or "expected_number".',
        )
    if others is None or set(answers) & set(others):
        raise UsageError(
            f"{where}: its others are no wrong answers.", 'Give "others" as a list of texts, none of them an answer.'
        )
    assert isinstance(prompt, (str, list))
    return Case(task, prompt, answers, others=others)


def _texts(value: Any) -> tuple[str, ...] | None:
    """What a line gives as one text or number, or as several; () for nothing, None for anything else."""
    given = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) or one == "" for one in given):
        return None
    return tuple(str(one) for one in given)


def _given_pairs(record: dict[str, Any], where: str, task: str) -> Case:
    try:
        pairs = {str(key): str(value) for key, value in record["ordered_kv_records"]}
        key, value = str(record["key"]), str(record["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: its pairs are damaged.", "It takes ordered_kv_records, key and value.") from error
    others = [one for one in pairs.values() if one != value][: CANDIDATES - 1]
    return _pairs_case(task, [*pairs.items()], key, value, others)


def _hidden(
    task: str, haystack: Haystack, length: int, depth: float, draw: random.Random, names: Sequence[str]
) -> Case:
    """Numbers in running text; the first name is asked for, at `depth`, the others are anywhere."""
    start = draw.randrange(len(haystack.ids))
    keys = draw.sample(range(10000, 100000), len(names) + CANDIDATES - 1)
    places = [int(length * depth), *(draw.randrange(length + 1) for _ in names[1:])]
    document, done = "", 0
    for place, name, key in sorted(zip(places, names, keys, strict=False)):
        document += haystack.piece(start + done, place - done)
        document += f"\n\n{name[0].upper()}{name[1:]} is {key}. Remember it: {key} is {name}.\n\n"
        done = place
    document += haystack.piece(start + done, length - done)
    question = f"What is {names[0]}? Answer with the number only."
    wrong = keys[1:CANDIDATES]  # those of other needles first: they are in the text, too
    return Case(
        task,
        f"{document}\n\n{question}",
        (str(keys[0]),),
        question,
        f"{names[0][0].upper()}{names[0][1:]} is ",
        tuple(str(one) for one in wrong),
    )


def _pairs(encode: Callable[[str], list[int]], length: int, depth: float, draw: random.Random) -> Case:
    pairs: list[tuple[str, str]] = []
    used = 0
    while len(pairs) < CANDIDATES or used < length:
        pairs.append((_uuid(draw), _uuid(draw)))
        used += len(encode(f'"{pairs[-1][0]}": "{pairs[-1][1]}",\n '))
    at = min(int(depth * len(pairs)), len(pairs) - 1)
    key, value = pairs[at]
    others = draw.sample([one for _, one in pairs if one != value], CANDIDATES - 1)
    return _pairs_case("uuid", pairs, key, value, others)


def _pairs_case(task: str, pairs: Sequence[tuple[str, str]], key: str, value: str, others: Sequence[str]) -> Case:
    data = ",\n ".join(f'"{one}": "{other}"' for one, other in pairs)
    question = f'Key: "{key}"\nAnswer with its value only.'
    prompt = "Below is a JSON object. Find the value that belongs to a key of it.\n\n{" + data + "}\n\n" + question
    return Case(task, prompt, (value,), question, "", tuple(others))


def _lines(encode: Callable[[str], list[int]], length: int, depth: float, draw: random.Random) -> Case:
    lines: list[tuple[str, int]] = []
    names = [f"{kind}-{person}-{place}" for kind in KINDS for person in PEOPLE for place in PLACES]
    draw.shuffle(names)
    used = 0
    while (len(lines) < CANDIDATES or used < length) and len(lines) < len(names):
        lines.append((names[len(lines)], draw.randrange(10000, 100000)))
        used += len(encode(_line(*lines[-1]) + "\n"))
    name, number = lines[min(int(depth * len(lines)), len(lines) - 1)]
    record = "\n".join(_line(*one) for one in lines)
    question = f"What is the number of line {name}? Answer with the number only."
    prompt = f"Below is a record of lines. Each has a name and ends with a number.\n\n{record}\n\n{question}"
    others = draw.sample([str(one) for _, one in lines if one != number], CANDIDATES - 1)
    return Case("lines", prompt, (str(number),), question, f"The number of line {name} is ", tuple(others))


def _line(name: str, number: int) -> str:
    return f"line {name}: the number is {number}"


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
