"""Reading a prompt: in chunks, each attending exactly to everything before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import torch
from torch import Tensor

from hgca_cli.engine.sequence import DeviceFullError, Sequence
from hgca_cli.errors import ContextOverflowError, UsageError
from hgca_cli.events import Event, Notice, PrefillProgress
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.tokenizer import Tokenizer


def prefill(
    loaded: LoadedModel, sequence: Sequence, new: list[int], context: int, chunk: int, stop: threading.Event
) -> Generator[Event, None, Tensor | None]:
    """Read what waits in the sequence and `new`; yields progress at the start and after every chunk.

    returns  logits [vocabulary] of the last token, or None if `stop` was set: what was read until then stays read

    A chunk that does not fit into the device's memory is halved once, with a Notice. Raises ContextOverflowError, with
    nothing read, if no token would be left for an answer, and UsageError for a prompt without a token.
    """
    check_room(len(sequence.tokens) + len(new), context, loaded.trained_context)
    began = time.perf_counter()
    cached = sequence.cached
    sequence.tokens += new
    total = len(sequence.tokens)
    if cached == total:
        raise UsageError("the prompt is empty.", "Write something.")
    ids = torch.tensor([sequence.tokens], device=loaded.device)
    growth = sequence.cache.layout.pair_operations / loaded.token_operations
    logits: Tensor | None = None
    halved = False
    try:
        sequence.cache.expect(total - cached)
        yield PrefillProgress(total, cached, cached, 0.0, growth)
        while sequence.cached < total:
            if stop.is_set():
                return None
            read = sequence.cached
            try:
                logits = sequence.forward(loaded, ids[:, read : read + chunk])
            except DeviceFullError:
                if halved or chunk == 1:
                    raise
                halved, chunk = True, chunk // 2
                sequence.cache.expect(total - sequence.cached)
                yield Notice(f"{loaded.device} ran out of memory: reading on in chunks of {chunk} tokens.")
                continue
            if loaded.device.type == "cuda":
                torch.cuda.synchronize(loaded.device)  # or the progress would be of launches, not of work
            yield PrefillProgress(total, cached, sequence.cached, time.perf_counter() - began, growth)
    finally:
        if sequence.cached < total:  # stopped, failed or dropped by the caller: keep just what was read
            del sequence.tokens[sequence.cached :]
            sequence.cache.expect(0)
    return logits


def check_characters(what: str, characters: int, tokenizer: Tokenizer, context: int) -> None:
    """Raises ContextOverflowError for a text so much longer than the context that it costs gigabytes to find out by how much."""
    if tokenizer.cannot_fit(characters, context):
        raise ContextOverflowError(
            f"{what} has {characters:,} characters: far more than {context:,} tokens of context hold.", "Shorten it."
        )


def check_room(tokens: int, context: int, trained: int = 0, remedy: str = "") -> None:
    """Raises ContextOverflowError unless a prompt of so many tokens leaves room for one more; remedy: what else would help."""
    if tokens >= context:
        stretch = "; --yarn stretches that" if 0 < trained <= tokens else ""
        largest = f" (the model was made for {trained:,}{stretch})" if trained else ""
        raise ContextOverflowError(
            f"prompt is {tokens:,} tokens, context is {context:,} ({tokens + 1 - context:,} over, "
            "with one for the answer).",
            f"Shorten it, {'' if remedy else 'or '}raise --ctx{largest}{remedy and f', or {remedy}'}.",
        )
