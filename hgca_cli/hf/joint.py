"""Sequences of different lengths in one forward pass: a token of each that is written, or the prompts of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.decoder import Parts, QuickDecoder
from hgca_cli.hf.load import LoadedModel, forward
from hgca_cli.hf.straight import next_of_each

FLOATS_PAY = 16  # torch's products of so many vectors read the weights as fast as the library does one by one (docs/log.md, "A batch")
NEVER = 1 << 30


def pays_from(loaded: LoadedModel) -> int:
    """How many sequences are faster together than one by one, where a token of all is no graph (hf/joint_graph.py).

    On a GPU none: a token of one is a CUDA graph, of which eight take 70 ms at 32k rows where one pass for all, started operation by
    operation, takes 260.
    """
    if loaded.device.type != "cpu":
        return NEVER
    return 2 if one_call_a_layer(loaded) else FLOATS_PAY


def most_in_a_call(loaded: LoadedModel) -> int:
    """Sequences of which the C library does a layer together, at most; 1: of each by itself."""
    return min((part.most for part in _parts(loaded)), default=1)


def one_call_a_layer(loaded: LoadedModel) -> bool:
    """Whether the C library does a layer of all sequences together, their attention included."""
    return most_in_a_call(loaded) > 1


def _parts(loaded: LoadedModel) -> list[Parts]:
    return [layer.parts for layer in loaded.model.modules() if isinstance(layer, QuickDecoder)]


class JointCache(HybridCache):
    """The caches of several sequences as one batch's: its layers hand on the states of theirs, and own no row."""

    def __init__(self, caches: Sequence[HybridCache], several: list[int] | None = None) -> None:
        """caches  of one sequence each, of one engine, whose layers have states; several: as of HybridLayer"""
        super().__init__(caches[0].layout, caches[0].settings)
        for index, layer in enumerate(self.layers):
            layer.states = [cache.layers[index].states[0] for cache in caches]
            layer.several = several
            layer.is_initialized = True


@torch.inference_mode()
def joint_forward(loaded: LoadedModel, joint: JointCache, tokens: list[int], positions: list[int]) -> Tensor:
    """One more token of each sequence, at its position: logits [sequences, vocabulary].

    An error leaves rows in some layers of some sequences: the caller rewinds them all.
    """
    ids, places = torch.tensor([tokens, positions], device=loaded.device).unsqueeze(-1)
    return next_of_each(loaded.model, ids, joint, places)


class Prompts:
    """Prompts of several sequences in one pass: products of all their tokens, attention of each to its own.

    most  tokens of a pass; 0: this model's prompts are read one by one
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._parts = _parts(loaded) if one_call_a_layer(loaded) else []
        self.most = min((part.most for part in self._parts), default=0)

    @torch.inference_mode()
    def take(self, cache: HybridCache, tokens: int) -> bool:
        """Whether so many tokens can be read into a sequence beside others'. Its windows are made then, with errors as of theirs."""
        if [part.index for part in self._parts] != list(range(len(cache.layers))) or not 0 < tokens <= self.most:
            return False
        for part, layer in zip(self._parts, cache.layers, strict=True):
            if not layer.is_initialized:
                one = layer.layout
                key = torch.empty(1, one.kv_heads, 1, one.key_dim, dtype=self._loaded.dtype)
                layer.lazy_initialization(key, key.new_empty(1, one.kv_heads, 1, one.value_dim))
            if not part.takes_prompt(layer, layer.states[0], tokens):
                return False
        return True

    @torch.inference_mode()
    def read(self, caches: list[HybridCache], prompts: list[list[int]]) -> Tensor:
        """Logits [sequences, vocabulary] after each prompt, whose tokens come after what its cache holds. Errors as of `joint_forward`.

        Only if each was to `take` its own, and not more than `most` together.
        """
        counts = [len(prompt) for prompt in prompts]
        starts = [cache.get_seq_length() for cache in caches]
        ids = torch.tensor([[token for prompt in prompts for token in prompt]])
        places = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])[
            None
        ]
        last = torch.tensor(counts).cumsum(0) - 1
        joint = JointCache(caches, counts)
        logits: Tensor = forward(self._loaded.model, ids, joint, position_ids=places, logits_to_keep=last).logits[0]
        return logits
