"""Beginnings that prompts share: read once, kept as long as somebody who begins so may come, and copied row by row."""

from __future__ import annotations

from dataclasses import replace

import torch

from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence, shared

LEAST = 128  # tokens: for fewer a copy saves nothing
MOST_KEPT = 3  # a document, what stands before it in every prompt, and the one before


class Beginnings:
    """Sequences that hold what several prompts begin with, the one used last at the end.

    A copy is bit for bit what was read; each then has rows, index and window of its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # what a policy that watches learned is of the whole prompt it watched
        self._possible = not engine.watches
        self._kept: list[Sequence] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens of what is kept."""
        return [one.cached for one in self._kept]

    def sequence_for(self, ids: list[int], most: int) -> Sequence:
        """A sequence that grows to `most` tokens, and holds as much of a prompt's beginning as is known."""
        settings = replace(self._engine.settings, context=max(1, most))
        found, length = self._longest(ids)
        if found is None:
            return self._engine.new_sequence(settings)
        self._kept.remove(found)
        self._kept.append(found)
        return self._copy(found, length, settings.context)

    def worth_keeping(self, ids: list[int], following: list[int] | None) -> int:
        """After how many tokens of a prompt it is worth to keep what was read, because the next one begins so; 0: never."""
        if following is None or not self._possible:
            return 0
        length = min(shared(ids, following), len(ids) - 1, len(following) - 1)
        return length if length >= LEAST + self._longest(ids)[1] else 0

    def keep(self, sequence: Sequence) -> None:
        """What a sequence has read so far is the beginning of others."""
        if len(self._kept) == MOST_KEPT:
            self._kept.pop(0).close()
        self._kept.append(self._copy(sequence, sequence.cached, sequence.cached))

    def drop(self, ids: list[int] | None = None) -> bool:
        """Give up what was not used for longest, and is no beginning of this prompt; False if there is no such."""
        wanted = self._longest(ids)[0] if ids is not None else None
        for one in self._kept:
            if one is not wanted:
                self._kept.remove(one)
                one.close()
                return True
        return False

    def close(self) -> None:
        """Give the memory back."""
        for one in self._kept:
            one.close()
        self._kept = []

    def _longest(self, ids: list[int]) -> tuple[Sequence | None, int]:
        """The sequence that holds most of a prompt's beginning, and how much: of the last token the logits are needed."""
        best: tuple[Sequence | None, int] = None, 0
        for one in self._kept:
            length = min(shared(one.tokens, ids), len(ids) - 1)
            if length >= max(LEAST, best[1] + 1) and (length == one.cached or one.cache.can_rewind(length)):
                best = one, length
        return best

    def _copy(self, source: Sequence, length: int, context: int) -> Sequence:
        engine = self._engine
        made = engine.new_sequence(replace(engine.settings, context=max(context, length)))
        try:
            with torch.inference_mode():
                slides = max(
                    (layer.states[0].window.start for layer in source.cache.layers if layer.is_sliding), default=0
                )
                refills = made.cache.refill(length, None, slides, engine.loaded.device, engine.loaded.dtype)
                for layer, piece in source.cache.held(0, length):
                    refills[layer].put(piece)
                finished = [refill.finish() for refill in refills]
                assert all(finished), "rows of a beginning are missing"
                made.cache.index_stored()
        except BaseException:
            made.close()
            raise
        made.tokens = source.tokens[:length]
        return made
