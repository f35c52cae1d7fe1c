"""Rates of one CUDA device: copies, its memory, matrix products, and what starting a layer's kernels costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from hgca_cli.hardware.machine import Gpu
from hgca_cli.hardware.probes.layers import TakenOff, overhead
from hgca_cli.hardware.probes.products import matmul_tflop_s
from hgca_cli.hardware.rates import GPU_SHARE, GpuRates
from hgca_cli.hardware.timing import repeat

COPY_BYTES = 256 << 20
READ_BYTES = 1 << 30
SMALL_BYTES = 512
TOKENS = 32


def gpu_rates(gpu: Gpu, times: int) -> GpuRates:
    """Measure a GPU; medians of `times` turns. Raises torch.OutOfMemoryError if half a GiB cannot be had on it."""
    device = f"cuda:{gpu.index}"
    size = min(READ_BYTES, gpu.free // 4)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    copied = min(COPY_BYTES, size)
    pinned, plain = torch.empty(copied, dtype=torch.uint8, pin_memory=True), torch.empty(copied, dtype=torch.uint8)
    part = there[:copied]
    small, back = torch.empty(SMALL_BYTES, dtype=torch.uint8, pin_memory=True), there[:SMALL_BYTES]
    numbers = there[: size // 4 * 4].view(torch.float32)

    def rate(run: Callable[[], object], count: int) -> float:
        return count / _seconds(run, times, device) / 1e9

    memory_gb_s = rate(numbers.sum, numbers.numel() * 4)
    token = overhead(TOKENS, TakenOff(1e-9 / (GPU_SHARE * memory_gb_s)), device)
    return GpuRates(
        index=gpu.index,
        name=gpu.name,
        memory_total=gpu.total,
        memory_free=gpu.free,
        driver=_driver(),
        to_device_gb_s=rate(lambda: part.copy_(pinned, non_blocking=True), copied),
        from_device_gb_s=rate(lambda: pinned.copy_(part, non_blocking=True), copied),
        pageable_gb_s=rate(lambda: part.copy_(plain), copied),
        copy_us=_seconds(lambda: back.copy_(small, non_blocking=True), 8 * times, device) * 1e6,
        memory_gb_s=memory_gb_s,
        matmul_tflop_s=matmul_tflop_s(times, device, ("bf16", "fp16", "fp32")),
        layer_us=token.layer_us,
        relay_us=token.store_us,
        token_us=token.token_us,
        launch_us=overhead(TOKENS, TakenOff(), device, graphs=False).layer_us,
    )


def _seconds(run: Callable[[], object], times: int, device: str) -> float:
    """Median seconds of `times` runs after two that warm up, until the device is done."""
    done = partial(torch.cuda.synchronize, device)
    return median(repeat(run, times, before=done, after=done, warm=2))


def _driver() -> str:
    """The CUDA version the driver and torch agreed on."""
    return f"CUDA {torch.version.cuda}"
