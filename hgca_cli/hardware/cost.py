"""Predicted seconds: of one decoded token by part, and of a prompt. Pure arithmetic on a profile's rates.

A step is a sum of parts, some of which pass beside others (step_cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hgca_cli.config import GRID_FEW
from hgca_cli.hardware.expected import rows_read, scored_rows
from hgca_cli.hardware.memory import Choice, Model, device_codes_bytes, stored_rows
from hgca_cli.hardware.rates import GPU_SHARE, GRIDS, WEIGHT_BYTES, GpuRates, Profile
from hgca_cli.hardware.row_rates import row_ns, thread_factor
from hgca_cli.hardware.step_cost import StepCost
from hgca_cli.hardware.weights import ITEMSIZE, as_published, packed_kinds
from hgca_cli.kv.layout import LayerLayout, as_in_store

CHUNK_LAYERS = 3.0  # times what a token's layer costs, a chunk's does beyond its products: larger small operations
WIDENED = 1.07  # products of weights that are made fp32 for each of them, beside those that are (docs/log.md)
FLASH_SHARE, CUDNN_SHARE = 0.5, 0.68  # of a GPU's products, what attention of a prompt reaches
# of a GPU's memory rate, at which packed weights are multiplied with one vector; what one more adds to that (reckoned, docs/log.md)
GRID_SHARE, GRID_VECTOR = {"grid8": 0.6, "grid4": 0.5}, 0.25
# which attend with cuDNN (attention/cudnn.py), to chunks that are a multiple of this, in prompts most of which is beyond its LONG
CUDNN_CARDS = frozenset({"H20", "H100", "H200", "GH200", "B200", "GB200"})
CUDNN_CHUNK, CUDNN_TOKENS = 1024, 32768
# of a GPU's memory rate at which rows are chosen by codes: 55 us for 40 MB, 140 for 138 MB on an H200
SCORING_SHARE = 0.29
SCORING_US = 21.0  # of a layer beside that: the least that five launches take
FORESEEING_US = 40.0  # of a layer: to foresee its query
# of scoring's time, what else the device does takes longer if it is done beside it: 1.6 and 3.6 ms of 2.0 and 4.3
SLOWS = 0.8
# of two copies and a function of the host, where device and host tell each other by flags in a graph
SIGNAL_SHARE = 0.25
KNEE = 0.9  # of the best throughput a batch could reach: beyond it latency grows and little is gained


@dataclass(frozen=True)
class Costs:
    """A model on a machine."""

    profile: Profile
    model: Model
    quality: float | None = None
    budget: float | None = None
    dense_layers: int = 0

    def decode(self, choice: Choice, threads: int, length: int | None = None, batch: int = 1) -> StepCost:
        """One token of each of `batch` sequences after `length` rows (None: the context is full)."""
        length = choice.context if length is None else length
        gpu = self._gpu(choice.device)
        host = self.profile.host
        layers = self.model.layout.layers
        stored = max(0, length - choice.sinks - choice.window)
        near = min(length, choice.sinks + choice.window)
        dense = replace(choice, select="exact")
        store = [
            self._store(dense if index < self.dense_layers else choice, layer, stored, threads)
            for index, layer in enumerate(layers)
            if layer.sliding is None
        ]
        selection = batch * sum(one[0] for one in store)
        attention = batch * sum(one[1] for one in store)
        fixed = len(layers) * host.layer_us * 1e-6 + host.token_us * 1e-6
        chosen = stored and choice.select not in ("exact", "window")
        per_sequence = host.store_us * 1e-6 * len(store) if chosen else 0.0
        weights = self._weights(choice, threads, batch)
        if gpu is None:
            window = batch * sum(
                self._rows_seconds(choice, layer, min(near, layer.sliding or near), threads) for layer in layers
            )
            return StepCost(weights, fixed, window, 0.0, selection + batch * per_sequence, attention)
        read = sum(layer.row_elements * min(near, layer.sliding or near) for layer in layers) * ITEMSIZE[choice.dtype]
        window = batch * read / (gpu.memory_gb_s * GPU_SHARE * 1e9)
        fixed = (len(layers) * gpu.layer_us + gpu.token_us) * 1e-6
        graph = captured(self.model, choice)
        if not graph:
            fixed = max(fixed, (len(layers) * gpu.launch_us + gpu.token_us) * 1e-6 - weights)
        copies = len(store) * gpu.relay_us * (SIGNAL_SHARE if graph else 1.0) * 1e-6 if stored else 0.0
        if stored and device_codes_bytes(self.model, choice):  # scored there
            codes = batch * stored * sum(layer.index_bytes("scan") for layer in layers[self.dense_layers :])
            scoring = codes / (gpu.memory_gb_s * SCORING_SHARE * 1e9) + len(layers) * SCORING_US * 1e-6
            selection = scoring + len(layers) * FORESEEING_US * 1e-6
            fetched = batch * sum(
                self._fetched(choice, layer, stored, threads) for layer in layers[self.dense_layers :]
            )
            return StepCost(
                weights, fixed, window, copies, selection, attention,
                fetched=fetched, slowed=SLOWS * scoring, ahead=True,
            )  # fmt: skip
        return StepCost(weights, fixed, window, copies, selection, attention, beside=True)

    def prefill(self, choice: Choice, tokens: int, threads: int) -> float:
        """Seconds to read a prompt of so many tokens."""
        gpu, host = self._gpu(choice.device), self.profile.host
        layers = self.model.layout.layers
        factor = 1.0 if gpu else thread_factor(host, threads)
        numbers = self.model.body * self.model.active_share
        products = factor * self._products(choice, numbers, tokens)
        if gpu and choice.quant != "none":
            products += -(-tokens // choice.chunk) * self._widened(choice, numbers, gpu)
        seen = sum(layer.heads * (layer.key_dim + layer.value_dim) * _pairs(tokens, layer.sliding) for layer in layers)
        share = CUDNN_SHARE if gpu and _on_cudnn(gpu, choice, tokens) else FLASH_SHARE
        reached = host.prompt_attention_tflop_s(choice.kv_dtype)
        attention_rate = _of(gpu.matmul_tflop_s, choice.dtype) * share if gpu else reached
        attention = 2.0 * seen * factor / (attention_rate * 1e12)
        chunks = -(-tokens // choice.chunk)
        fixed = chunks * len(layers) * CHUNK_LAYERS * (gpu.launch_us if gpu else host.layer_us) * 1e-6
        if gpu is None:
            return products + attention + fixed
        full = [layer for layer in layers if layer.sliding is None]
        row = sum(layer.row_elements for layer in full) * ITEMSIZE[choice.kv_dtype]
        streamed = row * _streamed(chunks, choice.chunk, choice.window + choice.sinks)
        # beside the attention to window and store the device reads rows from where they are registered (kv/pinning.py)
        way_gb_s = min(gpu.to_device_gb_s, host.best_read_gb_s)
        return products + fixed + max(attention, streamed / (way_gb_s * 1e9))

    def knee(self, choice: Choice, threads: int, most: int, share: float = KNEE) -> int:
        """The smallest batch, up to `most`, that reaches this share of the best throughput of them all.

        Source: Mind the Memory Gap, arXiv:2503.08311: beyond the knee a batch takes memory and time and gives little.
        """
        sizes = sorted({*(1 << k for k in range(most.bit_length())), most})
        rates = [size / self.decode(choice, threads, batch=size).total for size in sizes if size <= most]
        best = max(rates)
        return next(size for size, rate in zip(sizes, rates, strict=False) if rate >= share * best)

    def _gpu(self, device: str) -> GpuRates | None:
        if device == "cpu":
            return None
        index = int(device.partition(":")[2] or 0)
        return next((gpu for gpu in self.profile.gpus if gpu.index == index), self.profile.gpus[0])

    def _weights(self, choice: Choice, threads: int, batch: int) -> float:
        """Every weight once; several sequences share the reading until their products take longer."""
        model, host, gpu = self.model, self.profile.host, self._gpu(choice.device)
        numbers, there = (model.body * share + model.head for share in (model.active_share, model.read_by(batch)))
        if gpu is not None:
            if choice.quant == "none":
                read = there * ITEMSIZE[choice.dtype] / (gpu.memory_gb_s * GPU_SHARE * 1e9)
                return max(read, self._products(choice, numbers, batch))
            if batch > GRID_FEW:
                return self._widened(choice, numbers, gpu) + self._products(choice, numbers, batch)
            each = sum(share * WEIGHT_BYTES[kind] / GRID_SHARE[kind] for kind, share in self._kinds(choice))
            times = max(1.0, batch * GRID_VECTOR)
            return numbers * each * times / (gpu.memory_gb_s * 1e9)
        factor = thread_factor(host, threads)
        if batch > 1:  # torch's products of what is loaded, or the library's with grids
            read = sum(
                share * (WEIGHT_BYTES[kind] if kind in GRIDS else ITEMSIZE[choice.dtype])
                for kind, share in self._kinds(choice)
            )
            return factor * max(there * read / (host.best_read_gb_s * 1e9), self._products(choice, numbers, batch))
        each = sum(
            share * WEIGHT_BYTES[kind] / (_of(host.linear_gb_s, kind) * 1e9) for kind, share in self._kinds(choice)
        )
        return factor * numbers * each

    def _products(self, choice: Choice, numbers: float, vectors: int) -> float:
        """Seconds of so many vectors' products with weights."""
        gpu, host = self._gpu(choice.device), self.profile.host
        if gpu is not None:
            return 2.0 * numbers * vectors / (_of(gpu.matmul_tflop_s, choice.dtype) * 1e12)
        rates = host.matmul_tflop_s
        grids = {kind: rates[kind] for kind in GRIDS & rates.keys()}
        each = sum(
            share / (_of(grids, kind) if kind in GRIDS and grids else _of(rates, choice.dtype))
            for kind, share in self._kinds(choice)
        )
        widened = WIDENED if as_published(self.model, choice) else 1.0
        return 2.0 * numbers * vectors * each * widened * 1e-12

    def _widened(self, choice: Choice, numbers: float, gpu: GpuRates) -> float:
        """Seconds to make packed weights numbers of 16 bits: each is read packed, written, and read once more."""
        held = sum(share * WEIGHT_BYTES[kind] for kind, share in self._kinds(choice))
        return numbers * (held + 2 * 2) / (gpu.memory_gb_s * GPU_SHARE * 1e9)

    def _kinds(self, choice: Choice) -> tuple[tuple[str, float], ...]:
        """What holds the weights that the processor reads, and their shares."""
        held = self.model.packed if choice.quant == "none" else packed_kinds(self.model, choice.quant)
        if held and (choice.dtype == "fp32" or choice.quant != "none"):
            whole = max(1, sum(count for _, count in held))
            return tuple((kind, count / whole) for kind, count in held)
        return (("fp32" if choice.dtype == "fp32" and self.model.own_dtype == "fp32" else "bf16", 1.0),)

    def _store(self, choice: Choice, layer: LayerLayout, stored: int, threads: int) -> tuple[float, float]:
        """Seconds to choose rows of the store of one layer, and to read them."""
        if not stored:
            return 0.0, 0.0
        host = self.profile.host
        factor = thread_factor(host, threads) * 1e-9 * layer.kv_heads
        scored = scored_rows(choice.select, stored)
        selection = scored * row_ns(host, "scan", choice.kv_dtype, layer) if scored else 0.0
        read = rows_read(choice, stored, self.quality, self.budget)
        how = "dense" if read == stored else "runs" if choice.select in ("cluster", "page") else "rows"
        return factor * selection, factor * read * row_ns(host, how, choice.kv_dtype, layer)

    def _fetched(self, choice: Choice, layer: LayerLayout, stored: int, threads: int) -> float:
        """Of reading a layer's chosen rows, what is saved if they are in the caches before: they cost what dense ones do then."""
        host = self.profile.host
        read = rows_read(choice, stored, self.quality, self.budget)
        if read == stored:
            return 0.0
        alone, dense = (row_ns(host, how, choice.kv_dtype, layer) for how in ("rows", "dense"))
        return read * layer.kv_heads * max(0.0, alone - dense) * thread_factor(host, threads) * 1e-9

    def _rows_seconds(self, choice: Choice, layer: LayerLayout, rows: int, threads: int) -> float:
        host = self.profile.host
        narrow = stored_rows(choice) > 0 and as_in_store(layer, ITEMSIZE[choice.dtype], ITEMSIZE[choice.kv_dtype])
        row = row_ns(host, "dense", choice.kv_dtype if narrow else choice.dtype, layer)
        return rows * layer.kv_heads * row * thread_factor(host, threads) * 1e-9


def captured(model: Model, choice: Choice) -> bool:
    """Whether a token on a GPU is a CUDA graph (hf/graph.py), and not started operation by operation."""
    return choice.select != "moving-average" and all(layer.in_graph for layer in model.layout.layers)


def _on_cudnn(gpu: GpuRates, choice: Choice, tokens: int) -> bool:
    """Whether cuDNN attends to most of a prompt."""
    whole = choice.dtype != "fp32" and choice.chunk % CUDNN_CHUNK == 0 and tokens >= CUDNN_TOKENS
    return whole and not CUDNN_CARDS.isdisjoint(gpu.name.split())


def _of(rates: dict[str, float], dtype: str) -> float:
    """The rate of a dtype, of its like, or of whatever there is."""
    like = {"fp16": "bf16", "float4": "grid4", "grid4": "grid8", "grid8": "bf16"}.get(dtype, "fp32")
    return rates.get(dtype) or rates.get(like) or next(iter(rates.values()))


def _pairs(tokens: int, sliding: int | None) -> float:
    """Pairs of a query and a row it sees, over a prompt."""
    if sliding is None or sliding >= tokens:
        return tokens * (tokens + 1) / 2
    return sliding * (sliding + 1) / 2 + (tokens - sliding) * float(sliding)


def _streamed(chunks: int, chunk: int, held: int) -> int:
    """Rows of the store that come to the device, over a prompt: before each chunk, those that `held` has no room for."""
    first = held // chunk + 1  # chunk that finds rows in the store
    if chunks <= first:
        return 0
    return (chunks - first) * (first + chunks - 1) // 2 * chunk - (chunks - first) * held
