"""Window on a GPU, store in CPU memory, beside transformers: decode, prefill and batches of a model with random weights.

    python benchmarks/gpu.py [--parts decode prefill batch] [--gpu-memory 24GiB] [--record]

The plan is the planner's, with the GPU's memory capped; the cap is enforced on torch's allocations. Rows are made up, so
attention is spread over all of them: a head reads at most the share of the store that the planner expects of a text
(hardware/expected.py). Decode: median and 99th percentile of a token, operation by operation and as a CUDA graph, what was
predicted, and the share of it in which the device does not wait for the CPU; transformers' cache on the GPU without a cap, its
offloaded cache, and our store streamed through the device exactly. Prefill: chunks within the cap, beside one pass without a cap.
Batch: sequences at once in one CUDA graph, beside one. Of graphs the slowest tokens are told, with what Python does before and after
each and the C library within it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_sides import Side, hybrid, made_up_rows, plain, random_model, read_prompt, settle, streaming
from transformers import DynamicCache

from hgca_cli import native
from hgca_cli.hardware.expected import rows_read
from hgca_cli.hardware.memory import Choice, Model
from hgca_cli.hardware.plan import make_plan
from hgca_cli.hardware.probe import probe_machine
from hgca_cli.hardware.probes.run import measure_profile
from hgca_cli.hardware.profile import read as read_profile
from hgca_cli.hardware.rates import Profile
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.hardware.shapes import known_model
from hgca_cli.hf.cache import HybridCache
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.measure.machine import where_and_when
from hgca_cli.units import parse_bytes

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
WARM = 6  # chunks of a prompt that are read before: kernels are compiled and planned then, on both sides
SLOWEST = 4  # tokens that are told of
# times as many tokens of a graph, so that rows leave while it is measured, and one in a hundred means something
GRAPHS = 4
ROOM = 16  # times as many rows as tokens that are asked for, of all sides
TINY = Model(KVLayout((LayerLayout(8, 2, 32, 32),) * 3), 1 << 20, 1 << 20, 256, 512, 512)
KINDS = ("decode", "prefill", "batch")


class Bench:
    """What the parts share: model, machine, profile and what was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        found = TINY if options.shape == "tiny" else known_model(options.shape)
        assert found is not None, f"no shape {options.shape}"
        self.shape, self.options = found, options
        self.device = torch.device(options.device)
        self.machine = probe_machine()  # before the weights take memory
        self.profile: Profile = read_profile(options.profile) if options.profile else measure_profile(quick=True)
        native.set_threads(self.profile.host.usable)
        torch.set_num_threads(self.profile.host.usable)
        self.cap = parse_bytes(options.gpu_memory) if self.device.type == "cuda" else None
        self.model = random_model(self.shape, self.device, options.quant)
        self.lines: list[dict[str, Any]] = []

    def plan(self, context: int, sequences: int = 1) -> Plan:
        """The planner's, with the share of the store that a head reads said."""
        asked = PlanRequest(
            device=self.options.device,
            dtype="bf16",
            context=context,
            gpu_memory=self.cap,
            select=self.options.select,
            sequences=sequences,
            quant=self.options.quant if self.device.type == "cuda" else "none",
        )
        plan = make_plan(self.shape, self.machine, asked, self.profile)
        if plan.select not in ("scan", "two-level") or not plan.stored_rows:
            return plan
        choice = Choice(
            plan.device, "bf16", "bf16", context, plan.window, plan.sinks, plan.chunk, plan.select,
            device_codes=plan.device_codes, quant=plan.quant,
        )  # fmt: skip
        return replace(plan, budget=rows_read(choice, quality=plan.quality) / plan.stored_rows)

    def capped(self, on: bool) -> None:
        """Allocations beyond the cap fail, or do not."""
        gc.collect()
        settle(self.device)
        if self.cap is not None:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.cap / total) if on else 1.0, self.device)

    @property
    def peak(self) -> int:
        """Bytes allocated on the device at most since `capped`."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def tell(self, line: dict[str, Any]) -> None:
        """Print a line and keep it."""
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items()
            ),
            flush=True,
        )
        self.lines.append(line)

    def decode(self, side: Side, rows: int, tokens: int, **more: Any) -> float:
        """Tokens of a side, told, and where the slowest of a graph's spent their time; the median's seconds."""
        came = side.tokens(tokens)
        taken = sorted(came)
        middle = median(taken)
        last = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
        self.tell(
            {"part": "decode", "side": side.name, "rows": rows, "sequences": side.sequences}
            | {
                "ms": 1e3 * middle,
                "p99_ms": 1e3 * last,
                "tok_s": side.sequences / middle,
                "peak_gib": self.peak / 2**30,
            }
            | more
        )
        if side.spent:
            slowest = sorted(range(len(came)), key=lambda at: -came[at])[:SLOWEST]
            self.tell(
                {"part": "slowest", "mean_ms": 1e3 * sum(came) / len(came), "token": slowest}
                | {"ms": [round(1e3 * came[at], 2) for at in slowest]}
                | {f"{a}_ms": [round(1e3 * b[at], 2) for at in slowest] for a, b in side.spent.items()}
            )
        return middle


def decode(bench: Bench) -> None:
    """Ours at every length within the cap, then the others."""
    for rows in bench.options.lengths:
        made = made_up_rows(bench.shape, rows, bench.device)
        bench.capped(True)
        began = time.perf_counter()
        plan = bench.plan(rows + ROOM * bench.options.tokens)
        side = hybrid("hgca", bench.model, plan.cache, made, bench.device)
        filled = time.perf_counter() - began
        settings = {"window": plan.window, "select": plan.select, "budget": plan.budget, "fill_s": filled}
        predicted = 1e3 * plan.predicted.step.total
        bench.decode(side, rows, bench.options.tokens, **settings)
        side.name, side.graph = "hgca, graph", True
        middle = bench.decode(side, rows, GRAPHS * bench.options.tokens, predicted_ms=predicted)
        for threads in bench.options.threads if plan.stored_rows else ():
            native.set_threads(threads)
            side.name = f"hgca, graph, {threads} threads"
            bench.decode(side, rows, bench.options.tokens // 2)
        native.set_threads(bench.profile.host.usable)
        if plan.stored_rows:
            busy(bench, side, rows, middle)
        bench.tell({"part": "predicted", "rows": rows, "off": predicted / (1e3 * middle) - 1} | parts(plan))
        side.close()
        if plan.stored_rows and not bench.options.ours_only:
            side = streaming(
                bench.model, replace(plan, select="exact", budget=None, quality=None).cache, made, bench.device
            )
            bench.decode(side, rows, 3)
            side.close()
        bench.capped(False)
        if bench.options.ours_only:
            continue
        for name, offloaded in (("transformers", False), ("transformers, offloaded", True)):
            if offloaded and (bench.cap is None or rows < max(bench.options.lengths)):
                continue
            side = plain(name, bench.model, made, bench.device, offloaded=offloaded)
            bench.decode(side, rows, 4 if offloaded else 16)
            side.close()


def busy(bench: Bench, side: Side, rows: int, middle: float) -> None:
    """The share of a token in which the device waits for nobody, and of that what it would take without a store."""
    side.name, side.waits = "hgca, graph, not waiting", False
    working = bench.decode(side, rows, bench.options.tokens // 2)
    side.name, side.alone = "hgca, graph, nothing stored", True
    alone = bench.decode(side, rows, bench.options.tokens // 2)
    bench.tell(
        {
            "part": "busy",
            "rows": rows,
            "sequences": side.sequences,
            "share": working / middle,
            "without_store": alone / middle,
        }
    )


def parts(plan: Plan) -> dict[str, float]:
    """Milliseconds of a token by part, as predicted."""
    return {name: 1e3 * seconds for name, seconds in plan.predicted.step.parts.items()}


def prefill(bench: Bench) -> None:
    """A prompt within the cap, and without one in one pass."""
    for rows in bench.options.prompts:
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(bench.shape.vocabulary, (1, rows), generator=draw).to(bench.device)
        bench.capped(True)
        plan = bench.plan(rows + ROOM * bench.options.tokens)
        cache = HybridCache(bench.model.config, plan.cache)
        warm, _ = read_prompt(bench.model, cache, ids[:, : min(rows, WARM * plan.chunk)], plan.chunk)
        cache.close()
        cache = HybridCache(bench.model.config, plan.cache)
        seconds, chunks = read_prompt(bench.model, cache, ids, plan.chunk)
        line = {
            "part": "prefill",
            "side": "hgca",
            "rows": rows,
            "s": seconds,
            "warm_s": warm,
            "last_chunk_s": chunks[-1],
            "chunk": plan.chunk,
        }
        planned = sum(plan.device_bytes.values()) / 2**30
        line |= {"predicted_s": plan.predicted.prefill_seconds, "peak_gib": bench.peak / 2**30, "planned_gib": planned}
        bench.tell(line | {"window": plan.window, "stored": cache.rows().store})
        side = Side("hgca, graph, after its own prompt", bench.model, cache, bench.device)
        side.graph = True
        bench.decode(side, rows, 16)
        side.close()
        cache.close()
        bench.capped(False)
        if bench.options.ours_only:
            continue
        whole = DynamicCache(config=bench.model.config)
        read_prompt(bench.model, DynamicCache(config=bench.model.config), ids[:, :4096], 4096)  # warms up
        seconds, _ = read_prompt(bench.model, whole, ids, rows)
        bench.tell(
            {
                "part": "prefill",
                "side": "transformers, no cap",
                "rows": rows,
                "s": seconds,
                "peak_gib": bench.peak / 2**30,
            }
        )
        del whole


def batch(bench: Bench) -> None:
    """Several sequences at once within the cap, as the planner would have them, beside one of them."""
    rows, most = bench.options.batch_rows, bench.options.batch
    made = made_up_rows(bench.shape, rows, bench.device)
    times = {}
    for sequences in (1, most):
        bench.capped(True)
        began = time.perf_counter()
        plan = bench.plan(rows + ROOM * bench.options.tokens, sequences)
        side = hybrid("hgca, graph", bench.model, plan.cache, made, bench.device, sequences)
        filled = time.perf_counter() - began
        side.graph = True
        predicted = 1e3 * plan.predicted.step.total
        how = {"window": plan.window, "select": plan.select, "budget": plan.budget, "device_codes": plan.device_codes}
        told = how | {"predicted_ms": predicted, "fill_s": filled}
        times[sequences] = bench.decode(side, rows, GRAPHS * bench.options.tokens, **told)
        bench.tell(
            {"part": "of it", "sequences": sequences} | {f"{a}_ms": 1e3 * median(b) for a, b in side.spent.items()}
        )
        bench.tell({"part": "predicted", "sequences": sequences} | parts(plan))
        if plan.stored_rows and plan.cache.look_ahead:
            side.name, side.cache.settings = "hgca, graph, not looking ahead", replace(plan.cache, look_ahead=False)
            bench.decode(side, rows, bench.options.tokens)
            side.cache.settings = plan.cache
        if plan.stored_rows:
            busy(bench, side, rows, times[sequences])
        side.close()
    bench.tell({"part": "batch", "rows": rows, "throughput_over_one": most * times[1] / times[most]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shape", default="meta-llama/Llama-3.1-8B-Instruct", help="of profiles/models, or tiny")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gpu-memory", default="24GiB", help="most bytes of the GPU for our side")
    parser.add_argument("--profile", type=Path, help="a file; default: measured now, quickly")
    parser.add_argument("--select", help="of rows in the store; default: the planner's")
    parser.add_argument("--quant", choices=("none", "q8", "q4"), default="none", help="of the weights, of all sides")
    parser.add_argument("--ours-only", action="store_true", help="neither transformers nor a streamed store")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 32768, 131072])
    parser.add_argument("--prompts", type=int, nargs="+", default=[131072])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch-rows", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="*", default=[], help="more numbers of the CPU's threads to try")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    bench = Bench(options)
    for part in options.parts:
        {"decode": decode, "prefill": prefill, "batch": batch}[part](bench)
    if options.record:
        card = torch.cuda.get_device_name(bench.device) if bench.cap is not None else "none"
        line = {"benchmark": "gpu", **where_and_when(native.threads()), "gpu": card, "shape": options.shape}
        with RESULTS.open("a") as file:
            file.write(
                json.dumps(line | {"gpu_memory": options.gpu_memory, "quant": options.quant, "lines": bench.lines})
                + "\n"
            )


if __name__ == "__main__":
    main()
