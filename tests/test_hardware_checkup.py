"""What looks wrong: every rule is a row over plain facts, and the facts are read from files the test writes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from hgca_cli import native
from hgca_cli.errors import UsageError
from hgca_cli.hardware import profile as profiles
from hgca_cli.hardware import topology
from hgca_cli.hardware.assumed import assume
from hgca_cli.hardware.checkup import environment, machine
from hgca_cli.hardware.checkup.checks import LEVELS, check
from hgca_cli.hardware.checkup.facts import (
    Card,
    Environment,
    Facts,
    Failure,
    Graphics,
    Host,
    Kept,
    Kernels,
    Package,
    Run,
)
from hgca_cli.hardware.checkup.kept import look_at_profile
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.profiles import find
from hgca_cli.hf.places import CONVERTED, HUB, Leftover, Place, Stored

GIB = 1 << 30
MEASURED = replace(assume(Machine(8, 64 * GIB, 60 * GIB)), origin="measured", name="this-machine")
WELL = Facts(
    environment=Environment("0.1", "3.11", "/bin/python", "/venv", "Linux", "glibc", (Package("torch", ">=2", "2.1", True),)),
    kernels=Kernels("x86_64", "", "avx2", ("avx2", "scalar"), 8, True),
    host=Host("cpu", 8, 16, 16, 8, 1, 64 * GIB, 64 * GIB, 60 * GIB, None, "", 8 * GIB, 0, "madvise"),
    graphics=Graphics("CUDA 12.8", (Card(0, "card", 24 * GIB, 23 * GIB),), "570.1"),
    profile=Kept("auto", "/p/this-machine.toml", "good", profile=MEASURED),
    places=(Place(CONVERTED, "/c", free=90 * GIB), Place(HUB, "/h", free=90 * GIB)),
    run=Run("some/model", "/h/some"),
)  # fmt: skip


def with_(part: str, **changes: Any) -> Facts:
    return replace(WELL, **{part: replace(getattr(WELL, part), **changes)})


def with_places(ours: dict[str, Any], hub: dict[str, Any] | None = None, **run: Any) -> Facts:
    places = (replace(WELL.places[0], **ours), replace(WELL.places[1], **hub or {}))
    return replace(WELL, places=places, run=replace(WELL.run, **run))


def variables(**values: str) -> Facts:
    return with_("environment", variables=values)


def without_cards(build: str = "CUDA 12.8", hidden: str | None = None, **more: Any) -> Facts:
    facts = variables(**{"CUDA_VISIBLE_DEVICES": hidden} if hidden is not None else {})
    return replace(facts, graphics=Graphics(build, (), **{"driver": "570.1", "listed": ("RTX 9",)} | more))


GONE = Failure("model some/model is not on this machine.", "hf download some/model", 5)
FAILED = Failure("it needs 9 and has 8.", "Try --ctx 1k.", 4)
PACKAGE = Package("torch", "<3,>=2.11", "3.1", False)
OLD = {"failure": "The NVIDIA driver on your system is too old (found version 11040)."}

ROWS: list[tuple[Facts, str, list[str], list[str], int]] = [
    (with_("environment", packages=(PACKAGE,)), "warning", ["torch 3.1", "<3,>=2.11"], ["pip install 'torch<3,>=2.11'"], 0),
    (with_("environment", packages=(replace(PACKAGE, found=""),)), "error", ["torch is missing"], ["pip install"], 1),
    (with_("environment", unknown={"HGCA_WINDWO": "HGCA_WINDOW"}), "warning", ["HGCA_WINDWO"], ["mean HGCA_WINDOW?"], 0),
    (with_("environment", unknown={"HGCA_ZZZ": ""}), "warning", ["HGCA_ZZZ"], ["Unset"], 0),
    (variables(OMP_NUM_THREADS="9"), "warning", ["OMP_NUM_THREADS=9", "8 threads"], ["to 8"], 0),
    (variables(OMP_NUM_THREADS="7,2"), "note", ["OMP_NUM_THREADS=7", "8 threads"], ["-t"], 0),
    (variables(OMP_THREAD_LIMIT="2"), "warning", ["OMP_THREAD_LIMIT=2", "never uses more"], ["Unset"], 0),
    (variables(TERM="dumb"), "note", ["TERM=dumb", "no line editor"], ["TERM"], 0),
    (with_("kernels", failure=Failure("the C library is not built.", "Install it.", 5)), "error", ["not built"], ["Install"], 5),
    (with_("kernels", isa="scalar", wanted="scalar"), "warning", ["HGCA_ISA=scalar", "avx2"], ["Unset HGCA_ISA"], 0),
    (with_("kernels", isa="scalar", isas=("scalar",)), "warning", ["without vector"], ["build again"], 0),
    (with_("kernels", isa="scalar", isas=("scalar",), machine="arm64"), "warning", ["without vector"], ["NEON"], 0),
    (with_("host", memory_limit=31 * GIB, memory_free=30 * GIB, limited_by="/sys/fs/cgroup/g"), "note",
     ["/sys/fs/cgroup/g", "31.0 GiB", "64.0 GiB"], ["docker run --memory"], 0),
    (with_("host", quota=1.5), "note", ["1.5 of 16 processors"], ["CPUQuota"], 0),
    (with_("host", memory_free=7 * GIB), "warning", ["7.0 GiB of 64.0 GiB"], ["Close"], 0),
    (with_("host", swap_used=GIB), "warning", ["1.0 GiB are swapped out"], ["swapoff"], 0),
    (with_("host", huge_pages="never"), "warning", ["huge pages are off"], ["madvise"], 0),
    (without_cards("CPU"), "warning", ["RTX 9", "built for the CPU"], ["pip install", "constraints.txt"], 0),
    (without_cards("CPU", listed=()), "warning", ["an NVIDIA driver is there"], ["pip install"], 0),
    (without_cards(hidden=""), "warning", ["CUDA_VISIBLE_DEVICES=''", "RTX 9"], ["Unset"], 0),
    (without_cards(**OLD), "warning", ["driver 570.1 is too old", "CUDA 12.8"], ["Update the driver"], 0),
    (without_cards(failure="unknown error."), "warning", ["does not start: unknown error (RTX 9)"], ["nvidia-smi"], 0),
    (with_("graphics", cards=(Card(1, "card", 24 * GIB, 9 * GIB),)), "warning", ["GPU 1", "9.0 GiB of 24.0"], ["nvidia-smi"], 0),
    (with_("graphics", cards=(Card(0, "card", GIB, GIB, False),)), "warning", ["no code for it"], ["Install a torch"], 0),
    (with_("profile", state="missing", profile=None), "note", ["not measured yet"], ["Run hgca profile"], 0),
    (with_("profile", state="stale", why="torch is 3"), "warning", ["out of date (torch is 3)"], ["Run hgca profile"], 0),
    (with_("profile", state="damaged", why="x is not TOML."), "warning", ["damaged: x is not TOML."], ["Run hgca profile"], 0),
    (with_("profile", profile=replace(MEASURED, quick=True)), "note", ["ten seconds only"], ["hgca profile"], 0),
    (with_("profile", refusal="no permission"), "warning", ["(no permission)", "every chat"], ["HGCA_PROFILE_DIR"], 0),
    (with_("profile", odd=("4090: 4 of 16 lanes.",)), "warning", ["4 of 16 lanes"], ["hgca profile"], 0),
    (with_("profile", state="unknown", failure=Failure("--profile: no profile 'x'.", "Did you mean y?", 2)), "error",
     ["no profile 'x'"], ["mean y?"], 2),
    (with_places({"refusal": "full"}), "warning", ["cannot write to /c (full)"], ["HGCA_CACHE_DIR"], 0),
    (with_places({}, {"refusal": "full"}), "warning", ["cannot write to /h (full)"], ["HF_HOME"], 0),
    (with_places({"free": GIB // 2}), "warning", ["512.0 MiB are free in /c"], ["HGCA_CACHE_DIR"], 0),
    (with_places({"leftovers": (Leftover("/c/a b", GIB, 9e5), Leftover("/c/d", GIB, 9e5))}), "note", ["2.0 GiB in /c"],
     ["rm -r '/c/a b' /c/d"], 0),
    (with_places({}, {"leftovers": (Leftover("/h/x", 5, 1.0),)}), "note", ["5 B in /h"], ["hgca pull goes on"], 0),
    (with_places({}, {"odd": ("no snapshots",)}), "warning", ["/h: no snapshots."], ["hf cache verify"], 0),
    (with_("run", failures=(FAILED,)), "error", ["needs 9"], ["--ctx 1k"], 4),
    (with_("run", missing=GONE, kind=HUB), "note", ["some/model is not ready yet: chat fetches it"], ["hgca pull some/model"], 0),
    (with_("run", missing=GONE, kind=HUB, offline="--offline"), "error", ["not on this machine."], ["hf download"], 5),
    (with_("run", missing=GONE, kind=HUB, offline="HF_HUB_OFFLINE"), "error", ["HF_HUB_OFFLINE is set"], ["hf download"], 5),
    (with_("run", notices=("context 9 is beyond the trained length 8.",)), "warning", ["beyond"], ["setting"], 0),
]  # fmt: skip


def test_a_machine_that_is_well_has_no_findings() -> None:
    assert check(WELL) == []


@pytest.mark.parametrize(("facts", "level", "said", "remedy", "code"), ROWS)
def test_a_finding(facts: Facts, level: str, said: list[str], remedy: list[str], code: int) -> None:
    (found,) = check(facts)
    assert (found.level, found.exit_code) == (level, code)
    assert all(word in found.text for word in said) and all(word in found.remedy for word in remedy), found


@pytest.mark.parametrize(
    "facts",
    [
        variables(OMP_NUM_THREADS="8"),
        variables(OMP_NUM_THREADS="many"),
        variables(OMP_THREAD_LIMIT="99"),
        variables(TERM="xterm"),
        with_("kernels", wanted="avx2"),
        with_("kernels", isa="scalar", isas=("scalar",), machine="riscv64"),
        with_("host", quota=8.0),
        with_("host", memory_limit=33 * GIB, memory_free=30 * GIB, limited_by="/g"),
        with_("host", swap_used=200 << 20),
        with_("host", huge_pages="always"),
        with_("host", huge_pages=""),
        without_cards("CPU", driver=""),  # no GPU, and no driver
        without_cards("CUDA 12.8", driver=""),
        without_cards(""),  # torch cannot be imported: said once, by the kernels
        with_("profile", asked="none", state="missing", profile=None),
        with_("profile", asked="h200", profile=replace(MEASURED, origin="estimated")),
        with_places({"refusal": "full", "spare": True}),
        with_places({"models": (Stored("m", "/m", 5, True),)}),
        with_places({"free": None}),
    ],
)
def test_what_is_well(facts: Facts) -> None:
    assert check(facts) == []


@pytest.mark.parametrize(
    ("ours", "hub", "run", "code"),
    [
        ({"refusal": "no", "chosen": "HGCA_CACHE_DIR"}, {}, {"kind": CONVERTED}, 5),
        ({"refusal": "no"}, {}, {"kind": CONVERTED}, 0),  # the spare place takes it
        ({"refusal": "no", "chosen": "HGCA_CACHE_DIR"}, {}, {"kind": HUB}, 0),
        ({}, {"refusal": "no"}, {"kind": HUB}, 5),
        ({}, {"free": 5 * GIB}, {"kind": HUB, "needs": 6 * GIB}, 4),
        ({}, {"free": 5 * GIB}, {"kind": HUB, "needs": 4 * GIB}, 0),
        ({}, {"free": 5 * GIB}, {"kind": CONVERTED, "needs": 6 * GIB}, 0),
        (
            {},
            {"refusal": "no", "free": 5},
            {"kind": HUB, "needs": 6, "offline": "--offline"},
            5,
        ),  # of the model, not the place
    ],
)
def test_what_keeps_a_model_from_being_brought(ours: Any, hub: Any, run: Any, code: int) -> None:
    found = check(with_places(ours, hub, missing=GONE, **run))
    assert max(one.exit_code for one in found) == code
    assert sum(one.level == "error" for one in found) == (code != 0)


def test_the_worst_comes_first() -> None:
    odd = replace(WELL, environment=variables(TERM="dumb").environment, run=with_("run", failures=(FAILED,)).run)
    found = check(replace(odd, host=replace(WELL.host, huge_pages="never")))
    assert tuple(one.level for one in found) == LEVELS == ("error", "warning", "note")


def test_facts_are_plain_data() -> None:
    assert json.loads(json.dumps(asdict(WELL)))["host"]["memory_total"] == 64 * GIB


@pytest.mark.parametrize(
    ("found", "good"), [("2.13.0+cpu", True), ("2.11.0", True), ("2.10.9", False), ("3.0", False), ("", False), ("2.12.0rc1", True)]
)  # fmt: skip
def test_a_version_beside_its_range(found: str, good: bool) -> None:
    assert environment.judged(Requirement("torch>=2.11,<3"), found) == Package("torch", "<3,>=2.11", found, good)


def test_what_is_installed_here() -> None:
    found = {one.name: one for one in environment.packages()}
    assert found["torch"].found == torch.__version__ and found["torch"].good
    assert "matplotlib" not in found and "pytest" not in found  # extras


def test_no_secret_is_shown() -> None:
    given = {
        "HF_TOKEN": "hf_1234", "HUGGING_FACE_HUB_TOKEN": "hf_1234", "HGCA_API_KEY": "hf_1234", "HGCA_SYSTEM": "hf_1234",
        "HF_ENDPOINT": "https://me:hf_1234@mirror/x", "HGCA_MODEL": "m" * 200, "HOME": "/root", "NO_COLOR": "",
    }  # fmt: skip
    shown = environment.shown_variables(given)
    assert "hf_1234" not in str(shown) and "HOME" not in shown
    assert shown["HF_TOKEN"] == "set" and shown["HF_ENDPOINT"] == "https://mirror/x" and shown["NO_COLOR"] == ""
    assert len(shown["HGCA_MODEL"]) < 100


def test_variables_nobody_reads() -> None:
    given = {"HGCA_WINDWO": "1", "HGCA_WINDOW": "1", "HGCA_QQQQQQQ": "1", "OTHER": "1"}
    assert environment.unknown_variables(given, {"HGCA_WINDOW"}) == {"HGCA_QQQQQQQ": "", "HGCA_WINDWO": "HGCA_WINDOW"}


@pytest.mark.parametrize(
    ("text", "word"), [("always [madvise] never\n", "madvise"), ("[never]", "never"), ("odd", ""), (None, "")]
)
def test_huge_pages(tmp_path: Path, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    assert machine.huge_pages(tmp_path / "enabled") == word


NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 24\nGCC version:  gcc version 12\n"


@pytest.mark.parametrize(("text", "version"), [(NVIDIA, "570.86.15"), ("odd", "there"), (None, "")])
def test_driver_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert topology.driver_version(tmp_path / "version") == version


@pytest.mark.parametrize(
    ("architectures", "capability", "good"),
    [
        (["sm_75", "sm_80", "sm_90"], (8, 6), True),
        (["sm_75", "sm_80", "sm_90"], (7, 0), False),
        (["sm_75", "sm_80", "sm_90"], (6, 1), False),
        (["sm_80", "sm_90a"], (9, 0), True),
        (["sm_90", "compute_90"], (12, 0), True),
        (["sm_90"], (12, 0), False),
        (["sm_100", "sm_120"], (12, 0), True),
        (["gfx942"], (9, 4), True),
        ([], (8, 0), True),
    ],
)
def test_which_gpus_a_build_has_code_for(architectures: list[str], capability: tuple[int, int], good: bool) -> None:
    assert machine.has_code(architectures, *capability) is good


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A driver with two cards, none of which torch can use."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho RTX 9\necho 'RTX 8 '\n")
    smi.chmod(0o755)
    (tmp_path / "version").write_text(NVIDIA)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("hgca_cli.hardware.checkup.machine.probe_gpus", lambda: ())
    monkeypatch.setattr(torch.version, "cuda", None)
    yield tmp_path / "version"


def test_a_gpu_beside_a_torch_for_the_cpu(driver: Path) -> None:
    assert machine.look_at_graphics(driver) == Graphics("CPU", (), "570.86.15", ("RTX 9", "RTX 8"))


def test_what_cuda_says_is_kept(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    def refuse() -> None:
        raise RuntimeError("CUDA unknown\nerror")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    assert machine.look_at_graphics(driver).failure == "CUDA unknown error"

    def warn() -> tuple[()]:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return ()

    monkeypatch.setattr("hgca_cli.hardware.checkup.machine.probe_gpus", warn)
    assert "too old" in machine.look_at_graphics(driver).failure


def test_a_driver_that_does_not_answer(driver: Path) -> None:
    (driver.parent / "nvidia-smi").write_text("#!/bin/sh\necho broken\nexit 9\n")
    assert machine.look_at_graphics(driver).listed == ()


def test_openmp_is_told_as_the_library_finds_it() -> None:
    try:
        assert machine.openmp_is_there() is native.share_openmp(True)
    finally:
        native.share_openmp(False)


def test_the_real_machine() -> None:
    kernels = machine.look_at_kernels()
    assert kernels.failure is None and kernels.isa == native.isa() and kernels.threads == native.threads()
    host = machine.look_at_host(kernels)
    assert host.usable == native.usable_processors() <= host.allowed <= host.logical_cores
    assert 0 < host.memory_free <= host.memory_limit <= host.memory_total
    made = machine.machine_from(host, Graphics("CUDA 1", (Card(0, "card", 9, 8),)))
    assert (made.processors, made.memory_total, made.gpus[0].free) == (host.usable, host.memory_limit, 8)


def test_this_machines_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_PROFILE_DIR", str(tmp_path))
    here = Machine(8, 64 * GIB, 60 * GIB)
    file = tmp_path / "this-machine.toml"
    assert look_at_profile("auto", here, "avx2").state == "missing"
    file.write_text("x = [")
    damaged = look_at_profile("auto", here, "avx2")
    assert damaged.state == "damaged" and "not TOML" in damaged.why and damaged.profile is None
    versions = {"hgca": "0", "torch": "0"}
    monkeypatch.setattr("hgca_cli.hardware.profiles.versions_now", lambda: versions)
    host = replace(MEASURED.host, isa="avx2")
    profiles.write(replace(MEASURED, host=host, versions=versions), file)
    good = look_at_profile("auto", here, "avx2")
    assert good.state == "good" and good.why == good.refusal == "" and good.profile is not None
    assert look_at_profile("auto", replace(here, processors=4), "avx2").state == "missing"
    assert look_at_profile("auto", here, "avx512").state == "stale"
    assert "avx512" in look_at_profile("auto", here, "avx512").why
    assert sorted(tmp_path.iterdir()) == [file]
    monkeypatch.setenv("HGCA_PROFILE_DIR", str(file / "below"))
    assert look_at_profile("auto", here, "avx2").refusal


def test_a_named_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_PROFILE_DIR", str(tmp_path))
    here = Machine(1, GIB, GIB)
    assert look_at_profile("h200", here, "avx2").profile == find("h200")
    with pytest.raises(UsageError, match="no profile 'h2000'"):
        look_at_profile("h2000", here, "avx2")
    slow = replace(find("rtx-4090-24gb"), origin="measured", name="slow")
    slow = replace(slow, gpus=(replace(slow.gpus[0], name="RTX 4090", to_device_gb_s=2.0),))
    profiles.write(slow, tmp_path / "slow.toml")
    (text,) = look_at_profile("slow", here, "avx2").odd
    assert "lanes" in text
    profiles.write(replace(slow, origin="estimated"), tmp_path / "slow.toml")
    assert look_at_profile("slow", here, "avx2").odd == ()
