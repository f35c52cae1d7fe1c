"""Beginnings that prompts share: read once, and in memory once as long as somebody who begins so is there or may come."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch

from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence, shared

LEAST = 128  # tokens: for fewer a copy saves nothing
MOST_KEPT = 3  # a document, what stands before it in every prompt, and the one before


class Beginning(NamedTuple):
    """What a prompt has in common with a sequence that is kept: so many tokens of it."""

    kept: Sequence | None = None
    tokens: int = 0


class Beginnings:
    """Sequences that hold what several prompts begin with, the one used last at the end.

    Who begins as one of them has what was read, bit for bit: a window of its own, and a store and an index whose whole pages are
    those of the kept one, until it writes there (kv/shared.py).
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

    def of(self, ids: list[int]) -> Beginning:
        """What is kept of a prompt, the longest: of its last token the logits are needed."""
        best = Beginning()
        for one in self._kept:
            length = min(shared(one.tokens, ids), len(ids) - 1)
            if length >= max(LEAST, best.tokens + 1) and (length == one.cached or one.cache.can_rewind(length)):
                best = Beginning(one, length)
        return best

    def sequence_for(self, beginning: Beginning, most: int) -> Sequence:
        """A sequence that grows to `most` tokens, and holds what is kept of its prompt."""
        if beginning.kept is None:
            return self._engine.new_sequence(replace(self._engine.settings, context=max(1, most)))
        self._kept.remove(beginning.kept)
        self._kept.append(beginning.kept)
        return self._begun_as(beginning.kept, beginning.tokens, most)

    def worth_keeping(self, ids: list[int], following: list[int] | None) -> int:
        """After how many tokens of a prompt it is worth to keep what was read, because the next one begins so; 0: never."""
        if following is None or not self._possible:
            return 0
        length = min(shared(ids, following), len(ids) - 1, len(following) - 1)
        return length if length >= LEAST + self.of(ids).tokens else 0

    def keep(self, sequence: Sequence, used: Collection[Sequence]) -> Beginning:
        """What a sequence has read so far is the beginning of others; its rows are the kept one's, too. Raises DoesNotFitError.

        used  kept ones that others begin with
        """
        while len(self._kept) >= MOST_KEPT and self.drop(None, used):
            pass
        sequence.cache.share()
        self._kept.append(self._begun_as(sequence, sequence.cached, sequence.cached))
        return Beginning(self._kept[-1], sequence.cached)

    def drop(self, ids: list[int] | None, used: Collection[Sequence]) -> bool:
        """Give up what was not used for longest, and is neither used nor a beginning of this prompt; False if there is no such."""
        wanted = self.of(ids).kept if ids is not None else None
        for one in self._kept:
            if one is not wanted and not any(one is other for other in used):
                self._kept.remove(one)
                one.close()
                return True
        return False

    def close(self) -> None:
        """Give the memory back."""
        for one in self._kept:
            one.close()
        self._kept = []

    def _begun_as(self, source: Sequence, length: int, most: int) -> Sequence:
        """A sequence of the first tokens of another."""
        engine = self._engine
        made = engine.new_sequence(replace(engine.settings, context=max(most, length)))
        try:
            with torch.inference_mode():
                slides = max(
                    (layer.states[0].window.start for layer in source.cache.layers if layer.is_sliding), default=0
                )
                refills = made.cache.refill(length, None, slides, engine.loaded.device, engine.loaded.dtype)
                made.cache.begin_as(source.cache, refills)
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
