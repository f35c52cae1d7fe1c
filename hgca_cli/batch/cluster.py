"""A job on a Ray cluster (pip install 'hgca[ray]'): an engine on every GPU, or on every node that has none.

Whoever writes the output stays here: engines are given rows as they finish others, so a slow one gets few; and once none is left
those that run are given to idle engines, too, and the first answer counts. An engine that dies costs what it ran: its rows are given
to others, and another one is started in its place.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hgca_cli.batch.check import Entry
from hgca_cli.batch.hand import Finished, Given, Hand, Ready, Start, Told
from hgca_cli.errors import HgcaError, ModelError, UsageError
from hgca_cli.metrics import Metrics, Slot

REMEDY = "pip install 'hgca[ray]'"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TQDM_PATCH_PRINT": "0"}
SPARE = 2  # rows an engine has beside those that run
WAIT_SECONDS = 0.5
CONNECT_SECONDS = 10.0
MOST_DEATHS = 3  # of engines that ran a row; then it fails
MOST_IDLE_DEATHS = 5  # of engines, without a row that was finished between


def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("ray") is not None


@dataclass
class Worker:
    """An engine somewhere. rows: it was given, by id, and has not finished; running: as it told last."""

    place: Place
    actor: Any
    asked: Any  # what it was asked last, on its way
    ready: Ready | None = None
    rows: dict[str, Given] = field(default_factory=dict)
    running: tuple[Slot, ...] = ()
    peak: int = 0
    set_aside: int = 0
    metrics: Metrics | None = None


@dataclass(frozen=True)
class Place:
    """Where an engine belongs. gpu: it has one of its own; beside: engines on that node."""

    node: str
    gpu: bool
    cpus: float
    beside: int


@dataclass(frozen=True)
class Calls:
    """What a cluster asks, and tells, of whoever has input and output.

    make      a row of the input, to be sent; None: it cannot run any more
    finish    a row is; once for each; lose: engines that ran it went, again and again
    ready, progress  of engines
    """

    make: Callable[[Entry], Given | None]
    finish: Callable[[Finished], None]
    lose: Callable[[Entry], None]
    ready: Callable[[Ready], None]
    progress: Callable[[Told], None]


class Cluster:
    """Engines on a cluster, until `close`. tell: notices for a person."""

    def __init__(self, address: str | None, start: Start, fingerprint: str, tell: Callable[[str], None]) -> None:
        """Raises UsageError without the package, ModelError for a cluster that is not there or has no room."""
        if not is_there():
            raise UsageError("--engine ray needs the package ray.", f"{REMEDY}, here and on every node.")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray, self._start, self._fingerprint, self._tell = ray, start, fingerprint, tell
        self._workers: list[Worker] = []
        self._said: set[str] = set()
        self._deaths: Counter[str] = Counter()  # by row
        self._idle_deaths = 0
        _check_address(address)
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=None if address else False,
                logging_level="ERROR",
            )
        except Exception as error:
            raise ModelError(
                f"no Ray cluster{f' at {address}' if address else ''}: {' '.join(str(error).split())[:200]}.",
                "Start one with `ray start --head`, or leave --address out.",
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends the process at once
        places = self._places()
        if not places:
            self.close()
            raise ModelError("the Ray cluster has no node that is alive.", "Look at `ray status`.")
        nodes = len({place.node for place in places})
        tell(f"Ray: {_counted(len(places), 'engine')} on {_counted(nodes, 'node')}")
        self._workers = [self._begin(place) for place in places]

    @property
    def slots(self) -> tuple[tuple[int, Slot], ...]:
        """Of the latest that each engine told: its number, and who runs."""
        return tuple((at, slot) for at, worker in enumerate(self._workers) for slot in worker.running)

    @property
    def peak(self) -> int:
        """Most rows that ran at once, on each of the engines there are."""
        return sum(worker.peak for worker in self._workers)

    @property
    def set_aside(self) -> int:
        """How often a row waited for memory, on the engines there are."""
        return sum(worker.set_aside for worker in self._workers)

    @property
    def metrics(self) -> tuple[Metrics, ...]:
        """The latest reading of each engine that has rows."""
        return tuple(worker.metrics for worker in self._workers if worker.metrics is not None)

    def run(
        self,
        entries: Sequence[Entry],
        calls: Calls,
        stop: threading.Event,
    ) -> None:
        """Answer these rows; ends early once `stop` is set. Raises HgcaError if no engine can be started, and what calls raise."""
        waiting, left = deque(entries), {entry.id for entry in entries}
        while left and not stop.is_set():
            for worker in self._workers:
                self._feed(worker, waiting, left, calls)
            done, _ = self._ray.wait([one.asked for one in self._workers], num_returns=1, timeout=WAIT_SECONDS)
            for worker in [one for one in self._workers if one.asked in done]:
                try:
                    told = self._ray.get(worker.asked)
                except Exception as error:
                    self._replace(worker, error, waiting, left, calls)
                    continue
                if isinstance(told, Ready):
                    self._check(worker, told)
                    calls.ready(told)
                else:
                    self._take(worker, told, left, calls)
                    calls.progress(told)
                worker.asked = worker.actor.tell.remote(WAIT_SECONDS)

    def close(self) -> None:
        """Let the engines go."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers = []
        self._ray.shutdown()

    def _places(self) -> list[Place]:
        """An engine for each GPU; nodes without any have one, on all their processors."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
        places = []
        for node in nodes:
            count = int(node["Resources"].get("GPU", 0))
            cpus = float(node["Resources"].get("CPU", 0.0))
            if count:
                places += [Place(node["NodeID"], True, 0.0, count)] * count
            elif not gpus and cpus:
                places.append(Place(node["NodeID"], False, cpus, 1))
        return places

    def _begin(self, place: Place) -> Worker:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        near = NodeAffinitySchedulingStrategy(place.node, soft=True)
        actor_of = self._ray.remote(Hand).options(
            num_gpus=1 if place.gpu else 0, num_cpus=place.cpus, max_concurrency=4, scheduling_strategy=near
        )
        actor = actor_of.remote(self._start, place.beside)
        return Worker(place, actor, actor.ready.remote())

    def _check(self, worker: Worker, ready: Ready) -> None:
        if ready.error is not None:
            message, hint, code = ready.error
            error = HgcaError(f"an engine on the cluster: {message}", hint)
            error.exit_code = code
            raise error
        if ready.fingerprint != self._fingerprint:
            raise ModelError("a node of the cluster has another model of this name.", "Give all nodes the same files.")
        worker.ready = ready
        self._tell(f"an engine is ready: {ready.plan.device}, up to {ready.rows} rows at once")

    def _feed(self, worker: Worker, waiting: deque[Entry], left: set[str], calls: Calls) -> None:
        """As many rows as it can run, and some more; of those that others run where none is left."""
        if worker.ready is None:
            return
        room = worker.ready.rows + SPARE - len(worker.rows)
        fresh: list[Given] = []
        while waiting and len(fresh) < room:
            entry = waiting.popleft()
            if entry.id not in left:
                continue
            if (row := calls.make(entry)) is not None:
                fresh.append(row)
            else:
                left.discard(entry.id)
        if not fresh and not worker.rows:
            fresh = self._stolen(worker)
        if fresh:
            worker.rows |= {row.entry.id: row for row in fresh}
            worker.actor.give.remote(fresh)

    def _stolen(self, thief: Worker) -> list[Given]:
        """Rows another engine was given last, which nobody else has: they are furthest from their end."""
        assert thief.ready is not None
        held = Counter(name for worker in self._workers for name in worker.rows)
        alone = [
            [row for name, row in one.rows.items() if held[name] == 1] for one in self._workers if one is not thief
        ]
        most = max(alone, key=len, default=[])
        return most[-min(thief.ready.rows, (len(most) + 1) // 2) :] if most else []

    def _take(self, worker: Worker, told: Told, left: set[str], calls: Calls) -> None:
        worker.running, worker.peak = told.slots, max(worker.peak, told.peak)
        worker.set_aside = told.set_aside
        worker.metrics = (told.metrics or worker.metrics) if told.slots else None
        for text in told.notices:
            if text not in self._said:  # every engine says what is true of all
                self._said.add(text)
                self._tell(text)
        for one in told.finished:
            self._idle_deaths = 0
            for other in self._workers:
                other.rows.pop(one.name, None)
            if one.name in left:
                left.discard(one.name)
                calls.finish(one)

    def _replace(self, worker: Worker, error: Exception, waiting: deque[Entry], left: set[str], calls: Calls) -> None:
        """It is gone: what it ran is to be run again, but for rows that were with too many that went."""
        self._idle_deaths += 1
        why = " ".join(str(error).split())[:160]
        if self._idle_deaths > MOST_IDLE_DEATHS:
            raise ModelError(f"engines on the cluster end one after the other: {why}.", "Look at `ray logs`.")
        self._tell(f"an engine is gone ({type(error).__name__}); {len(worker.rows)} rows are given to others")
        self._ray.kill(worker.actor)
        for name, row in worker.rows.items():
            self._deaths[name] += 1
            if name not in left or any(name in other.rows for other in self._workers if other is not worker):
                continue
            if self._deaths[name] < MOST_DEATHS:
                waiting.appendleft(row.entry)
            else:
                left.discard(name)
                calls.lose(row.entry)
        self._workers[self._workers.index(worker)] = self._begin(worker.place)


def _check_address(address: str | None) -> None:
    """Ray itself tries for a minute and a half, and says so in many lines. Raises ModelError."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return  # another of the ways Ray knows to name one
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ModelError(
            f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}.",
            "Start one with `ray start --head`, or leave --address out.",
        ) from error


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
