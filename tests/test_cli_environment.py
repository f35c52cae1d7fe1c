"""What `hgca` asks of libraries before they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hgca_cli.__main__ import SPINS, prepare


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None), ({"PATH": "x"}, SPINS)],
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(given: dict[str, str], spins: str | None) -> None:
    variables = dict(given)
    prepare(variables)
    assert variables.get("GOMP_SPINCOUNT") == spins
    assert {name: variables[name] for name in given} == given


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_openmp_hears_of_it() -> None:
    """What it read when torch loaded it, by its own word."""
    code = "import os\nfrom hgca_cli.__main__ import prepare\nprepare(os.environ)\nimport torch\ntorch.ones(9) + 1"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=plain | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP here")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr


LEAVING = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from hgca_cli import __main__, app

def run(words):
    def late(after):
        time.sleep(after)
        print("thread", after, flush=True)
    threading.Thread(target=late, args=[0.1]).start()
    ThreadPoolExecutor(1).submit(late, 0.4)
    atexit.register(lambda: print("atexit"))
    class Last:
        def __del__(self):
            print("taken apart", flush=True)
    sys.modules["kept"] = Last()
    return int(words[0])

app.run = run
__main__.main()
"""


@pytest.mark.parametrize("code", [0, 5])
def test_a_process_ends_at_once_but_not_before_its_threads(code: int) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, str(code)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["thread 0.1", "thread 0.4", "atexit"] and not done.stderr
    assert done.returncode == code
