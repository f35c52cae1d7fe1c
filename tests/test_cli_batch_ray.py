"""`hgca batch --engine ray` on a local cluster of two nodes: the same files, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli_process import ROOT, environment, here, save_tiny

KILLS = int(os.environ.get("KILLS", "1"))  # of workers and of the driver, each


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one processor each."""
    pytest.importorskip("ray")
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0"))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        made.add_node(**node)
        yield made.address
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def rows(count: int, tokens: int) -> list[dict[str, Any]]:
    return [{"id": str(at), "prompt": f"the cat {at} ", "max_tokens": tokens} for at in range(count)]


def write(path: Path, made: list[Any]) -> str:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in made))
    return str(path)


def command(source: str, tiny: str, address: str, *more: str) -> list[str]:
    words = ["batch", source, "-m", tiny, "--engine", "ray", "--address", address, "--threads", "1", "--temp", "0"]
    return [sys.executable, "-m", "hgca_cli", *words, "--concurrency", "3", *more]


def run(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, check=False, timeout=200)


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def answers(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert max(Counter(one["id"] for one in found).values()) == 1
    return {one["id"]: one["text"] for one in found}


def engines() -> list[psutil.Process]:
    """Processes of the cluster that answer rows."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            found += [one] if one.name().startswith("ray::Hand") or "ray::Hand" in " ".join(one.cmdline()[:1]) else []
        except psutil.Error:
            continue
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while running.poll() is None and lines(path) < count and time.monotonic() < until:
        time.sleep(0.005)


def test_answers_are_those_of_one_process(cluster: str, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("the cat sat on the mat " * 9)
    part = [{"file": "a.txt"}, {"type": "text", "text": "Who?"}]
    odd = [
        {"id": "file", "messages": [{"role": "user", "content": part}]},
        "nonsense",
        {"id": "long", "prompt": "naïve " * 900},
    ]
    source = write(tmp_path / "in.jsonl", [*rows(30, 12), *odd])
    more = ("--root", str(tmp_path / "files"), "-n", "20", "--ordered", "--json")
    done = run(command(source, tiny, cluster, *more))
    assert done.returncode == 3, done.stderr
    assert b"Ray: 2 engines on 2 nodes" in done.stderr and b"Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["done"], summary["failed"]) == (33, 31, 2) and 3 <= summary["concurrency"] <= 6
    found = answers(tmp_path / "in.out.jsonl")
    assert list(found) == [*(str(at) for at in range(30)), "file", "line-32", "long"]
    assert found["line-32"] is None and found["long"] is None
    words = ("batch", source, "-m", tiny, "--threads", "1", "--temp", "0", "--concurrency", "3", *more[:-1])
    assert here(*words, "-o", str(tmp_path / "one")).returncode == 3
    assert answers(tmp_path / "one") == found
    before = (tmp_path / "in.out.jsonl").read_bytes()
    again = here(*words)
    assert b"all 33 rows are done, 2 failed" in again.stderr, "an output is the same job's, wherever it ran"
    assert (tmp_path / "in.out.jsonl").read_bytes() == before


def test_options_the_template_does_not_know_are_told_once(cluster: str, tiny: str, tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Who?"}], "chat_template_kwargs": {"nobody": 1}, "max_tokens": 3}
    source = write(tmp_path / "in.jsonl", [{"id": str(at)} | asked for at in range(8)])
    done = run(command(source, tiny, cluster))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"the chat template does not look at what rows tell it: 'nobody'") == 1


def test_whoever_is_killed_each_row_is_there_once(cluster: str, tiny: str, tmp_path: Path) -> None:
    rng = random.Random(KILLS)
    out, whole = tmp_path / "in.out.jsonl", tmp_path / "whole"
    killed = Counter[str]()
    while min(killed["worker"], killed["driver"]) < KILLS:
        source = write(tmp_path / "in.jsonl", rows(40, 60))
        kept = b""
        for _ in range(2):
            running = started(command(source, tiny, cluster, "-o", str(out)))
            wait_for_lines(out, kept.count(b"\n") + rng.randrange(1, 8), running)
            if (found := engines()) and killed["worker"] < KILLS:
                rng.choice(found).kill()
                killed["worker"] += 1
                wait_for_lines(out, lines(out) + rng.randrange(1, 5), running)
            if running.poll() is None and killed["driver"] < KILLS:
                running.kill()
                killed["driver"] += 1
            running.communicate(timeout=120)
            content = out.read_bytes() if out.exists() else b""
            assert content.startswith(kept), "finished bytes changed"
            kept = content[: content.rfind(b"\n") + 1]
        done = run(command(source, tiny, cluster, "-o", str(out)))
        assert done.returncode == 0, done.stderr
        assert out.read_bytes().startswith(kept)
        if not whole.exists():
            assert here("batch", source, "-m", tiny, "--temp", "0", "--threads", "1", "-o", str(whole)).returncode == 0
        assert answers(out) == answers(whole)
        out.unlink()
        Path(f"{out}.manifest.json").unlink()
    assert killed == {"worker": KILLS, "driver": KILLS}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_is_finished(cluster: str, tiny: str, tmp_path: Path, number: int) -> None:
    out = tmp_path / "in.out.jsonl"
    source = write(tmp_path / "in.jsonl", rows(200, 200))
    running = started(command(source, tiny, cluster))
    wait_for_lines(out, 3, running)
    running.send_signal(number)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number and b"go on with: hgca batch" in told and b"--engine ray" in told
    assert 3 <= len(answers(out)) < 200
    until = time.monotonic() + 20
    while engines() and time.monotonic() < until:
        time.sleep(0.1)
    assert not engines()


def test_the_dashboard_shows_what_engines_hold(cluster: str, tiny: str, tmp_path: Path) -> None:
    from tests.screens import Terminal, block_of

    source = write(tmp_path / "in.jsonl", rows(300, 200))
    words = command(source, tiny, cluster, "--dashboard", "full", "--select", "scan", "--window", "16")
    terminal = Terminal(words, env=environment(PYTHONIOENCODING="utf-8"), columns=100, rows=30)

    def known() -> bool:
        lines = {line[:9].strip(): line for line in block_of(terminal)}
        return all(name in lines and "n/a" not in lines[name] for name in ("rows", "bytes", "slots"))

    try:
        terminal.until(known, "figures of engines")
        terminal.child.sendintr()
        terminal.until_text("interrupted; go on with: hgca batch")
    finally:
        terminal.child.close(force=True)


def test_what_cannot_be_is_said_in_a_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.jsonl", ['"a"'])
    done = here("batch", source, "-m", tiny, "--address", "127.0.0.1:1")
    assert done.returncode == 2 and b"--engine ray" in done.stderr
    done = here("batch", source, "-m", tiny, "--engine", "roy")
    assert done.returncode == 2 and b"local, ray" in done.stderr
    pytest.importorskip("ray")
    done = here("batch", source, "-m", tiny, "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 5 and b"no Ray cluster at 127.0.0.1:1" in done.stderr and done.stderr.count(b"\n") == 1
    monkeypatch.setattr("hgca_cli.batch.cluster.is_there", lambda: False)
    done = here("batch", source, "-m", tiny, "--engine", "ray")
    assert done.returncode == 2 and b"pip install 'hgca[ray]'" in done.stderr
