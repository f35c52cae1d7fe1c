"""Whether modules are still what they were when something was found out about them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

WEIGHTS = ("weight", "gate_up_proj", "down_proj")


class Watched:
    """Modules, and the ones directly in them. Asked for every token, so all comparisons are of lists.

    parts  of which `partly` asks one at a time: a token's looks at all of many modules take as long as a layer
    """

    def __init__(self, modules: Iterable[nn.Module], parts: int = 1) -> None:
        found = [(of._modules, name, one) for of in modules for name, one in of._modules.items()]
        self._parts = [_Part(found[first::parts]) for first in range(min(parts, max(1, len(found))))]
        self._next = 0

    def unchanged(self) -> bool:
        """Whether the same modules with the same weights are in them, and nobody listens to those."""
        return all(part.unchanged() for part in self._parts)

    def partly(self) -> bool:
        """Whether it is so of one part: of all of them within as many calls as there are parts."""
        self._next = (self._next + 1) % len(self._parts)
        return self._parts[self._next].unchanged()


class _Part:
    def __init__(self, found: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]]) -> None:
        self._places = [(inside, name) for inside, name, _ in found]
        self._ones = [one for *_, one in found]
        self._listeners = [
            hooks for _, _, one in found if one for hooks in (one._forward_hooks, one._forward_pre_hooks)
        ]
        self._weights = [
            (one._parameters, name)
            for _, _, one in found
            if one
            for name in WEIGHTS
            if one._parameters.get(name) is not None
        ]
        self._at = self._where()

    def _where(self) -> list[int]:
        return [own[name].data_ptr() for own, name in self._weights]  # type: ignore[union-attr]

    def unchanged(self) -> bool:
        return (
            not any(self._listeners)
            and [inside.get(name) for inside, name in self._places] == self._ones
            and self._where() == self._at
        )
