"""Guesses from the text itself: where its last tokens stood before, the latest place, the longest likeness, and how many."""

from __future__ import annotations

import random

import pytest

from hgca_cli.engine.lookup import ALIKE, FIRST, PromptLookup

TEXT = [*range(100, 140), 7, 8, 9, *range(200, 240)]


def naive(tokens: list[int], most: int) -> list[int]:
    """The same by looking at every place."""
    for alike in ALIKE:
        for end in range(len(tokens) - 1, alike - 1, -1):
            if tokens[end - alike : end] == tokens[-alike:]:
                return tokens[end : end + most]
    return []


@pytest.mark.parametrize("words", [2, 5, 70_000])
def test_what_followed_when_the_last_tokens_stood_there_before(words: int) -> None:
    dice = random.Random(words)
    tokens = [dice.randrange(words) for _ in range(40)]
    lookup = PromptLookup(FIRST)
    for turn in range(400):
        assert lookup.guess(tokens, 9) == naive(tokens, FIRST)
        tokens += dice.choices(range(words), k=1) if turn % 3 else tokens[turn % 30 : turn % 30 + 9]


@pytest.mark.parametrize("word", [0, 1, 255, 256, 257, 65_536, 16_843_009, (1 << 31) - 1])
def test_a_token_is_found_as_a_whole_only(word: int) -> None:
    """Numbers whose bytes, of two neighbours, look like another number."""
    lookup = PromptLookup(4)
    tokens = [word, word * 256 % (1 << 31), word, word]
    assert lookup.guess(tokens, 4) == naive(tokens, FIRST)
    assert PromptLookup(4).guess([256, 0, 1, 5, 0, 1], 4) == [5, 0]
    assert PromptLookup(4).guess([256, 0, 1, 5, 6, 256], 4) == []


def test_the_longest_likeness_goes_first_and_of_alike_ones_the_latest() -> None:
    short, long = [1, 2, 50], [11, 12, 1, 2, 60]
    assert PromptLookup(7).guess([*long, *TEXT, *short, *TEXT[:9], 11, 12, 1, 2], 1) == [60]
    assert PromptLookup(7).guess([*long, *TEXT, *short, *TEXT[:9], 13, 12, 1, 2], 1) == [50]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 1], [1, 2, 3], TEXT])
def test_new_words_and_short_texts_have_no_guess(tokens: list[int]) -> None:
    assert PromptLookup(7).guess(tokens, 7) == naive(tokens, FIRST) == []


def test_a_loop_is_guessed_from_its_second_round_on() -> None:
    assert PromptLookup(7).guess([5, 5, 5], 7) == [5]
    assert PromptLookup(7).guess([5, 6, 5, 6], 1) == [5]


def test_no_more_than_there_is_room_for() -> None:
    tokens = [*TEXT, 7, 8]
    assert PromptLookup(7).guess(tokens, 0) == []
    assert PromptLookup(7).guess(tokens, 1) == [9]
    assert PromptLookup(1).guess(tokens, 7) == [9]
    assert PromptLookup(7).guess(tokens, 7) == [9, 200]


def test_guesses_become_longer_while_they_are_right() -> None:
    lookup, tokens, lengths = PromptLookup(7), [*TEXT, 7, 8], []
    for right in (2, 4, 7, 3, 0, 0, 0, 1, 1, 2):
        guess = lookup.guess(tokens, 99)
        lengths.append(len(guess))
        lookup.tell(len(guess), min(right, len(guess)))
    assert lengths == [2, 4, 7, 7, 4, 2, 1, 1, 2, 1]
    assert (lookup.guessed, lookup.right) == (sum(lengths), 2 + 4 + 7 + 3 + 0 + 0 + 0 + 1 + 1 + 1)
