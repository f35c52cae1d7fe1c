"""Settings that follow what is measured while an answer is written: samples of tokens in, moves out.

Nothing here reads a clock or draws a number: the same samples give the same moves. Two settings are moved, each by rules of
its own: the mass a policy aims at (engine/mass.py) and the number of threads (engine/threads.py).
"""

from __future__ import annotations

from hgca_cli.engine.mass import MassTarget
from hgca_cli.engine.sample import Sample
from hgca_cli.engine.threads import ThreadClimb
from hgca_cli.events import Balanced


class Balance:
    """What one engine has learnt: threads of the machine, which stay from text to text, and the aim of the present text.

    threads  most threads, and what it begins with
    """

    def __init__(self, threads: int) -> None:
        self._climb = ThreadClimb(threads)
        self._aim: MassTarget | None = None

    @property
    def threads(self) -> int:
        """In force."""
        return self._climb.threads

    @property
    def mass(self) -> float | None:
        """Aimed at; None: nothing is aimed at, so nothing is moved."""
        return None if self._aim is None else self._aim.mass

    def new_text(self, quality: float | None, layers: int) -> None:
        """What was learnt of the text before is forgotten.

        quality  the share of the mass that is asked for; None, or 1: the aim is not to be moved
        layers   that are metered, heads of one after heads of another
        """
        self._aim = None if quality is None or quality >= 1.0 else MassTarget(quality, layers)

    def sample(self, sample: Sample) -> list[Balanced]:
        """Take a token in; the moves it leads to, to be made before the next one."""
        steady = not self._climb.trying
        aimed = None if self._aim is None else self._aim.sample(sample, steady)
        if aimed is None:
            moved = self._climb.sample(sample.seconds, sample.rows)
        else:  # tokens are about to cost something else
            moved = self._climb.rest()
        return [move for move in (aimed, moved) if move is not None]

    def rest(self) -> None:
        """An answer ends: a trial is given up."""
        self._climb.rest()
