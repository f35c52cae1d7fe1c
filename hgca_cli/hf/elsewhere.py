"""Weights whose numbers are not in the model that is packed, but elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hgca_cli.hf.grid import Grid


class Elsewhere:
    """Has the numbers of some weights.

    names  of them, as the model calls them
    """

    names: frozenset[str]

    def state(self) -> dict[str, Tensor]:
        """What is to be loaded in place of the files' tensors."""
        raise NotImplementedError

    def numbers(self, name: str) -> Tensor:
        """Of one."""
        raise NotImplementedError

    def grid(self, name: str, room: Callable[[int], Tensor]) -> Grid | None:
        """The same on a grid, [outputs, inputs], if that is how they are held; room: gives so many bytes for it."""
        return None
