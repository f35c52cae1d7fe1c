"""Rows of a sequence onto the disk, and back: from there on it gives the tokens it would have given.

A sequence only grows, or is cut and grows again, so what is on disk is a row of shards of which none is ever changed: a
turn costs its own rows. Small ones at the end are written anew together, each row at most a few times.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from torch import Tensor

from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import OnDisk, Sequence
from hgca_cli.engine.session_files import DamagedError, read_file
from hgca_cli.engine.session_record import Identity, SavedRows, Shard, Stored, crc_of
from hgca_cli.engine.shards import named, pieces_of, read_tensors, write_tensors
from hgca_cli.hf.cache_layer import STORE_DTYPES
from hgca_cli.hf.load import DTYPES
from hgca_cli.hf.shape import text_config
from hgca_cli.kv.held import Piece

MOST_TOKENS = 4096  # of a shard; fewer where that would be more bytes than
MOST_BYTES = 128 << 20  # so much of a file is read, or written, at once
LINKED = (OSError, NotImplementedError)


def identity_of(engine: Engine) -> Identity:
    """What rows of this engine are rows of."""
    loaded = engine.loaded
    rope = getattr(text_config(loaded.model.config), "rope_parameters", None)
    dtype = next(name for name, one in DTYPES.items() if one == loaded.dtype)
    return Identity(
        model=loaded.fingerprint,
        layers=_short(repr(engine.layout.layers)),
        rope=_short(json.dumps(rope, sort_keys=True, default=str)),
        dtype=dtype,
        kv_dtype=engine.settings.kv_dtype or dtype,
    )


def difference(saved: Identity, ours: Identity) -> str:
    """What keeps saved rows from being of use, in words; "" if nothing does."""
    if saved.model != ours.model:
        return "of another model or --quant"
    if saved.rope != ours.rope:
        return "of other positions (--yarn)"
    if (saved.dtype, saved.kv_dtype) != (ours.dtype, ours.kv_dtype):
        return f"of other numbers ({saved.dtype} with --kv-dtype {saved.kv_dtype})"
    return "" if saved.layers == ours.layers else "of another shape"


def new_shards(sequence: Sequence, first: int, per_shard: int) -> Iterator[tuple[int, int, list[tuple[int, Piece]]]]:
    """The rows from position `first` on, in portions: first, end, and the pieces of all layers."""
    for begin in range(first, sequence.cached, per_shard):
        end = min(sequence.cached, begin + per_shard)
        yield begin, end, sequence.cache.held(begin, end)


def shard_tokens(sequence: Sequence) -> int:
    """Tokens of a full shard: a power of two."""
    widest = max(8, sequence.cache.layers[0].states[0].window.keys.element_size())
    per_token = sum(layer.row_elements for layer in sequence.cache.layout.layers) * widest
    tokens = MOST_TOKENS
    while tokens > 64 and tokens * per_token > MOST_BYTES:
        tokens //= 2
    return tokens


def kept_shards(sequence: Sequence, per_shard: int) -> tuple[Shard, ...]:
    """Of the shards a sequence has on disk, those that stay as they are; small ones at the end are better written anew."""
    if sequence.on_disk is None:
        return ()
    kept = [
        _cut(shard, sequence.on_disk.rows) for shard in sequence.on_disk.shards if shard.first < sequence.on_disk.rows
    ]
    new = sequence.cached - (kept[-1].end if kept else 0)
    while kept and new > 0 and kept[-1].tokens < per_shard and kept[-1].tokens <= new:
        new += kept.pop().tokens
    return tuple(kept)


def write_shard(path: Path, first: int, end: int, pieces: list[tuple[int, Piece]], sequence: Sequence) -> Shard:
    """Rows into a file of their own."""
    slides = first
    for layer, state in enumerate(sequence.cache.layers):
        if state.layout.sliding is not None:
            mine = [piece.first for index, piece in pieces if index == layer]
            slides = max(slides, min(mine, default=end))
    stored = write_tensors(path, named(pieces))
    return Shard(stored.file, stored.bytes, stored.crc, first, end - first, slides)


def link_shards(shards: tuple[Shard, ...], source: Path, names: Iterator[Path]) -> tuple[Shard, ...]:
    """The same files under names of another session, as far as the disk can do that."""
    linked: list[Shard] = []
    for shard in shards:
        path = next(names)
        try:
            os.link(source / shard.file, path, follow_symlinks=False)
        except LINKED:
            break
        linked.append(replace(shard, file=f"{path.parent.name}/{path.name}"))
    return tuple(linked)


def usable_rows(saved: SavedRows, most: int) -> int:
    """Of the first `most` rows, those a run can begin with: sliding layers need the newest ones they may see."""
    most = min(most, saved.rows)
    if not saved.sliding:
        return most
    for rows in (most, *(shard.end for shard in reversed(saved.shards) if shard.end < most)):
        first = slides_from(saved, rows)
        if first == 0 or rows - first >= saved.sliding - 1:
            return rows
    return 0


def slides_from(saved: SavedRows, rows: int) -> int:
    """The first position from which on sliding layers have all rows up to `rows`."""
    first = rows
    for shard in reversed(saved.shards):
        if shard.first >= rows:
            continue
        first = min(first, max(shard.first, shard.slides))
        if shard.slides > shard.first:
            break
    return first


def read_ids(folder: Path, saved: SavedRows) -> tuple[list[int], list[int]]:
    """Tokens of the sequence, and of the conversation's history. Raises DamagedError."""
    path = folder / saved.ids.file
    try:
        content = read_file(path, saved.ids.bytes)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing.") from error
    if len(content) != saved.ids.bytes or crc_of(content) != saved.ids.crc:
        raise DamagedError(f"{path} is damaged: its checksum is wrong.")
    ids = numpy.frombuffer(content, dtype="<u4").tolist()
    return ids[: saved.count], ids[: saved.shared] + ids[saved.count :]


def load_rows(engine: Engine, folder: Path, saved: SavedRows, ids: list[int], rows: int) -> Sequence:
    """A sequence of the first `rows` of saved rows, and the ids up to there; all ids for all rows.

    Raises DamagedError, DoesNotFitError.
    """
    sequence = engine.new_sequence()
    cache, settings = sequence.cache, engine.settings
    watched = engine.watches  # what was learned is of all rows, in windows like these
    taken = saved.rows if watched else rows
    alike = (saved.window, saved.sinks) == (settings.window, settings.sinks)
    start = saved.start if alike and taken == saved.rows else None
    store_dtype = STORE_DTYPES[engine.settings.kv_dtype] if engine.settings.kv_dtype else engine.loaded.dtype
    dtypes = (engine.loaded.dtype, store_dtype)
    try:
        with torch.inference_mode():
            refills = cache.refill(taken, start, slides_from(saved, taken), engine.loaded.device, engine.loaded.dtype)
            for shard in saved.shards:
                if shard.first < taken:
                    tensors = read_tensors(folder / shard.file, shard)
                    for layer, pieces in pieces_of(tensors, cache.layout.layers, dtypes, str(folder / shard.file)):
                        _covers(shard, pieces, cache.layout.layers[layer].sliding, folder)
                        for piece in pieces:
                            if piece.first < shard.end:
                                refills[layer].put(piece.part(piece.first, min(piece.end, shard.end)))
            if not all(refill.finish() for refill in refills):
                raise DamagedError(f"{folder}: rows are missing.")
            cache.index_stored()
            if watched and (saved.learned is None or not cache.learn(_learned(folder, saved.learned))):
                raise DamagedError(f"{folder}: what the policy learned is not of these rows.")
    except BaseException:
        sequence.close()
        raise
    sequence.tokens = ids[: saved.count]
    sequence.on_disk = OnDisk(folder, saved.shards, taken)
    if rows < saved.rows and not sequence.rewind(rows):
        raise DamagedError(f"{folder}: rows are missing.")
    return sequence


def can_load(engine: Engine, saved: SavedRows) -> bool:
    """Whether saved rows are all a run needs: a policy that watches must have watched them, in windows like ours."""
    if saved.count > engine.context:
        return False
    if not engine.watches:
        return True
    theirs = (saved.select, saved.window, saved.sinks)
    return saved.learned is not None and theirs == (
        engine.settings.select,
        engine.settings.window,
        engine.settings.sinks,
    )


def _learned(folder: Path, stored: Stored) -> dict[str, Tensor]:
    return read_tensors(folder / stored.file, stored)


def _cut(shard: Shard, rows: int) -> Shard:
    """The same file, of which only what is before row `rows` counts: behind it another text went on."""
    if shard.end <= rows:
        return shard
    return replace(shard, tokens=rows - shard.first, slides=min(shard.slides, rows))


def _covers(shard: Shard, pieces: list[Piece], sliding: int | None, folder: Path) -> None:
    """Raises DamagedError unless the pieces hold the shard's rows; of a sliding layer, from some position on."""
    first = pieces[0].first if pieces else shard.end
    end = pieces[-1].end if pieces else shard.end
    begins = first == shard.first if sliding is None else shard.first <= min(first, shard.end) <= shard.slides
    good = begins and end >= shard.end
    if not good:
        raise DamagedError(f"{folder / shard.file}: rows are missing.")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
