"""Reading a prompt: in chunks, each attending exactly to everything before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import torch
from torch import Tensor

from hgca_cli.engine.sequence import Sequence
from hgca_cli.errors import ContextOverflowError
from hgca_cli.events import PrefillProgress
from hgca_cli.hf.load import LoadedModel


def prefill(
    loaded: LoadedModel, sequence: Sequence, new: list[int], context: int, chunk: int, stop: threading.Event
) -> Generator[PrefillProgress, None, Tensor | None]:
    """Read what waits in the sequence and `new`; yields progress after every chunk.

    returns  logits [vocabulary] of the last token, or None if `stop` was set: what was read until then stays read

    Raises ContextOverflowError, with nothing read, if no token would be left for an answer.
    """
    check_room(len(sequence.tokens) + len(new), context)
    cached = sequence.cached
    todo = sequence.waiting + new
    assert todo, "a prompt has at least one token that is not cached"
    sequence.tokens += new
    total = len(sequence.tokens)
    sequence.cache.expect(len(todo))
    began = time.perf_counter()
    logits: Tensor | None = None
    for piece in torch.tensor([todo], device=loaded.device).split(chunk, dim=1):
        if stop.is_set():
            del sequence.tokens[sequence.cached :]
            sequence.cache.expect(0)
            return None
        with torch.inference_mode():
            output = loaded.model(input_ids=piece, past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[0, -1]
        yield PrefillProgress(total, cached, sequence.cached, time.perf_counter() - began)
    return logits


def check_room(tokens: int, context: int) -> None:
    """Raises ContextOverflowError unless a prompt of so many tokens leaves room for one more."""
    if tokens >= context:
        raise ContextOverflowError(
            f"the prompt is {tokens:,} tokens, the context {context:,} ({tokens + 1 - context:,} over, "
            "with one left for the answer).",
            "Shorten it, or raise --ctx.",
        )
