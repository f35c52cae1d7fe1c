"""A token's forward pass as a CUDA graph: what Python starts operation by operation takes the GPU a fifth of that time.

The first token of a kind runs operation by operation, and is captured after that; the next ones are replays. Several sequences are
one graph, whichever they are: it looks up where their rows are. Whatever cannot be captured (a model that looks at its numbers on
the way, layers that slide) goes on as before.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.recorded import POSITION, TOKEN, Recorder
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.foresight import Drift, Foresight
from hgca_cli.hf.load import forward


class GraphStep:
    """One more token of each sequence in a cache.

    places, room  as of Recorder
    captured      graphs by kind of step, with their logits
    """

    def __init__(
        self, model: Any, cache: HybridCache, places: int | None = None, room: tuple[int, int] | None = None
    ) -> None:
        self._model = model
        self._cache: HybridCache | None = cache
        ahead = cache.settings.look_ahead and cache.settings.device_codes
        self._foresight = Foresight.of(model, len(cache.layers)) if ahead else None
        self._drift: Drift | None = None
        self._strange = False  # nothing is known of what layers add to any of these sequences
        self._held = [weakref.ref(one[0]) for one in columns_of(cache)]  # who had the places in the latest step
        self.recorder = Recorder(columns_of(cache), places, room, ahead=self._foresight is not None)
        if self._foresight is not None:
            self._drift, self._strange = self._foresight.drift(len(self.recorder.numbers)), True
        self._device = self.recorder.numbers.device
        self.captured: dict[tuple[bool, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        self.failed: str | None = None  # why nothing is captured

    @staticmethod
    def serves(cache: HybridCache) -> bool:
        """Whether a cache's attention can be recorded: of sequences past their prompts."""
        return all(
            layer.states and not any(state.prompt_left for state in layer.states) for layer in cache.layers
        ) and (all(Recorder.serves(one) for one in columns_of(cache)))

    def of(self, cache: HybridCache) -> bool:
        """Whether this is still about what is in the cache."""
        return all(layer.states for layer in cache.layers) and self.recorder.of(columns_of(cache))

    def bind(self, cache: HybridCache) -> bool:
        """It is about what is in this cache from now on, which it `serves`; False, and it is not, if there is not enough room in it.
        Errors as of Recorder.bind.
        """
        columns = columns_of(cache)
        if not self.recorder.takes(columns):
            return False
        self.recorder.bind(columns)
        if self._drift is not None:
            came = [self._place_of(one[0]) for one in columns]
            self._drift.move(came)
            self._strange = self._strange or all(at is None for at in came)
        self._held = [weakref.ref(one[0]) for one in columns]
        self._cache = cache
        return True

    def _place_of(self, layer: LayerState) -> int | None:
        return next((at for at, held in enumerate(self._held) if held() is layer), None)

    def let_go(self) -> None:
        """It is about nothing, and holds nobody's memory."""
        self.recorder.bind([])
        self._cache = None

    def step(self, ids: Tensor) -> Tensor:
        """ids [sequences, 1] -> logits [sequences, vocabulary] on the device. Their rows are taken in, or an error leaves the caller to
        rewind.
        """
        recorder, cache, count = self.recorder, self._cache, len(ids)
        assert cache is not None
        whole = False
        try:
            recorder.begin()
            recorder.numbers[:count, TOKEN : TOKEN + 1].copy_(ids)
            captured = None if self._strange else self.captured.get(recorder.kind)
            if captured is not None:
                captured[0].replay()
                recorder.serve()
                logits = captured[1][:count].clone()
            else:
                logits = self._forward(cache)[:count]
            whole = True
        finally:
            recorder.let_go()
            self._wait(whole)
        recorder.end()
        if cache.clock.on:
            cache.clock.tell(recorder.host_seconds)
        strange, self._strange = self._strange, False
        if captured is None and not strange and self.failed is None and self._device.type == "cuda":
            self._capture(cache)
        return logits

    def _capture(self, cache: HybridCache) -> None:
        """Record the step that just ran, for the next ones."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._forward(cache)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self.failed = str(error).splitlines()[0]
            self._wait(False)
            return
        self._pool = graph.pool()
        self.captured[self.recorder.kind] = graph, logits

    def _forward(self, cache: HybridCache) -> Tensor:
        numbers, layers = self.recorder.numbers, cache.layers
        for layer in layers:
            layer.recorder = self.recorder
        try:
            ids, position = (numbers[:, at : at + 1] for at in (TOKEN, POSITION))
            with self._looking_ahead():
                output = forward(self._model, ids, cache, position_ids=position, logits_to_keep=1)
            logits: Tensor = output.logits[:, -1]
            return logits
        finally:
            for layer in layers:
                layer.recorder = None

    @contextlib.contextmanager
    def _looking_ahead(self) -> Iterator[None]:
        if self._foresight is None or self._drift is None:
            yield
            return
        with self._foresight.telling(_only_note if self._strange else self.recorder.foresee, self._drift):
            yield

    def _wait(self, whole: bool) -> None:
        """For a step on its stream, not for rows that are copied beside. After one that broke off for whatever is on its way,
        as somebody rewinds what is being written.
        """
        if self._device.type != "cuda":
            return
        if whole:
            torch.cuda.current_stream(self._device).synchronize()
        else:
            torch.cuda.synchronize(self._device)


def _only_note(_: int, query: Callable[[], Tensor]) -> None:
    """Layers choose by their true queries; what they add is known then."""
    query()


def columns_of(cache: HybridCache) -> list[list[LayerState]]:
    """The layers of each sequence."""
    return [list(states) for states in zip(*(layer.states for layer in cache.layers), strict=True)]
