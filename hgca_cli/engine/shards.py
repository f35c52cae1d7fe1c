"""Rows of all layers in safetensors files: written piece by piece, checked whole before a byte of them is used.

A tensor is called `<layer>.<first position>.<keys|values|scales>` and is [kv_heads, rows, width]. The format is a table
and the bytes behind it, so a file is written without ever being in memory; safetensors itself reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgca_cli.engine.session_files import DamagedError, open_regular, writing
from hgca_cli.engine.session_record import Stored
from hgca_cli.kv.held import Piece, only_copy
from hgca_cli.kv.layout import LayerLayout

NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
PARTS = ("keys", "values", "scales")
READ_BYTES = 4 << 20


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Stored:
    """A safetensors file under a name nobody refers to yet; surely on the disk. Errors as of `writing`."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # stable; every tensor is aligned
    table: dict[str, Any] = {}
    at = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        table[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header
    with writing(path), path.open("xb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o600)
        crc = _write(file, head, 0)
        for name in order:
            if tensors[name].numel():
                crc = _write(file, memoryview(only_copy(tensors[name]).flatten().view(torch.uint8).numpy().data), crc)
        os.fsync(file.fileno())
    return Stored(f"{path.parent.name}/{path.name}", len(head) + at, crc)


def read_tensors(path: Path, wanted: Stored) -> dict[str, Tensor]:
    """The tensors of a file, read from the disk as they are used. Raises DamagedError unless every byte is what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        _check(path, wanted)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing.") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error


def named(pieces: Iterable[tuple[int, Piece]]) -> dict[str, Tensor]:
    """Pieces of layers as tensors by name."""
    return {
        f"{layer}.{piece.first}.{part}": tensor
        for layer, piece in pieces
        for part, tensor in zip(PARTS, piece[1:], strict=True)
        if tensor is not None
    }


def pieces_of(
    tensors: dict[str, Tensor], layers: tuple[LayerLayout, ...], dtypes: tuple[torch.dtype, torch.dtype], where: str
) -> Iterator[tuple[int, list[Piece]]]:
    """The pieces of each layer, in order of their positions.

    dtypes  of the window's rows and the store's; where: named in errors

    Raises DamagedError for a tensor that no such layer has. Whether the pieces are of the positions they should be is
    for the caller to see.
    """
    found: list[dict[int, dict[str, Tensor]]] = [{} for _ in layers]
    for name, tensor in tensors.items():
        layer, first, part = _parsed(name, len(layers), where)
        found[layer].setdefault(first, {})[part] = tensor
    for index, (layout, places) in enumerate(zip(layers, found, strict=True)):
        pieces = []
        for first in sorted(places):
            piece = Piece(first, *(places[first].get(part) for part in PARTS))  # type: ignore[arg-type]
            if not _fits(piece, layout, dtypes):
                raise DamagedError(f"{where}: rows of layer {index} are of another shape or dtype.")
            pieces.append(piece)
        if any(one.end != next_one.first for one, next_one in pairwise(pieces)):
            raise DamagedError(f"{where}: rows of layer {index} are missing.")
        yield index, pieces


def _fits(piece: Piece, layout: LayerLayout, dtypes: tuple[torch.dtype, torch.dtype]) -> bool:
    if piece.keys is None or piece.values is None or piece.keys.dim() != 3:
        return False
    dtype, rows = piece.keys.dtype, piece.keys.shape[1]
    scaled = piece.scales is not None
    return (
        dtype in dtypes
        and scaled == (dtype == torch.int8)
        and piece.keys.shape == (layout.kv_heads, rows, layout.key_dim)
        and piece.values.dtype == dtype
        and piece.values.shape == (layout.kv_heads, rows, layout.value_dim)
        and (
            piece.scales is None
            or (piece.scales.dtype, piece.scales.shape) == (torch.float32, (layout.kv_heads, rows, 2))
        )
    )


def _parsed(name: str, layers: int, where: str) -> tuple[int, int, str]:
    with contextlib.suppress(ValueError):
        layer, first, part = name.split(".")
        if part in PARTS and layer.isascii() and first.isascii() and int(layer) < layers and int(first) < 1 << 40:
            return int(layer), int(first), part
    raise DamagedError(f"{where}: holds a tensor of another name.")


def _check(path: Path, wanted: Stored) -> None:
    """Raises DamagedError unless a file has its size and checksum."""
    with open_regular(path) as handle, os.fdopen(os.dup(handle), "rb", buffering=0) as file:
        if (size := os.fstat(handle).st_size) != wanted.bytes:
            raise DamagedError(f"{path} has {size:,} bytes in place of {wanted.bytes:,}.")
        room = memoryview(bytearray(READ_BYTES))
        crc = 0
        while count := file.readinto(room):
            crc = zlib.crc32(room[:count], crc)
    if crc != wanted.crc:
        raise DamagedError(f"{path} is damaged: its checksum is wrong.")


def _write(file: Any, content: bytes | memoryview, crc: int) -> int:
    crc = zlib.crc32(content, crc)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    return crc
