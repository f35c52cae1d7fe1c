"""Threads: the same answer with any number, several callers at once, fork, exit, refusal of threads, and idleness."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgca_cli import native
from tests import reference


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = native.threads()
    yield
    native.set_threads(before)


def job_of(seed: int, rows: int = 3000, width: int = 32, heads: int = 6) -> native.Attention:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, 2, rows, width, generator=generator).unbind()
    return native.Attention(torch.randn(heads, width, generator=generator), key, value, 0.2)


def is_right(job: native.Attention, got: native.Partial) -> bool:
    out, lse = reference.attend(job.query, job.key, job.value, job.scale)
    return bool((got.out - out).abs().max() < 1e-5) and bool((got.lse - lse).abs().max() < 1e-5)


def done_by_workers(jobs: list[native.Attention], pending: list[native.Pending]) -> bool:
    """Whether the workers finish all without the caller's help. Without wait, that only shows in the results."""
    until = time.monotonic() + 60
    for job, each in zip(jobs, pending, strict=True):
        while not is_right(job, each._results[0]):
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
    return True


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


SETUP = """
import os, sys, torch
from hgca_cli import native
key, value = torch.randn(2, 2, 20_000, 64).unbind()
job = native.Attention(torch.randn(8, 64), key, value, 0.1)
native.set_threads(4)
"""


def test_any_number_of_threads_gives_the_same_and_each_the_same_bytes() -> None:
    job = job_of(1, rows=9000)
    for threads in (1, 2, 3, 4):
        native.set_threads(threads)
        assert native.threads() == threads
        first = native.attend(job)
        assert is_right(job, first)
        for _ in range(10):
            again = native.attend(job)
            assert torch.equal(again.out, first.out) and torch.equal(again.lse, first.lse)


def test_more_threads_than_processors_than_pieces() -> None:
    native.set_threads(64)
    for rows in (1, 300, 5000):
        job = job_of(2, rows=rows)
        assert is_right(job, native.attend(job))


def test_several_jobs_outstanding_waited_for_in_any_order() -> None:
    native.set_threads(3)
    jobs = [job_of(seed) for seed in range(6)]
    pending = [native.start([job, job]) for job in jobs]
    for index in (3, 0, 5, 1, 4, 2):
        assert all(is_right(jobs[index], got) for got in pending[index].wait())


def test_waiting_twice_gives_the_same_results() -> None:
    pending = native.start([job_of(1)])
    assert pending.wait()[0].out is pending.wait()[0].out


def test_two_python_threads_at_once() -> None:
    native.set_threads(2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        job = job_of(seed)
        wrong.extend(seed for _ in range(30) if not is_right(job, native.attend(job)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_python_runs_while_c_works() -> None:
    """The GIL is free inside wait: another thread counts meanwhile."""
    native.set_threads(1)
    job = job_of(1, rows=400_000, width=64)
    counts = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1

    counter = threading.Thread(target=count)
    pending = native.start([job] * 4)
    counter.start()
    before = counts[0]
    pending.wait()
    during = counts[0] - before
    stop.set()
    counter.join()
    assert during > 1000


def test_tensors_live_until_waited_for() -> None:
    job = job_of(1)
    key = weakref.ref(job.key)
    pending = native.start([job])
    del job
    gc.collect()
    assert key() is not None
    pending.wait()
    gc.collect()
    assert key() is None


def test_dropped_without_wait() -> None:
    """Dropping waits: the memory is not given back under the threads that read it."""
    native.set_threads(3)
    for seed in range(20):
        native.start([job_of(seed, rows=6000)])
    job = job_of(1)
    assert is_right(job, native.attend(job))


def test_start_returns_before_the_work_is_done() -> None:
    job = job_of(1, rows=400_000, width=64)
    native.set_threads(1)
    native.attend(job)  # the memory is warm
    began = time.perf_counter()
    pending = native.start([job])
    started = time.perf_counter() - began
    pending.wait()
    whole = time.perf_counter() - began
    assert started < whole / 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_after_use() -> None:
    """A child has threads of its own; what the parent started stays the parent's."""
    code = (
        SETUP
        + """
expected = native.attend(job)
pending = native.start([job])
child = os.fork()
if child == 0:
    import signal
    signal.alarm(60)
    try:
        pending.wait()
        os._exit(2)
    except native.NativeError as error:
        if "fork" not in str(error):
            os._exit(3)
    got = native.attend(job)
    if not torch.equal(got.out, expected.out):
        os._exit(4)
    if os.path.isdir("/proc/self/task") and len(os.listdir("/proc/self/task")) < 4:
        os._exit(5)  # the parent's workers did not come along: it must have started its own
    sys.exit(0)  # with all that runs at a normal exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(pending.wait()[0].out, expected.out)
"""
    )
    done = run_python(code)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "del key, value, job", "raise KeyboardInterrupt"])
def test_exit_with_a_job_running(ending: str) -> None:
    done = run_python(SETUP + "pending = native.start([job] * 20)\nprint('started', flush=True)\n" + ending)
    assert done.stdout == "started\n"
    assert done.returncode == (-2 if "Interrupt" in ending else 0), done.stderr
    assert "Fatal" not in done.stderr and ("Interrupt" in ending) == bool(done.stderr)


def test_threads_the_system_refuses_are_done_without() -> None:
    code = (
        SETUP
        + """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)  # room for a dozen stacks
native.set_threads(1000)
before = len(os.listdir("/proc/self/task"))
got = native.attend(job)
started = len(os.listdir("/proc/self/task")) - before
print(bool(got.lse.isfinite().all()), 0 < started < 900)
"""
    )
    if not os.path.exists("/proc/self/statm"):  # noqa: PTH110
        pytest.skip("no /proc")
    done = run_python(code)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_workers_go_on_to_the_next_batch() -> None:
    """Tickets of several layers are outstanding; nobody waits, so what is done the workers did by themselves."""
    for threads in (2, 3, 8):  # 8: more than there are processors here, perhaps, so that none stays awake
        native.set_threads(threads)
        jobs = [job_of(100 * threads + seed) for seed in range(8)]
        pending = [native.start([job]) for job in jobs]
        assert done_by_workers(jobs, pending)
        for each in pending:
            each.wait()


@pytest.mark.parametrize("threads", [2, 9])
def test_workers_notice_work_in_any_state(threads: int) -> None:
    """Awake, about to sleep, asleep: a job is never left lying. The gaps lie around the 2 ms a worker stays awake."""
    native.set_threads(threads)
    for turn, gap in enumerate((0.0, 0.0001, 0.001, 0.0018, 0.0019, 0.002, 0.0021, 0.0022, 0.003, 0.02) * 5):
        job = job_of(1000 * threads + turn, rows=300)
        time.sleep(gap)
        pending = native.start([job])
        assert done_by_workers([job], [pending])


def test_idle_threads_cost_nothing() -> None:
    for threads in (native.usable_processors(), 4):
        native.set_threads(threads)
        native.attend(job_of(1))
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks")
def test_one_processor() -> None:
    """The default there is one thread; more do the work all the same, and none of them spins."""
    code = (
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        + SETUP.replace("native.set_threads(4)", "print(native.threads())")
        + """
import time
one = native.attend(job)
native.set_threads(3)
print(all(torch.allclose(native.attend(job).out, one.out, atol=1e-5) for _ in range(50)))
before = time.process_time()
time.sleep(1)
print(time.process_time() - before < 0.2)
"""
    )
    done = run_python(code)
    assert done.stdout.split() == ["1", "True", "True"], done.stderr


def test_the_caller_is_left_where_it_was() -> None:
    """Threads it starts later inherit its mask and its policy: both are its own."""
    code = (
        SETUP
        + """
mask, policy = os.sched_getaffinity(0), os.sched_getscheduler(0)
before = set(os.listdir("/proc/self/task"))
native.attend(job)
workers = {int(task) for task in set(os.listdir("/proc/self/task")) - before}
print(os.sched_getaffinity(0) == mask and os.sched_getscheduler(0) == policy)
print(len(workers), all(os.sched_getaffinity(worker) <= mask for worker in workers))
"""
    )
    if not (hasattr(os, "sched_getaffinity") and Path("/proc/self/task").is_dir()):
        pytest.skip("no affinity masks, or no /proc")
    done = run_python(code)
    assert done.stdout.split() == ["True", "3", "True"], done.stderr


def test_fewer_threads_leave() -> None:
    if not os.path.isdir("/proc/self/task"):  # noqa: PTH112
        pytest.skip("no /proc")
    code = (
        SETUP
        + """
import time
base = len(os.listdir("/proc/self/task"))
native.attend(job)
with_workers = len(os.listdir("/proc/self/task"))
native.set_threads(1)
for _ in range(100):
    time.sleep(0.01)
    if len(os.listdir("/proc/self/task")) == base:
        break
print(with_workers - base, len(os.listdir("/proc/self/task")) - base)
"""
    )
    assert run_python(code).stdout.split() == ["3", "0"]
