"""Matrices of a converted model that are still in its GGUF file alone.

They are packed from there (hf/packed.py), which is all that a CPU asks for; whoever wants them as they are in safetensors, as a GPU
does, has them written first. A model of 8B in 4 bits takes 5 GB of disk so, packed, in place of 21.

    gguf.json    {"layers": ..., "head": ...,    numbers by type (hf/packing.py)
                  "file", "digest", "dtype",     the GGUF file, what it is known by, what the weights are made
                  "waiting": [names]}            matrices that are not in model.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgca_cli import durable
from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Notice
from hgca_cli.hf.checks import FETCH_AGAIN, reason
from hgca_cli.hf.gguf_check import check_gguf
from hgca_cli.hf.gguf_once import DAMAGED, reading_once
from hgca_cli.hf.gguf_stream import WEIGHTS, WeightsFile
from hgca_cli.hf.gguf_tensors import Tensors, without_memory
from hgca_cli.hf.packing import TYPES_FILE
from hgca_cli.hf.quiet import quiet
from hgca_cli.hf.registry import Notify
from hgca_cli.hf.slowly import Slowly
from hgca_cli.units import format_bytes

SAMPLES, SAMPLE_BYTES = 64, 4096
DTYPES = ("bfloat16", "float16", "float32")  # torch's names


def digest_of(files: Iterable[Path]) -> str:
    """What a model's GGUF files are known by: sizes, and samples. Raises OSError."""
    digest = hashlib.sha256()
    for part in files:
        size = part.stat().st_size
        digest.update(str(size).encode())
        with part.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(size * sample // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def digest_in(folder: Path) -> str:
    """The digest of the GGUF file that a model directory was made from; "" if it is not known."""
    return str(_told(folder).get("digest") or "")


class Waiting:
    """A model directory's matrices that wait.

    names  of them, as model.safetensors calls them
    """

    def __init__(self, folder: Path, told: dict[str, Any]) -> None:
        self._folder, self._told = folder, told
        self._file, self._dtype = Path(told["file"]), getattr(torch, told["dtype"])
        self._tensors: Tensors | None = None
        self.names = frozenset(told["waiting"])

    @classmethod
    def of(cls, folder: Path) -> Waiting | None:
        """None if all of the directory's weights are in its safetensors. Raises ModelError for a damaged gguf.json."""
        told = _told(folder)
        names = told.get("waiting") or []
        if not names:
            return None
        known = (
            isinstance(told.get("file"), str) and isinstance(told.get("digest"), str) and told.get("dtype") in DTYPES
        )
        if not known or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{folder / TYPES_FILE} does not tell where the weights are.", FETCH_AGAIN)
        return cls(folder, told)

    def numbers(self, name: str) -> Tensor:
        """A matrix, as it would be in safetensors. Raises ModelError if the GGUF file is not what it was."""
        with quiet(), reading_once():
            try:
                return self._opened().numbers(name, self._dtype)
            except (OSError, *DAMAGED) as error:
                raise ModelError(f"{self._file} cannot be read: {reason(error)}.", self._remedy) from error

    def write(self, notify: Notify) -> None:
        """Write them all into model.safetensors; none waits then.

        Raises DoesNotFitError with figures, ModelError if that cannot be. What was written by then is written once more next time.
        """
        try:
            with WeightsFile.there(self._folder / WEIGHTS) as file:
                if not file.has(self.names):
                    raise ModelError(f"{self._folder / WEIGHTS} is of another model.", self._remedy)
                needed, free = file.bytes_of(self.names), shutil.disk_usage(self._folder).free
                if needed > free:
                    raise _no_room(self._file, self._folder, needed, free)
                notify(Notice(f"converting {self._file.name} to safetensors ({format_bytes(needed)}, once)"))
                began = time.monotonic()
                slowly = Slowly("converting", needed, notify)
                for name in sorted(self.names, key=lambda name: self._opened().stored()[name].at):
                    file.write(name, self.numbers(name))
                    slowly.add(file.bytes_of([name]))
                file.finish()
                os.fsync(file.fileno())
            left = {key: value for key, value in self._told.items() if key != "waiting"}
            durable.replace(self._folder / TYPES_FILE, json.dumps(left).encode() + b"\n")
        except OSError as error:
            if durable.is_full(error):
                raise DoesNotFitError(f"the disk of {self._folder} is full.", "Make room.") from error
            raise ModelError(
                f"cannot write to {self._folder}: {error.strerror or error}.", "Check its permissions."
            ) from error
        notify(Notice(f"converted in {time.monotonic() - began:.0f} s"))

    def _opened(self) -> Tensors:
        if self._tensors is None:
            from transformers import AutoConfig

            still = f"weights of {self._folder} are still in {self._file}"
            try:
                self._file.stat()
                contents = check_gguf(self._file)
                same = digest_of(contents.files) == self._told["digest"]
            except OSError as error:
                raise ModelError(f"{still}: {error.strerror}.", self._remedy) from error
            if not same:
                raise ModelError(f"{still}, which has changed.", self._remedy)
            config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False, local_files_only=True)
            self._tensors = Tensors(contents, without_memory(config, self._dtype))
        return self._tensors

    @property
    def _remedy(self) -> str:
        return f"Put it back, or name another file; hgca models rm {self._folder.name} removes what was made of it."


def _told(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / TYPES_FILE).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def _no_room(file: Path, folder: Path, needed: int, free: int) -> DoesNotFitError:
    return DoesNotFitError(
        f"converting {file.name} needs {format_bytes(needed)} in {folder.parent}, {format_bytes(free)} are free.",
        "Make room, or set HGCA_CACHE_DIR.",
    )
