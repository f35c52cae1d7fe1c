"""The bytes a token stands for: part of a character, where a vocabulary is made of bytes."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BLANK = "\u2581"  # how vocabularies of SentencePiece write it


def token_bytes(hf: Any, token: int) -> bytes | None:
    """Of a token of a fast tokenizer; None where its decoder is of no kind that is known here."""
    if token in hf.all_special_ids or token in hf.added_tokens_decoder:
        return str(hf.convert_ids_to_tokens(token)).encode()
    written = hf.convert_ids_to_tokens(token)
    if written is None:
        return b""  # beyond the vocabulary: models round it up
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    kind = backend.decoder.__getstate__()
    if b'"ByteLevel"' in kind:
        table = _alphabet()
        return bytes(table[one] for one in written) if all(one in table for one in written) else None
    if (byte := BYTE.fullmatch(written)) is not None and b'"ByteFallback"' in kind:
        return bytes([int(byte[1], 16)])
    if BLANK.encode() in kind or b"\\u2581" in kind:
        return str(written).replace(BLANK, " ").encode()
    return None


@cache
def _alphabet() -> dict[str, int]:
    """Printable stand-ins of bytes, as GPT-2's vocabulary has them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in set(plain)]
    return table | {chr(256 + at): byte for at, byte in enumerate(others)}
