"""A whole profile of this machine, probe by probe."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hgca_cli.hardware.profiles import versions_now
from hgca_cli.hardware.rates import HostRates, Profile

if TYPE_CHECKING:
    from hgca_cli.hardware.probes.layers import TakenOff

Tell = Callable[[str, int, int], None]  # what is measured, how many probes are done, of how many
PROBES = 8


def measure_profile(*, quick: bool, threads: int | None = None, tell: Tell = lambda *_: None) -> Profile:
    """Measure this machine: about a minute, or ten seconds if quick. Threads of torch and of ours are left at the best.

    threads  at most so many; None: all the process can keep busy

    Raises DoesNotFitError if there is no memory to measure in.
    """
    import torch

    from hgca_cli import native
    from hgca_cli.hardware.probe import cpu_quota, host_memory, probe_gpus
    from hgca_cli.hardware.probes import bandwidth, gpu, layers, products, rows
    from hgca_cli.hardware.topology import cores, load_now, numa_nodes, processor_name

    load = load_now() or 0.0  # before there is ours
    times = 7 if quick else 15
    usable = min(native.usable_processors(), threads or 1 << 30)
    counts = bandwidth.thread_counts(usable)
    counts = counts[-3:] if quick else counts
    native.set_threads(usable)
    torch.set_num_threads(usable)
    done = 0

    def begin(what: str) -> None:
        nonlocal done
        tell(what, done, PROBES)
        done += 1
        gc.collect()

    begin("memory")
    read, noise = bandwidth.read_gb_s(counts, times)
    begin("attention by number of threads")
    by_threads = rows.attention_gb_s(counts, times)
    begin("rows")
    dtypes = ("bf16", "fp32") if quick else ("bf16", "fp32", "int8")
    rates = rows.row_rates(times, dtypes=dtypes, runs=not quick, tell=lambda what: tell(what, done - 1, PROBES))
    begin("weights, one vector")
    linear = products.linear_gb_s(times)
    begin("weights, many vectors")
    matmul = products.matmul_tflop_s(times) | products.grid_tflop_s(times)
    begin("attention of a prompt")
    prefill, narrow = (products.prefill_attention_tflop_s(times, kind) for kind in (torch.float32, torch.bfloat16))
    begin("layers")
    physical, logical = cores()
    total, free = host_memory()
    host = HostRates(
        processor=processor_name(),
        physical_cores=physical,
        logical_cores=logical,
        usable=usable,
        numa_nodes=numa_nodes(),
        isa=native.isa(),
        memory_total=total,
        memory_free=free,
        read_gb_s=read,
        attention_gb_s=by_threads,
        linear_gb_s=linear,
        matmul_tflop_s=matmul,
        prefill_attention_tflop_s=prefill,
        prefill_attention_bf16_tflop_s=narrow,
        layer_us=0.0,
        store_us=0.0,
        token_us=0.0,
        quota=cpu_quota(),
        noise=noise,
        load=load,
        rows=tuple(rates),
    )
    cost = layers.overhead(24 if quick else 96, taken_off(host))
    host = replace(host, layer_us=cost.layer_us, store_us=cost.store_us, token_us=cost.token_us)
    begin("GPUs")
    cards = tuple(gpu.gpu_rates(one, times) for one in probe_gpus())
    return Profile(
        name="this machine",
        origin="measured",
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        host=host,
        gpus=cards,
        quick=quick,
        versions=versions_now(),
    )


def taken_off(host: HostRates) -> TakenOff:
    """What the probe model's weights and rows take by the rates measured so far."""
    from hgca_cli.hardware.probes.layers import TakenOff
    from hgca_cli.hardware.row_rates import row_ns
    from hgca_cli.hf.probe_model import LAYER

    def row(how: str, dtype: str) -> float:
        return LAYER.kv_heads * row_ns(host, how, dtype, LAYER) * 1e-9

    byte = 1e-9 / host.linear_gb_s["bf16"]
    return TakenOff(byte, row("dense", "fp32"), row("scan", "bf16"), row("rows", "bf16"))
