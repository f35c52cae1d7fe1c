"""The gguf library's reader, as transformers is given it: it reads a file's keys once, and in a third of the time.

transformers asks for a file anew for its config, and for its tokenizer. The reader takes each string of a vocabulary out of a mapped
array by a dozen slices, each of which numpy makes another mapped array: 8 s for 150,000 tokens, twice. Slices of a plain array
over the same memory do as well.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hgca_cli.hf.gguf_check import parts_of

# What transformers' readers raise over files that pass our own look: a wrong architecture, a key of another type, ...
DAMAGED = (
    ValueError, struct.error, KeyError, IndexError, OverflowError, TypeError, AttributeError, RuntimeError,
    NotImplementedError, ImportError, RecursionError,
)  # fmt: skip


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Inside, a file is read once, however often it is asked for, and the first of several has the tensors of all."""
    import gguf
    import numpy as np

    theirs, known = gguf.GGUFReader, dict[str, Any]()

    class Reader(theirs):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    def reader(path: Any, *more: Any) -> Any:
        if more:
            return theirs(path, *more)
        if str(path) not in known:
            known[str(path)] = first = Reader(path)
            if (count := first.get_field("split.count")) is not None and count.contents() > 1:
                for part in parts_of(Path(path))[1:]:
                    first.tensors += Reader(part).tensors
        return known[str(path)]

    gguf.GGUFReader = reader
    try:
        yield
    finally:
        gguf.GGUFReader = theirs
