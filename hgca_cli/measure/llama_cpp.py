"""llama.cpp's attention operator on the CPU, through the shared libraries that llama-cpp-python ships.

One graph holds the operator once per layer, as a model's would, over f16 rows: llama.cpp's default type of the cache.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char, c_float, c_int, c_int64, c_size_t, c_uint8, c_void_p
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from hgca_cli.errors import ModelError
from hgca_cli.hardware.timing import reserve

PACKAGE = "llama-cpp-python"
MISSING = f"llama.cpp: {PACKAGE} is not installed, so it is not compared with (pip install {PACKAGE})."
F32, F16 = 0, 1  # enum ggml_type
OVERHEAD = 1 << 20  # bytes in a context for its graph, beyond tensors


class _InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class _Plan(Structure):
    """struct ggml_cplan; the padding is for fields that later versions add."""

    _fields_ = [("work_size", c_size_t), ("work_data", POINTER(c_uint8)), ("padding", c_char * 240)]


@dataclass(frozen=True)
class Ggml:
    """The loaded libraries. base: tensors and graphs; cpu: what computes them."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL
    version: str


def load_ggml() -> Ggml | None:
    """llama.cpp's libraries, None if the package is not installed.

    Raises ModelError if it is, and the libraries are not as expected.
    """
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    name = {"darwin": "lib{}.dylib", "win32": "{}.dll"}.get(sys.platform, "lib{}.so")
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "unknown"
    try:
        base = ctypes.CDLL(str(folder / name.format("ggml-base")))  # first: the other needs it
        cpu = ctypes.CDLL(str(folder / name.format("ggml-cpu")))
        _declare(base, cpu)
    except (OSError, AttributeError) as error:
        raise ModelError(f"{PACKAGE} {installed} cannot be called: {error}.", "Pass --no-llama-cpp.") from error
    return Ggml(base, cpu, installed)


class FlashAttention:
    """ggml_flash_attn_ext over the rows of several layers: one call of `attend` is one pass over all of them."""

    def __init__(self, ggml: Ggml, rows: Sequence[tuple[Tensor, Tensor]], query: Tensor, threads: int) -> None:
        """rows: per layer keys and values [kv_heads, rows, head_dim], copied; query: f32 [tokens, heads, head_dim].

        Raises DoesNotFitError.
        """
        self._ggml = ggml
        tokens, heads, dim = query.shape
        base = ggml.base
        each = sum(part.numel() * 2 for part in rows[0]) + query.numel() * 4 + 8 * base.ggml_tensor_overhead()
        size = len(rows) * each + (query.numel() + 1024) * 4 + base.ggml_graph_overhead() + OVERHEAD
        self._memory = reserve(size, torch.uint8, (size,), (1,))
        self._context = base.ggml_init(_InitParams(size, self._memory.data_ptr(), False))
        asked = self._tensor(F32, query.transpose(0, 1))
        self._graph = base.ggml_new_graph(self._context)
        none = c_void_p(None)
        for key, value in rows:
            place = base.ggml_flash_attn_ext(
                self._context, asked, self._tensor(F16, key), self._tensor(F16, value), none, dim**-0.5, 0.0, 0.0
            )
            base.ggml_build_forward_expand(self._graph, place)
        out = (c_float * query.numel()).from_address(base.ggml_get_data(place))
        self._out = torch.frombuffer(out, dtype=torch.float32).view(tokens, heads, dim)
        self._plan = ggml.cpu.ggml_graph_plan(self._graph, threads, none)
        self._work = (c_uint8 * max(1, self._plan.work_size))()
        self._plan.work_data = ctypes.cast(self._work, POINTER(c_uint8))

    def attend(self) -> Tensor:
        """Compute the graph; returns a view of what the last layer gave, f32 [tokens, heads, head_dim].

        Raises ModelError if llama.cpp refuses.
        """
        status = self._ggml.cpu.ggml_graph_compute(self._graph, ctypes.byref(self._plan))
        if status != 0:
            raise ModelError(f"llama.cpp could not compute its graph (status {status}).", "Pass --no-llama-cpp.")
        return self._out

    def close(self) -> None:
        """Give the context back; nothing may be called or read after."""
        if self._context:
            self._ggml.base.ggml_free(self._context)
            self._context = None

    def _tensor(self, kind: int, numbers: Tensor) -> int:
        """A ggml tensor holding numbers [heads, rows, dim]: each head's rows one after another."""
        heads, rows, dim = numbers.shape
        tensor: int = self._ggml.base.ggml_new_tensor_4d(self._context, kind, dim, rows, heads, 1)
        buffer = (c_uint8 * (numbers.numel() * (4 if kind == F32 else 2))).from_address(
            self._ggml.base.ggml_get_data(tensor)
        )
        torch.frombuffer(buffer, dtype=torch.float32 if kind == F32 else torch.float16).view(numbers.shape).copy_(
            numbers
        )
        return tensor


def _declare(base: ctypes.CDLL, cpu: ctypes.CDLL) -> None:
    """Argument and result types (ggml.h, ggml-cpu.h). Raises AttributeError for a function that is not there."""
    pointer = c_void_p
    for library, name, result, arguments in (
        (base, "ggml_tensor_overhead", c_size_t, []),
        (base, "ggml_graph_overhead", c_size_t, []),
        (base, "ggml_init", pointer, [_InitParams]),
        (base, "ggml_free", None, [pointer]),
        (base, "ggml_new_graph", pointer, [pointer]),
        (base, "ggml_new_tensor_4d", pointer, [pointer, c_int, c_int64, c_int64, c_int64, c_int64]),
        (base, "ggml_get_data", pointer, [pointer]),
        (base, "ggml_flash_attn_ext", pointer, [pointer] * 5 + [c_float] * 3),
        (base, "ggml_build_forward_expand", None, [pointer, pointer]),
        (cpu, "ggml_graph_plan", _Plan, [pointer, c_int, pointer]),
        (cpu, "ggml_graph_compute", c_int, [pointer, POINTER(_Plan)]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
