"""A token's forward pass as a CUDA graph: what Python starts operation by operation takes the GPU a fifth of that time.

The first token of a kind runs operation by operation, and is captured after that; the next ones are replays. Whatever cannot
be captured (a model that looks at its numbers on the way, layers that slide) goes on as before.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from hgca_cli.attention.recorded import POSITION, TOKEN, Recorder
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.foresight import Foresight
from hgca_cli.hf.load import forward


class GraphStep:
    """One more token of the one sequence in a cache.

    captured  graphs by kind of step, with their logits
    """

    def __init__(self, model: Any, cache: HybridCache) -> None:
        self._model, self._cache = model, cache
        self.recorder = Recorder([layer.states[0] for layer in cache.layers])
        self._device = self.recorder.numbers.device
        self.captured: dict[tuple[bool, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        ahead = cache.settings.look_ahead and cache.settings.device_codes
        self._foresight = Foresight.of(model, len(cache.layers)) if ahead else None
        self.recorder.looks_ahead = self._foresight is not None
        self.failed: str | None = None  # why nothing is captured

    @staticmethod
    def serves(cache: HybridCache) -> bool:
        """Whether a cache's attention can be recorded: one sequence, past its prompt."""
        return all(len(layer.states) == 1 and not layer.states[0].prompt_left for layer in cache.layers) and (
            Recorder.serves([layer.states[0] for layer in cache.layers])
        )

    def of(self, cache: HybridCache) -> bool:
        """Whether this is still about what is in the cache."""
        return all(
            len(layer.states) == 1 and layer.states[0] is relay.layer
            for layer, relay in zip(cache.layers, self.recorder.relays, strict=True)
        )

    def step(self, ids: Tensor) -> Tensor:
        """ids [1, 1] on the device -> logits [vocabulary]. Its row is taken in, or an error leaves the caller to rewind."""
        recorder = self.recorder
        try:
            recorder.begin()
            recorder.numbers[TOKEN : TOKEN + 1].copy_(ids[0])
            captured = self.captured.get(recorder.kind)
            if captured is not None:
                captured[0].replay()
                recorder.serve()
                logits = captured[1].clone()
            else:
                logits = self._forward()
        finally:
            recorder.let_go()
            self._wait()  # also before somebody rewinds what is being written
        recorder.end()
        self._cache.clock.tell(recorder.host_seconds)
        if captured is None and self.failed is None and self._device.type == "cuda":
            self._capture()
        return logits

    def _capture(self) -> None:
        """Record the step that just ran, for the next ones."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._forward()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self.failed = str(error).splitlines()[0]
            self._wait()
            return
        self._pool = graph.pool()
        self.captured[self.recorder.kind] = graph, logits

    def _forward(self) -> Tensor:
        numbers, layers = self.recorder.numbers, self._cache.layers
        for layer in layers:
            layer.recorder = self.recorder
        try:
            ids, position = (numbers[at : at + 1].view(1, 1) for at in (TOKEN, POSITION))
            with (
                contextlib.nullcontext() if self._foresight is None else self._foresight.telling(self.recorder.foresee)
            ):
                output = forward(self._model, ids, self._cache, position_ids=position, logits_to_keep=1)
            logits: Tensor = output.logits[0, -1]
            return logits
        finally:
            for layer in layers:
                layer.recorder = None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
