"""Sampling parameters as requests spell them, to our settings; what would change an answer and is not there is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.errors import UsageError

NAMES = {
    "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "seed": "seed",
}  # fmt: skip
WHOLE = ("max_tokens", "top_k", "seed")
# What changes an answer, with the values that do not
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False), "top_logprobs": (None, 0), "echo": (None, False), "suffix": (None, ""),
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "logit_bias": (None, {}), "best_of": (None, 1),
    "response_format": (None, {"type": "text"}), "tools": (None, []), "tool_choice": (None, "none", "auto"),
    "functions": (None, []), "function_call": (None, "none", "auto"), "modalities": (None, ["text"]),
    "stop_token_ids": (None, []), "min_tokens": (None, 0), "ignore_eos": (None, False), "prompt_logprobs": (None, False),
    "structured_outputs": (None,), "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,),
}  # fmt: skip
# What does not, here
PASSED = ("model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier")
MOST_CHOICES = 128


def read_settings(given: Mapping[str, Any], refuse: Callable[..., Exception]) -> dict[str, Any]:
    """settings, choices, model and unknown fields of a request.

    refuse  makes the error that is raised from what is wrong and a machine-readable word
    """
    settings: dict[str, Any] = {}
    unknown = []
    for name, value in given.items():
        if name in NAMES:
            if value is not None:
                settings[NAMES[name]] = _number(name, value, refuse)
        elif name in NEUTRAL:
            if not any((value == one and type(value) is type(one)) or _both_zero(value, one) for one in NEUTRAL[name]):
                raise refuse(f"{name} is not supported", "unsupported")
        elif name not in (*PASSED, "stop", "n"):
            unknown.append(name)
    if (stop := given.get("stop")) is not None:
        words = [stop] if isinstance(stop, str) else stop
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            raise refuse("stop is not a text or a list of texts")
        settings["stop"] = tuple(words)
    choices = given.get("n")
    if choices is not None and (type(choices) is not int or not 1 <= choices <= MOST_CHOICES):
        raise refuse(f"n is not a whole number from 1 to {MOST_CHOICES}")
    try:
        SamplingSettings(**settings)
    except UsageError as error:
        raise refuse(f"{error.message.removeprefix('--').rstrip('.')}; {error.hint.rstrip('.').lower()}") from error
    model = given.get("model")
    return {
        "settings": settings,
        "choices": choices or 1,
        "model": model if isinstance(model, str) else "",
        "unknown": tuple(unknown),
    }


def _number(name: str, value: Any, refuse: Callable[..., Exception]) -> Any:
    if name in WHOLE or name == "max_completion_tokens":
        if type(value) is not int:
            raise refuse(f"{name} is {value!r:.60}, not a whole number")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(f"{name} is {value!r:.60}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise refuse(f"{name} is out of range") from error


def _both_zero(value: Any, neutral: Any) -> bool:
    return type(value) in (int, float) and type(neutral) is int and value == neutral
