"""Writing an answer: a generator of token ids, one forward pass each, or for several that were guessed."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

from torch import Tensor

from hgca_cli.engine.choosing import Chooser
from hgca_cli.engine.guessing import Guessing
from hgca_cli.engine.lookup import PromptLookup
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.load import LoadedModel


def decode(
    loaded: LoadedModel,
    sequence: Sequence,
    logits: Tensor,
    chooser: Chooser,
    most: int,
    context: int,
    stop: threading.Event,
    lookup: PromptLookup | None = None,
) -> Generator[int, None, str]:
    """Tokens until an end token, `most`, a full context, or `stop`.

    logits  of the last token read; the context has room for one more
    lookup  guesses tokens that are computed together; None: one by one

    Every token that is yielded is in the sequence; an end token is neither. A token's forward pass happens when the
    next one is asked for, so that a caller who has enough pays for nothing more. While it runs the cache may hold guesses besides.

    returns the finish reason: "stop", "length" or "interrupted"
    """
    ends = loaded.tokenizer.end_ids
    with closing(Guessing(loaded, sequence, lookup, context)) as guessing:
        for written in range(most):
            if stop.is_set():
                return "interrupted"
            token = chooser(logits, sequence.tokens)
            if token in ends:
                return "stop"
            chooser.take(token)
            sequence.tokens.append(token)
            yield token
            if chooser.done:
                return "stop"
            if written + 1 == most or len(sequence.tokens) >= context:
                return "length"
            if stop.is_set():
                return "interrupted"
            logits = guessing.after(most - written - 1)
    return "length"
