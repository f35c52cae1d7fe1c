"""Why a plan cannot be: the figures of every place that is short, and the changes that help most."""

from __future__ import annotations

from collections.abc import Callable

from hgca_cli.config import QUANTS
from hgca_cli.errors import DoesNotFitError
from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.memory import Memory
from hgca_cli.hardware.packing import suits_cpu
from hgca_cli.hardware.place import Case, largest
from hgca_cli.hardware.settings import Plan
from hgca_cli.hardware.weights import ITEMSIZE
from hgca_cli.units import format_bytes

WORTH = 1.25  # times as long a context as without: for less nobody's weights are rounded

DrawUp = Callable[[Case], Plan]


def does_not_fit(case: Case, plan: Plan, draw_up: DrawUp) -> DoesNotFitError:
    """The error for a plan that does not fit: figures per place, and up to three changes with what each saves."""
    short = [memory for memory in plan.memory if not memory.fits]
    figures = "; ".join(
        f"{memory.place} needs {format_bytes(memory.total)} ({_parts(memory)}) and has {format_bytes(memory.limit)}"
        for memory in short
    )
    remedies = _remedies(case, plan, draw_up)
    what = f"Try {', or '.join(remedies)}." if remedies else "No setting makes it fit: choose a smaller model."
    return DoesNotFitError(f"{figures}.", what)


def _remedies(case: Case, plan: Plan, draw_up: DrawUp) -> list[str]:
    """Flags that help, those that are enough first."""
    here = case.asking(device=plan.device, quant=plan.quant)  # no remedy is one because weights are rounded for it

    def fits(context: int) -> bool:
        return draw_up(here.asking(context=context)).fits

    changes: list[tuple[str, Case]] = []
    if (context := largest(fits, plan.context)) and context < plan.context:
        changes.append((f"--ctx {context}", here.asking(context=context)))
    if ITEMSIZE[plan.kv_dtype] > 2 and plan.stored_rows:
        changes.append(("--kv-dtype bf16", here.asking(kv_dtype="bf16")))
    if ITEMSIZE[plan.dtype] > 2 and plan.quant == "none":
        changes.append(("--dtype bf16", here.asking(dtype="bf16")))
    changes += _packings(here, plan, draw_up, context)
    quantised = here.asking(kv_dtype="int8")
    if ITEMSIZE[plan.kv_dtype] > 1 and draw_up(quantised).fits:  # it rounds most: offered only where it is enough
        changes.append(("--kv-dtype int8", quantised))
    if ITEMSIZE[plan.kv_dtype] > 1 and not draw_up(quantised).fits:
        most = largest(lambda tokens: draw_up(quantised.asking(context=tokens)).fits, plan.context)
        if most > context:
            changes.append((f"--kv-dtype int8 --ctx {most}", quantised.asking(context=most)))
    if case.request.disk is None and plan.stored_rows:
        moved = here.asking(disk=Disk("DIR", "", 1 << 60))
        elsewhere = draw_up(moved)
        if elsewhere.fits:
            changes.append((f"--store-dir DIR with {format_bytes(elsewhere.memory[-1].store)} free", moved))
    if case.request.ram_limit is not None:
        freed = here.asking(ram_limit=None)
        if (drawn := draw_up(freed)).fits:
            enough_mib = -(
                -max(memory.total for memory in drawn.memory if memory.place.startswith("host")) // (1 << 20)
            )
            changes.append((f"--ram-limit {enough_mib}MiB", freed))
    if case.request.disk is not None and draw_up(in_memory := here.asking(disk=None)).fits:
        changes.append(("no --store-dir", in_memory))
    if plan.device != "cpu":
        if case.request.window is not None:
            changes.append(("--window auto", here.asking(window=None)))
        if suits_cpu(case):
            changes += _on_the_cpu(case.asking(device="cpu"), plan, draw_up, context)
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


def _on_the_cpu(there: Case, plan: Plan, draw_up: DrawUp, context: int) -> list[tuple[str, Case]]:
    """Changes that go there; context: the longest any other change makes fit."""
    changes = []
    if (drawn := draw_up(there)).fits:
        changes.append(("--device cpu", there))
    elif (most := largest(lambda tokens: draw_up(there.asking(context=tokens)).fits, plan.context)) > context:
        changes.append((f"--device cpu --ctx {most}", there.asking(context=most)))
    return changes + [(f"--device cpu {flag}", packed) for flag, packed in _packings(there, drawn, draw_up, context)]


def _packings(here: Case, plan: Plan, draw_up: DrawUp, context: int) -> list[tuple[str, Case]]:
    """The gentlest way to pack the weights that makes a plan fit, or fit with a context so much longer than any other change."""
    plain = (None, "fp32") if plan.device == "cpu" else (None, "bf16", "fp16")
    if plan.fits or not here.model.packable(plan.device) or here.request.dtype not in plain:
        return []
    held = plan.memory[0].weights
    kinds = ("file",) if here.model.quantised else QUANTS[1:]
    tighter = [quant for quant in kinds if quant != "file" or here.model.in_file]
    tighter = [quant for quant in tighter if draw_up(here.asking(quant=quant)).memory[0].weights < held]
    for rows in ("", " --kv-dtype int8") if ITEMSIZE[plan.kv_dtype] > 1 and plan.stored_rows else ("",):
        for quant in tighter:
            packed = here.asking(quant=quant, kv_dtype="int8" if rows else here.request.kv_dtype)
            if draw_up(packed).fits:
                return [(f"--quant {quant}{rows}", packed)]
    if tighter:
        packed = here.asking(quant=tighter[-1])
        most = largest(lambda tokens: draw_up(packed.asking(context=tokens)).fits, plan.context)
        if most > context * WORTH:
            return [(f"--quant {tighter[-1]} --ctx {most}", packed.asking(context=most))]
    return []


def _parts(memory: Memory) -> str:
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.parts.items() if size)
