"""What a run is doing, as plain numbers read from it while it goes on. Bytes, rows, tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Places:
    """Where the rows of a sequence are: counts of one layer that sees everything, bytes of all layers.

    sinks, window  on the device: the first rows, and the newest; sliding layers' bytes count, too
    pending        on their way to the store
    store          in CPU memory; clustered: of those, how many stand in groups of like keys
    index_bytes    what the policy keeps beside the store's rows
    """

    sinks: int
    window: int
    pending: int
    store: int
    clustered: int | None
    window_bytes: int
    pending_bytes: int
    store_bytes: int
    index_bytes: int

    @property
    def tokens(self) -> int:
        """Every row is in exactly one place."""
        return self.sinks + self.window + self.pending + self.store


@dataclass(frozen=True)
class Spent:
    """Seconds of one token's attention by part, over all layers. None: not measured. They add up: what is hidden is left out.

    window     the device attends to its window
    selection  the CPU chooses rows of the store
    attention  the CPU attends to them, and to a window that is in its memory
    hidden     of the CPU's work, what passes while the device works
    """

    window: float | None = None
    selection: float | None = None
    attention: float | None = None
    hidden: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """One reading.

    device       the model's: "cpu", "cuda:0"
    tokens       read and written; the newest may have no row yet
    threads      of the C library, at present
    spent        of the newest token
    read_share   of the store's rows, read per layer, head and token of this answer; bytes_share of its bytes, the index included
    quality      share of the attention mass that was read, mean of `measured` readings; asked, aim: what was asked for, and
                 what the policy aims at now; None: nothing of the kind
    heads        for each layer the share of the store each KV head read for the newest token; None: the layer has no store
    read_bytes   of CPU memory, touched for the newest token's attention; None: not known
    to_host, to_device  bytes that cross PCIe per token: queries, and results; None without a GPU
    evicted      bytes of rows that left the device so far; None without a GPU
    """

    device: str
    tokens: int
    context: int
    threads: int
    places: Places
    spent: Spent
    read_share: float
    bytes_share: float
    quality: float | None
    measured: int
    asked: float | None
    aim: float | None
    heads: tuple[tuple[float, ...] | None, ...]
    read_bytes: int | None = None
    to_host: int | None = None
    to_device: int | None = None
    evicted: int | None = None


@dataclass(frozen=True)
class Used:
    """What the process uses of the machine. None: not known, or not there.

    processors  that are busy with it, like 1.9
    memory      bytes of host memory; gpu_*: of the device, by all processes
    gpu_busy    share of the time the GPU is at work
    """

    processors: float | None
    memory: int
    gpu_memory: int | None = None
    gpu_total: int | None = None
    gpu_busy: float | None = None


@dataclass(frozen=True)
class Slot:
    """One of the sequences that run together. key: whatever its request is known by.

    read     of the tokens of its prompt; written: of `most` that its answer may have
    aside    it waits for memory
    """

    key: Any
    prompt: int
    read: int
    written: int
    most: int
    aside: bool = False
