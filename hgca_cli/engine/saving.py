"""What a session's folder gets of a conversation's rows: those that are new, their ids, and the record's part about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

from hgca_cli import durable
from hgca_cli.engine import transcript
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.saved_rows import identity_of, kept_shards, link_shards, new_shards, shard_tokens, write_shard
from hgca_cli.engine.sequence import Sequence, shared
from hgca_cli.engine.session_files import make_folder, write_new, writing
from hgca_cli.engine.session_record import SavedRows, Shard, Stored, crc_of
from hgca_cli.engine.sessions import free_bytes, kept_bytes, make_room
from hgca_cli.engine.shards import write_tensors
from hgca_cli.events import Notice
from hgca_cli.units import format_bytes

RESERVE = 256 << 20  # bytes of the disk that stay free


def save_rows(
    folder: Path, number: Callable[[], int], conversation: Conversation, limit: int, old: SavedRows | None
) -> tuple[SavedRows | None, list[Notice]]:
    """Write what of a conversation's rows is not in the session's folder yet, under names that no record refers to.

    number  gives the number of the next file
    limit   most bytes of rows of all sessions: those not used for longest go
    old     what the record names now

    returns  what its record is to name, and what a person should know: rows that have no room are not saved, and `old` stays.
    Raises DoesNotFitError, ModelError; nothing was written then.
    """
    sequence = conversation.sequence
    per_shard = shard_tokens(sequence)
    kv = folder / "kv"
    make_folder(kv)
    made: list[Path] = []

    def names() -> Iterator[Path]:
        while True:
            made.append(kv / f"{number():06d}.safetensors")
            yield made[-1]

    paths = names()
    try:
        kept = kept_shards(sequence, per_shard)
        if sequence.on_disk is not None and sequence.on_disk.folder != folder:
            kept = link_shards(kept, sequence.on_disk.folder, paths)
        first = kept[-1].end if kept else 0
        needed = _row_bytes(sequence, first)
        if notice := _no_room(folder, sum(shard.bytes for shard in kept), needed, limit):
            for path in made:
                path.unlink(missing_ok=True)
            return old, [notice]
        notices = make_room(folder, limit, needed, [folder / shard.file for shard in kept])
        shards = list(kept)
        for begin, end, pieces in new_shards(sequence, first, per_shard):
            shards.append(write_shard(next(paths), begin, end, pieces, sequence))
        learned = sequence.cache.learned()
        stored = write_tensors(next(paths), learned) if learned else None
        ids, same = _save_ids(folder, number, conversation)
        with writing(kv):
            durable.sync_folder(kv)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return _saved(conversation, tuple(shards), stored, ids, same), notices


def _saved(
    conversation: Conversation, shards: tuple[Shard, ...], learned: Stored | None, ids: Stored, shared: int
) -> SavedRows:
    sequence, settings = conversation.sequence, conversation.engine.settings
    return SavedRows(
        identity=identity_of(conversation.engine),
        ids=ids,
        count=len(sequence.tokens),
        rows=sequence.cached,
        shared=shared,
        history=len(conversation.history),
        text=crc_of(transcript.lines_of(conversation.messages)),
        start=sequence.cache.ring_start,
        window=settings.window,
        sinks=settings.sinks,
        select=settings.select,
        sliding=max((layer.sliding or 0 for layer in sequence.cache.layout.layers), default=0),
        shards=shards,
        learned=learned,
        seconds_per_token=conversation.seconds_per_token,
        asked_with=_plain(conversation.asked_with),
    )


def _save_ids(folder: Path, number: Callable[[], int], conversation: Conversation) -> tuple[Stored, int]:
    tokens, history = conversation.sequence.tokens, conversation.history
    same = shared(tokens, history)
    content = numpy.array(tokens + history[same:], dtype="<u4").tobytes()
    name = f"tokens-{number():06d}.u32"
    write_new(folder / name, content)
    return Stored(name, len(content), crc_of(content)), same


def _no_room(folder: Path, kept: int, needed: int, limit: int) -> Notice | None:
    """Why rows are not saved, with figures; None if they are."""
    if kept + needed > limit:
        return Notice(
            f"session {folder.name}: its text is saved, its rows are not: {format_bytes(kept + needed)} are more than "
            f"--kv-disk-limit {format_bytes(limit)}."
        )
    free = free_bytes(folder)
    if free is not None and needed + RESERVE > free + max(0, kept_bytes(folder.parent) + needed - limit):
        return Notice(
            f"session {folder.name}: its text is saved, its rows are not: {format_bytes(needed)} are needed and "
            f"{format_bytes(RESERVE)} to spare, {format_bytes(free)} of the disk are free."
        )
    return None


def _plain(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Options that a record can hold; None if there are others."""
    plain = options is not None and all(type(value) in (bool, int, float, str) for value in options.values())
    return options if plain else None


def _row_bytes(sequence: Sequence, first: int) -> int:
    pieces = sequence.cache.held(first, sequence.cached) if first < sequence.cached else []
    return sum(one.numel() * one.element_size() for _, piece in pieces for one in piece[1:] if one is not None)
