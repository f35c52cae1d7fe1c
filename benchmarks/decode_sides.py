"""Ways to decode one more token of the same text after the same rows, for benchmarks/decode.py.

A side is put `at` a number of rows and then given the tokens that follow in the text, one by one; each `step` ends with
the likeliest next token as a number of Python's.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

import hgca_cli.hf.attention
from hgca_cli.config import CacheSettings
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.shape import kv_layout

CHUNK = 512


@dataclass(frozen=True)
class Text:
    """Tokens, and the rows of them that the model's own attention computes: per layer [kv_heads, rows, dim]."""

    ids: list[int]
    keys: list[Tensor]
    values: list[Tensor]


def read(loaded: LoadedModel, ids: list[int]) -> Text:
    """The rows of a text by transformers' own attention."""
    loaded.model.set_attn_implementation("sdpa")
    cache = DynamicCache()
    with torch.inference_mode():
        for piece in torch.tensor([ids]).split(CHUNK, dim=1):
            loaded.forward(piece, cache, logits_to_keep=1)
    return Text(ids, [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers])


class Side:
    """One way. name: as in the table and the record."""

    name: str

    def at(self, text: Text, rows: int) -> None:
        """Hold the first rows of the text."""

    def begin(self) -> None:
        """A turn begins; its time does not count yet."""

    def step(self, token: int) -> None:
        """One more token."""
        raise NotImplementedError


class Ours(Side):
    """hgca: the engine's forward pass."""

    def __init__(self, loaded: LoadedModel, settings: CacheSettings) -> None:
        self.name = f"hgca {settings.select}"
        self._loaded, self._settings = loaded, settings

    def at(self, text: Text, rows: int) -> None:
        size = self._loaded.dtype.itemsize
        cache = HybridCache(kv_layout(self._loaded.model.config, size, size), self._settings)
        cache.expect(rows)
        for layer, keys, values in zip(cache.layers, text.keys, text.values, strict=True):
            layer.lazy_initialization(
                keys[None, :, :1].to(self._loaded.dtype), values[None, :, :1].to(self._loaded.dtype)
            )
            (state,) = layer.states
            for first in range(0, rows, CHUNK):
                piece = slice(first, min(rows, first + CHUNK))
                kind = self._loaded.dtype
                state.append_chunk(keys[:, piece].to(kind), values[:, piece].to(kind))
                state.settle()
            state.expect(0)
        self.sequence = Sequence(cache)

    def begin(self) -> None:
        self._loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)

    def step(self, token: int) -> None:
        int(self.sequence.forward(self._loaded, torch.tensor([[token]])).argmax())


class Transformers(Side):
    """The same model with its own attention and cache."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.name = f"transformers {'fp32' if loaded.dtype == torch.float32 else 'bf16'}"
        self._loaded = loaded

    def at(self, text: Text, rows: int) -> None:
        self._cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(text.keys, text.values, strict=True)):
            kind = self._loaded.dtype
            self._cache.update(keys[None, :, :rows].to(kind), values[None, :, :rows].to(kind), index)

    def begin(self) -> None:
        self._loaded.model.set_attn_implementation("sdpa")

    @torch.inference_mode()
    def step(self, token: int) -> None:
        int(self._loaded.forward(torch.tensor([[token]]), self._cache, logits_to_keep=1).logits[0, -1].argmax())


class NoAttention(Side):
    """The model's forward pass whose attention hands the query back: what transformers' layers cost."""

    name = "layers alone"

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model

    def begin(self) -> None:
        self._model.set_attn_implementation("none at all")

    @torch.inference_mode()
    def step(self, token: int) -> None:
        int(self._model(input_ids=torch.tensor([[token]]), use_cache=False).logits[0, -1].argmax())


def _no_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return query.transpose(1, 2), None


AttentionInterface.register("none at all", _no_attention)
AttentionMaskInterface.register("none at all", lambda *_, **__: None)


class BareModules(Side):
    """Norms, projections and feed-forward blocks of a Llama-like model, one after another: how fast the weights alone go."""

    name = "bare modules"

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model

    @torch.inference_mode()
    def step(self, token: int) -> None:
        body = self._model.model
        hidden = body.embed_tokens(torch.tensor([[token]]))
        for layer in body.layers:
            own = layer.self_attn
            normed = layer.input_layernorm(hidden)
            query = own.q_proj(normed)
            own.k_proj(normed)
            own.v_proj(normed)
            hidden = hidden + own.o_proj(query)
            normed = layer.post_attention_layernorm(hidden)
            hidden = hidden + layer.mlp(normed)
        int(self._model.lm_head(body.norm(hidden))[0, -1].argmax())


class LlamaCpp(Side):
    """llama.cpp through llama-cpp-python, f16 rows. Its own prefill; kept in a file, as it takes a minute."""

    def __init__(self, gguf: Path, text: Text, context: int, threads: int, *, flash: bool, keep: Path) -> None:
        from llama_cpp import Llama, llama_state_load_file, llama_state_save_file, llama_token

        self.name = f"llama.cpp {gguf.stem.rsplit('.', 1)[-1]}, flash {'on' if flash else 'off'}"
        self.version = version("llama-cpp-python")
        self._llama = Llama(
            str(gguf), n_ctx=context, n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False
        )
        self._tokens = (llama_token * len(text.ids))(*text.ids)
        self._vocabulary = self._llama.n_vocab()
        digest = hashlib.sha256(str(text.ids).encode()).hexdigest()[:8]
        kept = keep / f"llama-{self.version}-{flash:d}-{context}-{digest}.state"
        count = ctypes.c_size_t()
        context_at = self._llama._ctx.ctx
        if not kept.exists():
            self._llama.eval(text.ids)
            llama_state_save_file(context_at, str(kept).encode(), self._tokens, len(text.ids))
        elif not llama_state_load_file(
            context_at, str(kept).encode(), self._tokens, len(text.ids), ctypes.byref(count)
        ):
            raise SystemExit(f"{kept} is not usable: remove it.")

    def at(self, text: Text, rows: int) -> None:
        self._llama.n_tokens = rows  # `eval` forgets what comes after

    def step(self, token: int) -> None:
        import numpy as np

        self._llama.eval([token])
        int(np.ctypeslib.as_array(self._llama._ctx.get_logits(), shape=(self._vocabulary,)).argmax())
