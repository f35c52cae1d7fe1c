"""Where models converted by us are kept, and how they get there: whole, or not at all.

    <cache>/models/<name>/    config.json, tokenizer, *.safetensors

<cache> is HGCA_CACHE_DIR, else the user's cache directory, else (with a notice) a directory of the user's own below the
system's temporary one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.units import format_bytes

ABANDONED_SECONDS = 24 * 3600  # a conversion this old was killed
MAKING = ".making-"  # begins the names of what is not whole yet


def find(name: str) -> Path | None:
    """The directory of a converted model, wherever it was put; nothing is written."""
    for root in roots():
        if (root / "models" / name / "config.json").is_file():
            return root / "models" / name
    return None


def roots() -> list[Path]:
    """Where converted models may be: the cache directory and, if it is the user's own, the one below the temporary.

    Raises ModelError if HGCA_CACHE_DIR cannot be the name of a directory.
    """
    spare = _spare()
    return [_home(), *([spare] if _ours(spare) else [])]


def leftovers(models: Path) -> list[Path]:
    """What conversions that run now, or were killed, hold in `<cache>/models`."""
    return sorted(models.glob(f"{MAKING}*"))


def cache_dir(notify: Callable[[Event], None]) -> Path:
    """The cache directory, made if missing, and surely writable.

    Raises ModelError if HGCA_CACHE_DIR was given and cannot be written, or if there is no place at all.
    """
    path = _home()
    try:
        return _writable(path)
    except OSError as error:
        reason = error.strerror or str(error)
        if os.environ.get("HGCA_CACHE_DIR"):
            raise ModelError(f"HGCA_CACHE_DIR: cannot write to {path} ({reason}).", "Choose another.") from error
    spare = _spare()
    try:
        spare.mkdir(mode=0o700, exist_ok=True)
        if not _ours(spare):
            raise PermissionError(errno.EACCES, "it belongs to someone else")
        _writable(spare)
    except OSError as error:
        raise ModelError(
            f"cannot write to {path} ({reason}), nor to {spare} ({error.strerror}).",
            "Set HGCA_CACHE_DIR to a directory that can be written.",
        ) from error
    notify(Notice(f"cannot write to {path} ({reason}): models go to {spare}; HGCA_CACHE_DIR chooses another place."))
    return spare


@contextlib.contextmanager
def making(name: str, notify: Callable[[Event], None]) -> Iterator[tuple[Path, Path]]:
    """Gives (directory to fill, scratch directory); the first becomes `models/<name>` at the end, in one rename.

    Two processes that make the same model do not meet: the second finds the first's, and drops its own.
    Raises DoesNotFitError when the disk is full, ModelError when it cannot be written.
    """
    models = cache_dir(notify) / "models"
    try:
        models.mkdir(exist_ok=True)
        drop_abandoned(models)
        with tempfile.TemporaryDirectory(dir=models, prefix=MAKING, ignore_cleanup_errors=True) as scratch:
            work = Path(scratch) / "model"
            work.mkdir()
            yield work, Path(scratch)
            try:
                work.rename(models / name)
            except OSError:
                if not (models / name / "config.json").is_file():  # else another process was faster
                    raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DoesNotFitError(f"the disk of {models} is full.", "Make room, or set HGCA_CACHE_DIR.") from error
        raise ModelError(f"cannot write to {models}: {error}.", "Set HGCA_CACHE_DIR to another place.") from error


def require_room(name: str, needed: int, folder: Path) -> None:
    """Raises DoesNotFitError, with figures, if a file that is converted into `folder` needs more bytes than its disk has."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFitError(
            f"converting {name} needs {format_bytes(needed)} in {folder}, {format_bytes(free)} are free.",
            "Make room, or set HGCA_CACHE_DIR.",
        )


def _home() -> Path:
    chosen = os.environ.get("HGCA_CACHE_DIR")
    try:
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("hgca"))
    except RuntimeError as error:  # ~nobody-of-that-name
        raise ModelError(f"HGCA_CACHE_DIR: {chosen!r} is not a directory ({error}).", "Choose another.") from error


def _spare() -> Path:
    return Path(tempfile.gettempdir()) / f"hgca-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _ours(spare: Path) -> bool:
    """Whether a directory in a place where anybody may write is the user's own: its files will be trusted."""
    try:
        found = spare.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _writable(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def drop_abandoned(models: Path) -> None:
    """Remove what was being made in a directory and was killed."""
    for left in leftovers(models):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
