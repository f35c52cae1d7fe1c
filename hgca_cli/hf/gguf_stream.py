"""A GGUF file's weights into safetensors, one tensor after the other: in memory is one of them.

transformers reads such a file whole, in floats: an 8B model of 4 bits takes 20 GB so. If its answers about which tensor is which
weight are not all the weights the model has, or it has become another, nothing is written.

Matrices may wait: the file has a place for each, of which nothing is on the disk, until somebody asks for it (hf/gguf_waiting.py).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.hf.experts import FIRST, LAST, expert_weights
from hgca_cli.hf.gguf_check import Contents
from hgca_cli.hf.gguf_tensors import Tensors, without_memory
from hgca_cli.hf.grid import BLOCK
from hgca_cli.hf.published import mostly
from hgca_cli.hf.registry import Notify, ignore
from hgca_cli.hf.slowly import Slowly

WEIGHTS = "model.safetensors"
FIRST_ROWS = 64  # of a matrix that waits, and is an embedding: they are looked at whatever becomes of it (hf/packed.py)
WIDTHS = {".ffn_down_exps.weight": "moe_intermediate_size", ".ffn_down_shexp.weight": "shared_expert_intermediate_size"}
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def write_weights(
    path: Path,
    contents: Contents,
    target: Path,
    dtype: torch.dtype,
    wait: bool = False,
    begin: Callable[[int, bool], None] = lambda *_: None,
    notify: Notify = ignore,
) -> list[str] | None:
    """Write config.json, generation_config.json and the weights of a sound GGUF file into `target`, as numbers of `dtype`.

    wait   the matrices that hf/packed.py takes are left out, if they are most of the model
    begin  told before that how many bytes are written, and whether something is left out; notify: how far it is

    Returns the names of those left out; None, and no weights are left there, if transformers does not name every weight.
    Raises what the libraries raise.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        str(path.parent), gguf_file=path.name, trust_remote_code=False, local_files_only=True
    )
    _widths(config, contents)
    model = without_memory(config, dtype)
    tensors = Tensors(contents, model)
    if not tensors.known:
        return None
    waiting = _may_wait(model, tensors) if wait else []
    missing = tensors.wanted.keys() - waiting
    needed = sum(torch.Size(tensors.wanted[name]).numel() for name in missing) * dtype.itemsize
    begin(needed, bool(waiting))
    slowly = Slowly("converting", needed, notify)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    with WeightsFile.new(target / WEIGHTS, tensors.wanted, dtype) as file:
        for name, weight in tensors.each(but=waiting):
            if name not in missing or tuple(weight.shape) != tensors.wanted[name]:
                return None
            file.write(name, weight.to(dtype))
            missing.discard(name)
            slowly.add(file.bytes_of([name]))
        embedding = f"{_name_of(model, model.get_input_embeddings())}.weight"
        if embedding in waiting:
            file.write(embedding, tensors.numbers(embedding, dtype, FIRST_ROWS))
        if missing:
            return None
        file.finish()
    return waiting


def _widths(config: Any, contents: Contents) -> None:
    """Widths of experts, which transformers does not read: by their tensors."""
    for part, name in WIDTHS.items():
        found = {one.shape[-1] for one in contents.tensors if one.name.endswith(part)}
        if len(found) == 1 and hasattr(config, name):
            setattr(config, name, found.pop())


def _may_wait(model: Any, tensors: Tensors) -> list[str]:
    embedding = model.get_input_embeddings()
    found: dict[str, Tensor] = {}
    for at, module in model.named_modules():
        if type(module) is nn.Linear or (module is embedding and isinstance(module, nn.Embedding)):
            name = f"{at}.weight"
            shape = tensors.wanted.get(name)  # None: tied, and another's
            if shape is not None and tensors.has(name) and shape[1] % BLOCK == 0:
                found[name] = module.weight
        elif expert_weights(module, lambda _: True) and all(tensors.has(f"{at}.{part}") for part in (FIRST, LAST)):
            found |= {f"{at}.{part}": module._parameters[part] for part in (FIRST, LAST)}
    return list(found) if mostly(model, found.values()) else []


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


class WeightsFile:
    """A safetensors file whose tensors are written one by one, each at its place; unless it is finished, a new one is gone.

    What is not written takes no room on the disk, where the file system has files with holes.
    """

    def __init__(self, path: Path, places: dict[str, tuple[int, int]], new: bool) -> None:
        self._path, self._places, self._new = path, places, new
        self._file = path.open("r+b")

    @classmethod
    def new(cls, path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> WeightsFile:
        """With room for tensors of these shapes."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in shapes.items():
            size = torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
        return cls(path, _places(len(text), header), new=True)

    @classmethod
    def there(cls, path: Path) -> WeightsFile:
        """One with a sound header."""
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            return cls(path, _places(length, json.loads(file.read(length))), new=False)

    def has(self, names: Iterable[str]) -> bool:
        """Whether there is a place for all of them."""
        return self._places.keys() >= set(names)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Of tensors once they are written."""
        return sum(self._places[name][1] for name in names)

    def write(self, name: str, weight: Tensor) -> None:
        """Its numbers, or the first rows of them."""
        at, size = self._places[name]
        data = weight.contiguous().view(torch.uint8).numpy().data.cast("B")
        assert len(data) <= size
        self._file.seek(at)
        self._file.write(data)

    def finish(self) -> None:
        """All is there that shall be."""
        self._file.flush()
        self._new = False

    def fileno(self) -> int:
        """Of the open file."""
        return self._file.fileno()

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if self._new:
            self._path.unlink(missing_ok=True)


def _places(length: int, header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Where a tensor's bytes begin, and how many there are."""
    offsets = {name: one["data_offsets"] for name, one in header.items() if name != "__metadata__"}
    return {name: (8 + length + first, end - first) for name, (first, end) in offsets.items()}
