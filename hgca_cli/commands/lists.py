"""Options that take several words: `--rows 4k 32k` says `--rows 4k --rows 32k`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ListCommand(TyperCommand):
    """A command without arguments, so that words after a repeatable option belong to it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before every further word."""
        repeatable = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
        words: list[str] = []
        flag, fresh = "", False
        for word in args:
            if word.startswith("-"):
                flag = word.partition("=")[0] if word.partition("=")[0] in repeatable else ""
                fresh = "=" not in word
            elif flag and not fresh:
                words.append(flag)
            else:
                fresh = False
            words.append(word)
        return super().parse_args(ctx, words)
