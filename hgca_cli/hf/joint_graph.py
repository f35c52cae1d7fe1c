"""A token of each of several sequences as one CUDA graph, whoever they are: one for so many places serves fewer, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgca_cli.attention.recorded import room_of
from hgca_cli.attention.slots import trouble
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep, columns_of
from hgca_cli.hf.joint import JointCache
from hgca_cli.hf.load import LoadedModel

KEPT = 3  # numbers of places whose graphs are kept: what they score with takes memory


class JointGraphs:
    """Of one model.

    failed  why nothing is captured
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._steps: dict[int, GraphStep] = {}  # by places, the latest used last
        self._room = (0, 0)
        self.failed: str | None = None

    def serves(self, cache: HybridCache) -> bool:
        """Whether a sequence may be one of several."""
        return self.failed is None and GraphStep.serves(cache)

    @torch.inference_mode()
    def step(self, joint: JointCache, tokens: list[int]) -> Tensor:
        """One more token of each sequence: logits [sequences, vocabulary]. Only of such as it `serves`.

        An error leaves rows in some layers of some sequences: the caller rewinds them all, and lets go.
        """
        step = self._bound(joint)
        logits = step.step(torch.tensor(tokens, device=step.recorder.numbers.device).unsqueeze(1))
        self.failed = step.failed
        return logits

    def let_go(self) -> None:
        """No sequence's memory is held."""
        for step in self._steps.values():
            step.let_go()

    def _bound(self, joint: JointCache) -> GraphStep:
        """What is about these sequences."""
        columns = columns_of(joint)
        places = _round_up(len(columns))
        step = self._steps.pop(places, None)
        if step is None or not (step.of(joint) or step.bind(joint)):
            room = room_of(columns)
            self._room = max(self._room[0], _round_up(room[0])), max(self._room[1], _round_up(room[1]))
            step = None  # its memory is free before more is taken
            step = GraphStep(self._model, joint, places, self._room)
        while len(self._steps) >= KEPT:
            self._steps.pop(next(iter(self._steps)))
        self._steps[places] = step
        return step


def graphs_of(loaded: LoadedModel) -> JointGraphs | None:
    """For a model's sequences on a GPU, where graphs can be made; None elsewhere."""
    if loaded.device.type != "cuda" or trouble(loaded.device) is not None:
        return None
    return JointGraphs(loaded.model)


def _round_up(count: int) -> int:
    """So that few numbers there are of what is made for them: the next power of two."""
    return 1 << max(0, count - 1).bit_length()
