"""How a plan holds a model's weights in fewer bits, and where that cannot be."""

from __future__ import annotations

from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hardware.place import Case
from hgca_cli.hardware.rates import GRIDS


def choose_packing(case: Case, device: str, reasons: dict[str, str]) -> str:
    """How the weights are packed: what was asked for, else, on the CPU, in the few bits a quantised file had for them.

    Raises UsageError or ModelError for packing that cannot be.
    """
    quant = case.request.quant
    if quant in (None, "none"):
        model = case.model
        found = any(kind in GRIDS for kind, _ in model.packed)  # in fp32 numbers, exactly, and read beside them
        if quant or device != "cpu" or case.request.dtype is not None or found or not (model.in_file and model.packs):
            return "none"
        reasons["quant"] = "the bits the file has: 4 where its numbers need no more, 8 for finer ones"
        return "file"
    reasons["quant"] = "given"
    _check_packing(case, device)
    return quant


def _check_packing(case: Case, device: str) -> None:
    flag = f"--quant {case.request.quant}"
    if device != "cpu":
        raise UsageError(
            f"{flag} packs weights on the CPU only, and this would run on {device}.",
            "Leave it out (a model that is quantised already runs there as it is), or add --device cpu.",
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
