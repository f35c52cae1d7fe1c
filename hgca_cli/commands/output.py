"""How a command that failed says so. Light: it is used before anything is loaded."""

from __future__ import annotations

import json
import sys

from hgca_cli.ui.inert import inert


def report(message: str, hint: str, code: str, as_json: bool) -> None:
    """One line on stderr; with `--json` also one object on stdout."""
    text = inert(f"{message} {hint}".rstrip())
    if as_json and sys.stdout is not None:
        print(json.dumps({"type": "error", "code": code, "message": text}), flush=True)
    if sys.stderr is not None:
        print(f"hgca: error: {text}", file=sys.stderr, flush=True)
