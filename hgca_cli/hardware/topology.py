"""Names and counts of what a machine has: processor, cores, NUMA nodes, GPU driver. Read from the system, nothing measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

import psutil

NODES = Path("/sys/devices/system/node")
DRIVER = Path("/proc/driver/nvidia/version")


def processor_name() -> str:
    """As /proc/cpuinfo has it, else as the platform calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> tuple[int, int]:
    """Physical cores and logical processors of the machine, whatever this process may use of them."""
    logical = psutil.cpu_count() or 1
    return psutil.cpu_count(logical=False) or logical, logical


def load_now() -> float | None:
    """Threads that ran or wanted to, over the last minute, of each logical processor; None where the system does not tell."""
    try:
        return os.getloadavg()[0] / cores()[1]
    except (OSError, AttributeError):
        return None


def numa_nodes(root: Path = NODES) -> int:
    """NUMA nodes with memory and processors; 1 where the system tells of none."""
    try:
        return max(1, sum(one.name[4:].isdigit() for one in root.glob("node*")))
    except OSError:
        return 1


def driver_version(file: Path = DRIVER) -> str:
    """Of the NVIDIA driver; "there" if it does not tell, "" without one."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "there" if shutil.which("nvidia-smi") else ""
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else "there"
