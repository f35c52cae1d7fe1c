"""Answers that fit a JSON schema: which tokens may come next, as llguidance tells (pip install 'hgca[json]')."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from hgca_cli.errors import HgcaError

if TYPE_CHECKING:
    from torch import Tensor

    from hgca_cli.hf.tokenizer import Tokenizer

BLANKS = r"[\x20\x0A\x0D\x09]{0,24}"  # between words of JSON: small models would go on with blanks for ever
REMEDY = "pip install 'hgca[json]'"


def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("llguidance") is not None


def checked(schema: Any) -> str:
    """A JSON schema, an object or its text, as JSON. Raises ValueError for one that cannot be used. The package must be there."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"the schema is no JSON ({error})") from error
    if not isinstance(schema, dict):
        raise ValueError("the schema is not an object")
    text = json.dumps(schema)
    if wrong := what_is_wrong(text):
        raise ValueError(f"the schema cannot be used: {wrong}")
    return text


@cache
def what_is_wrong(schema: str) -> str:
    """With a JSON schema, in words; "": nothing. The package must be there; no model is needed."""
    from llguidance import LLMatcher

    try:
        told = LLMatcher.validate_grammar(grammar_of(schema))
    except ValueError as error:
        told = str(error)
    return " ".join(told.split())


def grammar_of(schema: str) -> str:
    """What llguidance makes of a schema. Raises ValueError for no JSON."""
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": BLANKS}))


class Grammars:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: Any = None  # made with the first guide: that takes a second

    def guide(self, schema: str) -> Guide:
        """For one answer. Raises HgcaError for a tokenizer or a schema that cannot be used."""
        from llguidance import LLMatcher

        return Guide(LLMatcher(self._tokens(), grammar_of(schema), log_level=0))

    def _tokens(self) -> Any:
        if self._known is None:
            from llguidance.hf import from_tokenizer

            ends = sorted(self._tokenizer.end_ids)
            try:
                self._known = from_tokenizer(self._tokenizer.hf, None, ends or None)
            except (ValueError, RuntimeError) as error:
                raise HgcaError(
                    f"this model's tokenizer cannot be used for a JSON schema ({str(error)[:120]}).", "Leave it out."
                ) from error
        return self._known


class Guide:
    """One answer in the making: `allow`, draw, `take`, until it is done or an end token was drawn."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._check()

    @property
    def done(self) -> bool:
        """Whether it is whole, and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allow(self, logits: Tensor) -> Tensor:
        """Logits [vocabulary], with -inf for each token that may not come next; end tokens may where it is whole."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.zeros(len(logits), dtype=bool)  # models round vocabularies up
        known = np.unpackbits(bits, bitorder="little")[: len(logits)]
        allowed[: len(known)] = known
        if (
            logits.device.type == "cpu" and logits.dtype is torch.float32
        ):  # numpy does it on this thread, torch wakes others
            return torch.from_numpy(np.where(allowed, logits.numpy(), np.float32("-inf")))
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        """This one came next."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            told = " ".join(str(self._matcher.get_error()).split())
            raise HgcaError(f"JSON schema: {told[:200]}.", "Give a simpler schema.")
