"""session.json: what a saved session is, as plain data that is checked when it is read. No torch: listing is quick."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hgca_cli.engine.session_files import DamagedError, read_file
from hgca_cli.errors import ModelError
from hgca_cli.plain import build

SCHEMA = 1
FILE = "session.json"
SHARD = re.compile(r"kv/\d{6,9}\.safetensors")
TOKENS = re.compile(r"tokens-\d{6,9}\.u32")
MESSAGES = re.compile(r"messages(-\d{6,9})?\.jsonl")


@dataclass(frozen=True)
class Identity:
    """Rows serve a run that agrees in all of this.

    model   fingerprint of the files; layers: heads, widths and sliding windows; rope: the rotary positions, YaRN included
    dtype   of the window's rows; kv_dtype: of the store's
    """

    model: str
    layers: str
    rope: str
    dtype: str
    kv_dtype: str


@dataclass(frozen=True)
class Stored:
    """A file, and what its bytes are to be."""

    file: str
    bytes: int
    crc: int


@dataclass(frozen=True)
class Shard(Stored):
    """Rows of all layers at positions first .. first + tokens - 1; the file may hold more behind them, which do not count.

    slides  the first of them that sliding layers still had
    """

    first: int
    tokens: int
    slides: int

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.first + self.tokens


@dataclass(frozen=True)
class SavedRows:
    """Rows on disk, and the ids they are of.

    ids      everything read and written: rows are of the first `rows`; file of u32 ids, then those of `history` beyond `shared`
    shared   so many ids begin the history of the conversation, too, which has `history` ids
    start    first position in the ring; window, sinks, select: of the run that saved them
    text     checksum of the messages the history is of: others may have been saved without rows since
    learned  what a policy that watches knew, None for others
    asked_with  options of the chat template in the last turn, None if they are not known
    seconds_per_token  it took to read a long prompt, None if none was read
    """

    identity: Identity
    ids: Stored
    count: int
    rows: int
    shared: int
    history: int
    text: int
    start: int
    window: int
    sinks: int
    select: str
    sliding: int
    shards: tuple[Shard, ...]
    learned: Stored | None = None
    seconds_per_token: float | None = None
    asked_with: dict[str, bool | int | float | str] | None = None


@dataclass(frozen=True)
class Record:
    """All of session.json. Times are seconds since 1970.

    messages   the transcript's file, bytes and checksum of what was there when this was written: `turns` messages
    automatic  nobody named it
    number     the next file's
    quant      how its model's weights were packed
    """

    hgca: str
    created: float
    changed: float
    model: str
    revision: str | None
    automatic: bool
    messages: Stored
    turns: int
    number: int
    sampling: dict[str, float | int | str | None] = field(default_factory=dict)
    saved: SavedRows | None = None
    quant: str = "none"

    @property
    def files(self) -> set[str]:
        """Names of everything it refers to."""
        names = {FILE, self.messages.file, "lock"}
        if self.saved is not None:
            names |= {self.saved.ids.file, *(shard.file for shard in self.saved.shards)}
            if self.saved.learned is not None:
                names.add(self.saved.learned.file)
        return names


def dumps(record: Record) -> bytes:
    """The file's bytes, with their own checksum."""
    table = {"schema": SCHEMA, **asdict(record)}
    return json.dumps({**table, "digest": _digest(table)}, indent=1).encode()


def read_record(folder: Path) -> Record:
    """The record of a session.

    Raises DamagedError for anything that is not what `dumps` wrote, ModelError for one of a newer version,
    FileNotFoundError where there is none.
    """
    path = folder / FILE
    try:
        table = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not JSON.") from error
    if not isinstance(table, dict):
        raise DamagedError(f"{path} is not a table.")
    schema = table.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ModelError(
            f"session {folder.name} was saved by a newer version of hgca (schema {schema}, this one reads {SCHEMA}).",
            "Update hgca.",
        )
    digest = table.pop("digest", None)
    if schema != SCHEMA or digest != _digest(table):
        raise DamagedError(f"{path} is damaged: its checksum is wrong.")
    del table["schema"]
    if isinstance(table.get("saved"), dict):
        table["saved"].setdefault("asked_with", None)  # saved before it was written down
    record: Record = build(Record, table, lambda what: DamagedError(f"{path}: {what}."), whole=True)
    _check(record, path)
    return record


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of rows, ids and text in a session's folder, by the names a record has for them. Raises OSError."""
    for inside, prefix in ((folder, ""), (folder / "kv", "kv/")):
        for path in inside.iterdir() if inside.is_dir() else ():
            name = prefix + path.name
            if any(kind.fullmatch(name) for kind in (SHARD, TOKENS, MESSAGES)):
                yield name, path


def crc_of(content: bytes) -> int:
    """The checksum of a file's bytes."""
    return zlib.crc32(content)


def _check(record: Record, path: Path) -> None:
    """Raises DamagedError for numbers that contradict each other, and names that lead elsewhere."""
    good = bool(MESSAGES.fullmatch(record.messages.file))
    if (saved := record.saved) is not None:
        at = 0
        for shard in saved.shards:
            good &= bool(SHARD.fullmatch(shard.file)) and shard.first == at and 0 < shard.tokens <= 1 << 20
            good &= shard.first <= shard.slides <= shard.end
            at = shard.end
        good &= at == saved.rows <= saved.count and saved.shared <= min(saved.count, saved.history)
        good &= bool(TOKENS.fullmatch(saved.ids.file))
        good &= saved.ids.bytes == 4 * (saved.count + saved.history - saved.shared)
        good &= saved.learned is None or bool(SHARD.fullmatch(saved.learned.file))
    if not good:
        raise DamagedError(f"{path} contradicts itself.")


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
