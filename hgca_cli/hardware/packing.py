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
    quant, model = case.request.quant, case.model
    if quant == "none":
        return "none"
    if quant is not None:
        reasons["quant"] = "given"
        _check_packing(case, device)
        return quant
    found = any(kind in GRIDS for kind, _ in model.packed)  # in fp32 numbers, exactly, and read beside them
    if case.request.dtype is None and not found and model.in_file and model.packs:
        reasons["quant"] = "the bits the file has: 4 where its numbers need no more, 8 for finer ones"
        return "file"
    if device == "cpu" or not model.packs or case.request.dtype == "fp32":
        return "none"
    here = case.asking(device=device)
    short = next((memory.place for memory in draw_up(here.asking(quant="none")).memory if not memory.fits), None)
    nearest = "none"
    for one, bits in ROUNDED.items() if short else ():
        plan = draw_up(here.asking(quant=one))
        if plan.memory[0].fits:
            nearest = one  # whatever else is short, it is not for the weights
        if plan.fits:
            reasons["quant"] = f"{short} is too small for weights of 16 bits"
            notices.append(
                f"{short} is too small for weights of 16 bits: they are rounded to {bits} (--quant {one}"
                f"{'; q4 is smaller and faster' if one == 'q8' else ''}). --device cpu keeps them as published, and is slower."
            )
            return one
    return nearest


def rounded_by(plan: Plan) -> str | None:
    """The packing that rounds a plan's weights; None if they are as published, or as in their file."""
    return plan.quant if plan.quant in ROUNDED else None


def _check_packing(case: Case, device: str) -> None:
    flag, dtype = f"--quant {case.request.quant}", case.request.dtype
    if dtype not in (None, "fp32") if device == "cpu" else dtype == "fp32":
        computed = "fp32 on the CPU" if device == "cpu" else "16 bits on a GPU"
        raise UsageError(
            f"{flag} and --dtype {dtype} exclude each other: packed weights are multiplied with {computed}.",
            "Drop one of them.",
        )
    if not case.model.packs:
        raise ModelError(
            f"{flag}: few of this model's weights are linear layers, which is what is packed (not experts, nor GPT-2's layers).",
            "Choose --quant none, or another model.",
        )
    if case.request.quant == "file" and not case.model.in_file:
        raise ModelError(
            f"{flag}: the weights are not known to come from a quantised GGUF file.",
            "Choose q8 or q4, which round them.",
        )
