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


def test_help_and_reports_are_not_missed_where_the_output_is_closed() -> None:
    for words in ("hgca", "hgca --help", "hgca chat -h", "hgca config show"):
        done = shell(f"{words} >&-")
        assert (done.returncode, done.stderr) == (0, b"")


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


@pytest.mark.parametrize("words", ["chat -p x", "chat -p x --json", "batch rows.jsonl -o -"])
def test_an_answer_is_missed_where_the_output_is_closed(words: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    there = f"cd {tmp_path}; export PYTHONPATH={ROOT};"
    done = shell(f"{there} hgca {words} -m {model} --raw -n 2 -q >&-", HGCA_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"cannot write" in done.stderr, done.stderr


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
