"""One text in the making: its token ids, and the cache that holds the rows of all but the newest of them."""

from __future__ import annotations

from hgca_cli.hf.cache import HybridCache


class Sequence:
    """Token ids and their rows.

    tokens  everything read and written so far; the last may not be in the cache yet
    """

    def __init__(self, cache: HybridCache) -> None:
        self.cache = cache
        self.tokens: list[int] = []

    @property
    def cached(self) -> int:
        """How many of the tokens have their rows in the cache."""
        return self.cache.get_seq_length()

    @property
    def waiting(self) -> list[int]:
        """Tokens whose rows are still to be computed."""
        return self.tokens[self.cached :]

    def rewind(self, length: int) -> bool:
        """Back to the first `length` tokens; False if rows needed for that are gone."""
        if self.cached > length and not self.cache.rewind(length):
            return False
        del self.tokens[length:]
        return True

    def close(self) -> None:
        """Give the memory back."""
        self.cache.close()
        self.tokens = []
