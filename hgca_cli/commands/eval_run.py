"""What the commands of `hgca eval` share: the engine they measure, and where results go as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands.eval_policies import Policy
from hgca_cli.commands.files import append_line
from hgca_cli.commands.flags import exclude, plan_request
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import HELD, CacheSettings
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.eval_table import EvalTable
from hgca_cli.ui.style import style_of
from hgca_cli.ui.work import WorkSink
from hgca_cli.units import counted

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine

FIXED = {
    "select": "exact",
    "exact": False,
    "budget": "auto",
    "quality": "auto",
    "gpu_mem": None,
    "ram_limit": None,
    "store_dir": None,
}


@dataclass
class EvalRun:
    """One evaluation, to be entered: whatever ends it, the screen is left in order.

    machine  where, when and with what: a part of every recorded line
    work     shows progress, and hears what is done
    """

    engine: Engine
    machine: dict[str, Any]
    work: WorkSink
    as_json: bool
    record: Path | None
    results: list[dict[str, Any]] = field(default_factory=list)
    table: EvalTable | None = None

    def __enter__(self) -> EvalRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.work.clear()  # or the cursor stays hidden

    def begin(self, table: EvalTable) -> None:
        """Say where this runs; results are lines of the table."""
        self.table = table
        if self.as_json:
            typer.echo(dumps(self.machine))
            return
        threads = counted(self.machine["threads"], "thread")
        where = f"{self.machine['model']}, {self.machine['processor']}, {threads}"
        packed = HELD[self.machine["quant"]]
        typer.echo(f"{where}, {self.machine['dtype']}{packed}, store {self.machine['kv_dtype']}\n")

    def result(self, title: str, line: Mapping[str, Any]) -> None:
        """One result, of a group that has this title: shown, kept, and recorded at once."""
        assert self.table is not None, "it has begun"
        self.work.clear()
        typer.echo(dumps(line) if self.as_json else "\n".join(self.table.lines(title, line)))
        self.results.append(dict(line))
        if self.record is not None:
            append_line(self.record, {**self.machine, **line})

    def end(self) -> None:
        """All is measured: say what the columns mean."""
        assert self.table is not None, "it has begun"
        self.say(self.table.ending())

    def say(self, text: str) -> None:
        """Text between results; nothing for a program."""
        self.work.clear()
        if not self.as_json:
            typer.echo(text)

    def settings(self, policies: Sequence[Policy], context: int) -> dict[str, CacheSettings]:
        """The policies by name, for sequences of so many rows."""
        cache = replace(self.engine.settings, context=context)
        return {one.name: one.settings(cache) for one in policies}


def start_run(given: Mapping[str, Any]) -> EvalRun:
    """Find, plan and load the model. Errors as of `plan_model` and `start_engine`; nothing else was done before."""
    exclude(given, "quiet", "verbose")
    request = plan_request({**FIXED, **{name: given[name] for name in given if name not in FIXED}})
    style = style_of(given["color"], plain=False)
    sink = HumanSink(style, stats=False, stream=True, quiet=given["quiet"])
    choice = ModelChoice(given["model"], given["revision"], given["trust_remote_code"], given["offline"])
    files, plan = plan_model(choice, request, sink.show)
    if given["verbose"]:
        sink.plan(plan, given["model"], detailed=True)
    engine = start_engine(choice, files, plan, notify=sink.show)
    from hgca_cli.measure.machine import where_and_when

    machine = {
        "type": "machine",
        **where_and_when(plan.threads),
        "model": given["model"],
        "device": plan.device,
        "dtype": plan.dtype,
        "quant": plan.quant,
        "kv_dtype": plan.kv_dtype,
        "window": plan.window,
        "sinks": plan.sinks,
        "prefill_chunk": plan.chunk,
        "dense_layers": plan.dense_layers,
    }
    return EvalRun(engine, machine, WorkSink(sink, style, quiet=given["quiet"]), given["json"], given["record"])
