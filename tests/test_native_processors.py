"""How many threads there are by default: physical cores of the affinity mask, within the CPU quota."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hgca_cli import native


def test_default_is_the_usable_processors() -> None:
    code = "from hgca_cli import native; print(native.threads() == native.usable_processors() >= 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "True\n", done.stderr


def write(root: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return str(root)


EIGHT = {"proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-7"}
CPU, GROUPS = "sys/devices/system/cpu", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"proc/self/status": "Cpus_allowed_list:\t1,3-4,127"}, 4),
        ({f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}, 4),
        ({f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i // 2 * 2}-{i // 2 * 2 + 1}" for i in range(8)}, 4),
        # one sibling of each core is not ours
        ({f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i},{i + 8}" for i in range(8)}, 8),
        ({"proc/self/cgroup": "0::/a/b", f"{GROUPS}/a/b/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/a/b", f"{GROUPS}/a/b/cpu.max": "250000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a/b", f"{GROUPS}/a/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", f"{GROUPS}/cpu.max": "1000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a", f"{GROUPS}/b/cpu.max": "1000 100000"}, 8),
        ({"proc/self/cgroup": "0::/a", f"{GROUPS}/a/cpu.max": "5000000 100000"}, 8),
        (
            {
                "proc/self/cgroup": "9:cpu,cpuacct:/docker/x\n0::/",
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_quota_us": "150000",  # a container's own is the mount's
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "9:cpu:/a",
                f"{GROUPS}/cpu/a/cpu.cfs_quota_us": "-1",
                f"{GROUPS}/cpu/a/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_usable_processors_of_another_machine(files: dict[str, str], threads: int, tmp_path: Path) -> None:
    assert native.usable_processors(write(tmp_path, EIGHT | files)) == threads
