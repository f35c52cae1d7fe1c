"""docs/plans.md: what the planner decides for the machines that ship, some models and some lengths. Pure arithmetic.

python benchmarks/plans.py            # writes the page; a test holds the page to this
"""

from __future__ import annotations

from pathlib import Path

from hgca_cli.errors import DoesNotFitError
from hgca_cli.hardware.plan import make_plan
from hgca_cli.hardware.profile import read
from hgca_cli.hardware.profiles import machine_of, shipped_dir
from hgca_cli.hardware.settings import Plan, PlanRequest
from hgca_cli.hardware.shapes import known_model
from hgca_cli.units import format_bytes, format_seconds

PAGE = Path(__file__).parent.parent / "docs" / "plans.md"
MODELS = ("Llama-3.1-8B-Instruct", "Qwen3-8B", "Qwen3-0.6B", "gpt-oss-20b")
LENGTHS = (32768, 131072, 1 << 20)
MACHINES = ("laptop-cpu-only", "rtx-4060-8gb", "rtx-3060-12gb", "rtx-4090-24gb", "h200")
TOP = """\
# Plans for machines one doesn't have

What `hgca profile --profile MACHINE -m MODEL --ctx LENGTH` says for the machines that ship in `profiles/`, whose rates are
estimated from data sheets, but for the H200's, which were measured: read them as what to expect. Figures are of a full
context; a short one is faster.
Written by `benchmarks/plans.py`; a test holds this page to it. "+" after a length: beyond what the model was trained on.
"""


def page() -> str:
    """The whole page."""
    parts = [TOP]
    for name in MACHINES:
        profile = read(shipped_dir() / f"{name}.toml")
        cards = ", ".join(
            f"{gpu.name}, {format_bytes(gpu.memory_free)} of {format_bytes(gpu.memory_total)} free"
            for gpu in profile.gpus
        )
        host = profile.host
        parts.append(
            f"\n## {name}\n\n{cards or 'No GPU'}; {host.processor}, {format_bytes(host.memory_free)} of "
            f"{format_bytes(host.memory_total)} free, read at {host.best_read_gb_s:.0f} GB/s.\n\n"
            "| model | context | plan | GPU | host | first, full: tok/s | to read it |\n|---|---|---|---|---|---|---|\n"
        )
        for model in MODELS:
            shape = known_model(model)
            assert shape is not None, model
            for length in LENGTHS:
                beyond = "+" if length > shape.trained_context else ""
                try:
                    plan = make_plan(shape, machine_of(profile), PlanRequest(context=length), profile)
                    parts.append(f"| {model} | {length >> 10}k{beyond} | {row(plan)} |\n")
                except DoesNotFitError as error:
                    parts.append(f"| {model} | {length >> 10}k{beyond} | does not fit: {error} | | | | |\n")
    return "".join(parts)


def row(plan: Plan) -> str:
    """The cells of a plan that fits."""
    told = plan.predicted
    kept = f", keeps {plan.quality:.2f}" if plan.quality else ""
    what = f"{plan.device} {plan.numbers}, window {plan.window:,}, {plan.select}{kept}, {plan.threads} threads, chunk {plan.chunk}"
    gpu = format_bytes(sum(plan.device_bytes.values())) if plan.device != "cpu" else ""
    host = format_bytes(sum(plan.host_bytes.values()))
    rates = f"{1 / told.empty.total:.3g}, {1 / told.step.total:.3g}"
    return f"{what} | {gpu} | {host} | {rates} | {format_seconds(told.prefill_seconds)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
