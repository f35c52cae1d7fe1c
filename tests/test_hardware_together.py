"""Sequences at once: never more bytes than the plan has, no more than pay, and longer jobs take longer."""

from __future__ import annotations

import itertools
from typing import Any

import psutil
import pytest

from hgca_cli.hardware.disk import Disk
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.memory import Model
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.hardware.together import MOST, Together, together
from hgca_cli.kv import layout
from tests.test_hardware_plan import BIG, HOST, SMALL, WITH_GPU, plan


def of(model: Model, machine: Machine = HOST, **wanted: Any) -> Together:
    return together(model, machine, PlanRequest(**wanted), None, plan(model, machine, **wanted))


@pytest.mark.parametrize(("model", "machine"), [(SMALL, HOST), (BIG, HOST), (SMALL, WITH_GPU), (BIG, WITH_GPU)])
def test_a_full_context_fits_and_as_many_as_pay_do(model: Model, machine: Machine) -> None:
    sizes = of(model, machine)
    for tokens in (50, 1000, sizes.plan.context):
        taken, count = sizes.takes(tokens), sizes.sequences(tokens)
        assert len(taken) == len(sizes.limits) == (1 if machine is HOST else 2)
        assert 1 <= count <= MOST
        assert count == 1 or all(count * one <= limit for one, limit in zip(taken, sizes.limits, strict=True))
    shorter, longer = sizes.takes(50), sizes.takes(5000)
    assert all(one <= other for one, other in zip(shorter, longer, strict=True)) and shorter != longer


def test_short_rows_run_together_and_little_memory_lets_fewer() -> None:
    assert of(SMALL).sequences(300) > 4
    tight = of(BIG, select="exact", dtype="bf16", context=32_768, ram_limit=(17 << 30) + (6 << 30))
    assert tight.sequences(32_768) == 1 <= tight.sequences(2000)


def test_a_job_takes_longer_the_more_it_reads_and_writes() -> None:
    sizes = of(SMALL)
    assert sizes.seconds([], 10, 4) == 0.0
    one, more, longer = (sizes.seconds(*asked, 8) for asked in (([100] * 8, 20), ([100] * 16, 20), ([100] * 8, 200)))
    assert 0 < one < more and one < longer
    assert sizes.seconds([100] * 16, 200, 16) < sizes.seconds([100] * 16, 200, 1)


@pytest.mark.parametrize("machine", [HOST, WITH_GPU])
def test_what_is_held_is_what_is_there_and_at_most_all(machine: Machine) -> None:
    sizes = of(BIG, machine)
    for most in (300, 5000, sizes.plan.context):
        held = [sizes.holds(tokens, most) for tokens in (1, most // 3, most // 2, most)]
        assert held[-1] == sizes.takes(most)
        assert all(
            one <= other for before, after in itertools.pairwise(held) for one, other in zip(before, after, strict=True)
        )
        assert held[0][0] == held[-1][0] if machine is WITH_GPU else held[0][0] < held[-1][0]
    assert of(SMALL).sequences(4000, 10) >= of(SMALL).sequences(4000)


@pytest.mark.parametrize("machine", [HOST, WITH_GPU])
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_shared_is_part_of_what_is_taken_and_more_rows_fit(
    machine: Machine, on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "IN_MEMORY", True)
    disk = Disk("/stores", "ext4", 4 << 40) if on_disk else None
    sizes = of(BIG, machine, disk=disk, select="two-level", kv_dtype="bf16", context=65_536)
    taken, shares = sizes.takes(50_000), sizes.shares(50_000)
    assert len(taken) == len(shares) and all(0 <= one <= whole for one, whole in zip(shares, taken, strict=True))
    assert 0.8 * sum(taken[1 if machine is WITH_GPU else 0 :]) < sum(
        shares
    )  # all but windows and what is still to be clustered
    assert (shares[0] == 0) == (machine is WITH_GPU) and sum(sizes.shares(100)) == 0
    monkeypatch.setattr(layout, "IN_MEMORY", False)
    assert sum(sizes.shares(50_000)) == 0


def test_more_run_at_once_where_they_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "IN_MEMORY", True)
    sizes = of(
        BIG, select="two-level", kv_dtype="bf16", dtype="bf16", context=65_536, ram_limit=(17 << 30) + (24 << 30)
    )
    apart, alike = sizes.sequences(40_000), sizes.sequences(40_000, shared=38_000)
    assert 1 <= apart < alike
    kept, each, saved = sizes.takes(38_000), sizes.takes(40_000), sizes.shares(38_000)
    for limit, one, whole, less in zip(sizes.limits, kept, each, saved, strict=True):
        assert one + alike * (whole - less) <= limit
    assert sizes.sequences(40_000, shared=0) == apart


def test_what_is_free_leaves_others_some() -> None:
    for machine in (HOST, WITH_GPU):
        *others, free = of(SMALL, machine).free()
        assert free is not None and 0 <= free < psutil.virtual_memory().total and others == [None] * len(others)
