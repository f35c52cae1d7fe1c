"""Whether modules are still what they were when something was found out about them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Watched:
    """Modules, and the ones directly in them. Asked for every token, so all comparisons are of lists."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = [(of._modules, name, one) for of in modules for name, one in of._modules.items()]
        self._places = [(inside, name) for inside, name, _ in found]
        self._ones = [one for *_, one in found]
        self._listeners = [
            hooks for _, _, one in found if one for hooks in (one._forward_hooks, one._forward_pre_hooks)
        ]
        self._weights = [one._parameters for _, _, one in found if one and "weight" in one._parameters]
        self._at = self._where()

    def _where(self) -> list[int]:
        return [own["weight"].data_ptr() for own in self._weights]  # type: ignore[union-attr]

    def unchanged(self) -> bool:
        """Whether the same modules with the same weights are in them, and nobody listens to those."""
        return (
            not any(self._listeners)
            and [inside.get(name) for inside, name in self._places] == self._ones
            and self._where() == self._at
        )
