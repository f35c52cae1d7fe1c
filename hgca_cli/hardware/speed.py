"""What predicted time decides of a plan: threads, window, policy, quality, and how many sequences at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hgca_cli.config import FOLLOWING, QUALITY
from hgca_cli.hardware.cost import captured
from hgca_cli.hardware.memory import Choice, stored_rows
from hgca_cli.hardware.place import Case, Place
from hgca_cli.hardware.row_rates import thread_factor
from hgca_cli.hardware.settings import Prediction
from hgca_cli.units import counted

WINDOWS = (256, 512, 1024, 2048, 4096)  # on the CPU, where the window is no scarce memory
SMALLEST_GPU_WINDOW = 1024  # fewer offloaded rows than this are faster kept on the GPU (HGCA, arXiv:2507.03153)
SAME = 0.02  # predicted times this near are the same: what is exact, or a scan, or keeps more in the window, goes first
HIGHER = (0.99, 0.98)  # qualities that are worth having where reading more costs no time
MOST_SEQUENCES = 256


def choose_threads(case: Case, reasons: dict[str, str], notices: list[str]) -> int:
    """The number of threads our kernels are fastest with; more than may be used are clamped, and that is said."""
    request, host = case.request, case.profile.host
    usable = case.machine.processors
    if request.threads is not None:
        reasons["threads"] = "given"
        if request.threads > usable:
            notices.append(
                f"--threads {request.threads}: this process may use {counted(usable, 'processor')}, so as many threads are used."
            )
        return min(request.threads, usable)
    factors = {count: thread_factor(host, count) for count in {*host.attention_gb_s, usable} if count <= usable}
    best = min(factors.values(), default=1.0)
    count = max((count for count, factor in factors.items() if factor <= best * 1.03), default=usable)
    reasons["threads"] = "processors this process may use" if count == usable else f"{usable} are not faster"
    return count


def choose_rows(place: Place, choice: Choice, threads: int, reasons: dict[str, str]) -> tuple[Choice, float | None]:
    """Window, policy, dtype of the store's rows and quality: what is predicted to take least time, and fits.

    If nothing fits, what needs least memory of it all.
    """
    costs = place.costs(place.request.quality or QUALITY)
    found = list(_candidates(place, choice))
    fitting = [one for one in found if place.fits(one)]
    if place.request.select is None and any(one.device_codes for one in fitting):  # a GPU's own scan goes before groups
        fitting = [one for one in fitting if one.select != "two-level"]
    if not fitting:
        made = min(found, key=lambda one: _bytes(place, one))
        for name in ("window", "select"):
            reasons[name] = "given" if getattr(place.request, name) else "what needs least memory"
        return made, _choose_quality(place, made, threads, reasons)
    seconds = {one: costs.decode(one, threads, batch=place.request.sequences).total for one in fitting}
    best = min(seconds.values())
    same = [one for one, taken in seconds.items() if taken <= best * (1 + SAME)]
    made = max(same, key=lambda one: (one.select == "exact", one.select != "two-level", one.window))
    reasons["window"] = _why_window(place, made, seconds)
    reasons["select"] = _why_select(place, made, seconds)
    return made, _choose_quality(place, made, threads, reasons)


def _choose_quality(place: Place, made: Choice, threads: int, reasons: dict[str, str]) -> float | None:
    """The mass each head keeps, more where reading more is hidden; None where no policy aims at one."""
    request = place.request
    if made.select not in FOLLOWING or request.budget is not None:
        return None
    if request.quality is not None:
        reasons["quality"] = "given"
        return request.quality
    if made.device != "cpu":
        for higher in HIGHER:
            step = place.costs(higher).decode(made, threads, batch=place.request.sequences)
            if not step.waits:
                reasons["quality"] = "reading this much is hidden behind what the GPU does meanwhile"
                return higher
    reasons["quality"] = "the attention mass each head keeps (docs/selection.md)"
    return QUALITY


def predict(place: Place, choice: Choice, quality: float | None, threads: int) -> Prediction:
    """What a plan is expected to take, and the batch beyond which nothing is gained."""
    costs = place.costs(quality)
    most, count = min(MOST_SEQUENCES, max(1, _sequences(place, choice))), place.request.sequences
    return Prediction(
        step=costs.decode(choice, threads, batch=count),
        empty=costs.decode(choice, threads, length=1, batch=count),
        prefill_seconds=costs.prefill(choice, choice.context, threads),
        batch=costs.knee(choice, threads, most),
        profile=place.case.profile.name,
        origin=place.case.profile.origin,
        read_gb_s=place.case.profile.host.best_read_gb_s,
    )


def _candidates(place: Place, choice: Choice) -> Iterator[Choice]:
    """Windows and policies, with a GPU's copy of the codes and without, where a token is a graph."""
    yield from _sized(place, choice)
    if choice.device != "cpu" and captured(place.model, replace(choice, select="scan")):
        coded = _sized(place, replace(choice, device_codes=True))
        yield from (one for one in coded if one.select == "scan" and stored_rows(one))


def _sized(place: Place, choice: Choice) -> Iterator[Choice]:
    request = place.request
    everything = max(1, choice.context - choice.sinks)
    if request.window is not None:
        windows = [request.window]
    elif choice.device == "cpu":
        windows = [one for one in WINDOWS if one < everything] + ([everything] if everything <= WINDOWS[-1] else [])
    elif (most := place.largest_window(choice)) == everything:
        windows = [everything]
    else:
        windows = [1 << k for k in range(SMALLEST_GPU_WINDOW.bit_length() - 1, most.bit_length()) if 1 << k < most]
        windows = [*windows, most or place.default_window(choice)]
    for window in windows:
        sized = replace(choice, window=window)
        if request.select is not None:
            yield replace(sized, select=request.select)
            continue
        asked = request.budget is not None or request.quality is not None
        if stored_rows(sized) == 0 or not asked:
            yield replace(sized, select="exact")
        if stored_rows(sized):
            yield replace(sized, select="scan")
            yield replace(sized, select="two-level")


def _why_window(place: Place, made: Choice, seconds: dict[Choice, float]) -> str:
    if place.request.window is not None:
        return "given"
    if stored_rows(made) == 0:
        return "the whole context" if made.device == "cpu" else "everything fits on the GPU: nothing is offloaded"
    others = sorted({one.window for one in seconds} - {made.window})
    if not others:
        return f"as many rows as fit; {stored_rows(made):,} go to the store"
    told = ", ".join(f"{window:,}: {_least(seconds, window) * 1e3:.1f} ms" for window in others)
    where = "" if made.device == "cpu" else f" of those that fit; {stored_rows(made):,} rows go to the CPU"
    first = round(seconds[made] * 1e3, 1) <= round(min(seconds.values()) * 1e3, 1)  # as far as is told
    rank = (
        "the fastest token of a full context"
        if first
        else f"a token within {SAME:.0%} of the fastest, and most rows in the window"
    )
    return f"{rank}: {seconds[made] * 1e3:.1f} ms predicted ({told}){where}"


def _why_select(place: Place, made: Choice, seconds: dict[Choice, float]) -> str:
    if place.request.select is not None:
        return "given"
    if stored_rows(made) == 0:
        return "the window holds every row"
    if made.select == "exact":
        rival = min((taken for one, taken in seconds.items() if one.select != "exact"), default=None)
        why = "reading every row is no slower here"
        if rival is None:
            return why
        return f"{why}: {seconds[made] * 1e3:.1f} ms a token, choosing rows would take {rival * 1e3:.1f}"
    if made.select == "two-level":
        scanned = min((taken for one, taken in seconds.items() if one.select == "scan"), default=None)
        saved = (
            "" if scanned is None else f" (a scan of all: {scanned * 1e3:.1f} ms a token, {seconds[made] * 1e3:.1f} so)"
        )
        return f"follows the query, and scans the rows of groups that may matter{saved}"
    where = "; the GPU scans its own copy of these, where it can a layer ahead" if made.device_codes else ""
    return f"follows the query, and finds what a scan of 4-bit keys finds{where}"


def _least(seconds: dict[Choice, float], window: int) -> float:
    return min(taken for one, taken in seconds.items() if one.window == window)


def _bytes(place: Place, choice: Choice) -> int:
    return sum(memory.total for memory in place.needs(choice))


def _sequences(place: Place, choice: Choice) -> int:
    """Sequences of a full context that fit at once."""
    most, count = MOST_SEQUENCES, place.request.sequences
    for memory in place.needs(choice):
        one = (memory.window + memory.store) // count
        if one:
            most = min(most, count + max(0, memory.limit - memory.total) // one)
    return most
