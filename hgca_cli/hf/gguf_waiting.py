"""Matrices of a converted model that are still in its GGUF file alone.

They are packed from there (hf/packed.py), which is all that most ask for; whoever wants them as they are in safetensors (--quant none)
has them written first. A model of 8B in 4 bits takes 5 GB of disk so, packed, in place of 21.

    gguf.json    {"layers": ..., "head": ...,    numbers by type (hf/packing.py)
                  "file", "digest", "dtype",     the GGUF file, what it is known by, what the weights are made
                  "waiting": [names]}            matrices that are not in model.safetensors
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgca_cli import durable
from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Notice
from hgca_cli.hf.checks import FETCH_AGAIN, reason
from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.fingerprint import digest_of
from hgca_cli.hf.gguf_check import check_gguf
from hgca_cli.hf.gguf_once import DAMAGED
from hgca_cli.hf.gguf_stream import WEIGHTS, WeightsFile
from hgca_cli.hf.gguf_tensors import Tensors, without_memory
from hgca_cli.hf.mapped import tensors_of
from hgca_cli.hf.model_cache import require_room
from hgca_cli.hf.packing import TYPES_FILE, told_of
from hgca_cli.hf.quiet import quiet
from hgca_cli.hf.registry import Notify
from hgca_cli.hf.slowly import Slowly
from hgca_cli.units import format_bytes

DTYPES = ("bfloat16", "float16", "float32")  # torch's names


class Waiting(Elsewhere):
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
        told = told_of(folder)
        names = told.get("waiting") or []
        if not names:
            return None
        known = (
            isinstance(told.get("file"), str) and isinstance(told.get("digest"), str) and told.get("dtype") in DTYPES
        )
        if not known or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{folder / TYPES_FILE} does not tell where the weights are.", FETCH_AGAIN)
        return cls(folder, told)

    def state(self) -> dict[str, Tensor]:
        """The file's tensors, of which those that wait are holes."""
        return tensors_of(self._folder / WEIGHTS)

    def numbers(self, name: str) -> Tensor:
        """A matrix, as it would be in safetensors. Raises ModelError if the GGUF file is not what it was."""
        with quiet():
            try:
                return self._opened().numbers(name, self._dtype)
            except (OSError, *DAMAGED) as error:
                if "can't allocate memory" in str(error):  # torch's RuntimeError
                    raise
                raise ModelError(f"{self._file} cannot be read: {reason(error)}.", self._remedy) from error

    def write(self, notify: Notify) -> None:
        """Write them all into model.safetensors; none waits then.

        Raises DoesNotFitError with figures, ModelError if that cannot be. What was written by then is written once more next time.
        """
        try:
            with WeightsFile.there(self._folder / WEIGHTS) as file:
                if not file.has(self.names):
                    raise ModelError(f"{self._folder / WEIGHTS} is of another model.", self._remedy)
                needed = file.bytes_of(self.names)
                require_room(self._file.name, needed, self._folder)
                notify(Notice(f"converting {self._file.name} to safetensors ({format_bytes(needed)}, once)"))
                began = time.monotonic()
                slowly = Slowly("converting", needed, notify)
                for name in self._told["waiting"]:
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
