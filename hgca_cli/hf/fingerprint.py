"""What a model's files are known by: to sessions, jobs, and weights packed from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hgca_cli.hf.checks import check_weights
from hgca_cli.hf.gguf_waiting import digest_in
from hgca_cli.hf.registry import ModelFiles

SAMPLES, SAMPLE_BYTES = 64, 4096  # of each weights file


def fingerprint_of(files: ModelFiles, quant: str = "none") -> str:
    """A model's fingerprint, as of LoadedModel, without its weights in memory. Raises ModelError."""
    return fingerprint(files, check_weights(files.path), quant)


def fingerprint(files: ModelFiles, shards: list[Path], quant: str) -> str:
    """The same of weights' files that are sound. What was made of a GGUF file is known by that, whether all was made of it or not."""
    digest = hashlib.sha256((files.path / "config.json").read_bytes())
    digest.update(b"" if quant == "none" else quant.encode())  # other weights, other rows
    origin = digest_in(files.path)
    digest.update(origin.encode())
    for shard in shards:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(length))
            size = shard.stat().st_size
            digest.update(str(size).encode())
            for sample in range(
                0 if origin else SAMPLES
            ):  # rows kept on disk must not meet a sibling of the same shapes
                file.seek(8 + length + (size - 8 - length) * sample // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
