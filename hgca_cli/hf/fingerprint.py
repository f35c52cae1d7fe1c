"""What a model's files are known by: to sessions, jobs, and weights packed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hgca_cli.hf.checks import check_weights
from hgca_cli.hf.packing import told_of
from hgca_cli.hf.registry import ModelFiles

SAMPLES, SAMPLE_BYTES = 64, 4096  # of each file


def fingerprint_of(files: ModelFiles, quant: str = "none") -> str:
    """A model's fingerprint, as of LoadedModel, without its weights in memory. Raises ModelError."""
    return fingerprint(files, check_weights(files.path), quant)


def fingerprint(files: ModelFiles, shards: list[Path], quant: str) -> str:
    """The same of weights' files that are sound. What was made of a GGUF file is known by that, whether all was made of it or not."""
    digest = hashlib.sha256((files.path / "config.json").read_bytes())
    digest.update(b"" if quant == "none" else quant.encode())  # other weights, other rows
    origin = str(told_of(files.path).get("digest") or "")
    digest.update(origin.encode())
    for shard in shards:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(length))
            size = shard.stat().st_size
            digest.update(str(size).encode())
            for sample in () if origin else _samples(file, 8 + length, size):
                digest.update(sample)
    return digest.hexdigest()[:16]


def digest_of(files: Iterable[Path]) -> str:
    """What a model's GGUF files are known by: sizes, and samples. Raises OSError."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for sample in _samples(file, 0, size):
                digest.update(sample)
    return digest.hexdigest()


def _samples(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """Of all its length: rows kept on disk must not meet a sibling of the same shapes."""
    for sample in range(SAMPLES):
        file.seek(begin + (end - begin) * sample // SAMPLES)
        yield file.read(SAMPLE_BYTES)
