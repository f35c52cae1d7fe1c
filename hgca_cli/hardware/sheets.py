"""What makers say of their GPUs, and what is odd about a measurement beside it.

Data sheets of the cards' makers: memory bandwidth, dense bf16 matrix products with 32-bit sums, and the PCIe link. A card
that is far below them sits in a slot with fewer lanes, is capped in power or clock, or is used by somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass

from hgca_cli.hardware.rates import BUSY, GpuRates, Profile

READ_LEAST, PRODUCT_LEAST, LINK_LEAST = 0.6, 0.4, 0.6  # of the sheet: what a healthy card reaches in such probes
NOISY = 0.25  # of the best turn's rate
NOISE = (
    "memory was read {:.0%} slower in the median turn than in the best: other processes use this machine. "
    "Measure again when it is quiet: hgca profile."
)


@dataclass(frozen=True)
class Sheet:
    """memory_gb_s, bf16 tflop_s, link_gb_s each way (PCIe 4.0 x16: 32 before its own overhead; 5.0 x16: 64)."""

    memory_gb_s: float
    tflop_s: float
    link_gb_s: float


SHEETS = {  # part of the name, the longest that occurs counts
    "RTX 3060": Sheet(360, 26, 32),
    "RTX 3070": Sheet(448, 41, 32),
    "RTX 3080": Sheet(760, 60, 32),
    "RTX 3090": Sheet(936, 71, 32),
    "RTX 4060": Sheet(272, 30, 16),
    "RTX 4060 Ti": Sheet(288, 44, 16),
    "RTX 4070": Sheet(504, 58, 32),
    "RTX 4080": Sheet(717, 97, 32),
    "RTX 4090": Sheet(1008, 165, 32),
    "RTX 5090": Sheet(1792, 210, 64),
    "A100": Sheet(1555, 312, 32),
    "A6000": Sheet(768, 155, 32),
    "L4": Sheet(300, 121, 32),
    "L40S": Sheet(864, 362, 32),
    "H100": Sheet(3350, 989, 64),
    "H100 PCIe": Sheet(2000, 756, 64),
    "H200": Sheet(4800, 989, 64),
}


def sheet_of(name: str) -> Sheet | None:
    """The data sheet of a card by the name its driver gives; None for one that is not known."""
    known = [part for part in SHEETS if f" {part} " in f" {name} "]
    return SHEETS[max(known, key=len)] if known else None


def oddities(profile: Profile) -> list[str]:
    """What is odd about a profile, each with what it may mean: a noisy machine, GPUs far below their data sheets."""
    noisy = profile.host.noise > NOISY
    found = [NOISE.format(profile.host.noise)] if noisy else []
    if profile.host.load > BUSY:
        again = (
            "It is measured again once they do not, or now: hgca profile."
            if profile.quick
            else "Measure again: hgca profile."
        )
        found.append(
            f"others used this machine when it was measured ({profile.host.load:.1f} threads a processor). {again}"
        )
    return found + [text for gpu in profile.gpus for text in below_sheet(gpu)]


def below_sheet(gpu: GpuRates) -> list[str]:
    """What is far below the data sheet of a card."""
    sheet = sheet_of(gpu.name)
    if sheet is None:
        return []
    found = []
    link = min(gpu.to_device_gb_s, gpu.from_device_gb_s)
    if link < LINK_LEAST * sheet.link_gb_s:
        lanes = max(1, round(16 * link / (0.8 * sheet.link_gb_s)))
        found.append(
            f"{gpu.name}: copies run at {link:.1f} GB/s, its link at {sheet.link_gb_s:.0f}: about {lanes} of 16 lanes. "
            "Look for a slot with more lanes, or what else uses the link."
        )
    if gpu.memory_gb_s < READ_LEAST * sheet.memory_gb_s:
        found.append(
            f"{gpu.name}: its memory reads at {gpu.memory_gb_s:.0f} of {sheet.memory_gb_s:.0f} GB/s: "
            "another process uses it, or its clock is capped."
        )
    rate = gpu.matmul_tflop_s.get("bf16", 0.0)
    if rate < PRODUCT_LEAST * sheet.tflop_s:
        found.append(
            f"{gpu.name}: products run at {rate:.0f} of {sheet.tflop_s:.0f} Tflop/s: a power cap, heat, or another process."
        )
    return found
