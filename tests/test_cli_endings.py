"""What ends the process ends it, also where a library catches whatever comes."""

from __future__ import annotations

import os
import signal

import pytest

from hgca_cli.commands.interrupt import end_if_asked, endings


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_was_swallowed_is_raised_again(number: int, raised: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with endings():
        end_if_asked()
        with pytest.raises(raised):
            os.kill(os.getpid(), number)
        with pytest.raises(raised):
            end_if_asked()
    assert signal.getsignal(number) is before
    with endings():
        end_if_asked()  # another run's does not count
