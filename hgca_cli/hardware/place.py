"""A request on one device: its limits, what a choice needs there, and what it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hgca_cli.hardware.cost import Costs
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.memory import Choice, Memory, Model, needs, stored_rows
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.settings import PlanRequest

MARGIN = 1 << 30  # of a GPU's memory: CUDA's own (0.7 GiB on an H200), fragmentation, and what the desktop takes next
HOST_SHARE = 0.8  # of the available host memory, unless --ram-limit says otherwise
SMALL_WINDOW = 1024  # rows at most that the window is taken for while other settings are decided
STEP = 256  # contexts and windows that memory decides are multiples of this


@dataclass(frozen=True)
class Case:
    """A request with what it is about. profile: what the machine can do, measured or assumed."""

    model: Model
    machine: Machine
    request: PlanRequest
    profile: Profile

    def asking(self, **changes: Any) -> Case:
        """The same, asked for differently."""
        return replace(self, request=replace(self.request, **changes))


class Place:
    """A request on one device."""

    def __init__(self, case: Case, device: str) -> None:
        request, machine = case.request, case.machine
        self.case, self.request, self.model = case, request, case.model
        self.gpu: Gpu | None = None
        free_host = machine.memory_free
        self.host_limit = min(request.ram_limit or int(HOST_SHARE * free_host), free_host)
        self.gpu_limit = 0
        if device != "cpu":
            self.gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
            margin = MARGIN if request.gpu_margin is None else request.gpu_margin
            self.gpu_limit = max(0, min(self.gpu.free, request.gpu_memory or self.gpu.free) - margin)

    def costs(self, quality: float | None) -> Costs:
        """What choices take here, if so much of the attention mass is kept."""
        return Costs(self.case.profile, self.model, quality, self.request.budget, self.request.dense_layers)

    def needs(self, choice: Choice) -> list[Memory]:
        """Bytes in every place; a policy that is not decided yet is taken for `scan`."""
        name = self.gpu.name if self.gpu else ""
        if not choice.select:
            choice = replace(choice, select="scan" if stored_rows(choice) else "exact")
        places = self.gpu_limit, self.host_limit, name, self.request.disk
        return needs(self.model, choice, *places, self.request.sequences)

    def fits(self, choice: Choice) -> bool:
        """Whether every place can hold what a choice needs."""
        return all(memory.fits for memory in self.needs(choice))

    def fits_somehow(self, choice: Choice) -> bool:
        """Whether a choice fits with some window: on a GPU the larger it is, the less the host must hold."""
        if self.gpu is None or self.request.window is not None:
            return self.fits(replace(choice, window=self.default_window(choice)))
        return self.fits(replace(choice, window=self.largest_window(choice) or self.default_window(choice)))

    def largest_window(self, choice: Choice) -> int:
        """The most rows that the GPU holds, whatever the host does; 0 if not even a few."""
        everything = max(1, choice.context - choice.sinks)

        def fits(window: int) -> bool:
            return self.needs(replace(choice, window=window))[0].fits

        return everything if fits(everything) else largest(fits, everything)

    def default_window(self, choice: Choice) -> int:
        """What the window is at least to be while other settings are decided."""
        return self.request.window or max(1, min(choice.context - choice.sinks, SMALL_WINDOW))


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of STEP up to `most` that fits; 0 if none does. Needs grow with it."""
    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * STEP) else (low, middle - 1)
    return low * STEP
