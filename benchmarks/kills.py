"""A job that is killed again and again: no row is lost, none is there twice, and no byte of a finished line changes.

    python -m benchmarks.kills [--kills 50] [--rows 100] [--seed 0] [--record]

Jobs of a tiny random model, run by `hgca batch` as a person would, get SIGKILL at random moments (from the first instruction of
the process on, or just after another line) and are started again by the same command, until there were so many kills. After every
third one half of a line is put at the output's end, as a power cut may leave it. Each job ends by itself at last; its answers
are compared with those of a run nobody disturbed. Jobs take turns: as finished, in order, and with a file of errors.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hgca_cli import native
from hgca_cli.measure.machine import where_and_when
from tests.cli_process import ROOT, environment, save_tiny

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
KINDS = ((), ("--ordered",), ("--errors",))
MOST_SECONDS = 3.0  # from a start to a kill that waits for no line
BAD_EVERY = 17  # rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--per-job", type=int, default=10, help="kills of one job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        told = killed(Path(folder), options.kills, options.rows, options.per_job, rng)
    print(json.dumps(told, indent=1))
    if options.record:
        line = {"benchmark": "kills", **where_and_when(native.threads()), "seed": options.seed}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | told) + "\n")


def killed(folder: Path, kills: int, rows: int, per_job: int, rng: random.Random) -> dict[str, Any]:
    """Kill jobs so often, and see that every one of them ends as it should. Raises AssertionError."""
    model = save_tiny(folder / "model")
    source = folder / "in.jsonl"
    source.write_text("".join(f"{one}\n" for one in requests(rows)))
    words = ("batch", str(source), "-m", model, "--temp", "0", "--concurrency", "3")
    whole = folder / "whole.jsonl"
    run(*words, "-o", str(whole))
    expected = answers(whole)
    assert len(expected) == rows
    told: dict[str, Any] = {"rows": rows, "jobs": 0, "kills": 0, "before_any_line": 0, "torn": 0, "lines_kept": 0}
    while told["kills"] < kills:
        job = Job(folder / f"job-{told['jobs']}", words, KINDS[told["jobs"] % len(KINDS)])
        for _ in range(min(per_job, kills - told["kills"])):
            if not job.kill(rng):
                break  # it was done first
            told["kills"] += 1
            told["before_any_line"] += not any(job.kept.values())
            if told["kills"] % 3 == 0:
                job.tear(rng)
                told["torn"] += 1
            told["lines_kept"] += sum(content.count(b"\n") for content in job.kept.values())
        job.finish(expected)
        told["jobs"] += 1
    return told


class Job:
    """One output, and what of it was finished."""

    def __init__(self, folder: Path, words: tuple[str, ...], kind: tuple[str, ...]) -> None:
        folder.mkdir()
        self.outputs = [folder / "out.jsonl", *([folder / "errors.jsonl"] if "--errors" in kind else [])]
        more = [str(self.outputs[1])] if len(self.outputs) > 1 else []
        self.ordered = "--ordered" in kind
        self.words = (*words, "-o", str(self.outputs[0]), *kind, *more)
        self.kept = dict.fromkeys(self.outputs, b"")

    def kill(self, rng: random.Random) -> bool:
        """Run it until some moment; False if it was done before that."""
        running = started(*self.words)
        if rng.random() < 0.4:
            wait_for(running, lambda: False, rng.random() * MOST_SECONDS)
        else:
            more = rng.randrange(1, 8)
            lines = sum(map(lines_of, self.outputs)) + more
            wait_for(running, lambda: sum(map(lines_of, self.outputs)) >= lines, 120.0)
            time.sleep(rng.random() * 0.03)
        alive = running.poll() is None
        running.kill()
        told = running.communicate()[1]
        assert alive or running.returncode in (0, 3), told.decode()
        self.look()
        return alive

    def look(self) -> None:
        """What was finished is as it was."""
        for output, before in self.kept.items():
            content = output.read_bytes() if output.exists() else b""
            assert content.startswith(before), f"{output}: finished bytes changed"
            self.kept[output] = content[: content.rfind(b"\n") + 1]

    def tear(self, rng: random.Random) -> None:
        """Half of a line at the end, in place of what the kill left there."""
        output, content = rng.choice(list(self.kept.items()))
        first = content[: content.find(b"\n") + 1] or b'{"id":"0"}\n'
        if output.exists():
            output.write_bytes(content + first[: rng.randrange(len(first))])

    def finish(self, expected: dict[str, Any]) -> None:
        """Let it end, and see that every row is there once, with the answer it should have."""
        run(*self.words)
        self.look()
        ids = Counter(name for output in self.outputs for name in names_in(output))
        wanted = Counter(list(expected))
        assert ids == wanted, f"rows missing: {wanted - ids}, there too often: {ids - wanted} ({self.words})"
        found = {name: answer for output in self.outputs for name, answer in answers(output).items()}
        assert found == expected, "an answer is another one"
        if len(self.outputs) > 1:
            assert all(answer is None for answer in answers(self.outputs[1]).values())
        if self.ordered:
            assert names_in(self.outputs[0]) == list(expected_order(expected)), "rows are out of order"


def requests(rows: int) -> list[str]:
    """Rows of different length, in every form, some of which cannot run."""
    made = []
    for at in range(rows):
        body = {"messages": [{"role": "user", "content": f"the cat {at} " * (1 + at % 5)}], "max_tokens": 8 + at % 9}
        if at % BAD_EVERY == BAD_EVERY - 1:
            made.append(json.dumps({"custom_id": str(at), "prompt": "the cat", "temperature": "hot"}))
        elif at % 2:
            url = "/v1/chat/completions"
            made.append(json.dumps({"custom_id": str(at), "method": "POST", "url": url, "body": body}))
        else:
            made.append(json.dumps({"id": str(at), "prompt": f"the {at}", "max_tokens": 10, "n": 1 + (at % 10 == 0)}))
    return made


def expected_order(expected: dict[str, Any]) -> list[str]:
    """Ids as the input has them."""
    return sorted(expected, key=int)


def names_in(output: Path) -> list[str]:
    """Ids in the order of their lines."""
    return [one.get("custom_id", one.get("id")) for one in map(json.loads, output.read_bytes().splitlines())]


def answers(output: Path) -> dict[str, Any]:
    """What each row was answered; None: it failed."""
    found: dict[str, Any] = {}
    for one in map(json.loads, output.read_bytes().splitlines()):
        if one["error"] is not None:
            found[one.get("custom_id", one.get("id"))] = None
        elif "custom_id" in one:
            found[one["custom_id"]] = one["response"]["body"]["choices"][0]["message"]["content"]
        else:
            found[one["id"]] = one.get("texts", one["text"])
    return found


def lines_of(output: Path) -> int:
    """Finished lines."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def wait_for(running: subprocess.Popen[bytes], true: Any, seconds: float) -> None:
    """Until it is so, the process ended, or time is up."""
    until = time.monotonic() + seconds
    while running.poll() is None and not true() and time.monotonic() < until:
        time.sleep(0.001)


def run(*words: str) -> None:
    """To the end: exit code 3, as some rows cannot run."""
    done = subprocess.run(command(*words), env=environment(), cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert done.returncode == 3, done.stderr.decode()


def started(*words: str) -> subprocess.Popen[bytes]:
    """On its way."""
    return subprocess.Popen(
        command(*words), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "hgca_cli", *words]


if __name__ == "__main__":
    main()
