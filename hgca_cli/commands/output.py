"""How a command that failed says so. Light: it is used before anything is loaded."""

from __future__ import annotations

import contextlib
import json
import sys

from hgca_cli.ui.inert import inert
from hgca_cli.ui.wrapped import columns_of, wrapped


def report(message: str, hint: str, code: str, exit_code: int, as_json: bool) -> None:
    """One line on stderr, which a terminal shows without cutting words; with `--json` also one object on stdout."""
    text = inert(" ".join(f"{message} {hint}".split()))
    if as_json:
        record = {"type": "error", "code": code, "message": text, "exit_code": exit_code}
        with contextlib.suppress(OSError):  # a full disk: who reads the other stream is told all the same
            print(json.dumps(record), flush=True)
    print(wrapped(f"hgca: error: {text}", columns_of(sys.stderr)), file=sys.stderr, flush=True)
