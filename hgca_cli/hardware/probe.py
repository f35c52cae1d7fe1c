"""What this process may use: affinity mask, control groups and GPUs count, not what the box has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from hgca_cli.hardware.machine import Gpu, Machine

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2^63


def probe_machine(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> Machine:
    """The machine as it is now. Imports torch (seconds), to ask for GPUs."""
    from hgca_cli import native

    total, free = host_memory(cgroup, membership)
    return Machine(native.usable_processors(), total, free, probe_gpus())


def cpu_quota(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float | None:
    """Processors the control groups (version 2 or 1, parents too) grant; None without a limit."""
    found: list[float] = []
    for folder in _folders(cgroup, membership, "cpu"):
        if text := _read(folder / "cpu.max"):
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # version 2 writes "max", version 1 -1
            found.append(int(quota) / int(period))
    return min(found, default=None)


def host_memory(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> tuple[int, int]:
    """Host memory (total, free) in bytes; where a control group (parents too) allows less, that counts."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for _, most, unused in memory_limits(cgroup, membership):
        total, free = min(total, most), min(free, unused)
    return total, free


def memory_limits(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> Iterator[tuple[Path, int, int]]:
    """Control groups (version 2 or 1, parents too) that limit memory: (folder, bytes at most, bytes not in use)."""
    for folder in _folders(cgroup, membership, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if not limit.isdigit() or int(limit) >= UNLIMITED:
            continue
        held = int(used) - _file_pages(folder) if used.isdigit() else 0
        yield folder, int(limit), max(0, int(limit) - max(0, held))


def probe_gpus() -> tuple[Gpu, ...]:
    """CUDA devices torch can use; none where torch has no CUDA or the driver is too old for it."""
    import torch  # here, because it takes seconds

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:  # a device another process holds exclusively: not ours to use
            continue
        found.append(Gpu(index, torch.cuda.get_device_name(index), int(total), int(free)))
    return tuple(found)


def _folders(root: Path, membership: Path, controller: str) -> list[Path]:
    """Folders of the control groups this process is in that may limit `controller`, parents included."""
    folders = [root, root / controller]  # in a container its own limits often stand at the root
    for line in _read(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root  # version 1 mounts every controller apart
        inside = base / path.strip("/")
        folders += [folder for folder in (inside, *inside.parents) if base in folder.parents]
    return folders


def _file_pages(folder: Path) -> int:
    """Bytes of file pages a group holds and can give back at once."""
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
