"""Rates of a machine nobody measured: what plans are made with until a profile is there. Round numbers, on the low side."""

from __future__ import annotations

from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.rates import GpuRates, HostRates, Profile
from hgca_cli.hardware.sheets import Sheet, sheet_of

READ_GB_S, MOST_READ_GB_S = 12.0, 60.0  # of one thread; of two channels of DDR5
UNKNOWN_GPU = Sheet(300, 50, 16)


def assume(machine: Machine) -> Profile:
    """Estimated rates, from the number of processors and the names of the GPUs."""
    most = machine.processors
    read = {count: min(READ_GB_S * count, MOST_READ_GB_S) for count in sorted({1, max(1, most // 2), most})}
    best = max(read.values())
    host = HostRates(
        processor="not measured",
        physical_cores=most,
        logical_cores=most,
        usable=most,
        numa_nodes=1,
        isa="",
        memory_total=machine.memory_total,
        memory_free=machine.memory_free,
        read_gb_s=read,
        attention_gb_s={count: 0.8 * rate for count, rate in read.items()},
        linear_gb_s={"fp32": 0.8 * best, "bf16": 0.8 * best, "grid8": 0.7 * best, "grid4": 0.5 * best},
        matmul_tflop_s={"fp32": 0.08 * most, "bf16": 0.05 * most},
        prefill_attention_tflop_s=0.05 * most,
        layer_us=200.0,
        store_us=80.0,
        token_us=200.0,
    )
    cards = []
    for gpu in machine.gpus:
        sheet = sheet_of(gpu.name) or UNKNOWN_GPU
        cards.append(
            GpuRates(
                index=gpu.index,
                name=gpu.name,
                memory_total=gpu.total,
                memory_free=gpu.free,
                driver="",
                to_device_gb_s=0.75 * sheet.link_gb_s,
                from_device_gb_s=0.75 * sheet.link_gb_s,
                pageable_gb_s=0.3 * sheet.link_gb_s,
                copy_us=12.0,
                memory_gb_s=0.85 * sheet.memory_gb_s,
                matmul_tflop_s={"bf16": 0.6 * sheet.tflop_s, "fp16": 0.6 * sheet.tflop_s, "fp32": 0.1 * sheet.tflop_s},
                layer_us=75.0,
                relay_us=30.0,
                token_us=400.0,
                launch_us=500.0,
            )
        )
    return Profile("assumed", "estimated", "", host, tuple(cards), note="nothing was measured")
