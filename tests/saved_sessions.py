"""Small conversations on the disk, and the ways to damage them."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.session import About, Session
from hgca_cli.engine.session_record import SCHEMA, _digest, crc_of, read_record
from hgca_cli.events import Done, Event, Notice
from tests.tiny_engine import tiny_loaded

GREEDY = SamplingSettings(temperature=0, max_tokens=10)
ABOUT = About("tiny", None, {"temperature": 0.0})
PLENTY = 1 << 40
LONG = "the cat sat on the mat " * 30


def engine_of(
    select: str = "exact", kv_dtype: str | None = "bf16", *, sliding: int | None = None, window: int = 16,
    context: int = 2048, fingerprint: str = "",
) -> Engine:  # fmt: skip
    settings = CacheSettings(window=window, sinks=2, context=context, select=select, kv_dtype=kv_dtype)
    loaded = tiny_loaded(None, sliding)
    object.__setattr__(loaded, "fingerprint", fingerprint)
    return Engine(loaded, settings, prefill_chunk=8)


def ask(conversation: Conversation, text: str, sampling: SamplingSettings = GREEDY) -> tuple[Done, list[Event]]:
    events = list(conversation.ask(text, sampling, threading.Event()))
    assert isinstance(events[-1], Done)
    return events[-1], events


def save(name: str, conversation: Conversation, **more: Any) -> Session:
    """Put a conversation into a session, and close it."""
    session = Session(name)
    try:
        session.save(conversation, ABOUT, **{"rows": True, "limit": PLENTY} | more)
    finally:
        session.close()
    return session


def resumed(name: str, engine: Engine, *, reread: bool = False) -> tuple[Conversation, list[Notice]]:
    """The conversation of a session, closed again."""
    session = Session(name, reread=reread)
    try:
        conversation = Conversation(engine)
        return conversation, session.resume(engine, conversation, reread=reread)
    finally:
        session.close()


def one_turn(name: str = "notes", text: str = LONG, engine: Engine | None = None) -> Conversation:
    """A session of one turn."""
    conversation = Conversation(engine or engine_of(), "be brief")
    ask(conversation, text)
    save(name, conversation)
    return conversation


def tree(folder: Path) -> dict[str, bytes | str]:
    """What is in a directory, byte for byte."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
        )
    return found


def rewrite_record(folder: Path, change: Any) -> None:
    """Change session.json as somebody would who knows how its checksum is made."""
    table = {"schema": SCHEMA, **json.loads(json.dumps(asdict(read_record(folder))))}
    change(table)
    (folder / "session.json").write_text(json.dumps({**table, "digest": _digest(table)}))


def forge(folder: Path, content: bytes) -> None:
    """Replace the first shard, and what the record says of it."""
    name = read_record(folder).saved.shards[0].file  # type: ignore[union-attr]
    (folder / name).write_bytes(content)

    def change(table: dict[str, Any]) -> None:
        table["saved"]["shards"][0] |= {"bytes": len(content), "crc": crc_of(content)}

    rewrite_record(folder, change)
