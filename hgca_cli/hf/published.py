"""What a model's weights were published as, and whether they can be held so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.hf.checks import tensor_dtypes
from hgca_cli.hf.experts import expert_weights
from hgca_cli.hf.gguf_tensors import without_memory
from hgca_cli.hf.grid import readable

KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
LEAST_PACKED = 0.5  # of the weights that are no embeddings: for less nobody would ask


def dtype_of(files: list[Path]) -> torch.dtype:
    """What most numbers of some weights' files are, as far as that can be mapped into memory and read there; bf16 if not."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(tensor_dtypes(file))
    return KINDS.get(counts.most_common(1)[0][0] if counts else "", torch.bfloat16)


def only_dtype(files: list[Path]) -> torch.dtype | None:
    """What all numbers of some weights' files are; None if they are of several kinds, or of one that is not read as it is."""
    kinds = {kind for file in files for kind in tensor_dtypes(file)}
    return KINDS.get(kinds.pop()) if len(kinds) == 1 else None


def mostly_linear(model: Any, held: Callable[[Tensor], bool] = readable) -> bool:
    """Whether most of a model's weights are linear layers' and experts', of those that are `held`."""
    linear = [one.weight for one in model.modules() if type(one) is nn.Linear and held(one.weight)]
    return mostly(model, [*linear, *(weight for module in model.modules() for weight in expert_weights(module, held))])


def packs_experts(config: Any) -> bool:
    """Whether the mixture of experts that a config describes is one whose weights can be packed."""
    try:
        return mostly_linear(without_memory(config, torch.bfloat16), lambda _: True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError):
        return False


def mostly(model: Any, weights: Iterable[Tensor]) -> bool:
    """Whether these are most of a model's weights, but for its embedding and output layer."""
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    part = {id(one): one.numel() for one in weights}
    whole = sum(one.numel() for one in model.parameters() if id(one) not in ends)
    return sum(numel for one, numel in part.items() if one not in ends) >= LEAST_PACKED * whole
