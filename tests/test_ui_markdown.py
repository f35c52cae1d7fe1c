"""Markdown while it comes: the same screen however the text is cut, nothing printed twice, nothing lost."""

from __future__ import annotations

import re
import shutil
from os import terminal_size

import pytest

from hgca_cli.events import Text
from hgca_cli.ui import console
from hgca_cli.ui.blocks import every_block, whole_blocks
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.markdown import MarkdownStream
from hgca_cli.ui.style import Style

ANSWER = """# Title

Some **bold** text with `code`, a [link](http://example.com/x), <b>tags</b> and 日本語 that is long enough to be wrapped.

1. one
2. two
   - nested
3. three

Next
----

> quoted

```python
def f(x):
    return x
```

| a | b |
|---|---|
| 1 | 2 |

* loose

  more of it
* last
"""
CODES = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """What a terminal shows of text, line feeds, and the two codes that are used to go back."""

    def __init__(self, columns: int = 60, lines: int = 24) -> None:
        self.columns, self.height = columns, lines
        self.lines = [""]
        self.row = 0
        self.writes = 0

    def write(self, text: str) -> None:
        self.writes += 1
        text = CODES.sub("", text)
        for part in re.findall(r"\x1b\[\d*[AK]|\n|\r|[^\x1b\n\r]+", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif part == "\r":
                pass
            elif part.endswith("A") and part.startswith("\x1b"):
                up = int(part[2:-1])
                assert up < self.height, "beyond the top of the screen"
                self.row -= up
                assert self.row >= 0
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            else:
                assert not any(self.lines[self.row + 1 :]), "nothing below is written over"
                self.lines[self.row] += part
                assert len(self.lines[self.row]) <= self.columns

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> list[terminal_size]:
    sizes = [terminal_size((60, 24))]
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: sizes[-1])
    return sizes


def shown(text: str, size: int, *, tail: bool = True, lines: int = 24) -> Screen:
    screen = Screen(lines=lines)
    stream = MarkdownStream(screen.write, color=True, tail=tail)
    for at in range(0, len(text), size):
        stream.push(text[at : at + size])
    stream.finish()
    return screen


def test_a_block_is_no_taller_than_what_scrolls(size: list[terminal_size]) -> None:
    """And what does not scroll is not wiped: no code erases more than a row."""
    screen = Screen(lines=12)
    stream = MarkdownStream(screen.write, color=True, tail=True)
    stream.covered = 12
    for character in "a paragraph of many words that goes on and on " * 20:
        stream.push(character)
    stream.finish()
    assert "".join(screen.text.split()).count("manywords") == 20


@pytest.mark.parametrize("tail", [True, False])
def test_the_screen_is_the_same_however_the_text_is_cut(tail: bool, size: list[terminal_size]) -> None:
    whole = shown(ANSWER, 10_000, tail=tail).text
    for count in (1, 2, 3, 7, 50):
        assert shown(ANSWER, count, tail=tail).text == whole
    for said in (
        "Title",
        "bold",
        "http://example.com/x",
        "<b>tags</b>",
        " 1 one",
        "nested",
        "def f(x):",
        "loose",
        "more of it",
    ):
        assert whole.count(said) == 1, said
    assert "**" not in whole and "```" not in whole and "|---" not in whole
    assert whole.splitlines()[0] == "Title" and "\n\n\n" not in whole


def test_nothing_goes_back_without_a_tail(size: list[terminal_size]) -> None:
    written: list[str] = []
    stream = MarkdownStream(written.append, color=False, tail=False)
    for character in ANSWER:
        stream.push(character)
    stream.finish()
    text = "".join(written)
    assert "\x1b[2K" not in text and not re.search(r"\x1b\[\d+A", text)


def test_what_grows_is_seen_at_once_and_replaced_in_one_write(size: list[terminal_size]) -> None:
    screen = Screen()
    stream = MarkdownStream(screen.write, color=True, tail=True)
    stream.push("Some **bo")
    assert screen.text == "Some **bo" and screen.writes == 1
    stream.push("ld** text")
    assert screen.text == "Some **bold** text"
    stream.push("\n\nNe")
    assert screen.text == "Some bold text\n\nNe" and screen.writes == 3
    stream.finish()
    assert screen.text == "Some bold text\n\nNe"


def test_a_paragraph_taller_than_the_screen_stays_as_it_was_written(size: list[terminal_size]) -> None:
    size.append(terminal_size((60, 10)))
    text = "a **word** " * 100 + "\n\n**end**\n"
    for count in (1, 5, 64):
        screen = shown(text, count, lines=10)
        assert screen.text.replace("\n", "").count("**word**") == 100 and screen.text.endswith("\n\nend")


def test_code_taller_than_the_screen_is_printed_in_parts(size: list[terminal_size]) -> None:
    size.append(terminal_size((60, 10)))
    code = "".join(f"line{number} = {number}\n" for number in range(40))
    for count in (1, 3, 30):
        screen = shown(f"Look:\n\n```python\n{code}```\n\nDone.\n", count, lines=10)
        body = [line for line in screen.text.splitlines() if "line" in line]
        assert body == [f"  line{number} = {number}" for number in range(40)]
        assert "```" not in screen.text and screen.text.endswith("\n\nDone.")


LONG_WORD = "".join(f"word{number}" for number in range(30))


@pytest.mark.parametrize(
    "before", ["```python\n", "* item\n\n  ```\n  ", "| a | b |\n|---|---|\n| some words | ", "# ", "> "]
)
def test_what_is_wider_than_the_screen_is_all_there(before: str, size: list[terminal_size]) -> None:
    for words in (LONG_WORD, " ".join(f"word{number}" for number in range(30))):
        text = re.sub(r"[^a-z0-9]", "", shown(before + words + "\n", 7).text)
        assert all(text.count(f"word{number}") == 1 for number in range(10, 30)), text


def test_a_resize_leaves_what_was_written(size: list[terminal_size]) -> None:
    screen = Screen()
    stream = MarkdownStream(screen.write, color=True, tail=True)
    stream.push("Some **bold** te")
    size.append(terminal_size((40, 24)))
    stream.push("xt\n\nand *more*\n\n")
    stream.finish()
    assert screen.text.startswith("Some **bold** text") and screen.text.endswith("more") and "*more*" not in screen.text


def test_a_resize_between_answers_changes_nothing(size: list[terminal_size]) -> None:
    screen = Screen()
    stream = MarkdownStream(screen.write, color=True, tail=True)
    for _ in range(2):
        for character in "# One\n\nsome **bold** words\n":
            stream.push(character)
        stream.finish()
        size.append(terminal_size((50, 30)))
    assert screen.text == "One\n\nsome bold words\nOne\n\nsome bold words"


def test_other_lines_do_not_end_up_in_the_tail(size: list[terminal_size]) -> None:
    screen = Screen()
    stream = MarkdownStream(screen.write, color=True, tail=True)
    stream.push("Some **bo")
    stream.settle()
    screen.write("a notice\n")
    stream.push("ld** text\n\nand *more*\n")
    stream.finish()
    assert screen.text == "Some **bo\na notice\nld** text\n\nand more"


@pytest.mark.parametrize("when", range(0, 60, 3))
def test_nothing_is_lost_or_told_twice_whenever_something_else_is_written(when: int, size: list[terminal_size]) -> None:
    text = "one two\n- three four\n- five six\n\n```\nseven\n```\neight **nine**\n"
    for count in (1, 4):
        screen = Screen()
        stream = MarkdownStream(screen.write, color=True, tail=True)
        for at in range(0, len(text), count):
            stream.push(text[at : at + count])
            if at <= when < at + count:
                stream.settle()
                screen.write("(notice)\n")
        stream.finish()
        whole = screen.text.replace("(notice)", "").replace("\n", "")
        for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
            assert whole.count(word) == 1, screen.text


def test_lines_stay_lines(size: list[terminal_size]) -> None:
    assert size
    poem = "In the **heart** of the night,\na silver leaf,\na leaf that whispers.\n\n- one\n  two\n\n> three\n> four\n"
    screen = Screen()
    stream = MarkdownStream(screen.write, color=False, tail=True)
    for character in poem:
        stream.push(character)
    stream.finish()
    shown = [line.strip(" •▌") for line in screen.lines if line.strip()]
    assert shown == [
        "In the heart of the night,",
        "a silver leaf,",
        "a leaf that whispers.",
        "one",
        "two",
        "three",
        "four",
    ]


def test_escape_codes_of_a_model_are_inert(size: list[terminal_size]) -> None:
    written: list[str] = []
    stream = MarkdownStream(written.append, color=False, tail=True)
    stream.push("a\x1b[2J\x1b]52;c;aGk=\x07 [x](javascript:1)\n\n`\x1b[31m`\n")
    stream.finish()
    text = "".join(written)
    assert "\x1b[2J" not in text and "\x1b]" not in text and "\x07" not in text and "\x1b[31m" not in text


def test_whole_blocks() -> None:
    assert whole_blocks("a\nb") == ([], "a\nb")
    blocks, rest = whole_blocks("# t\n\na\nb\n\n- one\n- two")
    assert [(block.kind, block.source) for block in blocks] == [("heading", "# t\n"), ("paragraph", "a\nb\n")]
    assert rest == "\n- one\n- two"
    assert whole_blocks("a\n--")[0] == [], "it may become a heading"
    assert whole_blocks("```\ncode\n\n# no title\n")[0] == []
    assert [block.source for block in whole_blocks("````\n```\n````\nb")[0]] == ["````\n```\n````\n"]
    assert [block.kind for block in every_block("1. a\n2. b\n\nx\n\n- c\n")] == ["item", "item", "paragraph", "item"]


@pytest.mark.parametrize(
    ("wanted", "terminal", "term", "rendered"),
    [
        ("auto", True, "xterm", True),
        ("auto", False, "xterm", False),
        ("auto", True, "dumb", False),
        ("on", False, "xterm", True),
        ("off", True, "xterm", False),
    ],
)
def test_when_answers_are_rendered(
    wanted: str, terminal: bool, term: str, rendered: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(console, "is_terminal", lambda _: terminal)
    monkeypatch.setenv("TERM", term)
    sink = HumanSink(Style(color=False, bar=False), stats=False, stream=True, quiet=False)
    sink.render(wanted)
    sink.show(Text("**a**"))
    sink.close()
    last = capsys.readouterr().out.split("\x1b[2K")[-1]
    assert CODES.sub("", last).strip() == ("a" if rendered else "**a**")
