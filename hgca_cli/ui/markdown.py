"""An answer as Markdown on a terminal while it comes.

What is finished is printed once and never touched again. The block that still grows stands below it as it was written,
and is replaced, in one write, when it is whole: no screen is redrawn meanwhile. A block that has become taller than the
screen can no longer be replaced, and stays as it was written; code is printed in parts before that.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from io import StringIO

from rich.cells import get_character_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

from hgca_cli.ui.blocks import PARSER, Block, every_block, open_fence, whole_blocks
from hgca_cli.ui.inert import inert

ITEM = re.compile(r" {0,3}[-*+0-9]")  # how one more item of a list begins
SPARE_ROWS = 3  # of the screen that a block may not fill
SPARE_CELLS = 2  # of a row: characters may be wider than we think
BLANK_END = re.compile(r"(?:\x1b\[[0-9;]*m +\x1b\[0m| )+(?=\n)")  # of a line, coloured or not
CODE_THEME = "ansi_dark"  # the terminal's own colours


class _Code(CodeBlock):
    """Code without a frame, in the terminal's colours."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As of rich."""
        code = str(self.text).rstrip("\n")
        shown = Syntax(code, self.lexer_name, theme=CODE_THEME, background_color="default").highlight(code)
        shown.rstrip()
        shown.no_wrap, shown.overflow = False, "fold"  # rich would cut long lines
        yield Padding(shown, (0, 0, 0, 2), expand=False)


class _Heading(Heading):
    """A heading at the left, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As of rich."""
        self.text.justify = "left"
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _Table(TableElement):
    """A table whose long words go on in the next line: rich would cut them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As of rich."""
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            yield table


class _Answer(Markdown):
    elements = {  # noqa: RUF012
        **Markdown.elements, "fence": _Code, "code_block": _Code, "heading_open": _Heading, "table_open": _Table,
    }  # fmt: skip

    def __init__(self, source: str) -> None:
        super().__init__("", code_theme=CODE_THEME, hyperlinks=False)  # a link may not hide where it leads
        self.parsed = PARSER.parse(source)
        for child in [child for token in self.parsed for child in token.children or ()]:
            if child.type == "softbreak":  # a model means the lines of a poem, or of an address
                child.type = "hardbreak"


class MarkdownStream:
    """Pieces of one answer after another.

    write  takes what the terminal is to get; color: escape codes for colours
    tail   show the block that still grows, too; only where the cursor can go up
    covered  rows at the lower end of the screen that do not scroll
    """

    covered = 0

    def __init__(self, write: Callable[[str], object], *, color: bool, tail: bool) -> None:
        self._write, self._color, self._shows_tail = write, color, tail
        self._rows = self._column = 0  # of the tail, as we broke its lines
        self._begin()

    def push(self, piece: str) -> None:
        """One more piece of the answer."""
        piece = inert(piece)
        if not piece:
            return
        shown = len(self._pending)
        self._pending += piece
        blocks: list[Block] = []
        if "\n" in piece:
            blocks, rest = whole_blocks(self._pending)
        if blocks and self._stuck:
            self._leave(blocks, rest, shown)
        elif blocks:
            self._replace(blocks, rest)
        elif self._shows_tail:
            self._write(self._grown(piece))
            if self._rows > self._most_rows() and not self._stays:
                self._part()

    def finish(self) -> None:
        """The answer has ended: what is left is whole."""
        if self._stuck:
            self._write("\n" * bool(self._column))
        elif self._pending.strip() or self._rows or self._column:
            self._replace(every_block(self._pending), "")
        self._begin()

    def settle(self) -> None:
        """Something else is written to the terminal now: the block that grows stays as it stands."""
        if self._rows or self._column:
            self._stays = True
            self._write("\n" * bool(self._column))
            self._column = 0

    def _begin(self) -> None:
        self._pending = ""
        self._any = False  # something was printed
        self._stays = False  # the block that grows cannot be replaced
        self._goes_on = False  # the next block is the rest of one that was printed in part
        self._last = ""  # kind of the block before
        self._forget_tail()

    def _forget_tail(self) -> None:
        self._rows = self._column = 0
        self._stays = False
        self._size = shutil.get_terminal_size()

    def _most_rows(self) -> int:
        return max(3, self._size.lines - SPARE_ROWS - self.covered)

    def _up(self) -> str:
        """To where the tail begins, without it."""
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * self._rows  # its own rows: what is below them may be somebody else's

    def _grown(self, piece: str) -> str:
        """A piece of the tail, with line breaks of our own, so that we know its rows."""
        out = []
        if not self._rows and not self._column and not self._stays:
            self._size = shutil.get_terminal_size()  # it may have changed since the last block
            piece = piece.lstrip("\n")
            apart = self._any and not self._goes_on and not (self._last == "item" and ITEM.match(piece))
            piece = "\n" + piece if piece and apart else piece  # as it will be printed
        width = max(20, self._size.columns - SPARE_CELLS)
        for character in piece.expandtabs(4):
            cells = get_character_cell_size(character)
            if character == "\n" or self._column + cells > width:
                out.append("\n")
                self._rows += 1
                self._column = 0
            if character != "\n":
                out.append(character)
                self._column += cells
        return "".join(out)

    @property
    def _stuck(self) -> bool:
        """The tail cannot be reached any more."""
        if (self._rows or self._column) and shutil.get_terminal_size() != self._size:
            self._stays = True
        return self._stays

    def _replace(self, blocks: list[Block], rest: str) -> None:
        """Whole blocks in place of the tail, and what still grows below them."""
        out = [self._up()] if self._rows or self._column else []
        out += [self._rendered(block) for block in blocks]
        self._forget_tail()
        self._pending = rest
        if self._shows_tail and rest.strip():
            out.append(self._grown(rest))
        self._write("".join(out))

    def _leave(self, blocks: list[Block], rest: str, shown: int) -> None:
        """Blocks of which some were begun in a tail that stays: these end as they began, the others are rendered."""
        text, end = self._pending, 0
        while blocks and (begin := text.index(blocks[0].source, end)) < shown:
            end = begin + len(blocks[0].source)
            self._any, self._last = True, blocks.pop(0).kind
        if not blocks and len(text) - len(rest.lstrip("\n")) < shown:  # also what still grows was begun there
            self._write(self._grown(text[shown:]))
            self._pending = rest
            return
        self._write(self._grown(text[shown:end].rstrip("\n")) + "\n" * bool(self._column))
        self._forget_tail()
        self._replace(blocks, rest)

    def _part(self) -> None:
        """The tail is about to outgrow the screen: of code, all but the last lines are final; else it stays as it is."""
        fence = open_fence(self._pending)
        if fence is None or fence[1].count("\n") < 2:
            self._stays = True
            return
        opener, code = fence
        cut = code[: code.rfind("\n")].rfind("\n") + 1  # one whole line stays, as does the one that is being written
        self._write(self._up() + self._rendered(Block("fence", opener + code[:cut])))
        self._forget_tail()
        self._pending, self._goes_on = opener + code[cut:], True
        self._write(self._grown(code[cut:]))

    def _rendered(self, block: Block) -> str:
        """A block as it is printed, with a blank line before it where one belongs."""
        apart = self._any and not self._goes_on and not (block.kind == self._last == "item")
        self._any, self._goes_on, self._last = True, False, block.kind
        size = shutil.get_terminal_size()
        console = Console(
            file=StringIO(), force_terminal=True, width=size.columns, height=size.lines, legacy_windows=False,
            no_color=not self._color, color_system="standard" if self._color else None, highlight=False, emoji=False,
        )  # fmt: skip
        with console.capture() as captured:
            console.print(_Answer(block.source))
        text = BLANK_END.sub("", captured.get()).strip("\n")
        return "\n" * apart + text + "\n"
