"""What a layer's own forward hands to its attention: an attention function that writes it down, and answers what it is told."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "hgca probe"
_entered: list[Probe] = []


class Probe:
    """Until it is left, the attention of a model's attention module is this one. One at a time.

    given   query, key and value of the last call
    told    what else it was told, but for what is None or zero
    answer  what it gives: [batch, tokens, heads, value_dim]
    """

    def __init__(self, attention: nn.Module) -> None:
        self._config: Any = attention.config
        self.given: tuple[Tensor, Tensor, Tensor] | None = None
        self.told: dict[str, Any] = {}
        self.answer = torch.empty(0)

    def __enter__(self) -> Probe:
        self._before = self._config._attn_implementation
        self._config._attn_implementation = NAME
        _entered.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _entered.remove(self)
        self._config._attn_implementation = self._before


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    probe = _entered[-1]
    probe.given = query, key, value
    told["attention_mask"] = attention_mask
    probe.told = {name: what for name, what in told.items() if isinstance(what, Tensor) or what}
    return probe.answer, None


AttentionInterface.register(NAME, _note)
