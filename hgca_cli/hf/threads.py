"""torch's threads, where they cost more than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

NAME = "hgca_alone"  # of a model's attribute


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations stay on this thread: on little they wake others, which spin beside the library's for milliseconds, and
    beside busy neighbours wait longer than they work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alone(model: Any) -> AbstractContextManager[None]:
    """For a token of a model: its torch operations stay on this thread if the library does all that is much (`quicken`). What is left,
    norms and angles, woke threads up to 24 times a token.
    """
    return one_thread() if getattr(model, NAME, False) else nullcontext()
