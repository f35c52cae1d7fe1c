"""transformers and huggingface_hub without their own progress bars and log lines: we show our own."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the libraries below say nothing; errors still raise."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as hf_logging

    hub = logging.getLogger("huggingface_hub")  # tells of every time it tries again
    before, level = hf_logging.get_verbosity(), hub.level
    hub.setLevel(logging.CRITICAL)
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(level)
        hf_logging.set_verbosity(before)
