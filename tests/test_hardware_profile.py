"""Profiles survive being written, and a damaged one is told by file and field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgca_cli.errors import UsageError
from hgca_cli.hardware import profile as files
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.profiles import available, find, machine_of, shipped_dir, stale, versions_now
from hgca_cli.hardware.sheets import SHEETS, below_sheet, oddities, sheet_of
from hgca_cli.hardware.topology import driver_version
from tests.rates import gpu_rates, profile

SHIPPED = sorted(shipped_dir().glob("*.toml"))


@given(
    rate=st.floats(0.001, 1e6),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    quota=st.none() | st.floats(0.1, 64),
)
def test_what_is_written_is_read(rate: float, text: str, quota: float | None) -> None:
    made = replace(profile(gpu_rates(memory_gb_s=rate)), note=text)
    made = replace(made, host=replace(made.host, quota=quota))
    again = files.loads(files.dumps(made), "here")
    assert again.note == text and again.host.rows == made.host.rows and again.host.read_gb_s == made.host.read_gb_s
    assert again.gpus[0].memory_gb_s == pytest.approx(rate, rel=1e-3)
    assert again.host.quota == (None if quota is None else pytest.approx(quota, rel=1e-3))
    assert files.loads(files.dumps(again), "here") == again


def test_units_stand_at_the_top() -> None:
    assert "gb_s is 1e9 bytes a second" in files.dumps(profile()).splitlines()[1]


GOOD = files.dumps(profile(gpu_rates()))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "schema None"),
        ("schema = 3\n", "schema 3.*Update hgca"),
        ('schema = "1"\n', "schema '1'"),
        ("schema = [", "not TOML"),
        (GOOD.replace('origin = "measured"', 'origin = "guessed"'), "origin is no good"),
        (GOOD.replace("layer_us = 100.0", 'layer_us = "fast"'), "host.layer_us = 'fast'"),
        (GOOD.replace("layer_us = 100.0", "layer_us = nan"), "host.layer_us = nan"),
        (GOOD.replace("layer_us = 100.0", "layer_us = -1.0"), "host.layer_us = -1.0"),
        (GOOD.replace("layer_us = 100.0\n", "", 1), "host.layer_us is missing"),
        (GOOD.replace("usable = 4", "usable = 0"), "host.usable"),
        (GOOD.replace("usable = 4", "usable = true"), "host.usable = True"),
        (GOOD.replace("4 = 40.0", "four = 40.0"), "'four' is not a number"),
        (GOOD.replace("quick = false", "quick = false\nmore = 1"), "no field more"),
        (GOOD.replace("memory_gb_s = 800.0", "memory_gb_s = 0.0"), "a rate of 0"),
        (GOOD.replace('how = "scan"', 'how = "guess"'), "host.rows is no good"),
        (GOOD.replace("copy_us = 10.0", "copy_us = true"), r"gpus\[0\].copy_us = True"),
    ],
)
def test_a_damaged_profile_is_told_by_file_and_field(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"here.*{told}"):
        files.loads(text, "here")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    for name in ("none.toml", "a.toml"):
        with pytest.raises(UsageError, match=name):
            files.read(tmp_path / name)


def test_writing_leaves_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "one.toml"
    files.write(profile(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match=r"No space left.*HGCA_PROFILE_DIR") as caught:
        files.write(replace(profile(), name="two"), path)
    assert getattr(caught.value, "exit_code", 0) == 4
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_PROFILE_DIR", str(tmp_path))
    assert {path.stem for path in SHIPPED} == set(available())
    mine = replace(profile(), name="mine")
    files.write(mine, tmp_path / "h200.toml")
    assert find("h200").name == "mine", "the user's own hides a shipped one"
    assert find(str(tmp_path / "h200.toml")).name == "mine"
    with pytest.raises(UsageError, match=r"no profile 'rtx-4090'. Did you mean rtx-4090-24gb?"):
        find("rtx-4090")
    with pytest.raises(UsageError, match="There is: h200"):
        find("zzz")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles_are_whole(path: Path) -> None:
    found = files.read(path)
    origin = "measured" if path.stem == "h200" else "estimated"
    assert found.name == path.stem and found.origin == origin and origin in found.note
    assert machine_of(found).memory_free <= found.host.memory_total
    for gpu in found.gpus:
        assert sheet_of(gpu.name) is not None and below_sheet(gpu) == []


def test_the_kinds_of_machines_that_ship() -> None:
    found = [files.read(path) for path in SHIPPED]
    memories = {round(gpu.memory_total / 2**30) for one in found for gpu in one.gpus}
    assert {8, 12, 24, 140} <= memories and any(not one.gpus for one in found)


@pytest.mark.parametrize(
    ("now", "versions", "isa", "told"),
    [
        (Machine(4, 1, 1), {"hgca": "1", "torch": "2"}, "avx2", ""),
        (Machine(2, 1, 1), {"hgca": "1", "torch": "2"}, "avx2", "2 processors may be used, not 4"),
        (Machine(4, 1, 1), {"hgca": "1", "torch": "3"}, "avx2", "torch is 3, not 2"),
        (Machine(4, 1, 1), {"hgca": "1", "torch": "2"}, "avx512", "instruction set is avx512, not avx2"),
    ],
)
def test_an_old_profile_is_noticed(now: Machine, versions: dict[str, str], isa: str, told: str) -> None:
    found = stale(profile(), now, isa, versions)
    assert (told in found) if told else found == ""


@pytest.mark.parametrize(
    ("quick", "then", "now", "again"),
    [
        (True, 2.0, 0.1, True),
        (True, 2.0, 1.0, False),
        (True, 0.3, 0.1, False),
        (False, 2.0, 0.1, False),
        (True, 2.0, None, False),
    ],
)
def test_what_was_measured_in_haste_beside_others_is_measured_again_when_they_left(
    quick: bool, then: float, now: float | None, again: bool
) -> None:
    made = replace(profile(), quick=quick, host=replace(profile().host, load=then))
    assert bool(stale(made, Machine(4, 1, 1), "avx2", made.versions, now)) is again
    assert any("others used this machine" in odd for odd in oddities(made)) is (then > 0.5)


def test_another_gpu_is_noticed() -> None:
    made = profile(gpu_rates())
    assert "GPUs are none, not card" in stale(made, Machine(4, 1, 1), "avx2", made.versions)
    assert stale(made, replace(machine_of(made), memory_free=1), "avx2", made.versions) == ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"to_device_gb_s": 6.0, "from_device_gb_s": 6.5}, "lanes"),
        ({"memory_gb_s": 300.0}, "its memory reads at 300 of 1008"),
        ({"matmul_tflop_s": {"bf16": 20.0}}, "power cap"),
    ],
)
def test_a_card_far_below_its_data_sheet_is_named(changes: dict[str, object], told: str | None) -> None:
    healthy = {"name": "NVIDIA GeForce RTX 4090", "memory_gb_s": 900.0, "matmul_tflop_s": {"bf16": 140.0}}
    found = below_sheet(gpu_rates(**healthy | changes))
    assert (found == []) if told is None else (len(found) == 1 and told in found[0])


def test_a_noisy_machine_is_named() -> None:
    assert oddities(profile(noise=0.2)) == []
    (told,) = oddities(profile(noise=0.4))
    assert "40% slower" in told and "hgca profile" in told
    slow = gpu_rates(name="NVIDIA L4", memory_gb_s=50.0, matmul_tflop_s={"bf16": 100.0})
    assert len(oddities(profile(slow, noise=0.4))) == 2


def test_the_drivers_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(versions_now()) - {"driver"} == {"hgca", "torch"}
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version: 12\n")
    monkeypatch.setattr("hgca_cli.hardware.profiles.driver_version", lambda: driver_version(file))
    assert versions_now()["driver"] == "570.86.15"
    made = replace(profile(), versions=versions_now() | {"driver": "550.1"})
    assert "driver is 570.86.15, not 550.1" in stale(made, Machine(4, 1, 1), "avx2", versions_now())


def test_the_longest_name_counts() -> None:
    assert sheet_of("NVIDIA GeForce RTX 4060 Ti") == SHEETS["RTX 4060 Ti"]
    assert sheet_of("NVIDIA GeForce RTX 4060") == SHEETS["RTX 4060"]
    assert sheet_of("NVIDIA L40S") == SHEETS["L40S"] and sheet_of("unheard of") is None
