"""What a machine can do, in numbers: rates of its processors, memory and GPUs, as a profile keeps them.

Plain data without torch. Units are in the names: gb_s is 1e9 bytes a second, tflop_s 1e12 operations (a product and a
sum are two), ns and us are of one row and one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOW = ("dense", "runs", "rows", "scan")  # ways a store's rows are read: all, runs of 64, single ones; scored by codes
GPU_SHARE = 0.8  # of a GPU's memory rate that reading weights and rows one after another reaches
WEIGHTS = ("fp32", "bf16", "grid8", "grid4")  # what holds a linear layer's weights for one token (hf/linear.py)
GRIDS = frozenset({"grid8", "grid4", "float4"})
WEIGHT_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "grid8": 34 / 32,
    "grid4": 20 / 32,
    "float4": 18 / 32,
}  # of a number, scales of a grid included
BUSY, QUIET = 0.5, 0.25  # runnable threads of a processor: others use the machine, or hardly


@dataclass(frozen=True)
class RowRate:
    """What our kernels take for one row of one KV head, on all threads, its rows in memory.

    how   of HOW; dtype of the store's rows
    rows  in the store of each KV head
    ns    per row that is read or, of "scan", scored
    """

    how: str
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    ns: float


@dataclass(frozen=True)
class HostRates:
    """Processors and memory.

    usable              processors the process might use: affinity mask and control group's quota
    memory_total, memory_free  bytes, control groups counted
    read_gb_s           of memory, by number of threads
    attention_gb_s      our kernel's, dense bf16 rows of 32/8/128, by number of threads
    linear_gb_s         weights times one vector, by what holds the weights (WEIGHTS); bytes are those held
    matmul_tflop_s      weights times a prompt's chunk, by dtype; by grid, where the library multiplies with those
    prefill_attention_tflop_s  attention of a prompt's chunk to rows of fp32
    prefill_attention_bf16_tflop_s  to rows of bf16, or int8; None: not told apart
    layer_us            what a layer costs one token beyond its weights and its rows: Python, small operations, calls
    store_us            beyond that where rows of the store are chosen
    token_us            what a token costs beyond its layers and weights
    load                threads of others that wanted to run, of each processor, when measuring began
    noise               share by which reading was slower in the median turn than in the best: others used the machine
    """

    processor: str
    physical_cores: int
    logical_cores: int
    usable: int
    numa_nodes: int
    isa: str
    memory_total: int
    memory_free: int
    read_gb_s: dict[int, float]
    attention_gb_s: dict[int, float]
    linear_gb_s: dict[str, float]
    matmul_tflop_s: dict[str, float]
    prefill_attention_tflop_s: float
    layer_us: float
    store_us: float
    token_us: float
    quota: float | None = None
    noise: float = 0.0
    load: float = 0.0
    prefill_attention_bf16_tflop_s: float | None = None
    rows: tuple[RowRate, ...] = ()

    def prompt_attention_tflop_s(self, kv_dtype: str) -> float:
        """Of a prompt's chunk to rows of a store."""
        narrow = self.prefill_attention_bf16_tflop_s if kv_dtype in ("bf16", "int8") else None
        return narrow or self.prefill_attention_tflop_s

    @property
    def best_read_gb_s(self) -> float:
        """Of the number of threads that reads fastest."""
        return max(self.read_gb_s.values())


@dataclass(frozen=True)
class GpuRates:
    """One GPU.

    to_device_gb_s, from_device_gb_s  copies from and to pinned memory; pageable: from memory that is not
    copy_us            a copy of a few hundred bytes, started and waited for
    memory_gb_s        read bandwidth of its memory
    matmul_tflop_s     by dtype
    layer_us           what a layer costs one token beyond its weights and rows, in a CUDA graph: its small kernels
    relay_us           beyond that where rows of the store are read: the query's way to the processor, and the answer's back
    token_us           what a token costs beyond its layers and weights
    launch_us          a layer whose operations are started one by one, as a prompt's chunks are
    """

    index: int
    name: str
    memory_total: int
    memory_free: int
    driver: str
    to_device_gb_s: float
    from_device_gb_s: float
    pageable_gb_s: float
    copy_us: float
    memory_gb_s: float
    matmul_tflop_s: dict[str, float]
    layer_us: float
    relay_us: float
    token_us: float
    launch_us: float


@dataclass(frozen=True)
class Profile:
    """One machine.

    origin    "measured" or "estimated"; quick: measured in some seconds
    versions  of what the rates depend on: hgca, torch
    note      where the figures are from
    """

    name: str
    origin: str
    date: str
    host: HostRates
    gpus: tuple[GpuRates, ...] = ()
    quick: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
