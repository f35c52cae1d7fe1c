"""A diagnosis for people: sections of lines, then what looks wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hgca_cli.ui.inert import inert
from hgca_cli.ui.profile_table import profile_lines
from hgca_cli.units import counted, format_bytes

COLORS = {"error": "\x1b[31m", "warning": "\x1b[33m", "note": "\x1b[2m"}
NAMES = 18  # characters of the first column


def doctor_lines(facts: Any, settings: Sequence[Any], *, verbose: bool) -> list[str]:
    """Everything but the findings. verbose: with the profile's figures."""
    measured = facts.profile.profile if verbose else None
    sections = {
        "environment": _aligned(_environment(facts.environment, facts.graphics)),
        "kernels": _aligned(_kernels(facts.kernels)),
        "devices": _aligned([*_host(facts.host), *_graphics(facts.graphics)]),
        "profile": [*_aligned(_profile(facts.profile)), *(profile_lines(measured) if measured else ())],
        "models": _aligned(pair for place in facts.places for pair in _place(place)),
        f"settings of hgca chat -m {facts.run.model}": _settings(settings),
    }
    return [inert(line) for title, lines in sections.items() for line in (title, *(f"  {one}" for one in lines), "")]


def finding_lines(findings: Sequence[Any], *, color: bool) -> list[str]:
    """A line each, the worst first."""
    if not findings:
        return ["findings", "  nothing looks wrong"]
    lines = ["findings"]
    for one in findings:
        level = f"{COLORS[one.level]}{one.level:<9}\x1b[0m" if color else f"{one.level:<9}"
        lines.append(f"  {level}{inert(f'{one.text} {one.remedy}'.rstrip())}")
    return lines


def _environment(environment: Any, graphics: Any) -> Iterator[tuple[str, str]]:
    yield "hgca", environment.hgca
    yield "Python", f"{environment.python}, {environment.executable}"
    yield "environment", environment.virtual or "none: the system's Python"
    yield "platform", ", ".join(one for one in (environment.platform, environment.libc) if one)
    for one in environment.packages:
        build = f", built for {graphics.build}" if one.name == "torch" and graphics.build else ""
        odd = "" if one.good else f" (supported: {one.wanted})"
        if one.name in ("torch", "transformers") or odd:
            yield one.name, f"{one.found or 'missing'}{build}{odd}"
    for one in environment.extras:
        yield one.name, f"{one.found or f'not installed: {one.install}'} (for {one.adds})"
    for name, value in environment.variables.items():
        yield "variable", f"{name}={value}" + (" (unknown)" if name in environment.unknown else "")


def _kernels(kernels: Any) -> Iterator[tuple[str, str]]:
    if kernels.failure is not None:
        yield "library", "does not load"
        return
    yield "library", "loads"
    chosen = f" (HGCA_ISA={kernels.wanted})" if kernels.wanted else ""
    yield "instructions", f"{kernels.isa}{chosen}, of {', '.join(kernels.isas)}"
    yield "threads", f"{kernels.threads}, unless -t or the plan says otherwise"
    yield (
        "OpenMP",
        "torch's, which the kernels can share" if kernels.openmp else "none to share: the kernels' own threads",
    )


def _host(host: Any) -> Iterator[tuple[str, str]]:
    quota = "" if host.quota is None else f", a quota of {host.quota:.3g}"
    yield "processor", host.processor
    yield (
        "cores",
        (
            f"{host.physical_cores} physical, {host.logical_cores} logical; {host.allowed} allowed{quota}, "
            f"{counted(host.usable, 'thread')} can be kept busy; {counted(host.numa_nodes, 'NUMA node')}"
        ),
    )
    by = f", limited to {format_bytes(host.memory_limit)} by {host.limited_by}" if host.limited_by else ""
    yield "memory", f"{format_bytes(host.memory_total)}{by}, {format_bytes(host.memory_free)} free"
    swap = f"{format_bytes(host.swap_total)}, {format_bytes(host.swap_used)} used" if host.swap_total else "none"
    yield "swap", swap
    yield "huge pages", host.huge_pages or "unknown"


def _graphics(graphics: Any) -> Iterator[tuple[str, str]]:
    for card in graphics.cards:
        odd = "" if card.supported else ", not supported by this torch"
        yield (
            f"GPU {card.index}",
            (f"{card.name}, {format_bytes(card.memory_total)}, {format_bytes(card.memory_free)} free{odd}"),
        )
    if not graphics.cards:
        none = "none" if graphics.build else "nobody can tell: torch cannot be imported"
        yield "GPU", ", ".join(graphics.listed) + " (not used)" if graphics.listed else none
    if graphics.driver:
        yield "driver", f"NVIDIA {graphics.driver}"


def _profile(kept: Any) -> Iterator[tuple[str, str]]:
    if kept.asked not in ("auto", "none"):
        yield "asked for", kept.asked
    if kept.path:
        yield "file", kept.path
    found = kept.profile
    if found is not None:
        parts = (found.origin, found.date, "in ten seconds" if found.quick else "")
        yield "rates", ", ".join(part for part in parts if part)
    yield "state", kept.state + (f": {kept.why}" if kept.why else "")
    if kept.asked == "none":
        yield "used", "no: --profile none, rates are assumed"


def _place(place: Any) -> Iterator[tuple[str, str]]:
    names = {"converted": "converted", "hub": "from a hub"}
    chosen = f" ({place.chosen})" if place.chosen else " (the spare place)" if place.spare else ""
    room = f", {format_bytes(place.free)} free" if place.free is not None else ""
    if place.refusal:
        room = f", cannot be written: {place.refusal}"
    yield names[place.kind], f"{place.path}{chosen}{room}"
    for one in place.models:
        yield "", f"{format_bytes(one.bytes):>10}  {one.name}{'' if one.whole else '  (not whole, or not for hgca)'}"
        yield "", f"{'':>10}  {one.path}"
    if not place.models:
        yield "", "no model"


def _settings(settings: Sequence[Any]) -> Iterator[str]:
    shown = [(one.name.replace("_", "-"), _value(one.value), _origin(one), one.reason) for one in settings]
    name, value, origin = (max(len(row[at]) for row in shown) for at in range(3))
    for row in shown:
        yield f"{row[0]:<{name}}  {row[1]:<{value}}  {row[2]:<{origin}}  {row[3]}".rstrip()


def _aligned(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"{name:<{NAMES}}{text}" for name, text in pairs)


def _origin(setting: Any) -> str:
    named = {"environment": setting.by, "profile": f"profile {setting.by}"}
    return str(named.get(setting.origin, setting.origin))


def _value(value: Any) -> str:
    if value in (None, (), ""):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(repr(one) for one in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
