"""Does a policy still find what is hidden in a long prompt? Each question is answered greedily from the same prefill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from hgca_cli.config import CacheSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence
from hgca_cli.measure.prompt import Prompt, Tell, feed, ignore
from hgca_cli.measure.recall_cases import Case


@dataclass(frozen=True)
class Answer:
    """What a policy said.

    right       an expected text is in the answer
    place       the right answer's among all candidates by log-probability, 1 for the likeliest; None if not asked
    log_prob    ln p of the right answer, None likewise
    read_share  mean share of the store's rows read per token; bytes_share: of its bytes, indexes included
    bytes_read  mean bytes of the store read per token
    """

    said: str
    right: bool
    place: int | None
    log_prob: float | None
    read_share: float
    bytes_share: float
    bytes_read: float


def ask(
    engine: Engine,
    ids: list[int],
    case: Case,
    policies: Mapping[str, CacheSettings],
    tokens: int,
    *,
    appended: int = 0,
    score: bool = False,
    tell: Tell = ignore,
) -> Iterator[tuple[str, Answer]]:
    """The answers of all policies to one case, in order.

    ids       of the prompt, at least two: all but the last are read exactly, the last is fed, so that the policy takes part
            in the answer's first token. The settings' context has room for answer and candidates
    tokens    most of an answer
    appended  so many of the last ids are a turn of their own
    score     also find the right answer among the case's candidates
    """
    prompt = Prompt(engine, ids[:-1], tell, appended=max(0, appended - 1))
    for name, settings in policies.items():
        sequence = prompt.sequence(settings)
        said = _answer(engine, sequence, ids[-1], case.answers, tokens, tell)
        rows = sequence.cache.rows()
        stored = sequence.cache.stored_bytes
        sequence.close()
        place, log_prob = None, None
        if score and case.others:  # a fresh start: what left the window for the answer would be missing from it
            sequence = prompt.sequence(settings)
            log_probs = candidate_log_probs(engine, sequence, ids[-1], case, tell)
            sequence.close()
            log_prob = log_probs[0]
            place = 1 + sum(one > log_prob for one in log_probs[1:])
        yield (
            name,
            Answer(
                said=said,
                right=any(one in said for one in case.answers),
                place=place,
                log_prob=log_prob,
                read_share=rows.read_share,
                bytes_share=rows.bytes_share,
                bytes_read=rows.bytes_share * stored,
            ),
        )


def candidate_ids(engine: Engine, case: Case) -> tuple[list[int], list[list[int]]]:
    """Ids all candidates begin with, and what each of them adds; the right one first."""
    texts = [case.lead + one for one in (case.answers[0], *case.others)]
    ids = [engine.loaded.tokenizer.encode(text) for text in texts]
    most = min(map(len, ids)) - 1  # each adds something
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*(one[:most] for one in ids), strict=True))
    shared = [column[0] for column in columns]
    return shared, [one[len(shared) :] for one in ids]


def candidate_log_probs(engine: Engine, sequence: Sequence, last: int, case: Case, tell: Tell = ignore) -> list[float]:
    """ln p of each candidate after the prompt's last token and the lead, the right one first.

    One after another from the same rows: the sequence is rewound in between, and at most one block of rows is in the store
    instead of the window after the first.
    """
    shared, rests = candidate_ids(engine, case)
    *_, (first, _) = feed(engine, sequence, [last, *shared], tell)
    length = len(sequence.tokens)
    found = []
    for rest in rests:
        log_prob = float(first.log_softmax(-1)[rest[0]])
        for (logits, _), token in zip(feed(engine, sequence, rest[:-1], tell), rest[1:], strict=True):
            log_prob += float(logits.log_softmax(-1)[token])
        found.append(log_prob)
        if not sequence.rewind(length):
            raise AssertionError("a few tokens can always be taken back")
    return found


def _answer(engine: Engine, sequence: Sequence, last: int, expected: tuple[str, ...], tokens: int, tell: Tell) -> str:
    """Up to so many greedy tokens, ended early by an end token or by an expected text."""
    tokenizer = engine.loaded.tokenizer
    queue = [last]  # grows while it is fed
    for logits, _ in feed(engine, sequence, queue, tell):
        token = int(logits.argmax())
        said = tokenizer.decode(queue[1:])
        if token in tokenizer.end_ids or len(queue) > tokens or any(one in said for one in expected):
            return said
        queue.append(token)
    raise AssertionError("the queue grows until it returns")


def room_for(engine: Engine, ids: list[int], case: Case, tokens: int, *, score: bool) -> int:
    """Rows a case needs: prompt, answer, and candidates if they are scored."""
    longest = 0
    if score and case.others:
        shared, rests = candidate_ids(engine, case)
        longest = len(shared) + max(map(len, rests))
    return len(ids) + max(tokens, longest) + 1
