"""`hgca batch` that is stopped: killed, by a signal, while it loads, with rows set aside. The same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import killed
from hgca_cli.commands import setup
from tests.cli_process import ROOT, environment, here, hgca, rows_in, save_tiny, write_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def started(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hgca_cli", *words],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_lines(out: Path, lines: int, running: subprocess.Popen[bytes]) -> None:
    while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < lines):
        time.sleep(0.001)


def test_killed_at_any_moment_the_same_command_goes_on(tmp_path: Path) -> None:
    told = killed(tmp_path, 5, rows=30, per_job=2, rng=random.Random(5))  # 50 kills: python -m benchmarks.kills
    assert told["kills"] == 5 and told["jobs"] >= 3 and told["torn"] == 1 and told["lines_kept"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_the_command_that_goes_on(tiny: str, tmp_path: Path, number: int) -> None:
    source = write_rows(
        tmp_path / "in.jsonl", *({"id": str(at), "prompt": "the cat", "max_tokens": 200} for at in range(300))
    )
    running = started("batch", source, "-m", tiny, "--concurrency", "2")
    out = tmp_path / "in.out.jsonl"
    wait_for_lines(out, 1, running)
    running.send_signal(number)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number
    assert b"go on with: hgca batch" in told and b"Traceback" not in told
    assert 1 <= len(rows_in(out)) < 300


def test_a_signal_while_the_model_is_loaded_leaves_what_was_there(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = setup.start_engine

    def interrupted(*given: Any, **more: Any) -> Any:
        engine = original(*given, **more)
        os.kill(os.getpid(), signal.SIGINT)
        return engine

    source = write_rows(tmp_path / "in.jsonl", '"a"', "nonsense")
    words = ("batch", source, "-m", tiny, "-n", "2")
    monkeypatch.setattr(setup, "start_engine", interrupted)
    assert here(*words).returncode == 130 and [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]
    monkeypatch.setattr(setup, "start_engine", original)
    assert here(*words).returncode == 3
    before = (tmp_path / "in.out.jsonl").read_bytes()
    monkeypatch.setattr(setup, "start_engine", interrupted)
    done = here(*words, "--overwrite")
    assert done.returncode == 130 and (tmp_path / "in.out.jsonl").read_bytes() == before
    assert b"answers are in" not in done.stderr and b"go on with" in done.stderr


def test_rows_that_are_set_aside_survive_a_kill(tiny: str, tmp_path: Path) -> None:
    from hgca_cli.commands.describe import describe
    from hgca_cli.commands.setup import ModelChoice, plan_model
    from hgca_cli.hardware.probe import probe_machine
    from hgca_cli.hardware.settings import PlanRequest
    from hgca_cli.hardware.together import together

    letters = [chr(one) for one in range(33, 127)]
    short = [{"id": f"short {at}", "prompt": f"the cat {at}", "max_tokens": 200, "stop": letters} for at in range(10)]
    long = [{"id": f"long {at}", "prompt": f"the mat {at}", "max_tokens": 150 + 9 * at} for at in range(14)]
    source = write_rows(tmp_path / "in.jsonl", *short, *long)
    words = ("-m", tiny, "--temp", "0", "--ctx", "512", "--threads", "1", "--concurrency", "12", "--json")
    free = here("batch", source, "-o", str(tmp_path / "free.jsonl"), *words)
    assert json.loads(free.stdout)["set_aside"] == 0, free.stderr
    request = PlanRequest(context=512, threads=1)
    files, plan = plan_model(ModelChoice(tiny, None, False, True, None), request, lambda event: None, profile="none")
    sizes = together(describe(files, False), probe_machine(), request, None, plan)
    memory = plan.memory[0]
    tight = memory.weights + memory.work + memory.runtime + 3 * sizes.takes(400)[0]
    words = ("batch", source, "-o", str(tmp_path / "tight.jsonl"), *words, "--ram-limit", str(tight))
    running = subprocess.Popen(
        [sys.executable, "-m", "hgca_cli", *words],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and running.poll() is None:
        if (tmp_path / "tight.jsonl").exists() and (tmp_path / "tight.jsonl").read_bytes().count(b"\n") >= 12:
            running.kill()
            break
        time.sleep(0.002)
    assert running.wait() == -signal.SIGKILL
    before = (tmp_path / "tight.jsonl").read_bytes()
    done = hgca(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tight.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    wanted, found = (
        {one["id"]: one["text"] for one in rows_in(tmp_path / name)} for name in ("free.jsonl", "tight.jsonl")
    )
    assert found == wanted and len(rows_in(tmp_path / "tight.jsonl")) == 24
    whole = here("batch", source, "-o", str(tmp_path / "whole.jsonl"), *words[4:])
    assert json.loads(whole.stdout)["set_aside"] > 0 and b"set aside" in whole.stderr
    assert {one["id"]: one["text"] for one in rows_in(tmp_path / "whole.jsonl")} == wanted
