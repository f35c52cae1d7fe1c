"""The sides of gpu.py: a model with random weights, and the ways its keys and values can be kept."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hgca_cli.attention.recorded import Recorder
from hgca_cli.config import CacheSettings
from hgca_cli.hardware.memory import Model
from hgca_cli.hf.attention import NAME
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.grid import TILE, Grid, tiles_shape
from hgca_cli.hf.grid_gpu import hold_on_grid
from hgca_cli.hf.load import forward
from hgca_cli.hf.packed import Embedded
from hgca_cli.hf.quicken_gpu import quicken_gpu, unquicken_gpu
from hgca_cli.hf.trial import put_before

FILLED = 4096  # rows a cache is filled with at once
SPREAD = 0.02  # of the weights
# nothing is known of the first, the second is captured, and the first replay takes its graph to the device
WARM_TOKENS = 4


def random_model(shape: Model, device: torch.device, quant: str = "none") -> Any:
    """A Llama of this shape in bf16, its weights drawn on the device; quant: q8 or q4, on grids (hf/packed_gpu.py)."""
    layer = shape.layout.layers[0]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=len(shape.layout.layers),
        num_attention_heads=layer.heads,
        num_key_value_heads=layer.kv_heads,
        max_position_embeddings=1 << 20,
        rope_theta=500_000.0,
        tie_word_embeddings=shape.tied,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    matrices = [one for one in model.modules() if quant != "none" and isinstance(one, nn.Linear | nn.Embedding)]
    for module in matrices:
        module._parameters["weight"] = None
    model = model.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies were on meta, too
    for parameter in model.parameters():
        parameter.normal_(0.0, SPREAD) if parameter.dim() == 2 else parameter.fill_(1.0)
    for module in matrices:
        put_on_grid(
            module, 4 if quant == "q4" and module not in (model.lm_head, model.model.embed_tokens) else 8, device
        )
    return model


def put_on_grid(module: Any, bits: int, device: torch.device) -> None:
    """A layer or an embedding of any weights, on a grid of so many bits."""
    linear = isinstance(module, nn.Linear)
    outputs, inputs = (
        (module.out_features, module.in_features) if linear else (module.num_embeddings, module.embedding_dim)
    )
    shape = tiles_shape(torch.empty(outputs, inputs, device="meta"), bits)
    tiles = torch.randint(256, shape, dtype=torch.uint8, device=device)
    step = SPREAD * 12**0.5 / (1 << bits)
    factors = tiles[..., : 2 * TILE * (2 if bits == 4 else 1)].view(torch.float16)
    factors[..., :TILE], factors[..., TILE:] = step, -7.5 * step
    module._parameters["weight"] = nn.Parameter(tiles, requires_grad=False)
    if linear:
        hold_on_grid(module, Grid(tiles, bits), None, torch.bfloat16)
        return
    put_before(module, Embedded)
    module.held, module.gives, module.padding_idx = Grid(tiles, bits), torch.bfloat16, None


def made_up_rows(shape: Model, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, rows, dim], bf16 in CPU memory: the same for every layer."""
    layer = shape.layout.layers[0]
    draw = torch.Generator(device).manual_seed(20250703)
    size = layer.kv_heads, rows, layer.key_dim
    return tuple(torch.randn(size, generator=draw, device=device, dtype=torch.bfloat16).cpu() for _ in "kv")  # type: ignore[return-value]


class Side:
    """A model with a cache that is full of made-up rows.

    name  as it is printed; before_token: done before each token, not timed
    graph  one token is a CUDA graph, where that can be
    alone  in a graph: the store is not asked, which is what the device takes for the rest
    waits  in a graph: for what the CPU answers. If not, answers are those of the token before, and the device is never idle
    spent  in a graph, by the processor: seconds of each token of the latest that were timed, before it ("begin"), after it ("end"), and
           of the C library within it ("host")
    """

    graph = alone = False
    waits = True

    def __init__(
        self, name: str, model: Any, cache: Any, device: torch.device, before_token: Callable[[], object] | None = None
    ) -> None:
        self.name, self.model, self.cache, self.device = name, model, cache, device
        self._before = before_token or (lambda: None)
        self.sequences = 1
        self.spent: dict[str, list[float]] = {}

    def tokens(self, count: int) -> list[float]:
        """Seconds of `count` tokens, each the likeliest after the one before, after some that are not told."""
        token = torch.ones(self.sequences, 1, dtype=torch.long, device=self.device)
        taken = []
        put_on_side(self.model, self.cache)
        step = GraphStep(self.model, self.cache) if self.graph and GraphStep.serves(self.cache) else None
        if step is not None and self.alone:
            leave_the_store(step.recorder)
        if step is not None and not self.waits:
            wait_for_nobody(step.recorder)
        self.spent = {} if step is None else watched(step.recorder)
        with torch.inference_mode():
            for turn in range(WARM_TOKENS + count):
                self._before()
                began = time.perf_counter()
                if step is not None:
                    logits = step.step(token)
                else:
                    logits = forward(self.model, token, self.cache, logits_to_keep=1).logits[:, -1]
                token = logits.argmax(-1, keepdim=True)
                token.cpu()
                if turn >= WARM_TOKENS:
                    taken.append(time.perf_counter() - began)
                if step is not None:
                    self.spent["host"].append(step.recorder.host_seconds)
        self.spent = {name: seconds[WARM_TOKENS:] for name, seconds in self.spent.items()}
        if step is not None and step.failed:
            print(f"{self.name}: not captured: {step.failed}")
        return taken

    def close(self) -> None:
        """Give the memory back."""
        if isinstance(self.cache, HybridCache):
            self.cache.close()
        self.cache = None
        settle(self.device)


def put_on_side(model: Any, cache: Any) -> None:
    """The model is as ours is loaded where the cache is ours, and else as transformers has it."""
    ours = isinstance(cache, HybridCache)
    model.set_attn_implementation(NAME if ours else "sdpa")
    if ours:
        quicken_gpu(model)
    else:
        unquicken_gpu(model)


def watched(recorder: Recorder) -> dict[str, list[float]]:
    """What a recorder's part of each token takes from now on."""
    spent: dict[str, list[float]] = {"begin": [], "end": [], "host": []}

    def timed(name: str, run: Callable[[], None]) -> Callable[[], None]:
        def runs() -> None:
            began = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - began)

        return runs

    for name in ("begin", "end"):
        setattr(recorder, name, timed(name, getattr(recorder, name)))
    return spent


def wait_for_nobody(recorder: Recorder) -> None:
    """Steps find their answers given, and nobody answers what they ask."""
    begin = recorder.begin

    def begin_answered() -> None:
        begin()
        recorder.let_go()

    recorder.begin = begin_answered  # type: ignore[method-assign]
    recorder.serve = lambda: None  # type: ignore[method-assign]


def leave_the_store(recorder: Recorder) -> None:
    """Steps are as if nothing was stored."""
    begin = recorder.begin

    def begin_alone() -> None:
        begin()
        recorder.kind = (False,)

    recorder.begin = begin_alone  # type: ignore[method-assign]


def hybrid(
    name: str,
    model: Any,
    settings: CacheSettings,
    rows: tuple[Tensor, Tensor],
    device: torch.device,
    sequences: int = 1,
) -> Side:
    """Ours: window on the device, everything older in CPU memory."""
    cache = HybridCache(model.config, settings)
    keys, values = (one.unsqueeze(0).expand(sequences, -1, -1, -1) for one in rows)
    with torch.inference_mode():
        for layer in cache.layers:
            layer.lazy_initialization(keys[:, :, :1].to(device), values[:, :, :1].to(device))
            for state in layer.states:
                state.take_prompt(*rows, FILLED)
            layer.expect(0)
    side = Side(name, model, cache, device)
    side.sequences = sequences
    return side


def streaming(model: Any, settings: CacheSettings, rows: tuple[Tensor, Tensor], device: torch.device) -> Side:
    """The same store, brought to the device whole for every token, as for a prompt's chunk."""
    side = hybrid("exact, streamed", model, settings, rows, device)
    side._before = lambda: side.cache.expect(1)
    return side


def plain(name: str, model: Any, rows: tuple[Tensor, Tensor], device: torch.device, *, offloaded: bool = False) -> Side:
    """transformers' own cache: on the device, or offloaded to CPU memory layer by layer."""
    cache = DynamicCache(config=model.config, offloading=True) if offloaded else DynamicCache(config=model.config)
    with torch.inference_mode():
        for index in range(len(model.model.layers)):
            cache.update(rows[0][None].to(device), rows[1][None].to(device), index)
    return Side(name, model, cache, device)


def read_prompt(model: Any, cache: Any, ids: Tensor, chunk: int) -> tuple[float, list[float]]:
    """Seconds to read a prompt in chunks, and of each."""
    device = ids.device
    taken = []
    put_on_side(model, cache)
    if isinstance(cache, HybridCache):
        cache.expect(ids.shape[1])
    with torch.inference_mode():
        for piece in ids.split(chunk, dim=1):
            began = time.perf_counter()
            forward(model, piece, cache, logits_to_keep=1)
            wait(device)
            taken.append(time.perf_counter() - began)
    return sum(taken), taken


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settle(device: torch.device) -> None:
    """Memory nobody uses goes back to the device, and its peak is counted anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
