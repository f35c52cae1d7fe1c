"""What a run takes, in bytes, on the device and in the host's memory: plain arithmetic on the model's model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hgca_cli.config import GRID_WIDE_BYTES
from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.weights import ITEMSIZE, weights_bytes
from hgca_cli.kv.layout import KVLayout, LayerLayout

SCALES = {"int8": 8}  # two float32 beside each row of each KV head in the store
RUNTIME = 448 << 20  # Python, torch, transformers and a tokenizer: measured 330 MiB after the imports, 450 in a chat
CUDA_RUNTIME = 1 << 30  # what a CUDA context takes of the host besides
DISK_SHARE = 0.95  # of what is free on the disk the store is on: others write there, too
CODED_MORE = 256  # rows: a block on its way out of the window, and what the last block of codes lacks
SCORED = 6  # bytes of a row and query head while rows are scored: the score, and a share of bins and lists
SCORES = 192 << 20  # plain attention, where flash kernels do not apply, holds at most 64 MiB of scores three times
WEIGHED = 64 << 20  # moving averages of a chunk hold 16 MiB of weights at most four times, once attention is done


@dataclass(frozen=True)
class Model:
    """What memory depends on, from a model's config and the headers of its files.

    layout           its KV cache; the item sizes in it do not matter here
    parameters       numbers of the weights
    trained_context  tokens it was trained on, 0 if unknown
    own_dtype        of the weights as published: fp32, bf16 or fp16
    tied             the embedding is the output layer's weights, too
    packed           of fp32 weights, how many numbers are held in fewer bytes: (kind of hardware/rates.py WEIGHTS, numbers)
    active_share     of the layers' weights, what one token reads: less than all where experts are chosen
    in_experts       of the layers' weights, the experts'
    packs            its layers' weights are linear layers' and experts', which is what can be packed; experts on the CPU only
    uniform          all numbers of its files are of own_dtype
    quantised        its files hold the weights in a quantised model's own way, in which they stay (with in_file, on a CPU as there)
    in_file          where a quantised file had fewer bits for them: its matrices' numbers as they can be held, by kind as in packed
    """

    layout: KVLayout
    parameters: int
    trained_context: int
    hidden: int
    intermediate: int
    vocabulary: int
    own_dtype: str = "bf16"
    tied: bool = False
    packed: tuple[tuple[str, int], ...] = ()
    active_share: float = 1.0
    in_experts: float = 0.0
    packs: bool = True
    uniform: bool = True
    in_file: tuple[tuple[str, int], ...] = ()
    quantised: bool = False

    @property
    def mixture(self) -> bool:
        """Whether a router chooses experts."""
        return self.active_share < 1.0

    def read_by(self, tokens: int) -> float:
        """Of the layers' weights, the share that is read for so many tokens, each of which has other experts."""
        if not self.in_experts:
            return self.active_share
        chosen = 1.0 - (1.0 - self.active_share) / self.in_experts
        return 1.0 - self.in_experts * (1.0 - chosen) ** tokens

    def packable(self, device: str) -> bool:
        """Whether --quant can be."""
        if device == "cpu":
            return self.packs and (not self.quantised or bool(self.in_file))
        return self.packs and not self.quantised and not self.mixture

    @property
    def head(self) -> int:
        """Numbers of the output layer's weights."""
        return min(self.parameters, self.vocabulary * self.hidden)

    @property
    def body(self) -> int:
        """Numbers of all layers' weights."""
        return max(0, self.parameters - self.head * (1 if self.tied else 2))


@dataclass(frozen=True)
class Choice:
    """One way to run: what the bytes depend on."""

    device: str
    dtype: str
    kv_dtype: str
    context: int
    window: int
    sinks: int
    chunk: int
    select: str = "exact"
    device_codes: bool = False  # a GPU has a copy of scan's codes, and scores rows itself
    quant: str = "none"  # of config.QUANTS: how the weights are packed


@dataclass(frozen=True)
class Memory:
    """What one place must hold. limit: what may be used of it, a margin already taken off. A GPU's store is codes of its rows."""

    place: str  # "GPU 0 (name)", "host memory", or "disk" and its directory
    weights: int
    window: int
    store: int
    work: int  # activations of a prefill chunk, logits, rows on their way
    runtime: int
    limit: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        return {name: getattr(self, name) for name in ("weights", "window", "store", "work", "runtime")}

    @property
    def total(self) -> int:
        """Bytes needed."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most the limit."""
        return self.total <= self.limit


def work_bytes(model: Model, choice: Choice) -> int:
    """Bytes that live during a forward pass of one chunk, on the device that computes it.

    The largest moment of a layer: hidden states and residual, query, key and value, attention output with its float32
    partials, or the three tensors of the MLP; then scores, a float32 row of logits, the streamed piece of the store.
    """
    item = ITEMSIZE[choice.dtype]
    layer = max(model.layout.layers, key=lambda one: one.row_elements)
    attention = layer.heads * (2 * layer.key_dim + 2 * layer.value_dim + layer.key_dim)
    at_once = 3 if choice.device == "cpu" else 1  # parts: chunk, window and store
    partials = at_once * 3 * 4 * layer.heads * layer.value_dim
    per_token = item * (4 * model.hidden + max(attention, 3 * model.intermediate)) + partials
    widened = GRID_WIDE_BYTES if choice.quant != "none" and choice.device != "cpu" else 0
    flash = (
        choice.device == "cpu" and layer.key_dim == layer.value_dim
    )  # but for softcap, which the host's share covers
    averages = averages_bytes(model, choice)
    return (
        choice.chunk * per_token
        + max(0 if flash else SCORES, WEIGHED if any(averages) else 0)
        + max(averages, default=0)
        + widened
        + 3 * 4 * model.vocabulary
        + pieces_bytes(model, choice)[0]
    )


def pieces_bytes(model: Model, choice: Choice) -> tuple[int, int]:
    """Bytes of the buffers in which the store comes to the device (kv/pieces.py): there, and pinned in the host's memory.

    On the CPU rows of the model's dtype are read in place. On a GPU two pieces are there at a time; what is of another
    dtype than the model's is converted into one buffer more.
    """
    full = [layer for layer in model.layout.layers if layer.sliding is None]
    if not full or not stored_rows(choice):
        return 0, 0
    there = pinned = 0
    for layer in full:  # the buffers serve all layers
        heads, rows = layer.piece(stored_rows(choice), gpu=choice.device != "cpu")
        numbers = heads * rows * (layer.key_dim + layer.value_dim)
        converted = numbers * ITEMSIZE[choice.dtype] if choice.kv_dtype != choice.dtype else 0
        if choice.device == "cpu" and choice.kv_dtype in SCALES and choice.dtype != "fp32":
            converted += 2 * 4 * heads * rows * max(layer.key_dim, layer.value_dim)  # torch multiplies in copies there
        copied = numbers * ITEMSIZE[choice.kv_dtype] + heads * rows * SCALES.get(choice.kv_dtype, 0)
        copied = 2 * copied if choice.device != "cpu" else 0
        there, pinned = max(there, converted + copied), max(pinned, copied)
    return there, pinned


def averages_bytes(model: Model, choice: Choice) -> list[int]:
    """Bytes of every layer's moving averages on the device (attention/select/moving_average.py), of one sequence, where rows are
    chosen by them: a float32 for each row in reach of a chunk's end, and query head. While they are renewed a layer has them twice.
    """
    full = [layer for layer in model.layout.layers if layer.sliding is None and choice.select == "moving-average"]
    return [4 * layer.heads * min(choice.context, choice.window + choice.chunk) for layer in full]


def layout_of(model: Model, choice: Choice) -> KVLayout:
    """The model's KV cache, of a choice's sizes."""
    return replace(
        model.layout,
        device_itemsize=ITEMSIZE[choice.dtype],
        store_itemsize=ITEMSIZE[choice.kv_dtype],
        store_scales=SCALES.get(choice.kv_dtype, 0),
        index=choice.select,
    )


def stored_rows(choice: Choice) -> int:
    """Rows per layer that end up in CPU memory when the context is full."""
    return max(0, choice.context - choice.sinks - choice.window)


def full_bytes(model: Model, choice: Choice, sequences: int = 1) -> tuple[int, int]:
    """Bytes of the keys and values of so many full contexts, wherever they are, and of the index beside those of the store."""
    layout, stored = layout_of(model, choice), sequences * stored_rows(choice)
    window = sequences * layout.window_bytes(choice.window, choice.sinks, choice.context)
    return window + stored * (layout.row_bytes - layout.index_row_bytes), stored * layout.index_row_bytes


def folded_bytes(layer: LayerLayout) -> float:
    """Bytes of a row, of a query times steps of codes (attention/scores_triton.py): heads by fours, beyond eight by eights."""
    fours = -(-(layer.heads // layer.kv_heads) // 4)
    fours += fours % 2 if fours > 2 else 0
    numbers = max(64, 1 << (layer.key_dim - 1).bit_length())
    return layer.kv_heads * fours * (8 * numbers + 128) / 128


def device_codes_bytes(model: Model, choice: Choice) -> int:
    """Bytes of a GPU's copy of the codes of stored rows, and of the scores it makes of them, of one sequence."""
    layers = model.layout.layers
    if not choice.device_codes or choice.device == "cpu" or choice.select != "scan":
        return 0
    rows = stored_rows(choice) + CODED_MORE if stored_rows(choice) else 0
    scored = max(SCORED * layer.heads + math.ceil(folded_bytes(layer)) for layer in layers)
    return rows * (sum(layer.index_bytes("scan") for layer in layers) + scored)


def needs(
    model: Model,
    choice: Choice,
    device_limit: int,
    host_limit: int,
    gpu_name: str = "",
    disk: Disk | None = None,
    sequences: int = 1,
) -> list[Memory]:
    """Bytes needed in every place a choice uses: the GPU first, if there is one, then the host, then a disk.

    disk       where the store's rows are, if not in memory: their index stays there. One that is in memory itself is both
    sequences  of a full context, at once

    Weights pass through host memory on their way to a GPU; the store is still empty then.
    """
    layout = layout_of(model, choice)
    weights = weights_bytes(model, choice)
    rows = layout.window_bytes(choice.window, choice.sinks, choice.context)
    window = sequences * (rows + sum(averages_bytes(model, choice)))
    store = sequences * layout.store_bytes(choice.context, choice.window, choice.sinks)
    staging = layout.staging_bytes(choice.chunk) + pieces_bytes(model, choice)[1] if store else 0
    work = work_bytes(model, choice)
    on_disk = []
    if disk is not None:
        files = sequences * stored_rows(choice) * (layout.row_bytes - layout.index_row_bytes)
        on_disk = [Memory(f"disk {disk.name}", 0, 0, files, 0, 0, int(disk.free * DISK_SHARE))]
        store -= 0 if disk.in_memory else files
    if choice.device == "cpu":
        return [Memory("host memory", weights, window, store, work + staging, RUNTIME, host_limit), *on_disk]
    place = f"GPU {choice.device.removeprefix('cuda:')}" + (f" ({gpu_name})" if gpu_name else "")
    return [
        Memory(place, weights, window, sequences * device_codes_bytes(model, choice), work, 0, device_limit),
        Memory("host memory", 0, 0, store, staging, RUNTIME + CUDA_RUNTIME, host_limit),
        Memory("host memory while loading", weights, 0, 0, 0, RUNTIME + CUDA_RUNTIME, host_limit),
        *on_disk,
    ]
