"""Which blocks of Markdown that comes in pieces are whole: what follows can no longer change them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt

PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])  # tags are text: nothing is lost
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Block:
    """Source of a block. kind: as the parser calls it, "item" for one of a list."""

    kind: str
    source: str


def whole_blocks(text: str) -> tuple[list[Block], str]:
    """The blocks of a text that are whole, and the rest, which begins with the block that is not."""
    whole_lines = text[: text.rfind("\n") + 1]
    lines = whole_lines.splitlines(keepends=True)
    places = _places(whole_lines)
    blocks: list[Block] = []
    end = 0
    for number, (kind, first, last) in enumerate(places):
        if number + 1 == len(places) and not _closed(kind, lines, first, last):
            break
        blocks.append(Block(kind, "".join(lines[first:last])))
        end = last
    return blocks, "".join(lines[end:]) + text[len(whole_lines) :]


def every_block(text: str) -> list[Block]:
    """All blocks of a text that has ended."""
    lines = text.splitlines(keepends=True)
    return [Block(kind, "".join(lines[first:last])) for kind, first, last in _places(text)]


def open_fence(text: str) -> tuple[str, str] | None:
    """The first line of a code block that text begins with and does not end, and the code so far."""
    opener, _, code = text.lstrip("\n").partition("\n")
    return (opener + "\n", code) if FENCE.match(opener) and code else None


def _places(text: str) -> list[tuple[str, int, int]]:
    """Kind, first line, and line after the last of every block."""
    found: list[tuple[str, int, int]] = []
    for token in PARSER.parse(text):
        if token.map is None or token.nesting < 0:
            continue
        first, last = token.map
        if token.level == 0 and not token.type.endswith("_list_open"):
            found.append((token.type.removesuffix("_open"), first, last))
        elif token.level == 1 and token.type == "list_item_open":
            found.append(("item", first, last))
    return found


def _closed(kind: str, lines: list[str], first: int, last: int) -> bool:
    """Whether the last block of what there is so far has ended."""
    if kind in ("heading", "hr"):
        return True
    if kind == "fence":
        opened, closing = FENCE.match(lines[first]), lines[last - 1].strip()
        return (
            opened is not None
            and last - first > 1
            and len(closing) >= len(opened[1])
            and not closing.strip(opened[1][0])
        )
    return kind in ("paragraph", "table") and last < len(lines)  # a blank line follows
