"""The program, as a process of its own or inside this one, and a tiny model on disk for it."""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hgca_cli.app import run
from tests.tiny_engine import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent
DATA = tempfile.mkdtemp(prefix="hgca-tests-")  # no test writes where the person's sessions are
atexit.register(shutil.rmtree, DATA, ignore_errors=True)


def environment(**more: str) -> dict[str, str]:
    """Without what the person running the tests has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HGCA_")}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm", "HGCA_PROFILE": "none"}
    kept |= {"HGCA_DATA_DIR": DATA, "XDG_CONFIG_HOME": DATA}
    return {name: value for name, value in kept.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | more


def hgca(
    *words: str | bytes, stdin: str | bytes = b"", timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `hgca` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hgca_cli", *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        timeout=timeout,
        env=environment(**env),
        cwd=ROOT,
    )


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which `hgca` is the program."""
    line = f'hgca() {{ "{sys.executable}" -m hgca_cli "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, check=False, timeout=120, env=environment(**env), cwd=ROOT
    )


@dataclass
class Done:
    """What a run inside this process gave."""

    returncode: int
    stdout: bytes
    stderr: bytes


def here(*words: str, stdin: str = "", **env: str) -> Done:
    """Run `hgca` inside this process, which has imported everything already: seconds faster."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdin", "stdout", "stderr")}
    streams["stdin"].buffer.write(stdin.encode())
    streams["stdin"].seek(0)
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, environment(**env), clear=True):
        code = run(list(words))
        for stream in streams.values():
            stream.flush()
    written = [streams[name].buffer.getvalue() for name in ("stdout", "stderr")]  # type: ignore[attr-defined]
    return Done(code, *written)


def records(done: subprocess.CompletedProcess[bytes] | Done) -> list[dict[str, Any]]:
    """The JSON lines of a run."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def save_tiny(path: Path, model: Any = None) -> str:
    """A tiny random model, or this one, that never ends by itself, saved to a directory."""
    model = model or tiny_model()
    for config in (model.config, model.generation_config):
        config.bos_token_id = config.eos_token_id = None
    model.save_pretrained(path)
    hf = tiny_tokenizer().hf
    hf.eos_token = None
    hf.save_pretrained(path)
    return str(path)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_rows(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)
