"""`python -m hgca_cli` and the `hgca` script."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import MutableMapping
from typing import NoReturn

STOPPED = 128  # codes above it: by the signal of that number
SPINS = "1000"  # turns (some 20 us) OpenMP's threads wait awake for each other; else 300,000, on a core that others want (docs/log.md)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` takes it: nothing is begun that would have to be kept
    from hgca_cli.app import run
    from hgca_cli.commands.starting import search_seldom

    prepare(os.environ)
    search_seldom()
    code = run(sys.argv[1:])  # which flushed what was written, or told why not
    if code <= STOPPED:
        if sys.gettrace() or sys.getprofile():  # who watches wants the last word
            sys.exit(code)
        threading._shutdown()  # type: ignore[attr-defined]
    _leave(code)


def prepare(environ: MutableMapping[str, str]) -> None:
    """Variables that libraries read when they are loaded, where the user has not set them."""
    if sys.platform == "linux":  # else pieces of freed memory too small to use add up to half a GiB
        environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes a second or two with torch and a model in it.

    After a signal libraries' threads may be in the middle of something, besides: the interpreter would wait for them, or take
    what they use away from under them.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
