"""Sampling parameters as requests spell them, to our settings; what would change an answer and is not there is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hgca_cli.config import SamplingSettings, minus_one
from hgca_cli.errors import UsageError
from hgca_cli.hf.template import wrong_option

NAMES = {
    "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "seed": "seed",
    "reasoning_budget": "reasoning_budget", "thinking_token_budget": "reasoning_budget",
}  # fmt: skip
WHOLE = ("max_tokens", "max_completion_tokens", "top_k", "seed", "reasoning_budget", "thinking_token_budget")
# What changes an answer, with the values that do not
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (None, False), "suffix": (None, ""),
    "logit_bias": (None, {}), "best_of": (None, 1),
    "tools": (None, []), "tool_choice": (None, "none", "auto"),
    "functions": (None, []), "function_call": (None, "none", "auto"), "modalities": (None, ["text"]),
    "stop_token_ids": (None, []), "min_tokens": (None, 0), "ignore_eos": (None, False), "prompt_logprobs": (None, False),
    "guided_regex": (None,), "guided_choice": (None,), "guided_grammar": (None,),
    "chat_template": (None,), "add_generation_prompt": (None, True), "continue_final_message": (None, False), "documents": (None, []),
    "bad_words": (None, []), "allowed_token_ids": (None,), "use_beam_search": (None, False), "length_penalty": (None, 1, 1.0),
    "truncate_prompt_tokens": (None,), "include_stop_str_in_output": (None, False), "skip_special_tokens": (None, True),
    "verbosity": (None, "medium"), "audio": (None,), "web_search_options": (None,),
}  # fmt: skip
# What does not, here
PASSED = (
    "model",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prediction",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "priority",
    "request_id",
    "cache_salt",
)
MOST_CHOICES = 128
MOST_LIKELIEST = 20
SCHEMAS = ("response_format", "json_schema", "guided_json", "structured_outputs")  # of OpenAI, llama.cpp, vLLM, vLLM
READ = (
    "stop",
    "n",
    "logprobs",
    "top_logprobs",
    "chat_template_kwargs",
    "reasoning_effort",
    *SCHEMAS,
)  # here, each in its own way


def read_settings(
    given: Mapping[str, Any], refuse: Callable[..., Exception], *, counted: bool = False
) -> dict[str, Any]:
    """settings, options, choices, model, likeliest and unknown fields of a request.

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
    if (schema := _schema(given, refuse)) is not None:
        settings["json_schema"] = schema
    settings = minus_one(settings)
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
        "options": _options(given, refuse),
        "choices": choices or 1,
        "model": model if isinstance(model, str) else "",
        "likeliest": _likeliest(given, refuse, counted),
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


def _schema(given: Mapping[str, Any], refuse: Callable[..., Exception]) -> str | None:
    """The JSON schema an answer is to fit, as JSON; "": any text, None: nothing is said. As OpenAI writes it, or vLLM."""
    names = [name for name in SCHEMAS if given.get(name) is not None]
    if not names:
        return None
    if len(names) > 1:
        raise refuse(f"{names[0]} and {names[1]} say the same thing: give one of them")
    name, wanted = names[0], given[names[0]]
    if name == "response_format":
        kind = wanted.get("type") if isinstance(wanted, dict) else wanted
        if kind == "text":
            return ""
        if kind not in ("json_object", "json_schema"):
            raise refuse(
                f"response_format: no type {kind!r:.60}; there are text, json_object, json_schema", "unsupported"
            )
        told = wanted.get("json_schema")
        schema = {"type": "object"} if kind == "json_object" else told.get("schema") if isinstance(told, dict) else None
        if not isinstance(schema, dict):
            raise refuse("response_format has no json_schema.schema that is an object")
    elif name != "structured_outputs":
        schema = wanted
    elif not isinstance(wanted, dict) or [key for key, one in wanted.items() if one is not None] != ["json"]:
        raise refuse("structured_outputs: only json is supported", "unsupported")
    else:
        schema = wanted["json"]
    from hgca_cli.hf import grammar

    if not grammar.is_there():
        raise refuse(f"{name} needs the package llguidance: {grammar.REMEDY}", "unsupported")
    try:
        return grammar.checked(schema)
    except ValueError as error:
        raise refuse(f"{name}: {str(error)[:200]}") from error


def _options(given: Mapping[str, Any], refuse: Callable[..., Exception]) -> dict[str, Any]:
    """What is told to the chat template; an effort is, too, as vLLM does it."""
    options, effort = given.get("chat_template_kwargs"), given.get("reasoning_effort")
    if options is not None and not isinstance(options, dict):
        raise refuse("chat_template_kwargs is not an object")
    if (name := wrong_option(options or {})) is not None:
        raise refuse(f"chat_template_kwargs: {name!r:.60} is no option of a template")
    return ({} if effort is None else {"reasoning_effort": effort}) | (options or {})


def _number(name: str, value: Any, refuse: Callable[..., Exception]) -> Any:
    if name in WHOLE:
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
