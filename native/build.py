"""Writes the C source of the Python module: what hgca.h declares between its markers, as cffi wants it.

Called by CMake: build.py <hgca.h> <the C file to write>.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

BEGIN, END = "/* cffi:begin */", "/* cffi:end */"


def main(header: Path, target: Path) -> None:
    text = header.read_text()
    ffi = FFI()
    ffi.cdef(text[text.index(BEGIN) + len(BEGIN) : text.index(END)])
    ffi.set_source("hgca_cli._native", '#include "hgca.h"')
    ffi.emit_c_code(str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
