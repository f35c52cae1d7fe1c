"""All saved sessions: what there is, what they take on the disk, and which go when that is too much. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hgca_cli.engine import transcript
from hgca_cli.engine.session_files import DamagedError, Lock, check_name, is_folder, sessions_dir
from hgca_cli.engine.session_files import replace as replace_file
from hgca_cli.engine.session_record import FILE, MESSAGES, SHARD, Record, dumps, files_of, read_record
from hgca_cli.engine.turns import Messages
from hgca_cli.errors import HgcaError, ModelError, UsageError
from hgca_cli.events import Notice

File = tuple[int, int]  # device and inode: what is one file under whatever names


@dataclass(frozen=True)
class Listed:
    """A session as a listing shows it.

    record  None if it cannot be read: `wrong` says why
    used    when it was last of use, seconds since 1970; files: bytes of each
    """

    name: str
    folder: Path
    record: Record | None
    wrong: str
    used: float
    files: dict[File, int]

    @property
    def bytes(self) -> int:
        """Of its files, those it shares with others included."""
        return sum(self.files.values())


def every_session() -> list[Listed]:
    """All sessions, the latest first."""
    root = sessions_dir()
    try:
        folders = [path for path in root.iterdir() if is_folder(path)]
    except OSError:
        return []
    found = [listed for folder in folders if (listed := _look(folder)) is not None]
    return sorted(found, key=lambda one: (-one.used, one.name))


def find_session(name: str) -> Listed | None:
    """The session of this name, None if there is none. Raises UsageError for what is no name."""
    folder = sessions_dir() / check_name(name)
    return _look(folder) if is_folder(folder) else None


def one_session(name: str) -> Listed:
    """The session of this name. Raises UsageError for what is no name, ModelError if there is none."""
    found = find_session(name)
    if found is None:
        raise ModelError(f"there is no session {name}.", "hgca sessions ls lists them.")
    return found


def messages_of(session: Listed) -> Messages:
    """What was said in it; of a damaged one what can be read."""
    if session.record is not None:
        with contextlib.suppress(DamagedError):
            return transcript.read_messages(session.folder, session.record.messages)
    return transcript.rescue(session.folder)


def remove(session: Listed, *, pretend: bool = False) -> None:
    """Delete a session, or see whether it could be. Raises UsageError if it is open, ModelError if it cannot be deleted."""
    lock = Lock(session.folder)
    try:
        if not pretend:
            shutil.rmtree(session.folder)
    except OSError as error:
        raise ModelError(f"cannot remove {session.folder}: {error.strerror}.", "Check its permissions.") from error
    finally:
        lock.free()


class Links:
    """How many of these sessions have each file: sessions that begin alike share the files of their rows."""

    def __init__(self, sessions: Iterable[Listed]) -> None:
        self._count = Counter(file for one in sessions for file in one.files)

    def take(self, session: Listed) -> int:
        """One of them goes; returns the bytes of its files that no other one has: what is free then."""
        self._count.subtract(session.files.keys())
        return sum(size for file, size in session.files.items() if self._count[file] <= 0)


def drop_rows(session: Listed) -> bool:
    """Delete the rows of a session and keep its text; False if it has none, is open or cannot be written."""
    if session.record is None or session.record.saved is None:
        return False
    try:
        lock = Lock(session.folder)
    except (UsageError, ModelError):
        return False
    try:
        record = read_record(session.folder)
        used = session.used
        replace_file(session.folder / FILE, dumps(replace(record, saved=None)))
        _set_used(session.folder, used)
        for name, path in list(files_of(session.folder)):
            if not MESSAGES.fullmatch(name):
                path.unlink(missing_ok=True)
        return True
    except (HgcaError, OSError):
        return False
    finally:
        lock.free()


def make_room(keep: Path, limit: int, needed: int, kept: Iterable[Path] = ()) -> list[Notice]:
    """Sessions not used for longest lose their rows until those of all, and `needed` bytes, are within the limit.

    keep  the session that needs them; of its own rows only the files `kept` count, once where others have them, too
    """
    own = [*kept]
    others = [one for one in every_session() if one.folder != keep]
    notices = []
    for one in reversed(others):
        if kept_bytes(sessions_dir(), keep, own) + needed <= limit:
            break
        if drop_rows(one):
            notices.append(Notice(f"the rows of session {one.name} were dropped (--kv-disk-limit); its text stays."))
    return notices


def kept_bytes(root: Path, but: Path | None = None, besides: Iterable[Path] = ()) -> int:
    """Bytes of the rows of all sessions on the disk, `but` one, and of the files `besides`; what is there twice counts once."""
    sizes: dict[File, int] = {}
    for path in (*(one for one in _rows_files(root) if but is None or but not in one.parents), *besides):
        with contextlib.suppress(OSError):
            found = path.lstat()
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def free_bytes(path: Path) -> int | None:
    """Bytes free on a directory's disk; None where nobody can tell."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _rows_files(root: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            with contextlib.suppress(OSError):
                yield from (path for name, path in files_of(folder) if SHARD.fullmatch(name))


def _look(folder: Path) -> Listed | None:
    """A session's folder as it is; None if nothing was saved in it."""
    record: Record | None = None
    wrong = ""
    files: dict[File, int] = {}
    try:
        for path in (*folder.iterdir(), *(folder / "kv").glob("*")):
            with contextlib.suppress(OSError):
                if path.is_file():
                    found = path.lstat()
                    files[found.st_dev, found.st_ino] = found.st_size
        record = read_record(folder)
    except FileNotFoundError:
        if not transcript.rescue(folder):
            return None
        wrong = f"{FILE} is missing"
    except HgcaError as error:
        wrong = error.message.rstrip(".")
    except OSError as error:
        wrong = error.strerror or str(error)
    try:
        used = (folder / FILE).lstat().st_mtime
    except OSError:
        used = 0.0
    return Listed(folder.name, folder, record, wrong, used, files)


def touch(folder: Path) -> None:
    """The session was of use just now."""
    with contextlib.suppress(OSError):
        os.utime(folder / FILE)


def _set_used(folder: Path, used: float) -> None:
    with contextlib.suppress(OSError):
        os.utime(folder / FILE, (used, used))
