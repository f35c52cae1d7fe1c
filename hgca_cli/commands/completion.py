"""What the shell's Tab key completes. Light: it runs at every press of the key."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hgca_cli.commands.config_file import SAMPLING, read_config
from hgca_cli.engine.sessions import every_session
from hgca_cli.errors import HgcaError
from hgca_cli.hf.registry import ALIASES


def complete_model(incomplete: str) -> list[str]:
    """Aliases, and models of the hub's cache; the shell itself completes paths where none of these begins so."""
    names = {*ALIASES, *cached_names()}
    with contextlib.suppress(HgcaError):
        names |= set(read_config(None, ("model", *SAMPLING)).aliases)
    return sorted(name for name in names if name.startswith(incomplete))


def complete_session(incomplete: str) -> list[str]:
    """Sessions, the latest first."""
    with contextlib.suppress(HgcaError, OSError):
        return [one.name for one in every_session() if one.name.startswith(incomplete)]
    return []


def cached_names() -> list[str]:
    """Hub ids of models that were fetched, as the names of their directories say."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    root = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    try:
        folders = [path.name for path in root.glob("models--*")]
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/", 1) for name in folders]
