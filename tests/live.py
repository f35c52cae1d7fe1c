"""Bytes of tensors that are alive at once, on any device: on `meta`, too, where large ones cost nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_flatten(made)[0]:
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self._known:
                self._watch(one.untyped_storage())
        return made

    def _watch(self, memory: torch.UntypedStorage) -> None:
        key, size = memory._cdata, memory.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(memory, gone)


def most_bytes(do: Callable[[], Any], there: Sequence[torch.Tensor] = ()) -> int:
    """The most bytes that tensors made meanwhile take at once.

    there  tensors that views may be made of: they were there before
    """
    with _Live() as live:
        live._known.update(one.untyped_storage()._cdata for one in there)
        do()
    return live.most
