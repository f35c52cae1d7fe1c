"""The chances of an answer's tokens as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hgca_cli.engine.chances import Chance
from hgca_cli.hf.tokenizer import Tokenizer

LEAST = -9999.0  # for what cannot be: JSON has no infinity


def of_messages(chances: Sequence[Chance], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a chat: a token's text and bytes, and those of the likeliest."""
    content = [
        _token(one.token, one.logprob, tokenizer)
        | {"top_logprobs": [_token(token, logprob, tokenizer) for token, logprob in one.likeliest]}
        for one in chances
    ]
    return {"content": content, "refusal": None}


def of_text(chances: Sequence[Chance], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a completion: four lists."""
    texts = [_text(one.token, tokenizer) for one in chances]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [max(LEAST, one.logprob) for one in chances],
        "top_logprobs": [
            {_text(token, tokenizer): max(LEAST, logprob) for token, logprob in reversed(one.likeliest)}
            for one in chances
        ],
        "text_offset": offsets[:-1],
    }


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    known = tokenizer.bytes_of(token)
    return {
        "token": _text(token, tokenizer), "logprob": max(LEAST, logprob), "bytes": None if known is None else list(known),
    }  # fmt: skip


def _text(token: int, tokenizer: Tokenizer) -> str:
    """What a token says; one that is part of a character is written as its bytes, as OpenAI does."""
    known = tokenizer.bytes_of(token)
    if known is None:
        return tokenizer.decode([token])
    try:
        return known.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known)
