"""From a model's shape, a machine and what the user asked for, to every setting of a run, with its reason.

Pure arithmetic, before anything is loaded. Version 1 of the rules: memory decides. `place_model`, `choose_dtype`,
`choose_context` and `choose_window` are the places where measured costs will decide instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hgca_cli.config import DTYPES, FOLLOWING, KV_DTYPES, QUALITY, CacheSettings
from hgca_cli.errors import DoesNotFitError, UsageError
from hgca_cli.hardware.machine import Gpu, Machine, choose_device
from hgca_cli.hardware.memory import ITEMSIZE, Choice, Memory, Model, needs, stored_rows
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.units import format_bytes

MARGIN = 1 << 30  # of a GPU's free memory: fragmentation, and what the desktop takes next
HOST_SHARE = 0.8  # of the available host memory, unless --ram-limit says otherwise
CPU_WINDOW = 1024
CPU_CHUNK, GPU_CHUNK, SMALLEST_CHUNK = 512, 2048, 64
UNKNOWN_CONTEXT = 4096  # where the config does not say what the model was trained on
STEP = 256  # contexts and windows that memory decides are multiples of this


@dataclass(frozen=True)
class Case:
    """A request with what it is about."""

    model: Model
    machine: Machine
    request: PlanRequest

    def asking(self, **changes: Any) -> Case:
        """The same, asked for differently."""
        return replace(self, request=replace(self.request, **changes))


def make_plan(model: Model, machine: Machine, request: PlanRequest) -> Plan:
    """The plan that is run. Raises DoesNotFitError with both figures and what would help, ModelError for no device."""
    case = Case(model, machine, request)
    plan = draw_up(case)
    if not plan.fits:
        raise does_not_fit(case, plan)
    return plan


def draw_up(case: Case) -> Plan:
    """The best plan there is, whether it fits or not. Raises ModelError for a device that is not there."""
    request, model = case.request, case.model
    _check(request)
    reasons: dict[str, str] = {}
    notices: list[str] = []
    device = place_model(case, reasons, notices)
    place = _Place(case, device)
    start = Choice(
        device=device,
        dtype=request.dtype or "bf16",
        kv_dtype=request.kv_dtype or request.dtype or "bf16",
        context=request.context or model.trained_context or UNKNOWN_CONTEXT,
        window=1,
        sinks=request.sinks if request.sinks is not None else CacheSettings.sinks,
        chunk=request.chunk or (CPU_CHUNK if device == "cpu" else GPU_CHUNK),
        select=request.select or "",  # the planner's, by the context
    )
    choice = choose_dtype(place, start, reasons)
    choice = choose_context(place, choice, reasons)
    choice = choose_chunk(place, choice, reasons)
    choice = choose_window(place, choice, reasons)
    choice, quality = choose_policy(place, choice, reasons)
    threads = choose_threads(case, reasons, notices)
    reasons["sinks"] = "given" if request.sinks is not None else "first rows that every head keeps looking at"
    if request.kv_dtype:
        reasons["kv_dtype"] = "given"
    elif choice.kv_dtype == choice.dtype:
        reasons["kv_dtype"] = "the model's own numbers: nothing is rounded"
    else:
        reasons["kv_dtype"] = "half the bytes; what rounding changes is far below what a choice of rows does"
    if model.trained_context and choice.context > model.trained_context and not request.yarn:
        notices.append(
            f"context {choice.context:,} is beyond the trained length {model.trained_context:,}: answers get worse "
            "past it. --yarn stretches the positions."
        )
    return Plan(
        device=choice.device,
        dtype=choice.dtype,
        kv_dtype=choice.kv_dtype,
        context=choice.context,
        window=choice.window,
        sinks=choice.sinks,
        threads=threads,
        chunk=choice.chunk,
        select=choice.select,
        budget=request.budget,
        quality=quality,
        dense_layers=request.dense_layers,
        yarn_context=choice.context if request.yarn else None,
        memory=tuple(place.needs(choice)),
        reasons=reasons,
        notices=tuple(notices),
    )


class _Place:
    """A request on one device: its limits, and what a choice needs there."""

    def __init__(self, case: Case, device: str) -> None:
        request, machine = case.request, case.machine
        self.request, self.model = request, case.model
        self.gpu: Gpu | None = None
        free_host = machine.memory_free
        self.host_limit = min(request.ram_limit or int(HOST_SHARE * free_host), free_host)
        self.gpu_limit = 0
        if device != "cpu":
            self.gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
            free = max(0, self.gpu.free - MARGIN)
            self.gpu_limit = free if request.gpu_memory is None else min(free, request.gpu_memory)

    def needs(self, choice: Choice) -> list[Memory]:
        name = self.gpu.name if self.gpu else ""
        if not choice.select:
            choice = replace(choice, select=best_policy(choice)[0])
        return needs(self.model, choice, self.gpu_limit, self.host_limit, name)

    def fits(self, choice: Choice) -> bool:
        return all(memory.fits for memory in self.needs(choice))

    def default_window(self, choice: Choice) -> int:
        """What the window is at least to be while other settings are decided."""
        return self.request.window or max(1, min(choice.context - choice.sinks, CPU_WINDOW))


def place_model(case: Case, reasons: dict[str, str], notices: list[str]) -> str:
    """The device asked for; else the GPU with most free memory if the plan fits there at all, or the CPU."""
    device = choose_device(case.request.device, case.machine.gpus)
    if case.request.device not in (None, "auto"):
        reasons["device"] = "given"
    elif device == "cpu":
        reasons["device"] = "no CUDA device"
    elif draw_up(case.asking(device=device)).fits:
        several = len(case.machine.gpus) > 1
        reasons["device"] = "the GPU with most free memory" if several else "a CUDA device is there"
    else:
        reasons["device"] = f"the model does not fit on {device}"
        notices.append(f"{device} is too small for this: running on the CPU.")
        return "cpu"
    return device


def choose_dtype(place: _Place, choice: Choice, reasons: dict[str, str]) -> Choice:
    """On a GPU the model's own 16 bits; on the CPU fp32, which is exact and faster there, if everything fits in it."""
    request = place.request
    if request.dtype is not None:
        reasons["dtype"] = "given"
        return replace(choice, dtype=request.dtype, kv_dtype=request.kv_dtype or request.dtype)
    own = place.model.own_dtype if place.model.own_dtype in ("bf16", "fp16") else "bf16"
    if choice.device != "cpu":
        reasons["dtype"] = "the model's own" if own == place.model.own_dtype else "16 bits on a GPU"
        return replace(choice, dtype=own, kv_dtype=request.kv_dtype or own)
    rows = "bf16" if request.select is None or request.select in FOLLOWING else "fp32"
    wide = replace(choice, dtype="fp32", kv_dtype=request.kv_dtype or rows)
    if place.fits(replace(wide, window=place.default_window(wide), chunk=request.chunk or SMALLEST_CHUNK)):
        reasons["dtype"] = "weights and KV fit in fp32, which is fastest on the CPU"
        return wide
    reasons["dtype"] = "weights and KV in fp32 do not fit in memory"
    return replace(choice, dtype="bf16", kv_dtype=request.kv_dtype or "bf16")


def choose_context(place: _Place, choice: Choice, reasons: dict[str, str]) -> Choice:
    """What was asked for; else the trained length, or the largest that fits."""
    request = place.request
    if request.context is not None:
        reasons["context"] = "given"
        return choice
    said = "the model's trained length" if place.model.trained_context else "the config names no trained length"

    def fits(context: int, chunk: int = choice.chunk) -> bool:
        smaller = replace(choice, context=context, chunk=chunk)
        return place.fits(replace(smaller, window=place.default_window(smaller)))

    if fits(choice.context):
        reasons["context"] = said
        return choice
    context = _largest(fits, choice.context)
    if not context and request.chunk is None:
        context = _largest(lambda tokens: fits(tokens, SMALLEST_CHUNK), choice.context)
    reasons["context"] = f"the most that fits; {said} is {choice.context:,}" if context else said
    return replace(choice, context=context or choice.context)


def choose_chunk(place: _Place, choice: Choice, reasons: dict[str, str]) -> Choice:
    """The usual chunk, halved while its activations do not fit."""
    if place.request.chunk is not None:
        reasons["chunk"] = "given"
        return choice
    usual = choice.chunk
    chunk = usual
    while chunk > SMALLEST_CHUNK and not place.fits(replace(choice, chunk=chunk, window=place.default_window(choice))):
        chunk //= 2
    where = "the CPU" if choice.device == "cpu" else "a GPU"
    reasons["chunk"] = f"usual on {where}" if chunk == usual else "smaller than usual: memory is tight"
    return replace(choice, chunk=chunk)


def choose_window(place: _Place, choice: Choice, reasons: dict[str, str]) -> Choice:
    """On a GPU as many rows as fit; on the CPU a fixed number, since both tiers are the same memory there."""
    request = place.request
    everything = max(1, choice.context - choice.sinks)
    if request.window is not None:
        reasons["window"] = "given"
        return replace(choice, window=request.window)
    if choice.device == "cpu":
        window = min(everything, CPU_WINDOW)
        reasons["window"] = (
            "the whole context" if window == everything else "enough for torch; older rows are read by the C kernels"
        )
        return replace(choice, window=window)

    def fits(window: int) -> bool:
        return place.fits(replace(choice, window=window))

    if fits(everything):
        reasons["window"] = "everything fits on the GPU: nothing is offloaded"
        return replace(choice, window=everything)
    window = _largest(fits, everything)
    reasons["window"] = f"as many rows as fit on the GPU; {stored_rows(replace(choice, window=window)):,} go to the CPU"
    return replace(choice, window=window or place.default_window(choice))


def best_policy(choice: Choice) -> tuple[str, str]:
    """The policy for a context and a window, and why."""
    if stored_rows(choice) == 0:
        return "exact", "the window holds every row"
    return "scan", "follows the query, and finds what a scan of 4-bit keys finds"


def choose_policy(place: _Place, choice: Choice, reasons: dict[str, str]) -> tuple[Choice, float | None]:
    """The policy, and the mass it keeps; None where there is no such target."""
    request = place.request
    select, reasons["select"] = (request.select, "given") if request.select else best_policy(choice)
    quality = None
    if select in FOLLOWING and request.budget is None:
        quality = request.quality or QUALITY
        reasons["quality"] = "given" if request.quality else "the attention mass each head keeps (docs/selection.md)"
    return replace(choice, select=select), quality


def choose_threads(case: Case, reasons: dict[str, str], notices: list[str]) -> int:
    """The processors the process may use; more are clamped, and said so."""
    request, usable = case.request, case.machine.processors
    if request.threads is None:
        reasons["threads"] = "processors this process may use"
        return usable
    reasons["threads"] = "given"
    if request.threads > usable:
        notices.append(f"--threads {request.threads}: this process may use {usable} processors, so {usable} are used.")
    return min(request.threads, usable)


def does_not_fit(case: Case, plan: Plan) -> DoesNotFitError:
    """The error for a plan that does not fit: figures per place, and up to three changes with what each saves."""
    short = [memory for memory in plan.memory if not memory.fits]
    figures = "; ".join(
        f"{memory.place} needs {format_bytes(memory.total)} ({_parts(memory)}) and has {format_bytes(memory.limit)}"
        for memory in short
    )
    remedies = _remedies(case, plan)
    what = f"Try {', or '.join(remedies)}." if remedies else "No setting makes it fit: choose a smaller model."
    return DoesNotFitError(f"{figures}.", what)


def _remedies(case: Case, plan: Plan) -> list[str]:
    """Flags that help, those that are enough first."""
    here = case.asking(device=plan.device)

    def fits(context: int) -> bool:
        return draw_up(here.asking(context=context)).fits

    changes: list[tuple[str, Case]] = []
    if (context := _largest(fits, plan.context)) and context < plan.context:
        changes.append((f"--ctx {context}", here.asking(context=context)))
    if ITEMSIZE[plan.kv_dtype] > 2 and plan.stored_rows:
        changes.append(("--kv-dtype bf16", here.asking(kv_dtype="bf16")))
    if ITEMSIZE[plan.dtype] > 2:
        changes.append(("--dtype bf16", here.asking(dtype="bf16")))
    quantised = here.asking(kv_dtype="int8")
    if ITEMSIZE[plan.kv_dtype] > 1 and draw_up(quantised).fits:  # it rounds most: offered only where it is enough
        changes.append(("--kv-dtype int8", quantised))
    if plan.device != "cpu":
        if case.request.window is not None:
            changes.append(("--window auto", here.asking(window=None)))
        changes.append(("--device cpu", here.asking(device="cpu")))
    before = sum(memory.total for memory in plan.memory if not memory.fits)
    places = {memory.place for memory in plan.memory if not memory.fits}
    enough, helpful = [], []
    for flag, changed in changes:
        other = draw_up(changed)
        saved = before - sum(memory.total for memory in other.memory if memory.place in places)
        if other.fits:
            enough.append(f"{flag} (fits, {format_bytes(saved)} less)" if saved > 0 else f"{flag} (fits)")
        elif saved > 0:
            helpful.append(f"{flag} (saves {format_bytes(saved)}, not enough alone)")
    return (enough + helpful)[:3]


def _parts(memory: Memory) -> str:
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.parts.items() if size)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of STEP up to `most` that fits; 0 if none does. Needs grow with it."""
    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * STEP) else (low, middle - 1)
    return low * STEP


def _check(request: PlanRequest) -> None:
    for flag, value in (
        ("--ctx", request.context),
        ("--window", request.window),
        ("--threads", request.threads),
        ("--prefill-chunk", request.chunk),
        ("--gpu-mem", request.gpu_memory),
        ("--ram-limit", request.ram_limit),
    ):
        if value is not None and value < 1:
            raise UsageError(f"{flag}: {value} is too small.", "Give 1 or more.")
    if request.sinks is not None and request.sinks < 0:
        raise UsageError(f"--sinks: {request.sinks} is negative.", "Give 0 or more.")
    for flag, dtype, choices in (("--dtype", request.dtype, DTYPES), ("--kv-dtype", request.kv_dtype, KV_DTYPES)):
        if dtype is not None and dtype not in choices:
            raise UsageError(f"{flag}: no dtype {dtype!r}.", f"Choose from {', '.join(choices)}.")
