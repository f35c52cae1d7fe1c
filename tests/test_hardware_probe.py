"""Control groups of both versions, from files written by the test."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from hgca_cli import native
from hgca_cli.hardware import probe

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def membership(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "membership"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "groups", "quota"),
    [
        ({}, "", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"cpu.max": "300000 100000\n"}, "0::/not/mounted/here\n", 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", None),
        ({"cpu/g/cpu.cfs_quota_us": "250000\n", "cpu/g/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/g\n", 2.5),
        ({"cpu.max": "rubbish\n"}, "rubbish\n", None),
        ({"cpu.max": "100 0\n"}, "0::/\n", None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], groups: str, quota: float | None) -> None:
    root = write(tmp_path / "cgroup", files)
    assert probe.cpu_quota(root, membership(tmp_path, groups)) == quota


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        ({"g/memory.max": f"{64 * MIB}\n", "g/memory.current": f"{24 * MIB}\n"}, "0::/g/inner\n"),
        (
            {
                "g/memory.max": f"{64 * MIB}\n",
                "g/memory.current": f"{40 * MIB}\n",
                "g/memory.stat": f"anon 5\ninactive_file {16 * MIB}\n",
            },
            "0::/g\n",
        ),
        (
            {"memory/g/memory.limit_in_bytes": f"{64 * MIB}", "memory/g/memory.usage_in_bytes": f"{24 * MIB}"},
            "9:name=systemd:/\n4:memory:/g\n0::/\n",
        ),
    ],
)
def test_a_memory_limit_counts(tmp_path: Path, files: dict[str, str], groups: str) -> None:
    root = write(tmp_path / "cgroup", files)
    assert probe.host_memory(root, membership(tmp_path, groups)) == (64 * MIB, 40 * MIB)


def test_memory_without_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    root = write(tmp_path / "cgroup", files)
    total, free = probe.host_memory(root, membership(tmp_path, "0::/\n"))
    assert total == psutil.virtual_memory().total and 0 < free <= total


def test_the_real_machine() -> None:
    machine = probe.probe_machine()
    assert machine.processors == native.usable_processors()
    assert 0 < machine.memory_free <= machine.memory_total
