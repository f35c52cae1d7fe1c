"""The disk a store may be on: what is free there, and whether it is one at all."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hgca_cli.errors import UsageError

MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Disk:
    """A directory for a store. kind: of its file system, "" if unknown; free: bytes."""

    folder: str
    kind: str
    free: int

    @property
    def in_memory(self) -> bool:
        """What is written there takes memory, not disk."""
        return self.kind in IN_MEMORY

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.folder} ({self.kind})" if self.kind else self.folder


def look_at_disk(folder: str | None, mounts: Path = MOUNTS) -> Disk | None:
    """The disk behind --store-dir, None if it was not given. Nothing is written. Raises UsageError."""
    if folder is None:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        wrong = "is not a directory" if path.exists() else "no such directory"
        raise UsageError(f"--store-dir {folder}: {wrong}.", "Make it, or choose another.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"--store-dir {folder}: nothing may be written there.", "Choose another directory.")
    return Disk(str(path.absolute()), file_system(path, mounts), shutil.disk_usage(path).free)


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Its kind, as /proc/self/mountinfo says; "" where nobody does."""
    try:
        device = path.stat().st_dev
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if after and before.split()[2] == number:
            return after.split()[0]
    return ""
