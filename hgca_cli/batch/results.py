"""What is written for a row: an OpenAI Batch line for such a line, a plain object for one of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hgca_cli.batch.rows import CHAT, Row

FORMATS = ("auto", "openai", "simple")
STATUS = {"invalid_row": 400, "unsupported": 400, "context_overflow": 400, "file": 400, "timeout": 408, "usage": 400}


@dataclass(frozen=True)
class Choice:
    """One answer. thought: what the model thought before it; finish_reason: "stop" or "length"; timings, rows: as of Done;
    logprobs: of its tokens, as OpenAI writes them (batch/logprobs.py).
    """

    text: str
    thought: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seed: int
    timings: Mapping[str, float]
    rows: Mapping[str, Any]
    logprobs: Mapping[str, Any] | None = None


def openai_form(row: Row, wanted: str) -> bool:
    """Whether a row is answered as OpenAI does. wanted: one of FORMATS."""
    return wanted == "openai" or (wanted == "auto" and row.form != "")


def answered(row: Row, choices: Sequence[Choice], *, openai: bool, model: str, created: int) -> dict[str, Any]:
    """The record of a row that was answered. created: seconds since 1970."""
    usage = usage_of(choices)
    figures = {"input": row.digest, "seed": choices[0].seed, "timings": choices[0].timings, "rows": choices[0].rows}
    if len(choices) > 1:
        figures["choices"] = [{"seed": one.seed, "timings": one.timings, "rows": one.rows} for one in choices]
    if openai:
        chat = row.form in ("", CHAT)
        body = {
            "id": _id("chatcmpl" if chat else "cmpl", row),
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": row.model or model,
            "choices": [_choice(one, index, chat) for index, one in enumerate(choices)],
            "usage": usage,
        }
        response = {"status_code": 200, "request_id": _id("req", row), "body": body}
        return {
            "id": _id("batch_req", row), "custom_id": row.id, "response": response, "error": None, "hgca": figures,
        }  # fmt: skip
    record: dict[str, Any] = {"id": row.id, "text": choices[0].text, "finish_reason": choices[0].finish_reason}
    if choices[0].thought:
        record["thought"] = choices[0].thought
    if len(choices) > 1:
        record["texts"] = [one.text for one in choices]
        record["finish_reasons"] = [one.finish_reason for one in choices]
    if choices[0].logprobs is not None:
        record["logprobs"] = choices[0].logprobs
        if len(choices) > 1:
            record["logprobs_of_texts"] = [one.logprobs for one in choices]
    return record | {"usage": usage, "error": None, "hgca": figures}


def failed(
    row: Row, message: str, code: str, *, openai: bool, partial: str = "", figures: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The record of a row that has no answer. partial: what was written of one."""
    error: dict[str, Any] = {"code": code, "message": message}
    if partial:
        error["partial"] = partial
    told = {"input": row.digest, "line": row.number, **(figures or {})}
    if openai:
        number = STATUS.get(code, 500)
        kind = "invalid_request_error" if number < 500 else "server_error"
        status = {
            "status_code": number,
            "request_id": _id("req", row),
            "body": {"error": error | {"type": kind, "param": None}},
        }
        return {
            "id": _id("batch_req", row), "custom_id": row.id, "response": status, "error": error, "hgca": told,
        }  # fmt: skip
    return {"id": row.id, "text": None, "finish_reason": "error", "usage": None, "error": error, "hgca": told}


def encoded(record: Mapping[str, Any]) -> bytes:
    """One line of UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair in an id
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def usage_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens of a row's answers together, as OpenAI counts them: the prompt once."""
    written = sum(one.completion_tokens for one in choices)
    prompt = choices[0].prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": choices[0].cached_tokens},
    }


def _choice(one: Choice, index: int, chat: bool) -> dict[str, Any]:
    common = {"index": index, "finish_reason": one.finish_reason, "logprobs": one.logprobs}
    if chat:
        message = {"role": "assistant", "content": one.text, "refusal": None}
        return common | {"message": message | ({"reasoning_content": one.thought} if one.thought else {})}
    return common | {"text": one.text}


def _id(kind: str, row: Row) -> str:
    """The same for the same line of the same job."""
    return f"{kind}_{hashlib.sha256(f'{row.id}/{row.digest}'.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"
