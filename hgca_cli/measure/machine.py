"""Where and with what something was measured, for a record that is read later."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hgca_cli import __version__, native
from hgca_cli.hardware.topology import cores, processor_name


def where_and_when(threads: int) -> dict[str, Any]:
    """Date, version, commit (empty outside a checkout), processor, instruction set, threads and torch's version."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "version": __version__,
        "commit": _commit(),
        "processor": processor(),
        "isa": native.isa(),
        "threads": threads,
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name and how many there are."""
    return f"{processor_name()} x{cores()[1]}"


def _commit() -> str:
    """The checkout's commit, "-dirty" if its tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip()
