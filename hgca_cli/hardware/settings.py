"""What a user asked for, and every setting of the run that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hgca_cli.config import HELD, CacheSettings
from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.memory import Memory
from hgca_cli.hardware.step_cost import StepCost


@dataclass(frozen=True)
class PlanRequest:
    """What the user asked for. None (of device also "auto"): the planner decides.

    select          the policy; budget, quality, dense_layers: passed on
    quant           weights are packed while they are loaded: of config.QUANTS; None: as a quantised file has them, or so
                    that they fit on the GPU
    yarn            the context is stretched with YaRN, so a context beyond the trained one needs no warning
    gpu_memory, ram_limit  bytes that may be used at most
    gpu_margin      bytes of a GPU that are left for what is not counted
    disk            where the store's rows are; None: in memory
    may_round       weights that do not fit on a GPU may be rounded unasked
    sequences       of a full context that are to run at once
    """

    device: str | None = None  # "cpu", "cuda", "cuda:1"
    dtype: str | None = None
    kv_dtype: str | None = None
    context: int | None = None
    window: int | None = None
    sinks: int | None = None
    chunk: int | None = None
    threads: int | None = None
    select: str | None = None
    budget: float | None = None
    quality: float | None = None
    dense_layers: int = 0
    gpu_memory: int | None = None
    gpu_margin: int | None = None
    ram_limit: int | None = None
    disk: Disk | None = None
    yarn: bool = False
    quant: str | None = None
    may_round: bool = True
    sequences: int = 1


@dataclass(frozen=True)
class Prediction:
    """What a plan is expected to take.

    step             of one token of each sequence after a full context; empty: of the first tokens
    prefill_seconds  to read a full context
    batch            sequences at once beyond which throughput hardly grows
    profile, origin  whose rates these are, "measured" or "estimated"
    read_gb_s        memory's, by these rates
    """

    step: StepCost
    empty: StepCost
    prefill_seconds: float
    batch: int
    profile: str
    origin: str
    read_gb_s: float


@dataclass(frozen=True)
class Plan:
    """Every setting of a run.

    device_codes  the GPU has a copy of `scan`'s codes and scores rows itself
    yarn_context  what the positions are stretched to, None if they are not
    store_dir     directory of the files the store's rows are in; None: they are in memory
    memory        what each place must hold: the GPU if there is one, the host, the host while loading, the disk
    kv_bytes      of keys and values once the context is full, in all places; index_bytes: of the index beside the store's
    predicted     what it will take
    quant         how weights are packed: of config.QUANTS
    reasons       why, by setting; notices: what the user should know
    """

    device: str
    dtype: str
    kv_dtype: str
    context: int
    window: int
    sinks: int
    threads: int
    chunk: int
    select: str
    budget: float | None
    quality: float | None
    dense_layers: int
    device_codes: bool
    yarn_context: int | None
    store_dir: str | None
    memory: tuple[Memory, ...]
    kv_bytes: int
    index_bytes: int
    predicted: Prediction
    reasons: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    quant: str = "none"

    @property
    def numbers(self) -> str:
        """What is computed in, and how the weights are held if that is something else."""
        return self.dtype + HELD[self.quant]

    @property
    def fits(self) -> bool:
        """Whether every place can hold what it must."""
        return all(memory.fits for memory in self.memory)

    @property
    def stored_rows(self) -> int:
        """Rows per layer in CPU memory when the context is full; 0: nothing is offloaded."""
        return max(0, self.context - self.sinks - self.window)

    @property
    def cache(self) -> CacheSettings:
        """The settings of the cache this plan is about."""
        return CacheSettings(
            window=self.window,
            sinks=self.sinks,
            context=self.context,
            select=self.select,
            budget=self.budget,
            kv_dtype=self.kv_dtype,
            quality=self.quality,
            dense_layers=self.dense_layers,
            store_dir=self.store_dir,
            device_codes=self.device_codes,
            look_ahead=self.device_codes,
        )

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes on the GPU by what they are for; empty on the CPU."""
        return self.memory[0].parts if self.device != "cpu" else {}

    @property
    def device_limit(self) -> int:
        """Bytes of the GPU that may be used; 0 on the CPU."""
        return self.memory[0].limit if self.device != "cpu" else 0

    @property
    def host_bytes(self) -> dict[str, int]:
        """Bytes in host memory once the model is loaded and the context full, by what they are for."""
        return self._host.parts

    @property
    def host_limit(self) -> int:
        """Bytes of host memory that may be used."""
        return self._host.limit

    @property
    def _host(self) -> Memory:
        return self.memory[0] if self.device == "cpu" else self.memory[1]
