"""Files that are on the disk whole, or as they were before, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: OSError) -> bool:
    """Whether there was no room: on the disk, or for so large a file."""
    return error.errno in FULL


def write_new(path: Path, content: bytes, mode: int | None = None) -> None:
    """A file under a name nobody has yet, surely on the disk, or nothing. mode: None: as the user's umask says. Raises OSError."""
    with path.open("xb") as file:
        try:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """The file holds this now, as write_new puts it there. One process at a time: its spare file has always the same name.

    Raises OSError.
    """
    spare = path.with_name(f".{path.name}.new")
    spare.unlink(missing_ok=True)
    write_new(spare, content, mode)
    try:
        spare.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            spare.unlink()
        raise


def sync_folder(path: Path) -> None:
    """Names in a directory are surely on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
