"""Where profiles are: this machine's in the user's directory, others that come with the program, and files by path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import platformdirs

from hgca_cli import __version__
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.hardware.machine import Gpu, Machine
from hgca_cli.hardware.profile import read
from hgca_cli.hardware.rates import BUSY, QUIET, Profile
from hgca_cli.hardware.topology import driver_version, load_now
from hgca_cli.units import counted

THIS = "this-machine"


def profile_dir() -> Path:
    """HGCA_PROFILE_DIR, else `profiles` in the user's configuration directory."""
    chosen = os.environ.get("HGCA_PROFILE_DIR")
    try:
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_config_dir("hgca")) / "profiles"
    except RuntimeError as error:
        raise UsageError(f"HGCA_PROFILE_DIR: {chosen!r} is not a directory ({error}).", "Choose another.") from error


def shipped_dir() -> Path:
    """The profiles that come with the program: installed beside it, or in its checkout."""
    package = Path(__file__).parent.parent
    return next((place for place in (package / "profiles", package.parent / "profiles") if place.is_dir()), package)


def available() -> dict[str, Path]:
    """Profiles by name; one of the user's hides a shipped one of its name."""
    found: dict[str, Path] = {}
    for folder in (shipped_dir(), profile_dir()):
        if folder.is_dir():
            found |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return found


def find(name: str) -> Profile:
    """The profile of a name, or in a file. Raises UsageError, with what there is."""
    if name.endswith(".toml") or "/" in name:
        return read(Path(name).expanduser())
    known = available()
    if name in known:
        return read(known[name])
    near = get_close_matches(name, known, 1)
    hint = (
        f"Did you mean {near[0]}?" if near else f"There is: {', '.join(sorted(known)) or 'none yet; run hgca profile'}."
    )
    raise UsageError(f"--profile: no profile {name!r}.", hint)


@dataclass(frozen=True)
class ThisMachine:
    """The profile of this machine, as it is on disk. state: "good", "missing", "stale" or "damaged"; why, if not good."""

    path: Path
    state: str
    why: str = ""
    profile: Profile | None = None


def this_machine(machine: Machine, isa: str) -> ThisMachine:
    """Look for it. isa: the instruction set in use, "" if nobody knows."""
    path, found, wrong = _kept(machine.processors)
    if wrong:
        return ThisMachine(path, "damaged", wrong)
    if found is None:
        so = "" if path.stem == THIS else f" with {counted(machine.processors, 'processor')}"
        return ThisMachine(path, "missing", f"this machine was not measured{so} yet")
    changed = stale(found, machine, isa, versions_now(), load_now()) if isa else ""
    return ThisMachine(path, "stale" if changed else "good", changed, found)


def path_of(processors: int) -> Path:
    """Where this machine's profile is, for a process that may use so many processors: the number it was measured with first has
    the plain name, and others do not take it away (an affinity mask, a control group's quota)."""
    return _kept(processors)[0]


def _kept(processors: int) -> tuple[Path, Profile | None, str]:
    """As `path_of`, with the profile that is there, and what is wrong with one that cannot be read."""
    first, found = profile_dir() / f"{THIS}.toml", None
    for path in (first, own := first.with_stem(f"{THIS}-{processors}")):
        if not path.is_file():
            return path, None, ""
        try:
            found = read(path)
        except HgcaError as error:
            return path, None, error.message
        if found.host.usable == processors:
            return path, found, ""
    return own, found, ""


def stale(profile: Profile, machine: Machine, isa: str, versions: dict[str, str], load: float | None = None) -> str:
    """Why this machine's profile no longer tells of it; empty if it does.

    versions  what the rates depend on, as they are now
    load      `load_now`; a quick profile of a busy machine is one until the machine is quiet
    """
    host = profile.host
    changes = []
    if host.usable != machine.processors:
        changes.append(f"{machine.processors} processors may be used, not {host.usable}")
    if host.isa != isa:
        changes.append(f"the instruction set is {isa}, not {host.isa}")
    then, now = [gpu.name for gpu in profile.gpus], [gpu.name for gpu in machine.gpus]
    if then != now:
        changes.append(f"GPUs are {', '.join(now) or 'none'}, not {', '.join(then) or 'none'}")
    for name, version in versions.items():
        if profile.versions.get(name) != version:
            changes.append(f"{name} is {version}, not {profile.versions.get(name, 'known')}")
    if profile.quick and host.load > BUSY and load is not None and load < QUIET:
        changes.append("others used this machine when it was measured, and do not now")
    return "; ".join(changes)


def versions_now() -> dict[str, str]:
    """Of what rates depend on: hgca, torch (without importing it), a GPU's driver where there is one."""
    from importlib.metadata import version

    found = {"hgca": __version__, "torch": version("torch")}
    if driver := driver_version():
        found["driver"] = driver
    return found


def machine_of(profile: Profile) -> Machine:
    """The machine a profile is of, as it was when it was measured: to plan for one that is elsewhere."""
    gpus = tuple(Gpu(one.index, one.name, one.memory_total, one.memory_free) for one in profile.gpus)
    return Machine(profile.host.usable, profile.host.memory_total, profile.host.memory_free, gpus)
