"""A queue whose answers end earlier than they may, in little memory: rows counted by what they hold, and by what they may become.

    python -m benchmarks.batch_room --rows HumanEval.jsonl mt_bench_question.jsonl [--count 48] [--new 1024] [--room 160M] [--record]

Both sides are the same requests, one after the other in one process; room is what rows alone may take, weights not counted. Each
answer ends after a number of tokens of its own, drawn so that every token is the last with the same chance; --mean 0: all answers
become as long as they may.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.batch import Clock, add_clock, engine_of, set_clock, texts, warm_up
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Member, Request
from hgca_cli.engine.room import Room
from hgca_cli.hardware.memory import SCALES
from hgca_cli.kv.layout import KVLayout
from hgca_cli.measure.machine import where_and_when
from hgca_cli.units import parse_bytes

RESULTS = Path(__file__).parent / "results" / "batch_room.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--rows", type=Path, nargs="+", required=True, help="files with a prompt (or turns) in every line"
    )
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--new", type=int, default=1024, help="tokens that an answer may have")
    parser.add_argument("--mean", type=int, default=60, help="tokens that one has")
    parser.add_argument("--room", default="160M", help="bytes for rows")
    parser.add_argument("--slots", type=int, default=32)
    add_clock(parser)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    set_clock(options)
    engine = engine_of(options.model, 8192)
    encode = engine.loaded.tokenizer.encode_chat
    ids = [encode([{"role": "user", "content": text}], add_generation_prompt=True) for text in texts(options)]
    rng = random.Random(0)
    lengths = [ends_after(rng, options.mean, options.new) for _ in ids]
    Member.draw = ending(Member.draw, dict(enumerate(lengths)))  # type: ignore[method-assign]
    warm_up(engine, ids[0])
    limit = parse_bytes(options.room, "--room")
    takes, holds = sizes(engine)
    sides = {
        "may become": side(engine, ids, options, Room((limit,), takes)),
        "holds": side(engine, ids, options, Room((limit,), takes, holds)),
    }
    ratio = sides["holds"]["tokens_per_second"] / sides["may become"]["tokens_per_second"]
    told = {
        "prompts": len(ids), "prompt_tokens": sum(map(len, ids)), "new": options.new, "mean": sum(lengths) / len(lengths),
        "room": limit, "cpu_time": options.cpu_time, "slots": options.slots, "ratio": round(ratio, 3), "sides": sides,
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    if options.record:
        line = {"benchmark": "batch_room", **where_and_when(options.threads), "model": options.model}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | told) + "\n")


def ends_after(rng: random.Random, mean: int, most: int) -> int:
    """Tokens of an answer that ends at each with the same chance."""
    if not mean:
        return most
    return next(at for at in itertools.count(1) if at >= most or rng.random() < 1 / mean)


def ending(draw: Any, lengths: dict[Any, int]) -> Any:
    """Member.draw, with an end of text after so many tokens, by the request's key."""

    def drawn(self: Member) -> int:
        if self.written >= lengths.get(self.request.key, 1 << 30) and not self.owed:
            return self._finish("stop")
        return int(draw(self))

    return drawn


def sizes(engine: Engine) -> tuple[Any, Any]:
    """What a planner counts for rows of this engine: of a sequence that grows, and of one that has so many tokens."""
    settings = engine.settings
    layout = KVLayout(
        engine.layout.layers,
        4,
        2 if settings.kv_dtype == "bf16" else 4,
        SCALES.get(str(settings.kv_dtype), 0),
        settings.select,
    )
    logits = 12 * engine.loaded.model.config.vocab_size

    def takes(tokens: int) -> tuple[int, ...]:
        window = layout.window_bytes(settings.window, settings.sinks, tokens)
        return (window + layout.store_bytes(tokens, settings.window, settings.sinks) + logits,)

    return takes, lambda tokens, most: takes(min(most, tokens + 128))


def side(engine: Engine, ids: list[list[int]], options: argparse.Namespace, room: Room) -> dict[str, Any]:
    """One way to count: throughput, and how many ran."""
    sampling = SamplingSettings(temperature=0, max_tokens=options.new)
    batch = Batch(engine, options.slots, room)
    began, written, running, steps = Clock.now(), 0, 0, 0
    texts: dict[Any, str] = {}
    for event in batch.run(
        iter(Request(at, one, replace(sampling, seed=at)) for at, one in enumerate(ids)), threading.Event()
    ):
        if isinstance(event, Progress):
            written, steps, running = written + event.written, steps + 1, running + event.writing
        elif isinstance(event, Answer):
            texts[event.request.key] = event.text
    seconds = Clock.now() - began
    return {
        "seconds": round(seconds, 2), "tokens_per_second": round(written / seconds, 2), "peak": batch.peak,
        "writing": round(running / max(1, steps), 2), "set_aside": batch.set_aside, "characters": sum(map(len, texts.values())),
    }  # fmt: skip


if __name__ == "__main__":
    main()
