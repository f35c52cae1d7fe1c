"""The profile a run plans with: the one asked for, this machine's, or one measured now and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hgca_cli.errors import HgcaError
from hgca_cli.events import Event, Notice

if TYPE_CHECKING:
    from hgca_cli.hardware.machine import Machine
    from hgca_cli.hardware.rates import Profile

NONE = "none"  # nothing is measured, rates are assumed


def profile_for(
    name: str, machine: Machine, notify: Callable[[Event], None], *, measure: bool = True
) -> Profile | None:
    """What `--profile` names; of "auto" this machine's, measured quickly and kept if there is none or it is out of date (and
    `measure`).

    None if rates are to be assumed. Raises UsageError for a name there is no profile of, or a damaged one.
    """
    from hgca_cli import native
    from hgca_cli.hardware import profile as files
    from hgca_cli.hardware.profiles import find, this_machine
    from hgca_cli.hardware.rates import BUSY

    if name == NONE:
        return None
    if name != "auto":
        return find(name)
    found = this_machine(machine, native.isa())
    if found.state == "good":
        return found.profile
    why = {
        "missing": found.why,
        "stale": f"this machine's profile is out of date ({found.why})",
        "damaged": found.why.rstrip("."),
    }[found.state]
    if not measure:
        return None
    notify(Notice(f"{why}: measuring for about ten seconds, once (hgca profile measures longer)"))
    from hgca_cli.hardware.probes.run import measure_profile

    try:
        measured = measure_profile(quick=True)
    except HgcaError as error:  # no memory for it
        notify(Notice(f"measuring failed ({error.message.rstrip('.')}): planning with assumed rates"))
        return None
    try:
        files.write(measured, found.path)
    except HgcaError as error:
        notify(Notice(f"{error} The profile is not kept."))
    if measured.host.load > BUSY:
        notify(Notice("others use this machine: it will be measured again once they do not"))
    return measured
