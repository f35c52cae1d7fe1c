"""Writing an answer: a generator of token ids, one forward pass each."""

from __future__ import annotations

import threading
from collections.abc import Generator

import torch
from torch import Tensor

from hgca_cli.engine.sampling import Sampler
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.load import LoadedModel


def decode(
    loaded: LoadedModel,
    sequence: Sequence,
    logits: Tensor,
    sampler: Sampler,
    most: int,
    context: int,
    stop: threading.Event,
) -> Generator[int, None, str]:
    """Tokens until an end token, `most`, a full context, or `stop`.

    logits  of the last token read

    Every token that is yielded is in the sequence; an end token is neither. A token's forward pass happens when the
    next one is asked for, so that a caller who has enough pays for nothing more.

    returns the finish reason: "stop", "length" or "interrupted"
    """
    ends = loaded.tokenizer.end_ids
    written = 0
    while written < most:
        if stop.is_set():
            return "interrupted"
        token = sampler(logits, sequence.tokens)
        if token in ends:
            return "stop"
        if len(sequence.tokens) >= context:
            return "length"
        sequence.tokens.append(token)
        written += 1
        yield token
        if written < most:
            with torch.inference_mode():
                ids = torch.tensor([sequence.tokens[sequence.cached :]], device=loaded.device)
                output = loaded.model(input_ids=ids, past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
                logits = output.logits[0, -1]
    return "length"
