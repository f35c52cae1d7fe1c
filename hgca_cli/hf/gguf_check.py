"""A GGUF file is walked through, bounded by its own size, before a library believes what it claims.

The gguf library trusts counts and offsets: an array of 2^60 numbers in a file of 100 bytes keeps it busy for ever.
Format: ggml, docs/gguf.md (versions 2 and 3, little endian). A large model may be in several files, as llama.cpp's gguf-split names
and numbers them; the first has the keys.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import NamedTuple

from hgca_cli.errors import ModelError

VERSIONS = (2, 3)
AGAIN = "Fetch it again."
_STRING, _ARRAY = 8, 9
_U16 = 2
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # value type -> bytes
_MOST_DIMENSIONS = 8
HEADS = ("output.weight", "token_embd.weight")  # the output layer: the embedding, if there is none of its own
_MOST_NAME = 1 << 16


class Stored(NamedTuple):
    """A tensor of a GGUF file. kind: its number in GGMLQuantizationType; shape: as torch has it; at: where it begins in the file."""

    file: Path
    name: str
    kind: int
    shape: tuple[int, ...]
    at: int
    bytes: int


class Contents(NamedTuple):
    """What is in a sound GGUF file, or in all of a model's.

    files          it is in; architecture: "" if it names none
    part, of parts  which of a model's files it is, from 0
    """

    files: tuple[Path, ...]
    architecture: str
    tensors: list[Stored]
    part: int = 0
    parts: int = 1

    @property
    def numbers(self) -> int:
        """Of all tensors."""
        return sum(prod(one.shape) for one in self.tensors)

    def types(self) -> dict[str, dict[str, int]]:
        """Numbers of matrices by type (Q4_K, ...): of the layers', and of the output layer's."""
        from gguf import GGMLQuantizationType

        layers, ends = Counter[str](), dict[str, dict[str, int]]()
        for one in self.tensors:
            kind = GGMLQuantizationType(one.kind).name
            if one.name.startswith("blk.") and len(one.shape) > 1:
                layers[kind] += prod(one.shape)
            elif one.name in HEADS:
                ends[one.name] = {kind: prod(one.shape)}
        return {"layers": dict(layers), "head": next((ends[name] for name in HEADS if name in ends), {})}


def parts_of(path: Path) -> list[Path]:
    """All files of a model, by the name of the first one; itself, if its name is no first part's."""
    match = PART.search(path.name)
    if match is None or int(match[1]) != 1:
        return [path]
    return [_part(path, match, number) for number in range(1, int(match[2]) + 1)]


def check_gguf(path: Path) -> Contents:
    """What a GGUF file holds that is sound and has a tokenizer, with its other parts. Raises ModelError naming the file."""
    first = _walk(path)
    if first.parts == 1:
        return first
    files, match = parts_of(path), PART.search(path.name)
    if first.part or len(files) != first.parts:
        name = _part(path, match, 1).name if match and int(match[2]) == first.parts else "NAME-00001-of-....gguf"
        raise ModelError(
            f"{path} is part {first.part + 1} of {first.parts} of a model.", f"Name the first one: {name}."
        )
    tensors = {one.name: one for one in first.tensors}
    for number, file in enumerate(files[1:], 1):
        if not file.exists():
            raise ModelError(
                f"{path} is part 1 of {first.parts}, and {file.name} is missing.",
                "All parts belong into one directory.",
            )
        found = _walk(file)
        if (found.part, found.parts) != (number, first.parts) or any(one.name in tensors for one in found.tensors):
            raise ModelError(f"{file} is not part {number + 1} of {path.name}.", AGAIN)
        tensors |= {one.name: one for one in found.tensors}
    return first._replace(files=tuple(files), tensors=list(tensors.values()))


def _part(path: Path, match: re.Match[str], number: int) -> Path:
    return path.with_name(f"{path.name[: match.start()]}-{number:05}-of-{match[2]}.gguf")


def _walk(path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file.", "Its first bytes should be 'GGUF'.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walk(path, data).check()
    except struct.error as error:
        raise ModelError(f"{path} is cut short or damaged.", AGAIN) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", AGAIN) from error


class _Walk:
    """One pass over a file. struct.error means that something ends beyond the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def check(self) -> Contents:
        size = len(self.data)
        version, tensors, pairs = self._unpack("<IQQ")
        if version not in VERSIONS:
            raise self._bad(f"is GGUF version {version}; versions 2 and 3 are read", "Convert it again.")
        if tensors * 32 > size or pairs * 13 > size:  # the fewest bytes one of each takes
            raise self._bad(f"claims {tensors:,} tensors and {pairs:,} keys in {size:,} bytes")
        keys, alignment, architecture = set(), 32, ""
        split = {"split.no": 0, "split.count": 1}
        for _ in range(pairs):
            key = self._string()
            kind = self._unpack("<I")[0]
            if key in keys:
                raise self._bad(f"has the key {key[:60]!r} twice")
            keys.add(key)
            if key == "general.alignment" and kind == 4:
                alignment = struct.unpack_from("<I", self.data, self.at)[0]
            if key in split and kind == _U16:
                split[key] = struct.unpack_from("<H", self.data, self.at)[0]
            if key == "general.architecture" and kind == _STRING:
                begin = self.at
                architecture, self.at = self._string(), begin
            self._skip_value(kind)
        if alignment == 0 or alignment & (alignment - 1):
            raise self._bad(f"has an alignment of {alignment}, not a power of two")
        part, parts = split["split.no"], max(1, split["split.count"])
        if part >= parts or (tensors == 0 and parts == 1):
            raise self._bad(f"claims {tensors:,} tensors, and to be part {part + 1} of {parts}")
        found = self._tensors(tensors, alignment)
        if part == 0 and not {"tokenizer.ggml.tokens", "tokenizer.ggml.model"} <= keys:
            raise self._bad("has no tokenizer", "Use a GGUF file made from a whole language model.")
        return Contents((self.path,), architecture, found, part, parts)

    def _tensors(self, count: int, alignment: int) -> list[Stored]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found: dict[str, Stored] = {}  # places are from where tensors begin
        for _ in range(count):
            name = self._string(_MOST_NAME)
            dimensions = self._unpack("<I")[0]
            if dimensions > _MOST_DIMENSIONS:
                raise self._bad(f"has a tensor {name[:60]!r} of {dimensions} dimensions")
            shape = self._unpack(f"<{dimensions}Q")
            kind, offset = self._unpack("<IQ")
            if name in found:
                raise self._bad(f"names the tensor {name[:60]!r} twice")
            if kind not in {k.value for k in GGMLQuantizationType}:
                raise self._bad(f"stores {name[:60]!r} as type {kind}, which is not known", _NO_TYPE)
            elements = 1
            for length in shape:
                elements *= length
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if elements == 0 or elements % block:
                raise self._bad(f"has a tensor {name[:60]!r} of an impossible shape {shape}")
            found[name] = Stored(self.path, name, kind, shape[::-1], offset, elements // block * block_bytes)
        start = -(-self.at // alignment) * alignment
        room = len(self.data) - start
        for name, one in found.items():
            if one.at % alignment or one.at + one.bytes > room:
                raise self._bad(f"is cut short or damaged: the tensor {name[:60]!r} ends beyond the file")
        if sum(one.bytes for one in found.values()) > room:
            raise self._bad("has tensors that overlap")
        for kind in {one.kind for one in found.values()}:
            self._check_dequantises(kind)
        return [one._replace(at=start + one.at) for one in found.values()]

    def _check_dequantises(self, kind: int) -> None:
        import numpy
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        quant = GGMLQuantizationType(kind)
        try:
            dequantize(numpy.zeros((1, GGML_QUANT_SIZES[quant][1]), dtype=numpy.uint8), quant)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise self._bad(f"has weights of type {quant.name}, which cannot be dequantised", _NO_TYPE) from error

    def _skip_value(self, kind: int) -> None:
        if kind in _SCALARS:
            self._skip(_SCALARS[kind])
        elif kind == _STRING:
            self._skip(self._unpack("<Q")[0])
        elif kind == _ARRAY:
            item, length = self._unpack("<IQ")
            if item in _SCALARS:
                self._skip(_SCALARS[item] * length)
            elif item == _STRING:
                if length * 8 > len(self.data):
                    raise self._bad(f"has an array of {length:,} strings")
                for _ in range(length):
                    self._skip(self._unpack("<Q")[0])
            else:  # arrays of arrays: allowed by the format, written by nobody, and a way to recurse for ever
                raise self._bad(f"has an array of values of type {item}")
        else:
            raise self._bad(f"has a value of type {kind}")

    def _string(self, most: int = _MOST_NAME) -> str:
        length = self._unpack("<Q")[0]
        if length > most:
            raise self._bad(f"has a name of {length:,} bytes")
        begin = self.at
        self._skip(length)
        return self.data[begin : self.at].decode("utf-8")  # UnicodeDecodeError is a ValueError

    def _unpack(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def _skip(self, length: int) -> None:
        if self.at + length > len(self.data):
            raise struct.error("beyond the end")
        self.at += length

    def _bad(self, what: str, hint: str = AGAIN) -> ModelError:
        return ModelError(f"{self.path} {what}.", hint)


_NO_TYPE = "Use a file of another quantisation (Q4_K_M, Q8_0, F16, ...), or the model's safetensors."
