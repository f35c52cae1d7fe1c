"""Outputs that are full, closed or no files, and Ctrl-C before anything is loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli_process import ROOT, environment, save_tiny

FULL = Path("/dev/full")
NO_SPACE = b"hgca: error: cannot write the output: No space left on device. Make room, or write elsewhere.\n"


def shell(words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """`hgca` here stands for the command."""
    text = words.replace("hgca", f"{sys.executable} -m hgca_cli")
    return subprocess.run(["bash", "-c", text], capture_output=True, env=environment(**env), cwd=ROOT, timeout=120)


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", ["--help", "config show", "config show --json", "profile --list"])
def test_a_full_disk_is_told_in_a_line(words: str, tmp_path: Path) -> None:
    done = shell(f"hgca {words} >/dev/full", HGCA_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, NO_SPACE)


def test_an_output_that_is_closed_is_a_failure() -> None:
    done = shell("hgca --version >&-")
    assert done.returncode == 1 and done.stderr.startswith(b"hgca: error: cannot write the output: it is closed.")
    quiet = shell("hgca config set temp 0.5 -q >&-", HGCA_CONFIG="/nonexistent/x")
    assert quiet.returncode != 0 and b"Traceback" not in quiet.stderr


def test_interrupted_while_python_imports(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom hgca_cli import __main__\nclass Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n            print('importing', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n__main__.main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == b"importing\n"
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == -signal.SIGINT and child.stderr.read() == b""


@pytest.mark.parametrize("source", ["/dev/stdin", "<(cat rows.jsonl)"])
def test_answers_of_what_is_no_file_go_to_standard_output(source: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    done = shell(
        f"cd {tmp_path}; export PYTHONPATH={ROOT}; hgca batch {source} -m {model} --raw -n 2 -q < rows.jsonl",
        HGCA_DATA_DIR=str(tmp_path / "data"),
    )
    assert done.returncode == 0 and done.stdout.count(b'"id"') == 1 and done.stdout.count(b"\n") == 1, done.stderr
    assert sorted(one.name for one in tmp_path.iterdir() if one.suffix == ".jsonl") == ["rows.jsonl"]
