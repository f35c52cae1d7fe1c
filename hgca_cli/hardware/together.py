"""Sequences that run at once under a plan: what each takes, how many pay, and how long a job will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hgca_cli.hardware.assumed import assume
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.memory import Choice, Memory, Model, layout_of, stored_rows
from hgca_cli.hardware.place import Case, Place
from hgca_cli.hardware.probe import host_memory
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.settings import Plan, PlanRequest

MOST = 256  # sequences
JOB = 0.995  # of the best throughput, where nobody waits for a single answer: prompts are read together, too, which is not predicted
BLOCK = 128  # rows
SPARE, SPARE_PART = 256 << 20, 50  # of the host's memory, left to others: bytes, and at most one part in so many
LOOK_SECONDS = 0.5


@dataclass
class _Looked:
    """What was free, and when."""

    at: float = -1e9
    free: int = 0


_looked = _Looked()


@dataclass(frozen=True)
class Together:
    """A plan's model and machine, for more than one sequence. Lengths are tokens, prompt and answer together."""

    place: Place
    plan: Plan

    @property
    def limits(self) -> tuple[int, ...]:
        """Bytes for rows in every place that holds them: what is left beside weights and work."""
        return tuple(
            max(0, one.limit - one.weights - one.work - one.runtime)
            for one in _holding(self.place.needs(self._choice()))
        )

    def takes(self, tokens: int) -> tuple[int, ...]:
        """Bytes of one sequence in these places, its logits included."""
        logits = 3 * 4 * self.place.model.vocabulary
        needed = _holding(self.place.needs(self._choice(tokens)))
        return tuple(one.window + one.store + (logits if at == 0 else 0) for at, one in enumerate(needed))

    def holds(self, tokens: int, most: int) -> tuple[int, ...]:
        """Bytes of one that has so many tokens and may grow to `most`: a GPU's window is there from its first token on, rows in the
        host's memory take what they have. What its index takes is allocated for whole blocks, so a few rows more are counted.
        """
        now, then = self.takes(min(most, tokens + BLOCK)), self.takes(most)
        return now if self.plan.device == "cpu" else (then[0], *now[1:])

    def shares(self, tokens: int) -> tuple[int, ...]:
        """Bytes that a sequence does not take in these places if its first so many tokens are a kept one's, which takes them."""
        choice = self._choice(tokens)
        rows, index = layout_of(self.place.model, choice).shared_bytes(stored_rows(choice))
        disk = self.place.request.disk
        places = [rows + index] if disk is None else [index + (rows if disk.in_memory else 0), rows]
        return tuple(places if self.plan.device == "cpu" else [0, *places])

    def free(self) -> tuple[int | None, ...]:
        """Bytes of the host's memory that others have left at present, but for some that stay theirs; None of other places."""
        now = time.monotonic()
        if now - _looked.at >= LOOK_SECONDS:
            total, free = host_memory()
            _looked.at, _looked.free = now, max(0, free - min(SPARE, total // SPARE_PART))
        return tuple(
            _looked.free if one.place == "host memory" else None for one in _holding(self.place.needs(self._choice()))
        )

    def sequences(self, tokens: int, surely: int | None = None, shared: int = 0) -> int:
        """How many that may grow to so many tokens pay: beyond them a job's throughput hardly grows; or fewer if no more fit.

        surely  tokens that each will have; None: all of them
        shared  of these, the first ones, which all begin with
        """
        most = MOST
        each = self.takes(tokens if surely is None else surely)
        nothing = (0,) * len(each)
        kept, saved = (self.takes(shared), self.shares(shared)) if shared else (nothing, nothing)
        for limit, taken, once, less in zip(self.limits, each, kept, saved, strict=True):
            if taken > less:
                most = min(most, max(limit // taken, (limit - once) // (taken - less)))
        costs = self.place.costs(self.plan.quality)
        return costs.knee(self._choice(tokens), self.plan.threads, max(1, most), JOB)

    def seconds(self, prompts: Sequence[int], answers: int, slots: int) -> float:
        """Predicted for prompts of these lengths, each read by itself, and answers of so many tokens each, `slots` at once."""
        if not prompts:
            return 0.0
        costs, threads = self.place.costs(self.plan.quality), self.plan.threads
        read = sum(costs.prefill(self._choice(length + answers), length, threads) for length in prompts)
        slots = max(1, min(slots, len(prompts)))
        mean = sum(prompts) // len(prompts) + answers // 2
        step = costs.decode(self._choice(mean + answers), threads, length=mean, batch=slots).total
        return read + step * answers * len(prompts) / slots

    def _choice(self, tokens: int | None = None) -> Choice:
        plan = self.plan
        context = plan.context if tokens is None else max(1, min(tokens, plan.context))
        choice = Choice(
            plan.device,
            plan.dtype,
            plan.kv_dtype,
            context,
            plan.window,
            plan.sinks,
            plan.chunk,
            plan.select,
            plan.device_codes,
            plan.quant,
        )
        return replace(choice, window=min(plan.window, max(1, context - plan.sinks)))


def together(model: Model, machine: Machine, request: PlanRequest, profile: Profile | None, plan: Plan) -> Together:
    """What a plan's run can do at once. profile: of the machine; None: its rates are assumed."""
    one = replace(request, sequences=1)
    return Together(Place(Case(model, machine, one, profile or assume(machine)), plan.device), plan)


def _holding(places: list[Memory]) -> list[Memory]:
    """Where rows are: not what the host holds while a GPU's weights pass through it."""
    return [one for one in places if one.place != "host memory while loading"]
