"""The compiled library, processors, memory and GPUs as they are now. Imports torch (seconds); nothing is measured."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import psutil

from hgca_cli.errors import HgcaError
from hgca_cli.hardware.checkup.facts import Card, Failure, Graphics, Host, Kernels
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.probe import cpu_quota, memory_limits, probe_gpus
from hgca_cli.hardware.topology import DRIVER, cores, driver_version, numa_nodes, processor_name

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMI_SECONDS = 10.0  # a driver that hangs is not waited for


def look_at_kernels() -> Kernels:
    """What the C library says of itself, or why it does not load."""
    machine, wanted = platform.machine(), os.environ.get("HGCA_ISA", "")
    try:
        from hgca_cli import native
    except HgcaError as error:
        return Kernels(machine, wanted, failure=Failure.of(error))
    except (ImportError, OSError) as error:  # torch's libraries: chat ends with an error it did not expect
        why = " ".join(str(error).split())[:200]
        return Kernels(
            machine, wanted, failure=Failure(f"torch cannot be imported ({why}).", "pip install --force-reinstall torch", 1)
        )  # fmt: skip
    return Kernels(machine, wanted, native.isa(), native.isas(), native.threads(), openmp_is_there())


def openmp_is_there() -> bool:
    """Whether this process has GNU OpenMP, which torch brings: as the C library looks for it, without changing anything."""
    return hasattr(ctypes.CDLL(None), "GOMP_parallel")


def look_at_host(kernels: Kernels) -> Host:
    """Processors and memory."""
    physical, logical = cores()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit, free, by = int(memory.total), int(memory.available), ""
    for folder, most, unused in memory_limits():
        free = min(free, unused)
        if most < limit:
            limit, by = most, str(folder)
    return Host(
        processor=processor_name(),
        physical_cores=physical,
        logical_cores=logical,
        allowed=allowed,
        usable=allowed if kernels.failure else _usable(),
        numa_nodes=numa_nodes(),
        memory_total=int(memory.total),
        memory_limit=limit,
        memory_free=free,
        quota=cpu_quota(),
        limited_by=by,
        swap_total=int(swap.total),
        swap_used=int(swap.used),
        huge_pages=huge_pages(),
    )


def huge_pages(file: Path = HUGE_PAGES) -> str:
    """The system's setting for transparent huge pages, the word in brackets; "" where it has none."""
    try:
        found = re.search(r"\[(\w+)\]", file.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


def look_at_graphics(driver: Path = DRIVER) -> Graphics:
    """What torch can use, and if that is nothing, what the driver says."""
    there = driver_version(driver)
    try:
        import torch
    except (ImportError, OSError):
        return Graphics("", driver=there, listed=_listed() if there else ())
    build = next(
        (f"{name} {one}" for name, one in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)) if one), "CPU"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gpus = probe_gpus()
    cards = tuple(Card(gpu.index, gpu.name, gpu.total, gpu.free, _supported(gpu)) for gpu in gpus)
    if cards or not there:
        return Graphics(build, cards, there)
    failure = next((" ".join(str(one.message).split()) for one in said), "") or _why_not(build)
    return Graphics(build, (), there, _listed(), failure)


def machine_from(host: Host, graphics: Graphics) -> Machine:
    """What a plan is made for."""
    gpus = tuple(Gpu(one.index, one.name, one.memory_total, one.memory_free) for one in graphics.cards)
    return Machine(host.usable, host.memory_limit, host.memory_free, gpus)


def _usable() -> int:
    from hgca_cli import native

    return native.usable_processors()


def _supported(gpu: Gpu) -> bool:
    """Whether this build of torch has code for a GPU: of its architecture, an older minor one, or to be translated."""
    import torch

    major, minor = torch.cuda.get_device_capability(gpu.index)
    return has_code(torch.cuda.get_arch_list(), major, minor)


def has_code(architectures: list[str], major: int, minor: int) -> bool:
    """architectures: like sm_90 (code of that major version, from that minor one on) and compute_90 (translated, to any later)."""
    if not architectures or any(one.startswith("gfx") for one in architectures):  # nothing is known; AMD's
        return True
    for one in architectures:
        kind, _, digits = one.partition("_")
        number = int(re.sub(r"\D", "", digits) or 0)
        have = (number // 10, number % 10)
        if kind == "compute" and have <= (major, minor):
            return True
        if kind == "sm" and have[0] == major and have[1] <= minor:
            return True
    return False


def _why_not(build: str) -> str:
    """Why CUDA does not start, in its own words; "" for a build without it."""
    import torch

    if not build.startswith("CUDA"):
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "no GPU is visible"


def _listed() -> tuple[str, ...]:
    """Names of the cards the driver lists."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    try:
        done = subprocess.run(
            [smi, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, errors="replace", check=False, timeout=SMI_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()
