"""A job's throughput: rows at once beside the same rows one by one, and transformers' generate on left-padded batches.

    python benchmarks/batch.py --rows HumanEval.jsonl mt_bench_question.jsonl [--count 64] [--slots 16] [--no-hf] [--record]
    python benchmarks/batch.py --document book.txt [--tokens 7000] [--questions 16] [--record]

Greedy. Sides run one after the other in one process on the same model; answers are compared token by token up to where they part.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch

from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.batch import Batch
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.events import Done
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "batch.jsonl"
ASKED = ("Who tells the story?", "Where does it begin?", "Name three people.", "What is said of money?")


class Clock:
    """Whose seconds count."""

    now = staticmethod(time.perf_counter)


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Flags of threads, and of whose seconds count."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, where others use the machine; one thread"
    )


def set_clock(options: argparse.Namespace) -> None:
    """As these flags say."""
    if options.cpu_time:
        options.threads, Clock.now = 1, time.process_time
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--rows", type=Path, nargs="+", help="files with a prompt (or turns) in every line, taken in turns"
    )
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--slots", type=int, nargs="+", default=[16])
    parser.add_argument("--no-hf", action="store_true", help="leave transformers' generate out")
    parser.add_argument("--document", type=Path)
    parser.add_argument("--tokens", type=int, default=7000, help="of the document")
    parser.add_argument("--questions", type=int, default=16)
    add_clock(parser)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    set_clock(options)
    results = rows(options) if options.rows else questions(options)
    print(json.dumps(results, indent=1))
    if options.record:
        line = {
            "benchmark": "batch",
            **where_and_when(options.threads),
            "model": Path(options.model).name,
            "new": options.new,
        }
        line["cpu_time"] = options.cpu_time
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | results) + "\n")


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """Short prompts: throughput of every side."""
    engine = engine_of(options.model, 8192)
    ids = [
        engine.loaded.tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=True)
        for text in texts(options)
    ]
    sampling = SamplingSettings(temperature=0, max_tokens=options.new)
    warm_up(engine, ids[0])
    seconds, alone = one_by_one(engine, ids, sampling)
    sides = {"one by one": rate(seconds, alone)}
    told: dict[str, Any] = {"prompts": len(ids), "prompt_tokens": sum(map(len, ids))}
    for slots in options.slots:
        seconds, answers = together(engine, ids, sampling, slots)
        side = sides[f"batch {slots}"] = rate(seconds, answers)
        side["times_one_by_one"] = round(side["tokens_per_second"] / sides["one by one"]["tokens_per_second"], 2)
        side["the_same"] = sum(answers[at].text == alone[at].text for at in range(len(ids)))
    if not options.no_hf:
        for slots in options.slots:
            seconds, written = generate(options.model, ids, options.new, slots)
            side = {"seconds": round(seconds, 2), "tokens_per_second": round(written / seconds, 2)}
            side["batch_is_times_this"] = round(
                sides[f"batch {slots}"]["tokens_per_second"] / side["tokens_per_second"], 2
            )
            sides[f"transformers {slots}"] = side
    return told | {"sides": sides}


def questions(options: argparse.Namespace) -> dict[str, Any]:
    """Several questions about one document, beside one such question."""
    engine = engine_of(options.model, 8192)
    tokenizer = engine.loaded.tokenizer
    text = tokenizer.decode(tokenizer.encode(options.document.read_text(encoding="utf-8-sig"))[: options.tokens])
    asked = [f"{text}\n\n{ASKED[at % len(ASKED)]} ({at})" for at in range(options.questions)]
    ids = [tokenizer.encode_chat([{"role": "user", "content": one}], add_generation_prompt=True) for one in asked]
    sampling = SamplingSettings(temperature=0, max_tokens=options.new)
    warm_up(engine, ids[0][:200])
    one, _ = one_by_one(engine, ids[:1], sampling)
    sides = {}
    for slots in options.slots:
        seconds, answers = together(engine, ids, sampling, slots)
        cached = [answers[at].cached_tokens for at in range(len(ids))]
        sides[f"batch {slots}"] = {
            **rate(seconds, answers), "times_one_question": round(seconds / one, 2), "cached": [min(cached[1:]), max(cached)],
        }  # fmt: skip
    return {"questions": len(ids), "prompt_tokens": len(ids[0]), "one_question_seconds": round(one, 2), "sides": sides}


def engine_of(model: str, context: int) -> Engine:
    """Settings a plan would choose for short texts."""
    loaded = load_model(resolve(model), device="cpu", dtype="fp32")
    settings = CacheSettings(window=1024, context=context, select="scan", quality=0.95, kv_dtype="bf16")
    return Engine(loaded, settings, prefill_chunk=512)


def warm_up(engine: Engine, ids: list[int]) -> None:
    """Threads are there, and what is made at the first use is made."""
    one_by_one(engine, [ids], SamplingSettings(temperature=0, max_tokens=4))
    together(engine, [ids] * 4, SamplingSettings(temperature=0, max_tokens=4), 4)


def one_by_one(engine: Engine, ids: list[list[int]], sampling: SamplingSettings) -> tuple[float, dict[int, Done]]:
    """As a chat answers: seconds, and the answers."""
    began = Clock.now()
    answers = {}
    for at, one in enumerate(ids):
        sequence = engine.new_sequence()
        *_, done = engine.answer(sequence, one, sampling, threading.Event())
        sequence.close()
        assert isinstance(done, Done)
        answers[at] = done
    return Clock.now() - began, answers


def together(
    engine: Engine, ids: list[list[int]], sampling: SamplingSettings, slots: int
) -> tuple[float, dict[int, Done]]:
    """As a job answers: seconds, and the answers."""
    began = Clock.now()
    requests = iter([Request(at, one, sampling) for at, one in enumerate(ids)])
    events = Batch(engine, slots).run(requests, threading.Event())
    answers = {
        event.request.key: event.done for event in events if isinstance(event, Answer) and event.done is not None
    }
    assert len(answers) == len(ids)
    return Clock.now() - began, answers


def generate(model: str, ids: list[list[int]], new: int, slots: int) -> tuple[float, int]:
    """transformers' own: batches of as many rows, the shorter ones padded on the left; its sdpa attention."""
    loaded = load_model(resolve(model), device="cpu", dtype="fp32")
    loaded.model.set_attn_implementation("sdpa")
    ends = sorted(loaded.tokenizer.end_ids)
    written = 0
    began = Clock.now()
    for first in range(0, len(ids), slots):
        rows = ids[first : first + slots]
        longest = max(map(len, rows))
        padded = torch.tensor([[ends[0]] * (longest - len(one)) + one for one in rows])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in rows])
        with torch.inference_mode():
            out = loaded.model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        for answer in out[:, longest:].tolist():
            stops = [answer.index(end) for end in ends if end in answer]
            written += min(stops, default=len(answer))
    return Clock.now() - began, written


def texts(options: argparse.Namespace) -> list[str]:
    """Prompts of the files, in turns."""
    files = []
    for path in options.rows:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        files.append([line.get("prompt") or line["turns"][0] for line in lines])
    mixed = [file[at] for at in range(max(map(len, files))) for file in files if at < len(file)]
    return mixed[: options.count]


def rate(seconds: float, answers: dict[int, Done]) -> dict[str, Any]:
    """Seconds, and tokens written in one."""
    written = sum(done.completion_tokens for done in answers.values())
    return {"seconds": round(seconds, 2), "tokens_per_second": round(written / seconds, 2)}


if __name__ == "__main__":
    main()
