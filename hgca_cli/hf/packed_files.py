"""Packed weights on disk: what was rounded once is read the next time.

    <cache>/packed/<model>-<quant>/    weights.bin, index.json

<cache> as of hf/model_cache.py. weights.bin has the tiles of every grid, one after the other, and index.json where each begins. A
directory is written beside its place and renamed once all is on the disk; that of a model whose files have changed since is made
anew. Whatever goes wrong with it costs time only: weights are rounded then, as without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from hgca_cli.errors import HgcaError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import model_cache
from hgca_cli.hf.grid import BYTES as BYTES_OF
from hgca_cli.hf.grid import Grid, tiles_shape
from hgca_cli.hf.registry import ModelFiles, exists
from hgca_cli.units import format_bytes

FORMAT = 1  # of tiles (native/hgca.h, hgca_linear) and index
LEAST = 10**9  # weights of a model, from which on rounding takes so long that it is worth the disk (docs/log.md)
SPARE_BYTES = 4 << 30  # that stay free on the disk
FLUSHED = 256 << 20  # bytes that are written before they are sent to the disk: the end has little left to wait for
BYTES = {"q8": 34 / 32, "q4": 24 / 32, "file": 34 / 32}  # of a weight, at most


class PackedFiles:
    """The directory of one model's packed weights: read if it is there, else written while weights are rounded.

    files        of the model, by the name it was asked for
    fingerprint  of them and `quant` (hf/fingerprint.py)
    count        weights of the model; few of them are not kept, unless that is `wanted`
    """

    def __init__(
        self,
        files: ModelFiles,
        quant: str,
        fingerprint: str,
        count: int,
        notify: Callable[[Event], None],
        wanted: bool = False,
    ) -> None:
        self._files, self._quant, self._fingerprint, self._notify = files, quant, fingerprint, notify
        self._index: dict[str, tuple[int, int]] = {}  # bits and beginning, by name
        self._source: BinaryIO | None = None  # open all the time: another process may replace the directory
        self._target: Path | None = None
        self._written = self._unflushed = 0
        self._worker: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        if count < LEAST and not wanted:
            return
        self._place = Path()
        try:
            root = model_cache.roots()[0]  # not the spare one, which may be in memory
            self._place = root / "packed" / _folder_of(files, quant)
            if not self._open():
                self._begin(int(count * BYTES[quant]))
        except (HgcaError, OSError) as error:
            self._drop(error)

    def take(self, name: str, weight: Tensor, bits: int, room: Callable[[int], Tensor]) -> Grid | None:
        """The grid of a weight [outputs, inputs], of `bits` at most, in memory that `room` gives; None if it is not here."""
        if self._source is None:
            return None
        held, at = self._index.get(name, (0, 0))
        try:
            if held not in BYTES_OF or held > bits:
                raise ValueError(f"{name} is missing")
            shape = tiles_shape(weight, held)
            tiles = room(shape[0] * shape[1] * shape[2]).view(shape)
            self._source.seek(at)
            left = _bytes(tiles)
            while left and (count := self._source.readinto(left)):  # type: ignore[attr-defined]
                left = left[count:]
            if left:
                raise ValueError(f"{name} is cut short")
        except (OSError, ValueError) as error:
            self._damaged(error)
            return None
        return Grid(tiles, held)

    def keep(self, name: str, grid: Grid) -> None:
        """Write a grid behind the others; its tiles may not change any more."""
        if self._worker is None:
            return
        self._index[name] = (grid.bits, self._written)
        self._written += grid.tiles.numel()
        self._pending.append(self._worker.submit(self._append, grid.tiles))

    def finish(self) -> None:
        """Everything was kept: once it is on the disk, the directory takes its place."""
        if self._worker is None or self._target is None:
            return
        try:
            for one in self._pending:
                one.result()
            with (self._target / "weights.bin").open("rb") as file:
                os.fsync(file.fileno())
            described = {
                "format": FORMAT,
                "model": self._files.name,
                "folder": str(self._files.path),
                "quant": self._quant,
            }
            told = {**described, "fingerprint": self._fingerprint, "bytes": self._written, "grids": self._index}
            with (self._target / "index.json").open("w", encoding="utf-8") as index:
                index.write(json.dumps(told))
                index.flush()
                os.fsync(index.fileno())
            shutil.rmtree(self._place, ignore_errors=True)
            self._target.rename(self._place)
        except OSError as error:
            self._drop(error)

    def close(self) -> None:
        """Leaves nothing open, and nothing half-written behind."""
        if self._source is not None:
            self._source.close()
            self._source = None
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
            self._worker = None
        if self._target is not None:
            shutil.rmtree(self._target, ignore_errors=True)
            self._target = None

    def _open(self) -> bool:
        """Whether there is a directory of these very weights."""
        try:
            found = json.loads((self._place / "index.json").read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["fingerprint"] != self._fingerprint:
                return False
            self._index = {str(name): (int(bits), int(at)) for name, (bits, at) in found["grids"].items()}
            if (self._place / "weights.bin").stat().st_size != found["bytes"]:
                raise ValueError("weights.bin is of another length")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._damaged(error)
            return False
        self._source = (self._place / "weights.bin").open("rb", buffering=0)
        return True

    def _begin(self, needed: int) -> None:
        self._index = {}
        packed = self._place.parent
        packed.mkdir(parents=True, exist_ok=True)
        model_cache.drop_abandoned(packed)
        free = shutil.disk_usage(packed).free
        if free < needed + SPARE_BYTES:
            told = f"{format_bytes(free)} are free in {packed}, {format_bytes(needed + SPARE_BYTES)} wanted"
            self._notify(Notice(f"weights are packed at every start: {told} to keep them"))
            return
        self._target = Path(tempfile.mkdtemp(dir=packed, prefix=model_cache.MAKING))
        self._worker = ThreadPoolExecutor(1, "packed")
        self._notify(
            Notice(
                f"packing the weights {'as in the file' if self._quant == 'file' else f'in {self._quant}'}; they are kept in "
                f"{self._place}, and read from there next time"
            )
        )

    def _append(self, tiles: Tensor) -> None:
        assert self._target is not None
        with (self._target / "weights.bin").open("ab", buffering=0) as file:
            left = _bytes(tiles.contiguous())
            while left:
                left = left[file.write(left) :]
            self._unflushed += tiles.numel()
            if self._unflushed >= FLUSHED:
                self._unflushed = 0
                os.fsync(file.fileno())

    def _damaged(self, error: Exception) -> None:
        """What is here is no good: it goes, and the next start writes it again."""
        self.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._place)
        self._notify(Notice(f"{self._place} is damaged ({error}): the weights are packed again"))

    def _drop(self, error: Exception) -> None:
        said = (
            f"{self._place.parent}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        )
        self._notify(Notice(f"packed weights are not kept: {said}"))
        self.close()


def _folder_of(files: ModelFiles, quant: str) -> str:
    """The same for a model on this disk from whatever directory it is named, whatever its file holds by now."""
    here = Path(files.name).expanduser()
    known = str(here.resolve()) if exists(here) else files.name
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", here.name.strip(".") or Path(known).name)
    return f"{readable}-{hashlib.sha256(known.encode(errors='surrogateescape')).hexdigest()[:8]}-{quant}"


def _bytes(tiles: Tensor) -> memoryview:
    view: Any = tiles.numpy()
    return memoryview(view).cast("B")
