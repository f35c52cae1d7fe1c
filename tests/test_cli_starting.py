"""How often Python searches for cycles while `hgca` starts, and afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hgca_cli.commands import starting

STARTED = """
import gc
from hgca_cli import __main__, app
from hgca_cli.commands.starting import SELDOM, search_as_before

def run(words):
    seldom = gc.get_threshold()[0] == SELDOM
    search_as_before()
    print(seldom, gc.get_threshold() == usual)
    return 0

usual = gc.get_threshold()
app.run = run
__main__.main()
"""


@pytest.fixture
def usual() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.unfreeze()
    gc.set_threshold(*before)


def test_cycles_are_searched_for_as_before_once_all_is_imported(usual: tuple[int, int, int]) -> None:
    starting.search_seldom()
    starting.search_seldom()
    assert gc.get_threshold() == (starting.SELDOM, *usual[1:])
    starting.search_as_before()
    assert gc.get_threshold() == usual and gc.get_freeze_count() > 1000


def test_nothing_is_kept_from_the_search_that_was_not_begun_seldom(usual: tuple[int, int, int]) -> None:
    frozen = gc.get_freeze_count()
    starting.search_as_before()
    assert gc.get_threshold() == usual and gc.get_freeze_count() == frozen


def test_a_process_begins_so() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr
