"""From --select, --budget and --quality to the policies that are compared. Checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hgca_cli.config import SELECTORS, CacheSettings
from hgca_cli.errors import UsageError
from hgca_cli.units import parse_share

WITHOUT_BUDGET = ("exact", "window")
WITHOUT_QUALITY = ("exact", "window", "moving-average")
MARKS = {"budget": WITHOUT_BUDGET, "quality": WITHOUT_QUALITY}


@dataclass(frozen=True)
class Policy:
    """One policy that is compared: how it reads, and the words that name it in tables."""

    select: str
    budget: float | None = None
    quality: float | None = None

    @property
    def name(self) -> str:
        """As it can be written after --select."""
        marks = [f"{mark}={value:g}" for mark in MARKS if (value := getattr(self, mark)) is not None]
        return ":".join([self.select, *marks])

    def settings(self, cache: CacheSettings) -> CacheSettings:
        """The cache with this policy."""
        return replace(cache, select=self.select, budget=self.budget, quality=self.quality)


def policies_of(words: Sequence[str], budgets: Sequence[str], qualities: Sequence[str]) -> list[Policy]:
    """The policies the flags name, each once, in order.

    words      of --select: `scan`, `scan:quality=0.95`, `moving-average:budget=20%`, several separated by commas; none
               is every policy but exact
    budgets    every policy that takes a budget, and was not given one of its own or a quality, runs with each of these;
    qualities  likewise

    Raises UsageError naming the word, the flag and the choices.
    """
    named = [one for word in words for one in word.split(",")] or [one for one in SELECTORS if one != "exact"]
    shares = [_share(text, "budget", "--budget") for text in budgets]
    masses = [_share(text, "quality", "--quality") for text in qualities]
    found: list[Policy] = []
    policies = [_policy(word.strip()) for word in named]
    for flag, given, without in (("budget", shares, WITHOUT_BUDGET), ("quality", masses, WITHOUT_QUALITY)):
        free = [one for one in policies if one.budget is None and one.quality is None]
        if given and all(one.select in without for one in free):
            takes = ", ".join(one for one in SELECTORS if one not in without)
            raise UsageError(f"--{flag}: no policy that is compared takes it.", f"Drop it, or --select one of {takes}.")
    for one in policies:
        if one.budget is not None or one.quality is not None:
            found.append(one)
            continue
        more = [replace(one, budget=share) for share in shares if one.select not in WITHOUT_BUDGET]
        more += [replace(one, quality=mass) for mass in masses if one.select not in WITHOUT_QUALITY]
        found += more or [one]
    return [one for one in dict.fromkeys(found) if one.select != "exact"]  # it is the yardstick, and always there


def _policy(word: str) -> Policy:
    select, *marks = word.split(":")
    if select not in SELECTORS:
        raise UsageError(f"--select: no policy {select!r}.", f"Choose from {', '.join(SELECTORS)}.")
    given: dict[str, float] = {}
    for mark in marks:
        name, _, text = mark.partition("=")
        if name not in MARKS or name in given:
            raise UsageError(f"--select: {word!r} is no policy.", "Write it like scan:quality=0.95 or scan:budget=5%.")
        if select in MARKS[name]:
            raise UsageError(f"--select: {select} takes no {name}.", f"Write {select} alone.")
        given[name] = _share(text, name, f"--select {word}")
    return Policy(select, given.get("budget"), given.get("quality"))


def _share(text: str, name: str, flag: str) -> float:
    share = parse_share(text, flag)
    if name == "quality" and share == 0.0:
        raise UsageError(f"{flag}: a quality of 0 is no target.", "Give a number above 0, at most 1.")
    return share
