"""What guessing tokens from the text brings (`--prompt-lookup`), and what a pass of several tokens costs.

    python benchmarks/guessing.py [--model smollm2-135m] [--guesses 7] [--prompts rows.jsonl] [--tokens 256] [--record]

Passes: a sequence of --rows tokens computes 1 .. 8 more in one pass, in turns, and gives their rows back; medians in ms, beside the
plain token's. Answers: each prompt is answered greedily with and without guesses, in turns; tokens a second after the first one,
medians, per kind of prompt, and how many of the guessed tokens came. Last, how many answers have the same tokens: of several, vectors
are rounded to 16 bits (hf/linear.py), so two tokens that are about equally likely may change places.
--prompts takes rows as `hgca batch` does, whose custom_id begins with a kind and a dash; without it they are made of this repository.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from balance import read

from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import GUESSES, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Done
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.measure.machine import where_and_when

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "guessing.jsonl"
PASSES = (1, 2, 3, 4, 6, 8)
NEVER = 1 << 40
ALONE = 6  # tokens until a model's layers are one call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--window", type=int, help="default: the plan's")
    parser.add_argument("--select", help="default: the plan's")
    parser.add_argument("--guesses", type=int, default=GUESSES)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--rows", type=int, default=2048, help="of the sequence whose passes are timed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    choice = ModelChoice(options.model)
    request = PlanRequest(device="cpu", context=options.ctx, window=options.window, select=options.select)
    files, plan = plan_model(choice, request, lambda _: None)
    engine = start_engine(choice, files, plan)
    passes = time_passes(engine, options.rows, max(7, options.turns))
    kinds = time_answers(engine, prompts_of(options.prompts), options)
    gain = geometric_mean([kind["ratio"] for kind in kinds.values()])
    print(f"all kinds: {gain:.2f} times (geometric mean)")
    if options.record:
        line = {
            **where_and_when(plan.threads),
            "model": Path(options.model).name,
            "select": plan.select,
            "window": plan.window,
            "guesses": options.guesses,
            "rows": options.rows,
            "passes_ms": passes,
            "kinds": kinds,
            "ratio": round(gain, 3),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def prompts_of(path: Path | None) -> list[tuple[str, list[dict[str, str]]]]:
    """Kind and messages of each prompt."""
    if path is not None:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [(row["custom_id"].partition("-")[0], row["body"]["messages"]) for row in rows]
    design, code = (HERE.parent / "docs" / "design.md").read_text(), (HERE.parent / "hgca_cli" / "units.py").read_text()
    asked = [
        ("question", "Why is the sky blue? Explain it to a child."),
        ("question", "Give me a recipe for a soup of tomatoes, with a list of what is needed."),
        ("summary", design[:6000] + "\n\nSummarise the text above in a few sentences."),
        (
            "quote",
            design[6000:12000] + "\n\nQuote three sentences of the text above word by word, and say what each means.",
        ),
        (
            "list",
            design[:6000]
            + "\n\nList all files named in the text above as JSON: an array of objects with name and purpose.",
        ),
        ("edit", f"```python\n{code[:3500]}\n```\nAdd a comment above every function and print the whole code again."),
    ]
    return [(kind, [{"role": "user", "content": text}]) for kind, text in asked]


def time_passes(engine: Engine, rows: int, turns: int) -> dict[str, float]:
    """Milliseconds of a pass of so many tokens; "alone": of a token as it is computed without guesses."""
    text = "\n".join(path.read_text() for path in sorted((HERE.parent / "docs").glob("*.md")))
    ids = engine.loaded.tokenizer.encode(text)[: rows + ALONE + max(PASSES)]
    sequence = read(engine, ids[:rows])
    for at in range(rows, rows + ALONE):
        sequence.tokens.append(ids[at])
        sequence.forward(engine.loaded, torch.tensor([[ids[at]]]))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for count in (0, *PASSES):
            for again in range(4):
                sequence.cache.meter._left = NEVER  # nothing is measured in a token that is timed
                mark, began = sequence.mark(), time.perf_counter()
                if count == 0:
                    sequence.forward(engine.loaded, torch.tensor([[ids[-1]]]))
                else:
                    passed(engine, sequence, ids[-count:])
                if again:
                    seconds[str(count) if count else "alone"].append(time.perf_counter() - began)
                sequence.forget_beyond(mark)
    sequence.close()
    found = {name: round(1000 * median(took), 3) for name, took in seconds.items()}
    alone = found["alone"]
    print(f"a token after {rows:,}: {alone:.2f} ms; passes of several tokens:")
    print("  " + ", ".join(f"{n} {found[str(n)]:.2f} ms ({found[str(n)] / alone:.2f})" for n in PASSES[1:]))
    return found


def passed(engine: Engine, sequence: Sequence, tokens: list[int]) -> None:
    if len(tokens) == 1:
        sequence.forward(engine.loaded, torch.tensor([tokens]))
        return
    logits = sequence.forward_following(engine.loaded, tokens)
    if logits is None or len(logits) != len(tokens):
        raise SystemExit(f"{len(tokens)} tokens were not one pass: this model's layers are not, or --window is full.")


def time_answers(engine: Engine, prompts: list[tuple[str, list[dict[str, str]]]], options: Any) -> dict[str, Any]:
    """Per kind of prompt: tokens a second without and with guesses, and the share of guesses that came."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, messages in prompts:
        ids = engine.loaded.tokenizer.encode_chat(messages, add_generation_prompt=True)
        ids = ids[: engine.context - options.tokens - 1]
        rates: dict[int, list[float]] = {0: [], options.guesses: []}
        written: dict[int, list[int]] = {}
        done: Done | None = None
        for _ in range(options.turns):
            for guesses in rates:
                engine.guesses = guesses
                sequence = engine.new_sequence()
                sampling = SamplingSettings(temperature=0, max_tokens=options.tokens)
                *_, done = engine.answer(sequence, ids, sampling, threading.Event())  # type: ignore[assignment]
                assert isinstance(done, Done)
                rates[guesses].append(done.tokens_per_second)
                written[guesses] = sequence.tokens
                sequence.close()
        assert done is not None
        without, with_guesses = (median(found) for found in rates.values())
        if not without:
            continue
        found = kinds.setdefault(kind, {"rates": [], "guessed": 0, "right": 0, "tokens": 0, "same": 0, "answers": 0})
        found["rates"].append((without, with_guesses))
        found["guessed"] += done.guessed
        found["right"] += done.guessed_right
        found["tokens"] += done.completion_tokens
        found["same"] += written[0] == written[options.guesses]
        found["answers"] += 1
    for kind, found in kinds.items():
        rates_of = found.pop("rates")
        found["without"], found["with"] = (round(geometric_mean(side), 1) for side in zip(*rates_of, strict=True))
        found["ratio"] = round(found["with"] / found["without"], 3)
        print(
            f"{kind:>10}: {found['without']:6.1f} -> {found['with']:6.1f} tok/s, {found['ratio']:.2f} times; {found['right']} of"
            f" {found['guessed']} guessed tokens came, of {found['tokens']} written; {found['same']} of {found['answers']} the same"
        )
    return kinds


if __name__ == "__main__":
    main()
