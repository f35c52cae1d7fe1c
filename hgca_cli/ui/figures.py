"""Events and plans as lines of figures."""

from __future__ import annotations

from typing import Any

from hgca_cli.events import Done, PrefillProgress
from hgca_cli.units import format_bytes, format_seconds


def eta(event: PrefillProgress) -> float:
    """Seconds the rest of the prompt will take, at the rate so far."""
    done = event.processed - event.cached
    return event.seconds * (event.total - event.processed) / done if done else 0.0


def figures(done: Done) -> str:
    """The closing line of an answer."""
    rows = done.rows
    read = f", {rows.read_share:.0%} of it read" if rows.store else ""
    if rows.quality is not None:
        read += f", {rows.quality:.1%} of the attention kept"
    cached = f" ({done.cached_tokens:,} cached)" if done.cached_tokens else ""
    cut = "" if done.finish_reason == "stop" else f" | {done.finish_reason}"
    speed = f"{done.tokens_per_second:.1f} tok/s, first after {format_seconds(done.ttft_seconds)}"
    return (
        f"{done.completion_tokens:,} tokens{f', {speed}' if done.completion_tokens else ''} | "
        f"prompt {done.prompt_tokens:,}{cached} | "
        f"rows: window {rows.window:,}, store {rows.store:,}{read} | seed {done.seed}{cut}"
    )


def plan_line(plan: Any, model: str) -> str:
    """A plan in one line: what runs, with the context resolved."""
    return (
        f"{model} | context {plan.context:,} | window {plan.window:,} + {plan.sinks} sinks | "
        f"{policy(plan)} | {plan.device} {plan.dtype}, {plan.threads} threads | "
        f"KV {format_bytes(kv_bytes(plan))} when full (store in {plan.kv_dtype})"
    )


def plan_table(plan: Any, model: str) -> str:
    """A plan with its bytes, its reasons and the flags that give it again, for --plan."""
    lines = [plan_line(plan, model)]
    for place in plan.memory:
        named = " + ".join(f"{name} {format_bytes(size)}" for name, size in place.parts.items() if size)
        lines.append(f"  {place.place}: {named} = {format_bytes(place.total)} of {format_bytes(place.limit)}")
    lines += [f"  {name.replace('_', '-')}: {reason}" for name, reason in plan.reasons.items()]
    flags = f"--device {plan.device} --dtype {plan.dtype} --kv-dtype {plan.kv_dtype} --ctx {plan.context}"
    flags += f" --window {plan.window} --sinks {plan.sinks} --select {plan.select} --threads {plan.threads}"
    flags += f" --prefill-chunk {plan.chunk}"
    if plan.budget is not None:
        flags += f" --budget {plan.budget}"
    if plan.quality is not None:
        flags += f" --quality {plan.quality}"
    if plan.dense_layers:
        flags += f" --dense-layers {plan.dense_layers}"
    if plan.yarn_context:
        flags += " --yarn"
    return "\n".join([*lines, f"  flags: {flags}"])


def policy(plan: Any) -> str:
    """How the store is read."""
    if plan.budget is not None:
        return f"{plan.select}, {plan.budget:.3g} of the store at most"
    return plan.select if plan.quality is None else f"{plan.select}, quality {plan.quality:.3g}"


def kv_bytes(plan: Any) -> int:
    """Bytes of keys and values in all places once the context is full."""
    places = [plan.device_bytes, plan.host_bytes]
    return sum(place.get(name, 0) for place in places for name in ("window", "store"))
