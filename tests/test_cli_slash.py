"""What is typed after a slash, without a terminal: what is taken, and what is said where it is not."""

from __future__ import annotations

import pytest

from hgca_cli.commands.slash_settings import setting_of
from hgca_cli.config import NO_LIMIT
from hgca_cli.errors import UsageError


def test_settings_as_flags_take_them() -> None:
    assert [setting_of("max_tokens", word) for word in ("300", "4k", "-1")] == [300, 4096, NO_LIMIT]
    assert [setting_of("seed", word) for word in ("5", "-1", "random")] == [5, None, None]
    assert [setting_of("reasoning_budget", word) for word in ("2k", "-1", "none")] == [2048, None, None]
    assert (setting_of("top_k", "-1"), setting_of("temperature", "0.5")) == (0, 0.5)
    with pytest.raises(UsageError, match=r"max_tokens: '4q' is not a number of tokens. Give 0 or more, like 200 or 4k"):
        setting_of("max_tokens", "4q")
