"""Where typed lines are remembered."""

from __future__ import annotations

import os
from pathlib import Path

from hgca_cli.engine.session_files import data_dir


def history_file() -> Path | None:
    """The file of typed lines, readable by its owner only; None where none can be written."""
    try:
        folder = data_dir()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "history"
        file.touch(mode=0o600, exist_ok=True)
        return file if os.access(file, os.W_OK) else None
    except (OSError, RuntimeError):  # also: ~nobody
        return None
