"""What `hgca doctor` knows before it judges: plain data, gathered elsewhere (checks.py judges). Memory in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hgca_cli.errors import HgcaError
from hgca_cli.hardware.rates import Profile
from hgca_cli.hf.places import Place


@dataclass(frozen=True)
class Failure:
    """Why something does not work, what to do about it, and the exit code chat would end with."""

    text: str
    remedy: str
    exit_code: int

    @classmethod
    def of(cls, error: HgcaError) -> Failure:
        """What an error says."""
        return cls(error.message, error.hint, error.exit_code)


@dataclass(frozen=True)
class Package:
    """A Python package. wanted: versions that are supported; found: the one here, "" without; good: it is one of them."""

    name: str
    wanted: str
    found: str
    good: bool


@dataclass(frozen=True)
class Extra:
    """A package some commands can use. adds: what for; install: the line that brings it."""

    name: str
    found: str
    adds: str
    install: str


@dataclass(frozen=True)
class Environment:
    """Versions and variables.

    virtual    directory of the virtual environment, "" outside any
    packages   what hgca needs; extras: what it can use
    variables  those that are set and matter, secrets left out
    unknown    variables that begin like ours and that nobody reads, each with one of a like name, or ""
    """

    hgca: str
    python: str
    executable: str
    virtual: str
    platform: str
    libc: str
    packages: tuple[Package, ...] = ()
    extras: tuple[Extra, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernels:
    """The compiled library. openmp: torch has GNU OpenMP threads that our kernels can run on, too."""

    machine: str  # the processor's family, as x86_64
    wanted: str = ""  # HGCA_ISA
    isa: str = ""
    isas: tuple[str, ...] = ()
    threads: int = 0
    openmp: bool = False
    failure: Failure | None = None


@dataclass(frozen=True)
class Host:
    """Processors and memory.

    allowed       logical processors of the affinity mask; quota: processors the control groups grant
    usable        threads this process can keep busy
    memory_total  of the machine; memory_limit: of it, what this process may hold; memory_free: of that, not in use
    limited_by    the control group that sets the limit, "" without one
    huge_pages    "always", "madvise" or "never"; "" where the system does not say
    """

    processor: str
    physical_cores: int
    logical_cores: int
    allowed: int
    usable: int
    numa_nodes: int
    memory_total: int
    memory_limit: int
    memory_free: int
    quota: float | None = None
    limited_by: str = ""
    swap_total: int = 0
    swap_used: int = 0
    huge_pages: str = ""


@dataclass(frozen=True)
class Card:
    """A GPU torch can use. supported: its build of torch has code for it."""

    index: int
    name: str
    memory_total: int
    memory_free: int
    supported: bool = True


@dataclass(frozen=True)
class Graphics:
    """GPUs, as torch sees them and as the driver does.

    build    what torch was built for: "CPU", "CUDA 12.8", "ROCm 6.4"; "" if torch cannot be imported
    driver   version of the NVIDIA driver, "there" if it does not tell; "" without one
    listed   names of the driver's cards, asked for where torch has none
    failure  why CUDA does not start
    """

    build: str
    cards: tuple[Card, ...] = ()
    driver: str = ""
    listed: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Kept:
    """The profile a run plans with.

    asked    `--profile`: "auto" is this machine's, "none" means that rates are assumed
    state    "good", "missing", "stale", "damaged" or "unknown"
    why      of what is not good
    refusal  why a profile of this machine cannot be kept in its folder; "" if it can
    odd      what is far from the data sheets
    """

    asked: str
    path: str
    state: str
    why: str = ""
    refusal: str = ""
    odd: tuple[str, ...] = ()
    profile: Profile | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Run:
    """What `hgca chat` would do with these flags.

    missing   why the model is not here, though it can be brought
    step      what chat does then: "fetches" or "converts"
    kind      of the place it would be brought to; needs: bytes it takes there, 0 if nobody knows
    offline   what forbids to fetch it, "" if nothing does
    failures  why chat would not start
    notices   what chat would say when it does
    """

    model: str
    path: str = ""
    missing: Failure | None = None
    step: str = "fetches"
    kind: str = ""
    needs: int = 0
    offline: str = ""
    failures: tuple[Failure, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that is judged."""

    environment: Environment
    kernels: Kernels
    host: Host
    graphics: Graphics
    profile: Kept
    places: tuple[Place, ...]
    run: Run
