"""Text to token ids and back, and conversations to prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf import template
from hgca_cli.hf.checks import FETCH_AGAIN, reason
from hgca_cli.hf.harmony import as_channels, as_marks, in_channels
from hgca_cli.hf.quiet import quiet
from hgca_cli.hf.token_bytes import token_bytes

_FILES = ("tokenizer.*", "vocab.*", "*.model", "*.tiktoken", "tekken.json")  # one of these holds the vocabulary
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer, with what hybrid chat needs of it.

    named_ends  tokens that end an answer, as the model's files name them
    """

    hf: Any
    named_ends: frozenset[int]
    _template_ends: dict[str, frozenset[int]] = field(default_factory=dict, repr=False, compare=False)
    _given: list[str] = field(default_factory=list, repr=False, compare=False)  # templates that are not the model's

    @classmethod
    def load(cls, path: Path, *, trust_remote_code: bool = False) -> Tokenizer:
        """The tokenizer of a model directory. Raises ModelError naming the directory."""
        from transformers import AutoTokenizer

        if not any(True for kind in _FILES for _ in path.glob(kind)):
            raise ModelError(f"{path} has no tokenizer.", FETCH_AGAIN)
        with quiet():
            try:
                hf = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
                good = hf is not None and len(hf) > 0 and isinstance(hf.encode("a", add_special_tokens=False), list)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # tokenizer files fail in every way; a panic in Rust is no Exception
                raise ModelError(f"the tokenizer in {path} cannot be read: {reason(error)}.", FETCH_AGAIN) from error
        if not good:
            raise ModelError(f"the tokenizer in {path} is empty.", FETCH_AGAIN)
        own = hf.eos_token_id
        return cls(hf, frozenset([own] if own is not None else []))

    def with_ends(self, ids: Iterable[int]) -> Tokenizer:
        """The same tokenizer, with more ids that end an answer."""
        return replace(self, named_ends=self.named_ends | frozenset(ids))

    def with_template(self, text: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        self.hf.chat_template = text
        self._given.append(text)
        return self

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those the files name, and the one its template puts after an answer."""
        written = str(self.hf.chat_template or "")
        if written not in self._template_ends:
            self._template_ends[written] = self._end_of_turn()
        return self.named_ends | self._template_ends[written]

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self.hf.chat_template)

    @property
    def largest_id(self) -> int:
        """The largest token id there is."""
        return max(self.hf.get_vocab().values())

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token there is."""
        return max(map(len, self.hf.get_vocab()))

    def cannot_fit(self, characters: int, tokens: int) -> bool:
        """Whether so many characters are more than so many tokens, for sure; a normalizer may make one of up to four."""
        return characters > 4 * self.longest * tokens

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, nothing added. special: control tokens in the text become control tokens."""
        return list(self.hf.encode(text, add_special_tokens=False, split_special_tokens=not special))

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a raw prompt, with what the tokenizer puts before a text (BOS); control tokens in it are parsed."""
        ids = list(self.hf.encode(text, add_special_tokens=True, split_special_tokens=False))
        bos = self.hf.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids  # written there, and added

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without control tokens; of a model that answers in channels, thoughts stand in marks (hf/harmony.py)."""
        return as_marks(self._decode(ids, control=True)) if self.in_channels else self._decode(ids, control=False)

    def encode_answer(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of what a model wrote: a text as `decode` gives it. special: as of encode."""
        return self.encode(as_channels(text), special=True) if self.in_channels else self.encode(text, special=special)

    @property
    def in_channels(self) -> bool:
        """Whether the model tells its thoughts from its answers by control tokens of its own."""
        return in_channels(str(self.hf.chat_template or ""))

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes a token stands for; None: nobody knows."""
        return token_bytes(self.hf, token)

    def render(self, messages: Messages, *, add_generation_prompt: bool, **options: Any) -> str:
        """The text of a conversation. Raises UsageError without a template, ModelError if it fails."""
        if not self.has_template:
            raise UsageError("this model has no chat template.", "Give one with --chat-template FILE, or use --raw.")
        options["add_generation_prompt"] = add_generation_prompt
        return template.render(self.hf, messages, given=bool(self._given), **options)

    def encode_chat(self, messages: Messages, *, add_generation_prompt: bool, **options: Any) -> list[int]:
        """Ids of a conversation. Control tokens written by a person are text: they cannot end a turn."""
        guarded, marks = self._guard(messages, sign := _sign_for(messages))
        text = self.render(guarded, add_generation_prompt=add_generation_prompt, **options)
        return self._encode_guarded(text, marks, sign)

    def turn_ids(self, before: Messages, answer: str, after: Messages, **options: Any) -> list[int] | None:
        """What comes after the model's own words: end of its turn, the new turn, the generation prompt.

        before  the conversation the answer was given to; after  the same with the answer and the new turn

        None if the template changes what came before (it trims, or drops reasoning): read it all again then.
        """
        sign = _sign_for(after)
        guarded_before, _ = self._guard(before, sign)
        guarded_after, marks = self._guard(after, sign)
        old = self.render(guarded_before, add_generation_prompt=True, **options)
        new = self.render(guarded_after, add_generation_prompt=True, **options)
        if not new.startswith(old + answer):  # nor does it where the model wrote a control token as text
            return None
        return self._encode_guarded(new[len(old) + len(answer) :], marks, sign)

    def tail_ids(self, before: Messages, after: Messages, **options: Any) -> list[int] | None:
        """What comes after a conversation that ends with a question: its answer as the template writes it, the new turn,
        the generation prompt; None if the template changes what came before.
        """
        sign = _sign_for(after)
        old = self.render(self._guard(before, sign)[0], add_generation_prompt=False, **options)
        guarded, marks = self._guard(after, sign)
        new = self.render(guarded, add_generation_prompt=True, **options)
        return self._encode_guarded(new[len(old) :], marks, sign) if new.startswith(old) else None

    def generation_ids(self, messages: Messages, **options: Any) -> list[int]:
        """What the template puts before an answer to these messages; [] if that is not at the end."""
        guarded, _ = self._guard(messages, _sign_for(messages))
        old = self.render(guarded, add_generation_prompt=False, **options)
        new = self.render(guarded, add_generation_prompt=True, **options)
        return self.encode(new[len(old) :], special=True) if new.startswith(old) else []

    def ends_with(self, ids: list[int], text: str) -> bool:
        """Whether the text of ids ends so, control tokens and all; blanks after it do not count."""
        return self._decode(ids[-2 * len(text) :], control=True).rstrip().endswith(text)

    def template_knows(self, option: str) -> bool:
        """Whether the chat template looks at an option of this name."""
        return option in str(self.hf.chat_template or "")

    def _decode(self, ids: list[int], *, control: bool) -> str:
        """As it stands: blanks before punctuation are the model's."""
        return str(self.hf.decode(ids, skip_special_tokens=not control, clean_up_tokenization_spaces=False))

    def _end_of_turn(self) -> frozenset[int]:
        mark = "\ue000end\ue001"
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        if not self.has_template or self._special is None:
            return frozenset()
        try:
            text = template.render(self.hf, talk, add_generation_prompt=False)
        except ModelError:  # told when a conversation is rendered; a raw prompt does not need it
            return frozenset()
        found = self._special.match(text.partition(mark)[2].lstrip())
        if found is None or found[0] not in self.hf.all_special_tokens:
            return frozenset()
        return frozenset([self.hf.convert_tokens_to_ids(found[0])])

    @property
    def _special(self) -> re.Pattern[str] | None:
        words = sorted(set(self.hf.all_special_tokens) | set(self.hf.get_added_vocab()), key=len, reverse=True)
        words = [word for word in words if word.strip()]
        return re.compile("|".join(map(re.escape, words))) if words else None

    def _guard(self, messages: Messages, sign: str) -> tuple[Messages, list[str]]:
        """Messages with control tokens replaced by marks no template touches, and what each mark stands for."""
        special = self._special
        marks: list[str] = []
        if special is None:
            return messages, marks

        def mark(found: re.Match[str]) -> str:
            marks.append(found[0])
            return f"{sign}{len(marks) - 1}{_END}"

        return [message | {"content": special.sub(mark, message["content"])} for message in messages], marks

    def _encode_guarded(self, text: str, marks: list[str], sign: str) -> list[int]:
        if not marks:
            return self.encode(text, special=True)
        ids: list[int] = []
        for index, piece in enumerate(re.split(f"{re.escape(sign)}(\\d+){_END}", text)):
            ids += self.encode(marks[int(piece)]) if index % 2 else self.encode(piece, special=True)
        return ids


_BEGIN, _END = "\ue000", "\ue001"  # private-use characters


def _sign_for(messages: Messages) -> str:
    """What a mark begins with: nothing that a person wrote into these messages."""
    written = "".join(message["content"] for message in messages)
    number = 0
    while f"{_BEGIN}{number}." in written:
        number += 1
    return f"{_BEGIN}{number}."
