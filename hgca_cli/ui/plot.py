"""Curves as a picture. Needs matplotlib, which only the extra `plot` installs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hgca_cli.errors import HgcaError, ModelError, UsageError

SUFFIXES = (".svg", ".png")


def check_plot(path: Path) -> None:
    """What can be refused before anything is measured.

    Raises UsageError for another suffix and for a place nothing can be written to, ModelError if matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot: {path.name} is neither .svg nor .png.", "Name the file like rates.svg.")
    if not path.parent.is_dir():
        raise UsageError(f"--plot: there is no folder {path.parent}.", "Create it first.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--plot: cannot write {path}.", "Choose another file.")
    if find_spec("matplotlib") is None:
        raise ModelError("--plot needs matplotlib, which is not installed.", "Install it: pip install 'hgca[plot]'")


def plot_rates(
    path: Path, title: str, curves: Mapping[str, Sequence[tuple[int, float]]], ceilings: Mapping[str, float]
) -> None:
    """Rates over rows, with ceilings as lines.

    curves    label -> points (rows, GB/s); ceilings: label -> GB/s

    Raises HgcaError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in curves.items():
        rows, rates = zip(*sorted(points), strict=True)
        axes.plot(rows, rates, marker="o", label=label)
    for number, (label, rate) in enumerate(ceilings.items()):
        axes.axhline(rate, color="black", linestyle=("--", ":")[number % 2], linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    counts = sorted({rows for points in curves.values() for rows, _ in points})
    axes.set_xticks(counts, [f"{rows >> 10}k" if rows % 1024 == 0 else str(rows) for rows in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows")
    axes.set_ylabel("GB/s of unique keys and values")
    axes.set_title(title, fontsize="medium")
    _save(figure, path)


def plot_divergence(path: Path, title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """KL over the share of the store's bytes that is read, one curve per policy.

    curves  label -> points (share of bytes, KL in nats); a divergence of 0 is drawn at the lower edge

    Raises HgcaError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    above = [kl for points in curves.values() for _, kl in points if kl > 0]
    least = min(above, default=1e-3) / 3
    for label, points in curves.items():
        shares, divergences = zip(*sorted(points), strict=True)
        axes.plot([100 * one for one in shares], [max(one, least) for one in divergences], marker="o", label=label)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the store's bytes read per token, indexes included")
    axes.set_ylabel("mean KL(exact || policy), nats")
    axes.set_title(title, fontsize="medium")
    _save(figure, path)


def plot_steps(path: Path, title: str, steps: Mapping[int, Mapping[str, float]]) -> None:
    """A token's time at several lengths of context, as bars made of its parts.

    steps  tokens of context -> part -> seconds

    Raises HgcaError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{length >> 10}k" for length in steps]
    left = [0.0] * len(steps)
    for part in next(iter(steps.values())):
        widths = [1e3 * one[part] for one in steps.values()]
        if any(widths):
            axes.barh(names, widths, left=left, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("predicted ms a token")
    axes.set_ylabel("context")
    axes.set_title(title, fontsize="medium")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise HgcaError(f"--plot: cannot write {path}: {error.strerror}.", "Choose another file.") from error
