"""Sampling parameters as requests spell them, to our settings; what would change an answer and is not there is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hgca_cli.config import SamplingSettings
from hgca_cli.errors import UsageError

NAMES = {
    "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "seed": "seed",
}  # fmt: skip
WHOLE = ("max_tokens", "top_k", "seed")
# What changes an answer, with the values that do not
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (None, False), "suffix": (None, ""),
    "logit_bias": (None, {}), "best_of": (None, 1),
    "tools": (None, []), "tool_choice": (None, "none", "auto"),
    "functions": (None, []), "function_call": (None, "none", "auto"), "modalities": (None, ["text"]),
    "stop_token_ids": (None, []), "min_tokens": (None, 0), "ignore_eos": (None, False), "prompt_logprobs": (None, False),
    "structured_outputs": (None,), "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,),
}  # fmt: skip
# What does not, here
PASSED = ("model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier")
MOST_CHOICES = 128
MOST_LIKELIEST = 20
READ = ("stop", "n", "logprobs", "top_logprobs", "response_format")  # here, each in its own way


def read_settings(
    given: Mapping[str, Any], refuse: Callable[..., Exception], *, counted: bool = False
) -> dict[str, Any]:
    """settings, choices, model, likeliest, schema and unknown fields of a request.

    refuse   makes the error that is raised from what is wrong and a machine-readable word
    counted  `logprobs` is a number, as completions have it
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
        elif name not in (*PASSED, *READ):
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
        "likeliest": _likeliest(given, refuse, counted),
        "schema": _schema(given.get("response_format"), refuse),
        "unknown": tuple(unknown),
    }


def _likeliest(given: Mapping[str, Any], refuse: Callable[..., Exception], counted: bool) -> int | None:
    """How many tokens are told at each place; None: no chances at all."""
    wanted, count = given.get("logprobs"), given.get("top_logprobs")
    if counted:
        if count not in (None, 0):
            raise refuse("top_logprobs belongs to chats: give logprobs a number")
        wanted, count = wanted is not None and wanted is not False, wanted
    if wanted not in (None, True, False) or isinstance(wanted, (int, float)) != isinstance(wanted, bool):
        raise refuse(f"logprobs is {wanted!r:.60}, not true or false")
    if count is not None and (type(count) is not int or not 0 <= count <= MOST_LIKELIEST):
        name = "logprobs" if counted else "top_logprobs"
        raise refuse(f"{name} is {count!r:.60}, not a whole number from 0 to {MOST_LIKELIEST}")
    if count and not wanted:
        raise refuse("top_logprobs needs logprobs: true")
    return (count or 0) if wanted else None


def _schema(wanted: Any, refuse: Callable[..., Exception]) -> str:
    """The JSON schema an answer is to fit, as JSON; "": none."""
    if wanted is None or wanted == {"type": "text"}:
        return ""
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind == "json_object":
        schema: Any = {"type": "object"}
    elif kind == "json_schema":
        told = wanted.get("json_schema")
        schema = told.get("schema") if isinstance(told, dict) else None
        if not isinstance(schema, dict):
            raise refuse("response_format has no json_schema.schema that is an object")
    else:
        raise refuse(f"response_format: no type {kind!r:.60}; there are text, json_object, json_schema", "unsupported")
    from hgca_cli.hf import grammar

    if not grammar.is_there():
        raise refuse(f"response_format needs the package llguidance: {grammar.REMEDY}", "unsupported")
    text = json.dumps(schema)
    if wrong := grammar.what_is_wrong(text):
        raise refuse(f"response_format: the schema cannot be used: {wrong[:200]}")
    return text


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
