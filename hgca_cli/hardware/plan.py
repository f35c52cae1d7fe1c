"""From a model's shape, a machine and what the user asked for, to every setting of a run, with its reason.

Pure arithmetic, before anything is loaded. Memory decides what is possible: device, dtype, context and chunk; what
remains is decided by predicted time (hardware/speed.py).
"""

from __future__ import annotations

from dataclasses import replace

from hgca_cli.config import DTYPES, FOLLOWING, KV_DTYPES, CacheSettings
from hgca_cli.errors import UsageError
from hgca_cli.hardware.assumed import assume
from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.machine import Machine, choose_device
from hgca_cli.hardware.memory import Choice, Model, full_bytes
from hgca_cli.hardware.packing import choose_packing, only_on_cpu, suits_cpu
from hgca_cli.hardware.place import Case, Place, largest
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.refusal import does_not_fit
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.hardware.speed import choose_rows, choose_threads, predict
from hgca_cli.units import format_bytes, format_seconds

CPU_CHUNKS, GPU_CHUNKS, SMALLEST_CHUNK = (256, 512, 1024), (1024, 2048, 4096), 64
CHUNK_GAIN = 0.05  # of a prompt's time: for less no larger chunk, which takes memory and is slow to stop
UNKNOWN_CONTEXT = 4096  # where the config does not say what the model was trained on


def make_plan(model: Model, machine: Machine, request: PlanRequest, profile: Profile | None = None) -> Plan:
    """The plan that is run. profile: of the machine; None: its rates are assumed.

    Raises DoesNotFitError with both figures and what would help, ModelError for no device.
    """
    case = Case(model, machine, request, profile or assume(machine))
    plan = draw_up(case)
    if not plan.fits:
        raise does_not_fit(case, plan, draw_up)
    return plan


def shared(
    plan: Plan, sequences: int, model: Model, machine: Machine, request: PlanRequest, profile: Profile | None = None
) -> Plan:
    """What is run in place of this plan if so many sequences of the context that was asked for are to run at once: on a GPU windows
    and codes of all of them, if these fit there. Without a context nobody knows how long they become.
    """
    if sequences <= 1 or plan.device == "cpu" or request.context is None:
        return plan
    asked = replace(request, sequences=sequences, device=plan.device, quant=plan.quant)
    several = draw_up(Case(model, machine, asked, profile or assume(machine)))
    return several if several.fits else plan


def draw_up(case: Case) -> Plan:
    """The best plan there is, whether it fits or not. Raises ModelError for a device that is not there."""
    request, model = case.request, case.model
    _check(request)
    reasons: dict[str, str] = {}
    notices: list[str] = []
    device = place_model(case, reasons, notices)
    quant = choose_packing(case, device, reasons, notices, draw_up)
    place = Place(case, device)
    start = Choice(
        device=device,
        dtype=request.dtype or "bf16",
        kv_dtype=request.kv_dtype or request.dtype or "bf16",
        context=request.context or model.trained_context or UNKNOWN_CONTEXT,
        window=1,
        sinks=request.sinks if request.sinks is not None else CacheSettings.sinks,
        chunk=request.chunk or SMALLEST_CHUNK,
        select=request.select or "",  # the planner's, by the context
        quant=quant,
    )
    threads = choose_threads(case, reasons, notices)
    choice = choose_dtype(place, start, reasons)
    choice = choose_context(place, choice, reasons)
    choice = choose_chunk(place, choice, threads, reasons)
    choice, quality = choose_rows(place, choice, threads, reasons)
    reasons["sinks"] = "given" if request.sinks is not None else "first rows that every head keeps looking at"
    if request.kv_dtype:
        reasons["kv_dtype"] = "given"
    elif choice.kv_dtype == choice.dtype:
        reasons["kv_dtype"] = "the model's own numbers: nothing is rounded"
    elif choice.select == "exact":
        reasons["kv_dtype"] = "half the bytes; --exact, or --kv-dtype fp32, rounds nothing"
    else:
        reasons["kv_dtype"] = "half the bytes; what rounding changes is far below what a choice of rows does"
    if model.trained_context and choice.context > model.trained_context and not request.yarn:
        notices.append(
            f"context {choice.context:,} is beyond the trained length {model.trained_context:,}: answers get worse "
            "past it. --yarn stretches the positions."
        )
    disk = request.disk
    if disk is not None:
        tell_disk(place, choice, disk, reasons, notices)
    kv, index = full_bytes(model, choice, request.sequences)
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
        device_codes=choice.device_codes,
        yarn_context=choice.context if request.yarn else None,
        store_dir=disk.folder if disk is not None else None,
        memory=tuple(place.needs(choice)),
        kv_bytes=kv,
        index_bytes=index,
        predicted=predict(place, choice, quality, threads),
        reasons=reasons,
        notices=tuple(notices),
        quant=choice.quant,
    )


def place_model(case: Case, reasons: dict[str, str], notices: list[str]) -> str:
    """The device asked for; else the GPU with most free memory if the plan fits there at all, or the CPU."""
    device = choose_device(case.request.device, case.machine.gpus)
    if case.request.device not in (None, "auto"):
        reasons["device"] = "given"
    elif device == "cpu":
        reasons["device"] = "no CUDA device"
    elif case.request.quant not in (None, "none") and only_on_cpu(case, device):
        reasons["device"] = "experts are packed on the CPU only"
        notices.append("packed experts are the CPU's: running there.")
        return "cpu"
    elif draw_up(case.asking(device=device)).fits:
        several = len(case.machine.gpus) > 1
        reasons["device"] = "the GPU with most free memory" if several else "a CUDA device is there"
    elif suits_cpu(case) and draw_up(case.asking(device="cpu")).fits:
        reasons["device"] = f"the model does not fit on {device}"
        notices.append(f"{device} is too small for this: running on the CPU.")
        return "cpu"
    else:
        reasons["device"] = "it fits nowhere: the figures are the GPU's"
    return device


def choose_dtype(place: Place, choice: Choice, reasons: dict[str, str]) -> Choice:
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
    if choice.quant != "none":
        reasons["dtype"] = "packed weights are multiplied with fp32"
        return wide
    if place.fits(replace(wide, window=place.default_window(wide), chunk=request.chunk or SMALLEST_CHUNK)):
        reasons["dtype"] = "weights and KV fit in fp32, which is fastest on the CPU"
        return wide
    reasons["dtype"] = "weights and KV in fp32 do not fit in memory"
    return replace(choice, dtype="bf16", kv_dtype=request.kv_dtype or "bf16")


def choose_context(place: Place, choice: Choice, reasons: dict[str, str]) -> Choice:
    """What was asked for; else the trained length, or the largest that fits."""
    request = place.request
    if request.context is not None:
        reasons["context"] = "given"
        return choice
    said = "the model's trained length" if place.model.trained_context else "the config names no trained length"

    def fits(context: int) -> bool:
        return place.fits_somehow(replace(choice, context=context))

    if fits(choice.context):
        reasons["context"] = said
        return choice
    context = largest(fits, choice.context)
    reasons["context"] = f"the most that fits; {said} is {choice.context:,}" if context else said
    return replace(choice, context=context or choice.context)


def choose_chunk(place: Place, choice: Choice, threads: int, reasons: dict[str, str]) -> Choice:
    """The smallest chunk that is predicted to read a full context about as fast as the best, if its activations fit."""
    if place.request.chunk is not None:
        reasons["chunk"] = "given"
        return choice
    costs = place.costs(None)
    sizes = [replace(choice, chunk=size) for size in (CPU_CHUNKS if choice.device == "cpu" else GPU_CHUNKS)]
    seconds = {one.chunk: costs.prefill(one, one.context, threads) for one in sizes}
    wanted = chunk = min(size for size, taken in seconds.items() if taken <= min(seconds.values()) * (1 + CHUNK_GAIN))
    while chunk > SMALLEST_CHUNK and not place.fits_somehow(replace(choice, chunk=chunk)):
        chunk //= 2
    others = ", ".join(f"{size}: {format_seconds(taken)}" for size, taken in seconds.items())
    fast = f"a larger one reads a full context no {CHUNK_GAIN:.0%} faster (predicted, {others})"
    reasons["chunk"] = fast if chunk == wanted else f"smaller than the {wanted} wanted: memory is tight"
    return replace(choice, chunk=chunk)


def tell_disk(place: Place, choice: Choice, disk: Disk, reasons: dict[str, str], notices: list[str]) -> None:
    """What it means that the store is on a disk."""
    host = next(memory for memory in place.needs(choice) if memory.place == "host memory")
    rows = place.needs(choice)[-1].store
    reasons["store_dir"] = f"given: {format_bytes(rows)} of rows in files there, their index in memory"
    if disk.in_memory:
        notices.append(f"--store-dir {disk.folder} is in memory ({disk.kind}): a store there takes RAM all the same.")
    elif rows > (cached := max(0, host.limit - host.total)):
        notices.append(
            f"a full store of {format_bytes(rows)} is more than the {format_bytes(cached)} of memory that is left to keep "
            "it in: rows will be read from the disk, and that takes longer than predicted."
        )


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
