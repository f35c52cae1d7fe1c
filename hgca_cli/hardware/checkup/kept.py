"""The profile a run would plan with, as it is on disk: nothing is measured, whatever is found."""

from __future__ import annotations

from hgca_cli.errors import HgcaError
from hgca_cli.hardware import profile as files
from hgca_cli.hardware.checkup.facts import Kept
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.profiles import THIS, find, profile_dir, stale, versions_now
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.sheets import oddities
from hgca_cli.hf.places import refusal

AUTO, NONE = "auto", "none"


def look_at_profile(asked: str, machine: Machine, isa: str) -> Kept:
    """Of this machine, or the one `--profile` names. isa: the instruction set in use, "" if the kernels do not load.

    Raises UsageError for a name there is no profile of, and for a file that holds none.
    """
    if asked not in (AUTO, NONE):
        named = find(asked)
        return Kept(asked, "", "good", odd=_odd(named), profile=named)
    folder = profile_dir()
    path, no = folder / f"{THIS}.toml", refusal(folder)
    if not path.is_file():
        return Kept(asked, str(path), "missing", "this machine was not measured yet", no)
    try:
        found = files.read(path)
    except HgcaError as error:
        return Kept(asked, str(path), "damaged", error.message, no)
    changed = stale(found, machine, isa, versions_now()) if isa else ""
    return Kept(asked, str(path), "stale" if changed else "good", changed, no, _odd(found), found)


def _odd(profile: Profile) -> tuple[str, ...]:
    return tuple(oddities(profile)) if profile.origin == "measured" else ()
