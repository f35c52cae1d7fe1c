"""What is measured, as plain numbers: checked and counted before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}  # bytes of a number
PATTERNS = {"dense": 0, "runs64": 64, "runs16": 16, "rows": 1}  # rows in a run; 0: all rows are read
SHARE = 10  # one row in so many is read, unless the pattern is dense
SCALE_BYTES = 8  # of an int8 row: one of its key, one of its value
COLD_BYTES = 128 << 20  # rows the layers read in all: at least these, and four times the last cache
TURN_BYTES = 512 << 20  # rows of a turn: waking threads is little beside it, as in a model's step
MOST_LAYERS = 64
MOST_PASSES = 16
CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Case:
    """Attention of one layer. dtype: of DTYPES; pattern: of PATTERNS; tokens: query tokens that share the rows."""

    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    dtype: str = "bf16"
    pattern: str = "dense"
    tokens: int = 1

    @property
    def shape(self) -> str:
        """heads/kv_heads/head_dim."""
        return f"{self.heads}/{self.kv_heads}/{self.head_dim}"

    @property
    def numbers(self) -> int:
        """Numbers in one layer's keys and values."""
        return self.kv_heads * self.rows * 2 * self.head_dim

    @property
    def read(self) -> int:
        """Rows of a KV head that are read."""
        return self.rows if self.pattern == "dense" else max(1, self.rows // SHARE)

    def bytes_of(self, rows: int) -> int:
        """Bytes of keys and values of `rows` rows of every KV head in one layer, scales of int8 rows included."""
        scales = SCALE_BYTES if self.dtype == "int8" else 0
        return self.kv_heads * rows * (2 * self.head_dim * DTYPES[self.dtype] + scales)

    def layers(self) -> int:
        """How many layers it takes for the rows not to fit into the cache."""
        return min(MOST_LAYERS, -(-max(COLD_BYTES, 4 * last_cache()) // self.bytes_of(self.read)))

    def passes(self, layers: int) -> int:
        """How often a turn goes through so many layers."""
        return min(MOST_PASSES, -(-TURN_BYTES // (layers * self.bytes_of(self.read))))

    def memory(self, layers: int, *, llama_cpp: bool) -> int:
        """Bytes that measuring takes: our rows, torch's, llama.cpp's, and float32 numbers they are made of."""
        ours = DTYPES[self.dtype]
        others = (4 if self.dtype == "int8" else ours) + (2 if llama_cpp else 0)
        return layers * self.numbers * (ours + others) + 3 * self.numbers * 4


def last_cache() -> int:
    """Bytes of the processor's last cache; 32 MiB where the system does not tell."""
    try:
        return int(CACHE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20
