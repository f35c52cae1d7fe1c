"""Requests for a tiny random model, many at once and one by one."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.room import Room
from hgca_cli.events import Done

GREEDY = SamplingSettings(temperature=0, max_tokens=12)


def prompts(count: int, longest: int = 90) -> list[list[int]]:
    return [[40 + (7 * n + 13 * at) % 200 for n in range(2 + (11 * at) % longest)] for at in range(count)]


def requests(ids: list[list[int]], sampling: SamplingSettings = GREEDY) -> list[Request]:
    return [Request(at, one, replace(sampling, max_tokens=3 + (5 * at) % 20)) for at, one in enumerate(ids)]


def run(batch: Batch, asked: list[Request]) -> dict[Any, Answer]:
    events = list(batch.run(iter(asked), threading.Event()))
    answers = [event for event in events if isinstance(event, Answer)]
    assert len({one.request.key for one in answers}) == len(answers) == len(asked)
    return {one.request.key: one for one in answers}


def alone(engine: Engine, asked: Request) -> Done:
    sequence = engine.new_sequence()
    *_, done = engine.answer(sequence, asked.ids, asked.sampling, threading.Event())
    assert isinstance(done, Done)
    return done


def rooms(limit: int, free: Any = None) -> Room:
    """A byte a token."""
    return Room((limit,), lambda tokens: (tokens,), lambda tokens, most: (tokens,), free)
