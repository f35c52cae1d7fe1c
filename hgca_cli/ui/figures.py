"""Events and plans as lines of figures."""

from __future__ import annotations

import shlex
from typing import Any

from hgca_cli.events import Balanced, Done
from hgca_cli.units import counted, format_bytes, format_seconds


def figures(done: Done) -> str:
    """The closing line of an answer."""
    rows = done.rows
    read = f", {rows.read_share:.0%} of it read" if rows.store else ""
    if rows.quality is not None:
        read += f", {rows.quality:.1%} of the attention kept"
    cached = f" ({done.cached_tokens:,} cached)" if done.cached_tokens else ""
    cut = "" if done.finish_reason == "stop" else f" | {done.finish_reason}"
    guessed = f" ({done.guessed_right:,} guessed)" if done.guessed_right else ""
    known = done.tokens_per_second > 0  # of one token nobody knows
    rate = f"{done.tokens_per_second:.1f} tok/s{guessed}, " if known else ""
    speed = f"{rate}first after {format_seconds(done.ttft_seconds)}"
    return (
        f"{counted(done.completion_tokens, 'token')}{f', {speed}' if done.completion_tokens else ''} | "
        f"prompt {done.prompt_tokens:,}{cached} | "
        f"rows: window {rows.window:,}, store {rows.store:,}{read} | seed {done.seed}{cut}"
    )


def balanced_line(move: Balanced) -> str:
    """A move while running, and why."""
    return f"balance: {move.setting} {move.before:g} to {move.after:g}: {move.reason}"


def plan_line(plan: Any, model: str) -> str:
    """A plan in one line: what runs, with the context resolved."""
    index = f" + index {format_bytes(plan.index_bytes)}" if plan.index_bytes else ""
    return (
        f"{model} | context {plan.context:,} | window {plan.window:,} + {plan.sinks} sinks | "
        f"{policy(plan)} | {plan.device} {plan.numbers}, {counted(plan.threads, 'thread')} | "
        f"KV {format_bytes(plan.kv_bytes)}{index} when full (store in {plan.kv_dtype})"
    )


def plan_table(plan: Any, model: str) -> str:
    """A plan with its bytes, its reasons and the flags that give it again, for --plan."""
    lines = [plan_line(plan, model)]
    for place in plan.memory:
        named = " + ".join(f"{name} {format_bytes(size)}" for name, size in place.parts.items() if size)
        lines.append(f"  {place.place}: {named} = {format_bytes(place.total)} of {format_bytes(place.limit)}")
    lines.append(f"  predicted: {prediction_line(plan)}")
    lines += [f"  {name.replace('_', '-')}: {reason}" for name, reason in plan.reasons.items()]
    flags = f"--device {plan.device} --dtype {plan.dtype} --kv-dtype {plan.kv_dtype} --ctx {plan.context}"
    flags += f" --window {plan.window} --sinks {plan.sinks} --select {plan.select} --threads {plan.threads}"
    flags += f" --prefill-chunk {plan.chunk}"
    if plan.quant != "none":
        flags += f" --quant {plan.quant}"
    if plan.budget is not None:
        flags += f" --budget {plan.budget}"
    if plan.quality is not None:
        flags += f" --quality {plan.quality}"
    if plan.dense_layers:
        flags += f" --dense-layers {plan.dense_layers}"
    if plan.store_dir:
        flags += f" --store-dir {shlex.quote(plan.store_dir)}"
    if plan.yarn_context:
        flags += " --yarn"
    return "\n".join([*lines, f"  flags: {flags}"])


def prediction_line(plan: Any) -> str:
    """What a plan will take, and whose rates say so."""
    told = plan.predicted
    step = told.step
    parts = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in step.parts.items() if seconds >= 5e-5)
    hidden = f"; {1e3 * step.hidden:.1f} ms of the CPU's work hidden" if step.hidden >= 5e-5 else ""
    batch = f"; up to {told.batch} sequences at once pay" if told.batch > 1 else ""
    return (
        f"{1 / step.total:.1f} tok/s at {plan.context:,} tokens, {1 / told.empty.total:.1f} at first "
        f"(ms a token: {parts}{hidden}), {format_seconds(told.prefill_seconds)} to read {plan.context:,}{batch} "
        f"({told.origin}, profile {told.profile})"
    )


def policy(plan: Any) -> str:
    """How the store is read."""
    if plan.budget is not None:
        return f"{plan.select}, {plan.budget:.3g} of the store at most"
    return plan.select if plan.quality is None else f"{plan.select}, quality {plan.quality:.3g}"
