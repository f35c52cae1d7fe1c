"""A profile for people: what was measured, and how a token's time is made up at several lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgca_cli.units import format_bytes, format_seconds

BAR = 40  # characters of a bar: a token's whole time
MARKS = {"weights": "w", "layers": "l", "window": "n", "copies": "c", "selection": "s", "attention": "a"}


def profile_lines(profile: Any) -> list[str]:
    """A profile as lines of figures."""
    host = profile.host
    quota = "" if host.quota is None else f", a quota of {host.quota:.3g} processors"
    nodes = "" if host.numa_nodes == 1 else f", {host.numa_nodes} NUMA nodes"
    when = ", ".join(part for part in (profile.origin, profile.date, "quick" if profile.quick else "") if part)
    lines = [
        f"{profile.name} ({when})",
        f"  CPU    {host.processor}: {host.physical_cores} cores, {host.logical_cores} logical, {host.usable} used"
        f"{quota}{nodes}, {host.isa or 'instruction set unknown'}",
        f"  memory {format_bytes(host.memory_total)}, {format_bytes(host.memory_free)} free",
        f"  read   {_by_count(host.read_gb_s)} GB/s by number of threads",
        f"  rows   {_by_count(host.attention_gb_s)} GB/s by number of threads, our kernel, all bf16 rows of 32/8/128",
    ]
    for one in host.rows:
        shape = f"{one.heads}/{one.kv_heads}/{one.head_dim}"
        rate = f", {one.head_dim * 2 * _itemsize(one.dtype) / one.ns:.1f} GB/s" if one.how != "scan" else ""
        lines.append(f"         {one.how:6}{one.dtype:5}{shape:10} {one.ns:6.1f} ns a row and KV head{rate}")
    lines.append(f"  token  weights {_by_kind(host.linear_gb_s)} GB/s; a layer {host.layer_us:.0f} us, choosing its rows "
                 f"{host.store_us:.0f} us more, a token {host.token_us:.0f} us")  # fmt: skip
    narrow = host.prefill_attention_bf16_tflop_s
    lines.append(
        f"  prompt {_by_kind(host.matmul_tflop_s)} Tflop/s, attention {host.prefill_attention_tflop_s:.3g} Tflop/s"
        + (f" (rows of bf16 {narrow:.3g})" if narrow else "")
    )
    for gpu in profile.gpus:
        lines.append(
            f"  GPU {gpu.index}  {gpu.name}: {format_bytes(gpu.memory_total)}, {format_bytes(gpu.memory_free)} free"
        )
        lines.append(
            f"         to it {gpu.to_device_gb_s:.1f}, from it {gpu.from_device_gb_s:.1f}, pageable "
            f"{gpu.pageable_gb_s:.1f} GB/s; a small copy {gpu.copy_us:.0f} us"
        )
        lines.append(
            f"         memory {gpu.memory_gb_s:.0f} GB/s, products {_by_kind(gpu.matmul_tflop_s)} Tflop/s, "
            f"a layer {gpu.layer_us:.0f} us"
        )
        lines.append(
            f"         its store {gpu.relay_us:.0f} us more, a token {gpu.token_us:.0f} us; a layer without a graph "
            f"{gpu.launch_us:.0f} us"
        )
    if not profile.gpus:
        lines.append("  GPU    none")
    return [*lines, f"  note   {profile.note}"] if profile.note else lines


def length_lines(plans: Mapping[int, Any], trained: int) -> list[str]:
    """A bar per length of context: which part of a token's time is what. plans: by length, whether they fit or not."""
    lines = []
    for length, plan in plans.items():
        step = plan.predicted.step
        bar = _bar(step.parts)
        notes = [] if plan.fits else ["does not fit: " + _short(plan)]
        notes += ["beyond the trained length"] if trained and length > trained else []
        told = f"{1e3 * step.total:9.1f} {1 / step.total:8.1f} tok/s  {bar}"
        lines.append(f"  {_length(length):>5} {told} {plan.select}, window {plan.window:,}, "
                     f"read in {format_seconds(plan.predicted.prefill_seconds)}"
                     f"{'; ' + '; '.join(notes) if notes else ''}")  # fmt: skip
    names = ", ".join(f"{mark} {name}" for name, mark in MARKS.items())
    return [*lines, f"        {names}"]


def _bar(parts: Mapping[str, float]) -> str:
    """BAR characters, each part its share of them; the ends of parts are rounded, so that they add up."""
    total = sum(parts.values())
    bar, passed = "", 0.0
    for name, seconds in parts.items():
        passed += seconds
        bar += MARKS[name] * (round(BAR * passed / total) - len(bar))
    return bar


def _short(plan: Any) -> str:
    worst = next(memory for memory in plan.memory if not memory.fits)
    return f"{worst.place} needs {format_bytes(worst.total)}, has {format_bytes(worst.limit)}"


def _length(tokens: int) -> str:
    return f"{tokens >> 20}M" if tokens >= 1 << 20 else f"{tokens >> 10}k"


def _by_count(rates: Mapping[int, float]) -> str:
    return ", ".join(f"{count}: {rate:.1f}" for count, rate in sorted(rates.items()))


def _by_kind(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {rate:.3g}" for kind, rate in rates.items())


def _itemsize(dtype: str) -> int:
    return {"fp32": 4, "int8": 1}.get(dtype, 2)
