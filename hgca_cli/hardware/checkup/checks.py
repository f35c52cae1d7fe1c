"""What looks wrong, and what to do about it: rules over facts, nothing else. A rule is a few lines and a row of its test.

An "error" keeps chat from running and has the exit code chat would end with; a "warning" costs speed, quality or work; a
"note" is worth knowing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from hgca_cli.hardware.checkup.facts import Environment, Facts, Failure, Graphics, Host, Kept, Kernels, Run
from hgca_cli.hf.places import CONVERTED, Place
from hgca_cli.units import format_bytes

LEVELS = ("error", "warning", "note")
CUDA_BUILD = "pip install --force-reinstall torch, without -c constraints.txt; pytorch.org/get-started has the line."
LOW_DISK = 1 << 30  # bytes free where models go
LOW_MEMORY = 1 / 8  # of what this process may hold
SMALL_GROUP = 1 / 2  # of the machine, that a control group leaves
SWAPPED = 256 << 20  # bytes in swap that are nothing
OCCUPIED = 1 / 2  # of a GPU's memory, free
WITH_VECTORS = ("x86_64", "amd64", "aarch64", "arm64")  # processors the library has more than scalar code for


@dataclass(frozen=True)
class Finding:
    """One line. level: of LEVELS; exit_code: what chat would end with, 0 unless it is an error."""

    level: str
    text: str
    remedy: str
    exit_code: int = 0


def check(facts: Facts) -> list[Finding]:
    """Everything that looks wrong, the worst first."""
    found = [
        *check_environment(facts.environment, facts.host),
        *check_kernels(facts.kernels),
        *check_host(facts.host),
        *check_graphics(facts.graphics, facts.environment.variables),
        *check_profile(facts.profile),
        *(one for place in facts.places for one in check_place(place, facts.run)),
        *check_run(facts.run),
    ]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def check_environment(environment: Environment, host: Host) -> Iterator[Finding]:
    """Packages out of range, variables that say what nobody hears."""
    for one in environment.packages:
        if not one.found:
            yield Finding("error", f"the package {one.name} is missing.", f"pip install '{one.name}{one.wanted}'", 1)
        elif not one.good:
            yield _warning(
                f"{one.name} {one.found} is not supported (it should be {one.wanted}).",
                f"pip install '{one.name}{one.wanted}'",
            )
    for name, near in environment.unknown.items():
        yield _warning(f"{name} is set, and nothing reads it.", f"Did you mean {near}?" if near else "Unset it.")
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        value = environment.variables.get(name, "").split(",")[0].strip()
        if not value.isdigit():
            continue
        if int(value) > host.usable and name == "OMP_NUM_THREADS":
            yield _warning(
                f"{name}={value}, but this process can keep {host.usable} threads busy: torch's would push each other off.",
                f"Unset it, or set it to {host.usable}.",
            )
        if int(value) < host.usable:
            limits = name == "OMP_THREAD_LIMIT"
            yield Finding(
                "warning" if limits else "note",
                f"{name}={value}, of {host.usable} threads this process can keep busy: "
                + ("torch never uses more." if limits else "chat sets its own number, converting a model does not."),
                "Unset it; -t chooses the threads of a chat.",
            )
    if environment.variables.get("TERM") == "dumb":
        yield _note("TERM=dumb: no colours, no progress bar, no line editor.", "Set TERM to what the terminal is.")


def check_kernels(kernels: Kernels) -> Iterator[Finding]:
    """A library that does not load, or runs slower than it could."""
    if kernels.failure is not None:
        yield _error(kernels.failure)
    elif kernels.wanted and kernels.isa != kernels.isas[0]:
        yield _warning(f"HGCA_ISA={kernels.wanted}, but this machine has {kernels.isas[0]}.", "Unset HGCA_ISA.")
    elif kernels.isa == "scalar" and kernels.machine.lower() in WITH_VECTORS:
        yield _warning(
            "the kernels run without vector instructions: many times slower.",
            "If the processor has AVX2 or NEON, build again: pip install --force-reinstall --no-cache-dir hgca",
        )


def check_host(host: Host) -> Iterator[Finding]:
    """Memory and processors that are short, or kept away."""
    if host.memory_limit < SMALL_GROUP * host.memory_total:
        yield _note(
            f"a control group ({host.limited_by}) leaves {format_bytes(host.memory_limit)} of the machine's "
            f"{format_bytes(host.memory_total)}.",
            "Raise it if that is not meant (docker run --memory, systemd MemoryMax).",
        )
    if host.quota is not None and host.quota < SMALL_GROUP * host.allowed:
        yield _note(
            f"a control group grants {host.quota:.3g} of {host.allowed} processors.",
            "Raise it if that is not meant (docker run --cpus, systemd CPUQuota).",
        )
    if host.memory_free < LOW_MEMORY * host.memory_limit:
        yield _warning(
            f"{format_bytes(host.memory_free)} of {format_bytes(host.memory_limit)} memory are free.",
            "Close other programs.",
        )
    if host.swap_used > max(SWAPPED, host.swap_total // 10):
        yield _warning(
            f"{format_bytes(host.swap_used)} are swapped out: weights or rows that are would cost seconds a token.",
            "Close other programs; swapoff -a && swapon -a brings them back.",
        )
    if host.huge_pages == "never":
        yield _warning(
            "transparent huge pages are off: reading weights and rows is slower.",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


def check_graphics(graphics: Graphics, variables: dict[str, str]) -> Iterator[Finding]:
    """A GPU that is there and not used, or not free."""
    names = ", ".join(graphics.listed) or "an NVIDIA driver"
    hidden = variables.get("CUDA_VISIBLE_DEVICES")
    if graphics.driver and graphics.build == "CPU":
        yield _warning(f"{names} is there, but this torch is built for the CPU.", CUDA_BUILD)
    elif graphics.driver and graphics.build and not graphics.cards:
        if hidden is not None:
            yield _warning(f"CUDA_VISIBLE_DEVICES={hidden!r}: torch sees no GPU ({names}).", "Unset it.")
        elif "too old" in graphics.failure:
            yield _warning(
                f"the NVIDIA driver {graphics.driver} is too old for this torch ({graphics.build}).",
                "Update the driver, or install a torch for an older CUDA: pytorch.org/get-started/previous-versions.",
            )
        else:
            why = f": {graphics.failure.rstrip('.')}" if graphics.failure else ""
            yield _warning(
                f"CUDA does not start{why} ({names}).", "Run nvidia-smi; a restart after an update may help."
            )
    for card in graphics.cards:
        name = f"GPU {card.index} ({card.name})"
        if not card.supported:
            yield _warning(
                f"{name}: this torch ({graphics.build}) has no code for it.", "Install a torch built for it."
            )
        if card.memory_free < OCCUPIED * card.memory_total:
            yield _warning(
                f"{name}: {format_bytes(card.memory_free)} of {format_bytes(card.memory_total)} are free.",
                "nvidia-smi lists who has the rest.",
            )


def check_profile(kept: Kept) -> Iterator[Finding]:
    """A profile that is not there, no longer true, or tells of a machine that is not well."""
    if kept.failure is not None:
        yield _error(kept.failure)
        return
    if kept.asked == "none":
        return
    soon = "Run hgca profile (a minute), or the next chat measures for ten seconds."
    if kept.state == "missing":
        yield _note("this machine was not measured yet.", soon)
    elif kept.state == "stale":
        yield _warning(f"this machine's profile is out of date ({kept.why}).", soon)
    elif kept.state == "damaged":
        yield _warning(f"this machine's profile is damaged: {kept.why}", soon)
    elif kept.profile is not None and kept.profile.quick:
        yield _note("this machine was measured in ten seconds only.", "Run hgca profile, which takes a minute.")
    if kept.refusal:
        yield _warning(
            f"no profile can be kept in {kept.path} ({kept.refusal}): every chat would measure.",
            "Set HGCA_PROFILE_DIR to a directory that can be written.",
        )
    for text in kept.odd:
        yield _warning(text, "When that is mended, measure anew: hgca profile.")


def check_place(place: Place, run: Run) -> Iterator[Finding]:
    """A place where models cannot go, or where something is left."""
    ours = place.kind == CONVERTED
    wanted = run.missing is not None and run.kind == place.kind and not run.offline
    variable = "HGCA_CACHE_DIR" if ours else "HF_HOME"
    if place.refusal and not place.spare:
        text = f"{place.chosen + ': ' if place.chosen else ''}cannot write to {place.path} ({place.refusal})."
        remedy = f"Set {variable} to a directory that can be written."
        stops = wanted and not (ours and not place.chosen)  # without a choice, ours go to the temporary directory
        yield Finding("error", text, remedy, 5) if stops else _warning(text, remedy)
    elif place.free is not None and wanted and place.free < run.needs:
        yield Finding(
            "error",
            f"{run.model} takes {format_bytes(run.needs)} in {place.path}, and {format_bytes(place.free)} are free.",
            f"Make room, or set {variable} to another disk.",
            4,
        )
    elif place.free is not None and place.free < LOW_DISK:
        yield _warning(
            f"{format_bytes(place.free)} are free in {place.path}, where models go.",
            f"Make room, or set {variable} to another disk.",
        )
    if place.leftovers:
        size = format_bytes(sum(one.bytes for one in place.leftovers))
        paths = " ".join(shlex.quote(one.path) for one in place.leftovers)
        again = "" if ours else "hgca pull goes on with it; "
        yield _note(
            f"{size} in {place.path} are of models that were never finished.",
            f"{again}if nothing is at work on them: rm -r {paths}",
        )
    for text in place.odd:
        yield _warning(f"{place.path}: {text}.", "hf cache verify tells more; fetch the model again.")


def check_run(run: Run) -> Iterator[Finding]:
    """What chat would say or end with."""
    for failure in run.failures:
        yield _error(failure)
    if run.missing is not None:
        if run.offline:
            by = "" if run.offline.startswith("--") else f" {run.offline} is set."
            yield Finding("error", f"{run.missing.text}{by}", run.missing.remedy, run.missing.exit_code)
        else:
            yield _note(f"{run.model} is not ready yet: chat {run.step} it first.", f"Or run: hgca pull {run.model}")
    for notice in run.notices:
        yield _warning(notice, "If that is not meant, change the setting.")


def _error(failure: Failure) -> Finding:
    return Finding("error", failure.text, failure.remedy, failure.exit_code)


def _warning(text: str, remedy: str) -> Finding:
    return Finding("warning", text, remedy)


def _note(text: str, remedy: str) -> Finding:
    return Finding("note", text, remedy)
