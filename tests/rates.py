"""Machines for tests of planner and costs: round rates, no torch."""

from __future__ import annotations

from typing import Any

from hgca_cli.hardware.rates import GpuRates, HostRates, Profile, RowRate

GIB = 1 << 30


def host_rates(**changes: Any) -> HostRates:
    """Four cores that read 40 GB/s; rows and codes of two shapes were measured."""
    rows = (
        RowRate("dense", "bf16", 32, 8, 128, 65536, 16.0),
        RowRate("dense", "bf16", 64, 8, 128, 65536, 24.0),
        RowRate("dense", "bf16", 9, 3, 64, 65536, 8.0),
        RowRate("rows", "bf16", 32, 8, 128, 65536, 24.0),
        RowRate("scan", "bf16", 32, 8, 128, 65536, 4.0),
        RowRate("dense", "fp32", 32, 8, 128, 32768, 30.0),
    )
    settings: dict[str, Any] = {
        "processor": "test", "physical_cores": 4, "logical_cores": 8, "usable": 4, "numa_nodes": 1, "isa": "avx2",
        "memory_total": 64 * GIB, "memory_free": 60 * GIB,
        "read_gb_s": {1: 15.0, 2: 28.0, 4: 40.0}, "attention_gb_s": {1: 10.0, 2: 20.0, 4: 32.0},
        "linear_gb_s": {"fp32": 36.0, "bf16": 36.0, "grid8": 34.0, "grid4": 25.0},
        "matmul_tflop_s": {"fp32": 0.4, "bf16": 0.2}, "prefill_attention_tflop_s": 0.25,
        "layer_us": 100.0, "store_us": 50.0, "token_us": 200.0, "rows": rows,
    }  # fmt: skip
    return HostRates(**settings | changes)


def gpu_rates(**changes: Any) -> GpuRates:
    """A card that reads 800 GB/s."""
    settings: dict[str, Any] = {
        "index": 0, "name": "card", "memory_total": 24 * GIB, "memory_free": 23 * GIB, "driver": "",
        "to_device_gb_s": 24.0, "from_device_gb_s": 24.0, "pageable_gb_s": 8.0, "copy_us": 10.0,
        "memory_gb_s": 800.0, "matmul_tflop_s": {"bf16": 100.0, "fp32": 20.0}, "layer_us": 50.0,
        "relay_us": 20.0, "token_us": 200.0, "launch_us": 200.0,
    }  # fmt: skip
    return GpuRates(**settings | changes)


def profile(*gpus: GpuRates, **changes: Any) -> Profile:
    """A measured machine."""
    return Profile("test", "measured", "2026-11-25", host_rates(**changes), gpus, versions={"hgca": "1", "torch": "2"})
