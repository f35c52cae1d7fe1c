"""Versions, packages and variables. Nothing heavy is imported: versions are those of the installed packages."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from hgca_cli import __version__
from hgca_cli.hardware.checkup.facts import Environment, Extra, Package

EXTRAS = (
    ("matplotlib", "--plot", "pip install 'hgca[plot]'"),
    ("lm-eval", "hgca eval harness", "pip install 'hgca[eval]'"),
    ("llama-cpp-python", "llama.cpp in hgca bench", "pip install llama-cpp-python"),
)
OTHERS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TERM",
    "NO_COLOR",
    "FORCE_COLOR",
)  # fmt: skip  (of other programs, read by us or by what we use)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|SYSTEM$")  # and what a person tells a model is nobody's business
LONGEST = 80  # characters of a value that are shown


def look_at_environment(known: Iterable[str], variables: Mapping[str, str] = os.environ) -> Environment:
    """This process's. known: the variables hgca reads."""
    libc = " ".join(platform.libc_ver()).strip()
    return Environment(
        hgca=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        virtual=sys.prefix if sys.prefix != sys.base_prefix else os.environ.get("CONDA_PREFIX", ""),
        platform=platform.platform(),
        libc=libc,
        packages=packages(),
        extras=tuple(Extra(name, _found(name), adds, install) for name, adds, install in EXTRAS),
        variables=shown_variables(variables),
        unknown=unknown_variables(variables, known),
    )


def packages() -> tuple[Package, ...]:
    """What hgca needs, and what of it is here; nothing where hgca runs without having been installed."""
    try:
        lines = requires("hgca") or []
    except PackageNotFoundError:
        return ()
    wanted = [Requirement(line) for line in lines]
    return tuple(judged(one, _found(one.name)) for one in wanted if one.marker is None or one.marker.evaluate())


def judged(wanted: Requirement, found: str) -> Package:
    """A package beside what is supported of it. found: its version, "" without one."""
    good = bool(found) and wanted.specifier.contains(found, prereleases=True)
    return Package(wanted.name, str(wanted.specifier), found, good)


def shown_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that matter, by name. Of a secret only that it is set; no passwords in addresses; nothing long."""
    names = sorted(name for name in variables if name.startswith("HGCA_")) + [one for one in OTHERS if one in variables]
    return {name: _shown(name, variables[name]) for name in names}


def unknown_variables(variables: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Variables that begin like ours and that nobody reads, each with one of a like name, or ""."""
    names = sorted(known)
    strangers = sorted(name for name in variables if name.startswith("HGCA_") and name not in names)
    return {name: next(iter(get_close_matches(name, names, 1)), "") for name in strangers}


def _shown(name: str, value: str) -> str:
    if SECRET.search(name):
        return "set"
    value = re.sub(r"//[^/@]*@", "//", value)
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."


def _found(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
