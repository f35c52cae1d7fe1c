"""Streaming text: joined pieces are the decoded whole, characters are never broken, stop strings never shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models

from hgca_cli.engine.text import LONGEST, StopWatch, TextStream
from tests.tiny_engine import byte_level

FAMILY = "👨‍👩‍👧‍👦"
HARD = [
    "naïve",
    "e\u0301\u0302 combining",
    "שלום עולם",
    "東京🙂🙃",
    FAMILY * 4,
    "🇫🇷🇯🇵",
    "a\u200db",
    "\n\n  x ",
    "𝔘𝔫𝔦",
    "🙂" * 40,
]


def decode_bytes(ids: list[int]) -> str:
    return str(byte_level().decode(ids, skip_special_tokens=True))


def byte_ids(text: str) -> list[int]:
    """One token per byte: every character is split wherever it can be."""
    letters = _letters()
    return [byte_level().token_to_id(letters[byte]) for byte in text.encode()]


def _letters() -> list[str]:
    """The character byte-level BPE writes for each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for n, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + n)
    return [table[byte] for byte in range(256)]


def sentencepiece_like() -> Fast:
    """Byte fallback and a leading-space rule, as in Llama 2: a run of bytes that is not UTF-8 reads as all broken."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for word in ("▁the", "▁cat", "s", "▁"):
        vocabulary[word] = len(vocabulary)
    fast = Fast(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def pieces_of(stream: TextStream, ids: list[int]) -> list[str]:
    return [stream.push(token) for token in ids] + [stream.finish()]


@pytest.mark.parametrize("text", HARD)
def test_split_at_every_byte(text: str) -> None:
    stream = TextStream(decode_bytes)
    pieces = pieces_of(stream, byte_ids(text))
    assert "".join(pieces) == stream.text == text
    assert not any("\ufffd" in piece for piece in pieces)
    complete = [i for i in range(len(text.encode())) if text.encode()[: i + 1].decode(errors="ignore")]
    assert pieces[complete[0]] != "", "the first character is shown as soon as it is whole"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_random_text(text: str) -> None:
    for ids in (byte_ids(text), byte_level().encode(text, add_special_tokens=False).ids):
        assert "".join(pieces_of(TextStream(decode_bytes), ids)) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=120))
def test_any_tokens_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    """Also what is not UTF-8, as long as no run of unfinished characters is longer than is waited for."""
    whole = decode_bytes(ids)
    if "\ufffd" * 20 in whole:
        return
    assert "".join(pieces_of(TextStream(decode_bytes), ids)) == whole


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="é🙂東 a", max_size=40))
def test_byte_fallback(text: str) -> None:
    fast = sentencepiece_like()
    ids = [fast.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = pieces_of(TextStream(fast.decode), ids)
    assert "".join(pieces) == fast.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_leading_spaces() -> None:
    fast = sentencepiece_like()
    ids = [fast.token_to_id(word) for word in ("▁the", "▁cat", "s", "▁the")]
    assert pieces_of(TextStream(fast.decode), ids) == ["the", " cat", "s", " the", ""]
    continued = TextStream(fast.decode, before=ids)
    assert pieces_of(continued, ids) == [" the", " cat", "s", " the", ""]


def test_a_real_replacement_character_is_kept() -> None:
    assert "".join(pieces_of(TextStream(decode_bytes), byte_ids("a\ufffdb\ufffd"))) == "a\ufffdb\ufffd"


def test_unfinished_at_the_end() -> None:
    assert "".join(pieces_of(TextStream(decode_bytes), byte_ids("ab🙂")[:-1])) == "ab\ufffd"


def test_work_per_token_is_bounded() -> None:
    longest = 0

    def counting(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode_bytes(ids)

    pieces_of(TextStream(counting), byte_ids("🙂 text " * 300))
    assert longest <= 2 * 4 + 1
    half = byte_ids("🙂")[0]  # no character ever ends
    pieces_of(TextStream(counting), [half] * 500)
    assert longest <= LONGEST


@pytest.mark.parametrize("size", range(1, 12))
def test_stop_string_at_every_split(size: int) -> None:
    text = "one two STOP three"
    for offset in range(size):
        watch = StopWatch(("STOP",))
        cuts = [text[:offset]] + [text[i : i + size] for i in range(offset, len(text), size)]
        assert "".join(watch.push(cut) for cut in cuts) + watch.finish() == "one two "
        assert watch.found


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1),
)
def test_stopping_does_not_depend_on_the_cuts(text: str, stop: list[str], sizes: list[int]) -> None:
    def run(cuts: list[str]) -> tuple[str, bool]:
        watch = StopWatch(tuple(stop))
        shown = ""
        for cut in cuts:
            shown += watch.push(cut)
            assert not any(word in shown for word in stop), "a stop string was shown"
        return shown + watch.finish(), watch.found

    cuts, at = [], 0
    while at < len(text):
        size = sizes[len(cuts) % len(sizes)]
        cuts.append(text[at : at + size])
        at += size
    shown, found = run(cuts)
    assert (shown, found) == run(list(text))
    assert found == any(word in text for word in stop)
    assert shown == text or (found and text.startswith(shown))


def test_what_is_no_stop_string_is_held_back_only_while_it_may_be_one() -> None:
    watch = StopWatch(("</s>", "<|"))
    assert [watch.push(piece) for piece in ("a<", "/", "b", "</s")] == ["a", "", "</b", ""]
    assert watch.finish() == "</s" and not watch.found


def test_stop_string_over_token_and_character_boundaries() -> None:
    stream = TextStream(decode_bytes, ("é🙂",))
    pieces = [stream.push(token) for token in byte_ids("abé🙂cd")]
    assert "".join(pieces) + stream.finish() == stream.text == "ab"
    assert stream.stopped


def test_finding_it_at_the_very_end() -> None:
    stream = TextStream(decode_bytes, ("\ufffd",))
    assert "".join(pieces_of(stream, byte_ids("ab🙂")[:-1])) == "ab" and stream.stopped
