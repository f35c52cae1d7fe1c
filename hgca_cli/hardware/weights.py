"""What holds a model's weights, and in how many bytes: as they were published, with copies, or packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hgca_cli.hardware.rates import WEIGHT_BYTES

if TYPE_CHECKING:
    from hgca_cli.hardware.memory import Choice, Model

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def packed_kinds(model: Model, quant: str) -> tuple[tuple[str, int], ...]:
    """What holds the matrices of a model that is packed (hf/packed.py), and how many numbers: the output layer has 8 bits, and what
    a file holds on a grid of fewer bits stays there.
    """
    if quant == "file":
        return model.in_file
    body = "grid8" if quant == "q8" else "grid4"
    fine = model.head if quant == "q4" else model.head + model.body
    there = dict(model.packed).get("grid4", 0)
    if there:
        fine = min(fine, max(0, model.head + model.body - there))
        body = "grid4"
    return tuple((kind, count) for kind, count in (("grid8", fine), (body, model.head + model.body - fine)) if count)


def weights_bytes(model: Model, choice: Choice) -> int:
    """Bytes of the weights once they are loaded, second copies of them too. Packed: an embedding of its own has 8 bits."""
    if as_published(model, choice):
        return model.parameters * 2
    if choice.quant == "none":
        return model.parameters * ITEMSIZE[choice.dtype] + second_copies_bytes(model, choice)
    held = sum(count * WEIGHT_BYTES[kind] for kind, count in packed_kinds(model, choice.quant))
    return int(held) + (0 if model.tied else int(model.head * WEIGHT_BYTES["grid8"]))


def as_published(model: Model, choice: Choice) -> bool:
    """Whether weights stay in the 16 bits they were published in, though fp32 is computed (hf/packed.py)."""
    sixteen = model.own_dtype != "fp32" and model.uniform and choice.dtype == "fp32"
    return sixteen and choice.device == "cpu" and choice.quant == "none" and model.packs


def second_copies_bytes(model: Model, choice: Choice) -> int:
    """Bytes of float32 weights once more in what holds them exactly (hf/linear.py), at most: 16 bits if they were
    published so; else the larger grid, 8 bits and 16 for 32 of them.
    """
    if choice.device != "cpu" or choice.dtype != "fp32":
        return 0
    return model.parameters * 2 if model.own_dtype != "fp32" else model.parameters * 17 // 16
