"""Who may grow: never more bytes than there are, nobody waits for ever, and lengths are expected by those that came before."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgca_cli.engine.room import KNOWN, QUANTUM, Claim, Lengths, Room

CLAIMS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda one: Claim(one[0], sum(one))), max_size=5)


def two_places(tokens: int) -> tuple[int, int]:
    return tokens, max(0, 2 * tokens - 5)


def ends_somehow(room: Room, claims: list[Claim], left: list[int]) -> bool:
    """By trying every order."""
    for order in itertools.permutations(claims):
        free = list(left)
        for claim in order:
            held, whole = room.held(claim), room.of(claim.most)
            if any(all_ - one > rest for all_, one, rest in zip(whole, held, free, strict=True)):
                break
            free = [rest + one for rest, one in zip(free, held, strict=True)]
        else:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    claims=CLAIMS,
    limits=st.tuples(st.integers(0, 40), st.integers(0, 60)),
    kept=st.lists(st.integers(0, 5), max_size=2),
)
def test_safe_is_that_some_order_ends(claims: list[Claim], limits: tuple[int, int], kept: list[int]) -> None:
    room = Room(limits, two_places, lambda tokens, most: two_places(tokens))
    held = [sum(place) for place in zip((0, 0), *map(room.of, kept), *map(room.held, claims), strict=True)]
    left = [limit - one for limit, one in zip(limits, held, strict=True)]
    assert room.safe(claims, kept) == (min(left) >= 0 and ends_somehow(room, claims, left))


@pytest.mark.parametrize("seed", range(5))
def test_whoever_asks_comes_to_an_end_within_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    room = Room((1000,), lambda tokens: (tokens,), lambda tokens, most: (tokens,))
    running = [Claim(0, rng.randrange(50, 900)) for _ in range(20)]
    rounds = waited = 0
    while running:
        rounds += 1
        assert rounds < 2000
        going = False
        for at, claim in enumerate(running):
            asked = Claim(min(claim.most, claim.granted + QUANTUM), claim.most)
            if room.safe([asked, *running[:at], *running[at + 1 :]]):
                running[at], going = asked, True
            else:
                waited += 1
        assert going and sum(claim.granted for claim in running) <= 1000
        running = [claim for claim in running if claim.granted < claim.most]
    assert waited > 100


def test_without_what_is_held_everybody_counts_as_long_as_he_may_become() -> None:
    room = Room((100,), lambda tokens: (tokens,))
    assert room.safe([Claim(1, 50), Claim(1, 50)]) and not room.safe([Claim(1, 50), Claim(1, 51)])
    assert room.fits([Claim(1, 50)], [50]) and not room.fits([Claim(1, 50)], [51])
    assert Room().safe([Claim(1, 50)] * 9) and Room().fits([Claim(1, 50)])


def test_what_others_take_lowers_the_limits() -> None:
    free = [70]
    room = Room((9, 100), lambda tokens: (0, tokens), lambda tokens, most: (0, tokens), lambda: (None, free[0]))
    assert room.limits_now([Claim(20, 50)], [5]) == (9, 95) and room.limits_now([], []) == (9, 70)
    free[0] = 500
    assert room.limits_now([Claim(20, 50)], [5]) == (9, 100)


def test_lengths_are_expected_once_some_have_ended() -> None:
    lengths = Lengths()
    for _ in range(KNOWN):
        assert lengths.expected(10, 0, 1000) == 1010
        lengths.ended(100, 1000)
    assert lengths.expected(10, 0, 1000) == 110 and lengths.expected(10, 300, 1000) == 310 + QUANTUM
    assert lengths.expected(10, 0, 4) == 14 and lengths.expected(10, 0, 0) == 10
    for _ in range(KNOWN):
        lengths.ended(1000, 1000)
    assert lengths.expected(10, 0, 1000) == 1010


def test_a_share_of_the_room() -> None:
    room = Room((100, 60), two_places)
    assert room.fits([Claim(9, 9)], [10], 0.5) and not room.fits([Claim(9, 9)], [16], 0.5)
    assert not room.fits([Claim(20, 20)], (), 0.5) and room.fits([Claim(20, 20)])
