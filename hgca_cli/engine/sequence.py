"""One text in the making: its token ids, and the cache that holds the rows of all but the newest of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hgca_cli.attention.slots import trouble
from hgca_cli.engine.session_record import Shard
from hgca_cli.errors import DoesNotFitError, HgcaError
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.graph import GraphStep
from hgca_cli.hf.known import Known, know, known
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.straight import following_logits, next_logits
from hgca_cli.hf.threads import one_thread
from hgca_cli.native import OutOfMemoryError

GRAPHS = os.environ.get("HGCA_CUDA_GRAPHS", "1") != "0"


class DeviceFullError(DoesNotFitError):
    """The device ran out of memory in a forward pass; the sequence is as it was before."""


@dataclass(frozen=True)
class OnDisk:
    """The first `rows` rows of a sequence are in these files of a session, too."""

    folder: Path
    shards: tuple[Shard, ...]
    rows: int


@dataclass(frozen=True)
class Mark:
    """A place to go back to: rows in the cache, and what policies know of them."""

    length: int
    known: Known


class Sequence:
    """Token ids and their rows.

    tokens   everything read and written so far; the last may not be in the cache yet
    alone    the latest forward pass was of one token
    on_disk  which of the rows were saved, or come from there; None: none
    """

    def __init__(self, cache: HybridCache) -> None:
        self.cache = cache
        self.tokens: list[int] = []
        self.on_disk: OnDisk | None = None
        self.alone = True
        self._step: GraphStep | None = None
        self._trouble: str | None = None

    @property
    def cached(self) -> int:
        """How many of the tokens have their rows in the cache."""
        return self.cache.get_seq_length()

    @property
    def waiting(self) -> list[int]:
        """Tokens whose rows are still to be computed."""
        return self.tokens[self.cached :]

    def forward(self, loaded: LoadedModel, ids: Tensor) -> Tensor:
        """Compute the rows of the next tokens of the sequence; logits [vocabulary] after the last.

        ids  [1, n], on the model's device

        Whatever interrupts it (no memory, Ctrl-C) leaves no row of these tokens in any layer. Raises DeviceFullError.
        """
        with self._undone_if_refused(loaded, ids.shape[1]), torch.inference_mode():
            self.alone = ids.shape[1] == 1
            if self.alone and (step := self._graph_step(loaded)) is not None:
                return step.step(ids)[0]
            return next_logits(loaded.model, ids, self.cache)

    def forward_following(self, loaded: LoadedModel, tokens: list[int]) -> Tensor | None:
        """Compute the rows of the next tokens in one pass as they would be computed one by one, or of as many of them as that can be
        done for: logits [2 or more, vocabulary] after each. None, and nothing was done, where it cannot. Errors as of `forward`.

        Those behind the first may be guesses: until `drop_newest` of the wrong ones the cache holds more than the sequence.
        """
        if loaded.device.type != "cpu":
            return None
        if (following := self.cache.following) is not None:
            tokens = tokens[: following.room]
        if len(tokens) < 2:
            return None
        with self._undone_if_refused(loaded, len(tokens)), torch.inference_mode(), one_thread():
            logits = following_logits(loaded.model, torch.tensor(tokens)[:, None], self.cache)
            self.alone = logits is None
            return logits

    def drop_newest(self, count: int) -> None:
        """Of the tokens of the latest `forward_following` these, the last ones, did not come."""
        if count > 0 and self.cache.following is not None:
            self.cache.following.keep(self.cached - count)

    @contextmanager
    def _undone_if_refused(self, loaded: LoadedModel, tokens: int) -> Iterator[None]:
        """Whatever interrupts a forward pass of so many tokens leaves no row of them. Raises DeviceFullError."""
        before = self.mark()
        try:
            yield
        except BaseException as error:
            self.forget_beyond(before)
            if not memory_ran_out(error):
                raise
            if loaded.device.type == "cuda":
                torch.cuda.empty_cache()
            raise DeviceFullError(
                f"{loaded.device} ran out of memory at token {before.length + tokens:,}.",
                "Choose a smaller --prefill-chunk, --window or --ctx.",
            ) from error

    def rewind(self, length: int) -> bool:
        """Back to the first `length` tokens; False if rows needed for that are gone. After an error everything is read again."""
        if self.cached > length:
            try:
                if not self.cache.rewind(length):
                    return False
            except BaseException:
                self.on_disk = None
                raise
        del self.tokens[length:]
        if self.on_disk is not None and self.on_disk.rows > length:
            self.on_disk = replace(self.on_disk, rows=length)
        return True

    def put_away(self) -> None:
        """Give back what can be had of memory while nothing is computed: windows on a GPU with its graphs, or windows beside stores
        in files. Tokens and rows stay. Raises DoesNotFitError.
        """
        self._step = None
        self.cache.put_away()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def bring_back(self, loaded: LoadedModel) -> None:
        """Everything is where it was before `put_away`. Raises DoesNotFitError; it is away then."""
        try:
            self.cache.bring_back()
        except BaseException as error:
            self.put_away()
            if not memory_ran_out(error):
                raise
            raise DeviceFullError(
                f"{loaded.device} has no memory for a window.", "Choose a smaller --window."
            ) from error

    def close(self) -> None:
        """Give the memory back."""
        self._step = None
        self.cache.close()
        self.tokens = []
        self.on_disk = None

    @property
    def no_graph(self) -> str | None:
        """Why tokens on a GPU are computed operation by operation, though they should not be; None: they are not."""
        return self._trouble or (self._step.failed if self._step is not None else None)

    @property
    def staged(self) -> str | None:
        """Why threads copy older rows for a GPU, which could do so itself; None: it does."""
        stores = (state.store for layer in self.cache.layers for state in layer.states)
        found = (store.pinning.refused for store in stores if store is not None and store.pinning is not None)
        return next((why for why in found if why), None)

    def _graph_step(self, loaded: LoadedModel) -> GraphStep | None:
        """What computes one more token as a CUDA graph, where that can be."""
        if loaded.device.type != "cuda" or not GRAPHS or not self.cached:
            return None
        if self._step is None or not self._step.of(self.cache):
            self._step = None
            if GraphStep.serves(self.cache):
                self._trouble = trouble(loaded.device)
                self._step = None if self._trouble else GraphStep(loaded.model, self.cache)
        return self._step if self._step is not None and self._step.failed is None else None

    def mark(self) -> Mark:
        """How it is before a forward pass."""
        return Mark(self.cached, known(self.cache))

    def forget_beyond(self, mark: Mark) -> None:
        """Layers that had taken rows of a forward pass give them back, and policies forget what they saw of it; if one cannot,
        everything is read again.
        """
        back = False
        try:
            back = self.cache.rewind(mark.length) and know(self.cache, mark.known)
        except Exception as error:  # whoever undoes a pass has an error to tell already
            if not is_refusal(error):
                raise
        finally:
            if not back:
                self.cache.close()  # all tokens are waiting now
                self.on_disk = None


def memory_ran_out(error: BaseException) -> bool:
    """Whether torch or Python had no memory: on the CPU torch says it in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_refusal(error: BaseException) -> bool:
    """Whether something could not be done, and nothing is wrong with the program: no memory, or an error for people."""
    return isinstance(error, HgcaError) or memory_ran_out(error)


def shared(one: list[int], other: list[int]) -> int:
    """How many tokens two texts have in common at the beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:  # one[:low] agrees, one[:high] does not
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
