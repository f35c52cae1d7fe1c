"""Sequences of different lengths decode together: one forward pass of a token of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.decoder import QuickDecoder
from hgca_cli.hf.load import LoadedModel, forward

FLOATS_PAY = 16  # torch's products of so many vectors read the weights as fast as the library does one by one (docs/log.md, "A batch")
NEVER = 1 << 30


def pays_from(loaded: LoadedModel) -> int:
    """How many sequences are faster together than one by one.

    On a GPU none: a token of one is a CUDA graph, of which eight take 70 ms at 32k rows where one pass for all, started operation by
    operation, takes 260.
    """
    if loaded.device.type != "cpu":
        return NEVER
    return 2 if one_call_a_layer(loaded) else FLOATS_PAY


def one_call_a_layer(loaded: LoadedModel) -> bool:
    """Whether the C library does a layer of all sequences together, their attention included."""
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, QuickDecoder)]
    return bool(layers) and all(layer.parts.most > 1 for layer in layers)


class JointCache(HybridCache):
    """The caches of several sequences as one batch's: its layers hand on the states of theirs, and own no row."""

    def __init__(self, caches: Sequence[HybridCache]) -> None:
        """caches  of one sequence each, that have read something, of one engine"""
        super().__init__(caches[0].layout, caches[0].settings)
        for index, layer in enumerate(self.layers):
            layer.states = [cache.layers[index].states[0] for cache in caches]
            layer.is_initialized = True


@torch.inference_mode()
def joint_forward(loaded: LoadedModel, joint: JointCache, tokens: list[int], positions: list[int]) -> Tensor:
    """One more token of each sequence, at its position: logits [sequences, vocabulary].

    An error leaves rows in some layers of some sequences: the caller rewinds them all.
    """
    ids, places = torch.tensor([tokens, positions], device=loaded.device).unsqueeze(-1)
    output = forward(loaded.model, ids, joint, position_ids=places, logits_to_keep=1)
    logits: Tensor = output.logits[:, -1]
    return logits
