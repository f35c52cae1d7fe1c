"""How many threads a token is fastest with, found by trying one step up or down now and then.

Neighbours on the machine come and go: two threads that share a core with one are slower than one that does not. A trial
is short, ends early where it is plainly worse, and is paid for beforehand: what all trials lost stays below a hundredth of
the time that tokens took. Trials that found nothing come half as often each time.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from hgca_cli.events import Balanced

PERIOD = 32  # tokens of a trial
SETTLE = 2  # tokens before it, that do not count: threads begin or end
GAIN = 0.97  # of the time before, and less where times scatter: more is no gain
SURE = 4  # tokens that are all CLEARLY worse end it; one that takes PLAINLY longer, too
CLEARLY, PLAINLY = 1.1, 2.0
CHANGED = 1.15  # times as long, or as short, as when it was last decided: neighbours came, or went
SAME_ROWS = 1.1  # between rows that can be compared
WAIT, LONGEST_WAIT = 512, 16_384  # tokens between trials
PAYBACK = 100  # times what trials lost
LOOK = 8  # tokens between two looks at the newest ones: medians take time themselves
LOSS = 4  # tokens' time that a trial may lose, or what the last one lost


class ThreadClimb:
    """The number of threads in force, in 1 .. most. `most` is where it begins."""

    def __init__(self, most: int) -> None:
        assert most >= 1
        self.threads = most
        self._most = self._settled = most
        self._down = True  # where the next step goes
        self._recent: deque[float] = deque(maxlen=2 * PERIOD)
        self._trial: list[float] = []
        self._base = 0.0  # seconds of a token a trial is compared with
        self._enough = 0.0  # at most so many, and it stays
        self._reference: tuple[float, int] | None = None  # seconds of a token, and its rows, when it was last decided
        self._since, self._wait = 0, WAIT
        self._due = False  # a token's time has changed
        self._spent = self._lost = 0.0
        self._dear = 0.0  # what the last trial lost

    @property
    def trying(self) -> bool:
        """Whether this is a trial."""
        return self.threads != self._settled

    def sample(self, seconds: float, rows: int) -> Balanced | None:
        """Take a token in: its time, and the rows in the cache; the move it leads to."""
        if self._most == 1:
            return None
        self._spent += seconds
        self._since += 1
        if self.trying:
            self._trial.append(seconds)
            return self._judge()
        self._recent.append(seconds)
        if len(self._recent) < 2 * PERIOD or self._since % LOOK:
            return None
        recent = list(self._recent)
        halves = median(recent[:PERIOD]), median(recent[PERIOD:])
        if changed := self._changed(halves[1], rows):
            self._due, self._down = True, changed > 0
            self._reference = halves[1], rows
            self._recent.clear()  # what a trial is compared with is as it is now
            return None
        dear = max(self._dear, LOSS * halves[1])
        if not (self._due or self._since >= self._wait) or self._spent < PAYBACK * (self._lost + dear):
            return None
        self._base = min(halves)
        scatter = median(abs(one - self._base) for one in recent)
        self._enough = GAIN * self._base - scatter / 2  # about the standard error of two medians' difference
        return self._try(halves[1], rows)

    def rest(self) -> Balanced | None:
        """What a token does has changed, or there are none for a while: a trial is given up, and times count anew."""
        self._recent.clear()
        self._reference = None
        return self._back("the trial was interrupted") if self.trying else None

    def _changed(self, seconds: float, rows: int) -> int:
        """1: a token takes longer than it did at these rows; -1: not as long; 0: neither, or nobody knows."""
        if self._reference is not None:
            before, then = self._reference
            if then / SAME_ROWS < rows < then * SAME_ROWS:
                return 1 if seconds > CHANGED * before else -1 if seconds * CHANGED < before else 0
        self._reference = seconds, rows
        return 0

    def _try(self, seconds: float, rows: int) -> Balanced:
        step = max(1, self._settled // 8)
        fewer, more = max(1, self._settled - step), min(self._most, self._settled + step)
        self._down = more == self._settled or (self._down and fewer != self._settled)
        self.threads = fewer if self._down else more
        self._due = False
        self._reference = seconds, rows
        took, enough = self._base * 1e3, self._enough * 1e3
        reason = f"tried for {PERIOD} tokens: stays if one takes {enough:.3g} ms at most, in place of {took:.3g}"
        return Balanced("threads", self._settled, self.threads, reason)

    def _judge(self) -> Balanced | None:
        counted = self._trial[SETTLE:]
        hopeless = len(counted) >= SURE and min(counted) > CLEARLY * self._base
        if len(counted) == 1 and counted[0] > PLAINLY * self._base:
            hopeless = True
        if not hopeless and len(counted) < PERIOD:
            return None
        took = median(counted)
        if not hopeless and took <= self._enough:
            self._settled = self.threads
            self._decided()
            self._wait, self._reference = WAIT, None
            return None
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._down = not self._down
        return self._back(f"a token took {took * 1e3:.3g} ms in place of {self._base * 1e3:.3g}")

    def _back(self, reason: str) -> Balanced:
        move = Balanced("threads", self.threads, self._settled, reason)
        self.threads = self._settled
        self._decided()
        return move

    def _decided(self) -> None:
        self._dear = max(0.0, sum(self._trial) - len(self._trial) * self._base)
        self._lost += self._dear
        self._trial = []
        self._since = 0
        self._recent.clear()
