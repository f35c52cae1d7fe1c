"""The disk of --store-dir: what is looked at before anything is loaded, and what the plan makes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hgca_cli.errors import DoesNotFitError, UsageError
from hgca_cli.hardware.disk import Disk, file_system, look_at_disk
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.memory import DISK_SHARE, Model
from hgca_cli.hardware.plan import make_plan
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.ui.figures import plan_table

GIB = 1 << 30
LAYOUT = KVLayout(tuple(LayerLayout(32, 8, 128, 128) for _ in range(32)))
MODEL = Model(LAYOUT, 8_000_000_000, 131_072, hidden=4096, intermediate=14336, vocabulary=128_256)
HOST = Machine(processors=8, memory_total=96 * GIB, memory_free=64 * GIB)
LARGE = Disk("/fast", "ext4", 500 * GIB)
MILLION = 1 << 20


def plan(disk: Disk | None, machine: Machine = HOST, **wanted: object) -> Plan:
    asked = {"dtype": "bf16", "context": MILLION, "window": 1024, "select": "scan"} | wanted
    return make_plan(MODEL, machine, PlanRequest(disk=disk, **asked))  # type: ignore[arg-type]


def test_nothing_is_looked_at_unasked() -> None:
    assert look_at_disk(None) is None


def test_a_directory_is_known_by_its_file_system(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "20 1 0:999 / /elsewhere rw - ext3 /dev/a rw\n"
        f"21 1 {number} / /here rw,relatime shared:1 - tmpfs none rw\nnonsense\n"
    )
    found = look_at_disk(str(tmp_path), mounts)
    assert found is not None and found.kind == "tmpfs" and found.in_memory and found.free > 0
    assert found.folder == str(tmp_path) and found.name == f"{tmp_path} (tmpfs)"
    assert file_system(tmp_path, tmp_path / "none") == "" and Disk("/x", "", 1).name == "/x"


def test_what_is_no_directory_or_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name, why in (("file", "is not a directory"), ("none", "no such directory")):
        with pytest.raises(UsageError, match=f"--store-dir .*{name}: {why}"):
            look_at_disk(str(tmp_path / name))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match="nothing may be written there"):
        look_at_disk(str(tmp_path))


def test_a_million_tokens_fit_where_the_disk_holds_their_rows() -> None:
    with pytest.raises(DoesNotFitError, match=r"--store-dir DIR with 12\d\.\d GiB free \(fits"):
        plan(None)
    made = plan(LARGE)
    host, disk = made.memory
    rows = made.stored_rows * 32 * 8 * 256 * 2
    assert disk.place == "disk /fast (ext4)" and disk.store == disk.total == rows
    assert disk.limit == int(LARGE.free * DISK_SHARE)
    assert 0 < host.store == made.stored_rows * LAYOUT.__class__(LAYOUT.layers, index="scan").index_row_bytes
    assert made.store_dir == made.cache.store_dir == "/fast"
    assert made.reasons["store_dir"].startswith("given: 12") and "index in memory" in made.reasons["store_dir"]
    assert any("read from the disk" in notice for notice in made.notices), "it is more than memory caches"
    table = plan_table(made, "model")
    assert f"{made.threads} threads | " in table and "1 thread | " in plan_table(replace(made, threads=1), "model")
    assert "disk /fast (ext4): store 12" in table and "--store-dir /fast" in table


def test_a_store_that_memory_can_cache_is_as_predicted() -> None:
    assert not any("read from the disk" in notice for notice in plan(LARGE, context=65_536).notices)


def test_a_disk_that_is_too_small_is_refused_with_figures() -> None:
    with pytest.raises(
        DoesNotFitError, match=r"disk /small \(xfs\) needs 12\d\.\d GiB .* and has 95\.0 GiB.*--ctx"
    ) as caught:
        plan(Disk("/small", "xfs", 100 * GIB))
    assert caught.value.exit_code == 4


def test_a_directory_in_memory_takes_memory() -> None:
    """And that is said."""
    shared = Disk("/dev/shm", "tmpfs", 500 * GIB)
    with pytest.raises(DoesNotFitError, match="host memory needs"):
        plan(shared)
    made = plan(shared, context=65_536)
    assert made.memory[0].store == plan(None, context=65_536).memory[0].store
    assert any("/dev/shm is in memory (tmpfs)" in notice for notice in made.notices)


def test_beside_a_gpu() -> None:
    machine = replace(HOST, gpus=(Gpu(0, "card", total=24 * GIB, free=23 * GIB),))
    made = plan(LARGE, machine)
    assert made.device == "cuda:0" and [memory.place for memory in made.memory][-1] == "disk /fast (ext4)"
    assert made.host_bytes["store"] < made.memory[-1].store


def test_what_was_asked_for_and_is_too_little_is_named_among_the_remedies() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        plan(Disk("/small", "tmpfs", 1 << 20), context=131_072)
    assert "no --store-dir (fits" in refused.value.hint
    with pytest.raises(DoesNotFitError) as refused:
        plan(None, context=131_072, ram_limit=1 << 20)
    (told,) = [word for word in refused.value.hint.split() if word.endswith("MiB")]
    assert f"--ram-limit {told} (fits)" in refused.value.hint
    plan(None, context=131_072, ram_limit=int(told.removesuffix("MiB")) << 20)  # which is true
