"""Answers in channels (gpt-oss; the format is called harmony) as others write them: a thought in marks, then the answer.

A model writes `<|channel|>analysis<|message|>`, what it thinks, `<|end|><|start|>assistant<|channel|>final<|message|>` and what it
answers. Tokens come one by one, and what a control token begins is told only once `<|message|>` ends it.
"""

from __future__ import annotations

import re
from functools import lru_cache

CHANNEL, MESSAGE, START, END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
THOUGHT, ANSWER = ("<think>\n", "\n</think>\n\n")  # what stands for the beginning of each
FINAL = "final"
_HEAD = re.compile(
    rf"(?P<after>{re.escape(END)})?(?:{re.escape(START)}[^<]*)?"
    rf"{re.escape(CHANNEL)}(?P<name>[^<]*)(?:<[^<]*)*?{re.escape(MESSAGE)}"
)
_CONTROL = re.compile(r"<\|(start|end|message|channel|constrain|return|call|startoftext|endoftext)\|>")


@lru_cache
def in_channels(template: str) -> bool:
    """Whether a chat template is one of a model that answers so."""
    return CHANNEL in template and MESSAGE in template


def as_marks(written: str) -> str:
    """What was written, control tokens and all, with marks around thoughts; of a beginning that is not whole yet, nothing."""
    shown = _HEAD.sub(_mark, written)
    for begin in (CHANNEL, START):  # of the last one nobody knows yet
        shown = shown.partition(begin)[0]
    return _CONTROL.sub("", shown)


def as_channels(marked: str) -> str:
    """What a model would have written for a text with such marks."""
    final = f"{CHANNEL}{FINAL}{MESSAGE}"
    if not marked.startswith(THOUGHT) and ANSWER not in marked:
        return final + marked
    marked = marked.replace(THOUGHT, f"{CHANNEL}analysis{MESSAGE}", 1) if marked.startswith(THOUGHT) else marked
    return marked.replace(ANSWER, f"{END}{START}assistant{final}", 1)


def _mark(found: re.Match[str]) -> str:
    if found["name"].strip() == FINAL:
        return ANSWER if found["after"] else ""
    return "\n\n" if found["after"] else THOUGHT  # another thought after the first
