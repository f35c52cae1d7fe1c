"""Threads and memory of the C library: several callers, forks, exits, rows beyond 4 GiB."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import UsageError
from tests import reference


def job(rng: torch.Generator, rows: int = 3000) -> native.Attention:
    return native.Attention(
        torch.randn(9, 64, generator=rng),
        torch.randn(3, rows, 64, generator=rng),
        torch.randn(3, rows, 64, generator=rng),
        0.125,
    )


def right(one: native.Attention, got: native.Partial) -> bool:
    out, _ = reference.attend(one.query, one.key, one.value, one.scale)
    return float((got.out - out).abs().max()) <= 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_thread_counts_agree_and_repeat(threads: int, rng: torch.Generator) -> None:
    before = native.threads()
    one = job(rng)
    try:
        native.set_threads(threads)
        assert native.threads() == threads
        first = native.attend(one)
        assert right(one, first)
        assert all(torch.equal(native.attend(one).out, first.out) for _ in range(10))
    finally:
        native.set_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torchs_own_threads_give_the_same(threads: int, rng: torch.Generator) -> None:
    before, one = native.threads(), job(rng)
    try:
        native.set_threads(threads)
        want = native.attend(one)
        if not native.share_openmp(True):
            pytest.skip("this torch has no GNU OpenMP")
        pending = native.start([one, job(rng, 1), job(rng, 0)])
        assert torch.equal(pending.wait()[0].out, want.out)
        native.start([one])  # dropped
        assert all(torch.equal(native.attend(one).out, want.out) for _ in range(20))
    finally:
        native.share_openmp(False)
        native.set_threads(before)
    assert torch.equal(native.attend(one).lse, want.lse) or threads != before


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_thread_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="--threads"):
        native.set_threads(count)


def test_several_jobs_and_several_tickets(rng: torch.Generator) -> None:
    jobs = [job(rng, rows) for rows in (1, 0, 500, 3000)]
    first, second = native.start(jobs[:2]), native.start(jobs[2:])
    for one, got in zip(jobs, [*first.wait(), *second.wait()], strict=True):
        assert right(one, got)
    assert first.wait()[0].out is first.wait()[0].out  # waiting again gives the same


def test_callers_in_several_python_threads(rng: torch.Generator) -> None:
    jobs = [job(rng) for _ in range(4)]
    wrong: list[int] = []

    def call(index: int) -> None:
        wrong.extend(index for _ in range(20) if not right(jobs[index], native.attend(jobs[index])))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pending_result_that_nobody_waits_for(rng: torch.Generator) -> None:
    for _ in range(20):
        native.start([job(rng)])  # dropped at once: its buffers must outlive the threads' work
    one = job(rng)
    assert right(one, native.attend(one))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own(rng: torch.Generator) -> None:
    one = job(rng)
    want = native.attend(one).out.numpy().tobytes()
    assert right(one, native.attend(one))
    pid = os.fork()
    if pid == 0:  # no torch arithmetic here: its own OpenMP threads do not survive a fork
        os._exit(0 if native.attend(one).out.numpy().tobytes() == want else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


def test_the_interpreter_may_exit_while_threads_work() -> None:
    code = (
        "import torch; from hgca_cli import native\n"
        "one = native.Attention(torch.ones(9, 64), torch.ones(3, 40000, 64), torch.ones(3, 40000, 64), .1)\n"
        "kept = [native.start([one]) for _ in range(20)]"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_thread_limit_gives_fewer_threads_not_a_hang() -> None:
    code = (
        "import resource, torch; from hgca_cli import native\n"
        "native.set_threads(64)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        "one = native.Attention(torch.ones(9, 64), torch.ones(3, 40000, 64), torch.ones(3, 40000, 64), .1)\n"
        "assert abs(float(native.attend(one).out.mean()) - 1) < 1e-5"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_an_idle_pool_sleeps(rng: torch.Generator) -> None:
    native.attend(job(rng))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_isa_by_environment() -> None:
    show = "from hgca_cli import native; print(native.isa())"
    env = os.environ | {"HGCA_ISA": "scalar"}
    done = subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "scalar"
    env["HGCA_ISA"] = "sse9"
    done = subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "HGCA_ISA" in done.stderr and "scalar" in done.stderr


def test_rows_beyond_4_gib(rng: torch.Generator) -> None:
    """Offsets are 64-bit: one KV head's rows start 6 GiB after the other's, and only their pages take memory."""
    size, dim, rows = 6 << 30, 64, 70
    memory = native.Reservation(size + (1 << 20))
    whole = memory.tensor(torch.float32, (2, rows, 2 * dim), (size // 4, 2 * dim, 1), 0)
    for start in (0, size):
        memory.commit(start, rows * 2 * dim * 4)
    whole.copy_(torch.randn(2, rows, 2 * dim, generator=rng))
    one = native.Attention(torch.randn(4, dim, generator=rng), whole[..., :dim], whole[..., dim:], 0.125)
    assert right(one, native.attend(one))
    wide = memory.tensor(torch.float32, (1, 2, dim), (0, size // 4, 1), 0)  # rows, not heads, far apart
    one = native.Attention(torch.randn(2, dim, generator=rng), wide, wide, 0.125)
    assert right(one, native.attend(one))


def test_a_view_keeps_the_reservation_alive() -> None:
    memory = native.Reservation(1 << 20)
    memory.commit(0, 4096)
    view = memory.tensor(torch.float32, (10,), (1,), 0)
    del memory
    view += 1
    assert float(view.sum()) == 10.0


def test_reading_stops_at_the_last_row(rng: torch.Generator) -> None:
    """Rows end where committed memory ends: reading one byte further would crash."""
    page = os.sysconf("SC_PAGESIZE")
    for isa in native.isas():
        native.use_isa(isa)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for dim in (1, 7, 40, 63, 64, 65):
                rows = 67
                row = dim * dtype.itemsize
                memory = native.Reservation(16 * page)
                used = -(-rows * row // page) * page
                memory.commit(0, used)
                offset = (used - rows * row) // dtype.itemsize * dtype.itemsize
                key = memory.tensor(dtype, (1, rows, dim), (rows * dim, dim, 1), offset)
                key.copy_(torch.randn(1, rows, dim, generator=rng))
                one = native.Attention(torch.randn(3, dim, generator=rng), key, key, 0.3)
                assert right(one, native.attend(one))
    native.use_isa(native.isas()[0])


def test_memory_that_is_refused_is_an_error_with_nothing_lost() -> None:
    with pytest.raises(native.OutOfMemoryError):
        native.Reservation(1 << 62)
