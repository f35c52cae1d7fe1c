"""The profile a run would plan with, as it is on disk: nothing is measured, whatever is found."""

from __future__ import annotations

from hgca_cli.hardware.checkup.facts import Kept
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.profiles import find, this_machine
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
    found = this_machine(machine, isa)
    odd = _odd(found.profile) if found.profile is not None else ()
    return Kept(asked, str(found.path), found.state, found.why, refusal(found.path.parent), odd, found.profile)


def _odd(profile: Profile) -> tuple[str, ...]:
    return tuple(oddities(profile)) if profile.origin == "measured" else ()
