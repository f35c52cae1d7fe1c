"""How a plan holds a model's weights in fewer bits, and where that cannot be."""

from __future__ import annotations

from collections.abc import Callable

from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hardware.place import Case
from hgca_cli.hardware.rates import GRIDS
from hgca_cli.hardware.settings import Plan

ROUNDED = {"q8": "8", "q4": "4"}  # bits of packings that any model may have, the gentlest first


def choose_packing(
    case: Case, device: str, reasons: dict[str, str], notices: list[str], draw_up: Callable[[Case], Plan]
) -> str:
    """How the weights are packed: what was asked for; else in the few bits a quantised file had for them; else, on a GPU that is too
    small for 16 bits, in the most that fit there.

    Raises UsageError or ModelError for packing that cannot be.
    """
    request, model = case.request, case.model
    if request.quant == "none":
        return "none"
    if request.quant is not None:
        reasons["quant"] = "given"
        _check_packing(case, device)
        return request.quant
    found = any(kind in GRIDS for kind, _ in model.packed)  # in fp32 numbers, exactly, and read beside them
    packable = model.packable(device)
    held = bool(model.in_file) and packable
    if request.dtype is None and not found and held:
        reasons["quant"] = "the bits the file has: 4 where its numbers need no more, 8 for finer ones"
        return "file"
    if device == "cpu" or not packable or request.dtype == "fp32":
        return "none"
    here, nearest = case.asking(device=device), "none"
    if (short := _too_small_for_weights(here, draw_up)) is None:
        return "none"
    for quant in (*(("file",) if held else ()), *(ROUNDED if request.may_round else ())):
        plan = draw_up(here.asking(quant=quant))
        if plan.memory[0].fits:
            nearest = quant  # whatever else is short, it is not for the weights
        if plan.fits:
            reasons["quant"] = f"{short} is too small for weights of 16 bits"
            notices.append(_told(quant, short, draw_up(case.asking(device="cpu", dtype=None)).fits))
            return quant
    return nearest


def _too_small_for_weights(here: Case, draw_up: Callable[[Case], Plan]) -> str | None:
    """The place that has not room for weights of 16 bits, whatever is chosen of the rows; None if there is none."""
    plan = draw_up(here.asking(quant="none", window=None))
    return next((one.place for one in plan.memory if one.weights and not one.fits), None)


def _told(quant: str, short: str, elsewhere: bool) -> str:
    if quant == "file":
        how = "held as the file has them (--quant file)"
    else:
        how = f"rounded to {ROUNDED[quant]} (--quant {quant}{'; q4 is smaller and faster' if quant == 'q8' else ''})"
    there = " --device cpu keeps them as published, and is slower." if elsewhere else ""
    return f"{short} is too small for weights of 16 bits: they are {how}.{there}"


def rounded_by(plan: Plan) -> str | None:
    """The packing that rounds a plan's weights; None if they are as published, or as in their file."""
    return plan.quant if plan.quant in ROUNDED else None


def suits_cpu(case: Case) -> bool:
    """Whether what was asked for could be on the CPU, as far as packing goes."""
    return case.request.quant in (None, "none") or case.request.dtype in (None, "fp32")


def only_on_cpu(case: Case, device: str) -> bool:
    """Whether the weights can be packed, but not on this device."""
    return case.model.packable("cpu") and not case.model.packable(device)


def check_numbers(quant: str | None, dtype: str | None, device: str) -> None:
    """Raises UsageError for packed weights and a dtype that they are not multiplied with on a device."""
    if quant in (None, "none") or dtype is None or (dtype == "fp32") == (device == "cpu"):
        return
    computed = "fp32 on the CPU" if device == "cpu" else "16 bits on a GPU"
    raise UsageError(
        f"--quant {quant} and --dtype {dtype} exclude each other: packed weights are multiplied with {computed}.",
        "Drop one of them." if device == "cpu" else "Drop one of them, or add --device cpu.",
    )


def _check_packing(case: Case, device: str) -> None:
    flag = f"--quant {case.request.quant}"
    check_numbers(case.request.quant, case.request.dtype, device)
    if case.model.quantised and (case.request.quant != "file" or not case.model.packable(device)):
        raise ModelError(f"{flag}: the weights are quantised already.", "Leave --quant out.")
    if not case.model.packs:
        raise ModelError(
            f"{flag}: few of this model's weights are linear layers or experts, which is what is packed (GPT-2's layers are neither).",
            "Choose --quant none, or another model.",
        )
    if not case.model.packable(device):
        raise ModelError(f"{flag}: experts are packed on the CPU only.", "Add --device cpu, or choose --quant none.")
    if case.request.quant == "file" and not case.model.in_file:
        raise ModelError(
            f"{flag}: the weights are not known to come from a quantised GGUF file.",
            "Choose q8 or q4, which round them.",
        )
