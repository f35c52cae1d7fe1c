"""A model's chat template runs in jinja's sandbox, and not for ever.

transformers' sandbox stops a loop of 10^9, but not two nested loops of 10^5: rendering gets a thread of its own, and an
exception is raised in it when its time is up.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any

from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf.checks import reason

SECONDS = 5.0
# What apply_chat_template, and `render`, take for themselves
TAKEN = (
    "tokenizer", "messages", "seconds", "given", "conversation", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)  # fmt: skip


def wrong_option(options: Iterable[str]) -> str | None:
    """One of these names that no option of a template can have; None: all are good."""
    return next((name for name in options if name in TAKEN or not name.isidentifier()), None)


class _TimeUp(BaseException):
    """Raised inside the rendering thread; no `except Exception` on the way may swallow it."""


def render(
    tokenizer: Any, messages: list[dict[str, Any]], seconds: float = SECONDS, *, given: bool = False, **options: Any
) -> str:
    """The text of a conversation by the tokenizer's chat template.

    given  the template is the user's own

    Raises ModelError (UsageError of one that was given) if it fails or takes too long.
    """
    wrong, called = (
        (UsageError, "the template of --chat-template") if given else (ModelError, "the model's chat template")
    )
    result: list[str] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except BaseException as error:  # whatever a template from elsewhere raises is told, not raised in a thread
            failure.append(error)

    thread = threading.Thread(target=work, name="chat template", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TimeUp))
        thread.join(1.0)
        raise wrong(f"{called} ran for more than {seconds:g} s.", "Mend it." if given else "Try --chat-template FILE.")
    if failure:
        hint = "Mend it, or leave the flag out." if given else "Try --chat-template FILE, or --raw."
        raise wrong(f"{called} failed: {reason(failure[0])}.", hint)
    return result[0]
