"""Writes the C source of the Python module: what headers declare between their markers, as cffi wants it.

Called by CMake: build.py <hgca.h> <hgca_model.h> <the C file to write>.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

BEGIN, END = "/* cffi:begin */", "/* cffi:end */"


def main(headers: list[Path], target: Path) -> None:
    ffi = FFI()
    for header in headers:
        text = header.read_text()
        ffi.cdef(text[text.index(BEGIN) + len(BEGIN) : text.index(END)])
    ffi.set_source("hgca_cli._native", '#include "hgca.h"')
    ffi.emit_c_code(str(target))


if __name__ == "__main__":
    main([Path(header) for header in sys.argv[1:-1]], Path(sys.argv[-1]))
