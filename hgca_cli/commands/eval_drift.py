"""`hgca eval drift`: whether a policy's divergence from exact attention grows while it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import eval_options, options
from hgca_cli.commands.eval_policies import policies_of
from hgca_cli.commands.eval_run import start_run
from hgca_cli.commands.eval_texts import check_window, ids_of, number_of, read_texts
from hgca_cli.commands.files import check_files
from hgca_cli.commands.flags import naming_variables
from hgca_cli.config import SamplingSettings
from hgca_cli.errors import UsageError
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.eval_table import DRIFT, DRIFT_LEGEND, EvalTable

if TYPE_CHECKING:
    from hgca_cli.measure.drift import Drift


def drift(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-f", metavar="FILE", help="Text to continue; - is stdin. May be repeated."),
    ] = None,
    length: Annotated[str, typer.Option("--length", metavar="N[k]", help="Tokens of it that are read.")] = "2k",
    tokens: Annotated[str, typer.Option("--tokens", metavar="N[k]", help="Tokens that are written.")] = "2000",
    skip: Annotated[
        str, typer.Option("--skip", metavar="N[k]", help="Tokens at the beginning of a text to pass over.")
    ] = "0",
    temp: Annotated[
        float, typer.Option("--temp", envvar="HGCA_TEMP", metavar="T", help="Temperature; 0 is greedy.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", envvar="HGCA_SEED", metavar="N", help="The same, the same text.")] = 0,
    window: options.Window = "256",
    sinks: options.Sinks = None,
    select: eval_options.SelectSeveral = None,
    budget: eval_options.BudgetSeveral = None,
    quality: eval_options.QualitySeveral = None,
    dense_layers: options.DenseLayers = 0,
    model: options.Model = DEFAULT,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    offline: options.Offline = False,
    yarn: options.Yarn = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quant: options.Quant = "auto",
    kv_dtype: options.KvDtype = "auto",
    threads: options.Threads = "auto",
    prefill_chunk: options.PrefillChunk = "auto",
    json: options.JsonLines = False,
    record: eval_options.Record = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Divergence from exact attention by position, over thousands of tokens a policy writes.

    The policy draws each token; exact attention is fed the same tokens from a cache of its own.
    """
    given = dict(locals())
    with naming_variables(context):
        policies = policies_of(select or [], budget or [], quality or [])
        if not policies:
            raise UsageError("exact attention does not drift from itself.", "Name a policy: --select moving-average")
        sampling = SamplingSettings(temperature=temp, seed=seed)
        read, written, passed = _lengths(given)
        check_files(record, None)
        documents = read_texts(text)
        run = start_run({**given, "ctx": str(read + written)})
    texts = {one.name: ids_of(run.engine, one, passed, read, "--length") for one in documents}
    run.machine |= {"length": read, "tokens": written, "temp": temp, "seed": seed}
    from hgca_cli.measure.drift import measure_drift
    from hgca_cli.measure.fidelity import exact_settings
    from hgca_cli.measure.prompt import Prompt

    settings = run.settings(policies, read + written)
    pairs = [one for chosen in settings.values() for one in (exact_settings(chosen), chosen)]
    reads = Prompt(run.engine, [0] * (read - 1)).reads(pairs)
    run.work.plan({"read": reads * len(texts), "decode": 2 * written * len(policies) * len(texts)})
    with run:
        run.begin(EvalTable(DRIFT, list(texts), list(settings), DRIFT_LEGEND))
        for name, ids in texts.items():
            run.work.begin(name)
            for policy, one in measure_drift(run.engine, ids, written, settings, sampling, run.work.tell):
                run.result(name, drift_record(name, policy, one))
                if verbose:
                    run.say("  " + " ".join(one.text.split()))
        run.end()


def drift_record(text: str, policy: str, one: Drift) -> dict[str, Any]:
    """One result as plain data (docs/cli.md)."""
    figures = asdict(one) | {"quarters": list(one.quarters)}
    written = figures.pop("text")
    growth = one.growth if math.isfinite(one.growth) else None
    return {"type": "drift", "text": text, "policy": policy, **figures, "growth": growth, "begins": written[:200]}


def _lengths(given: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tokens that are read, written, and passed over."""
    read, written = number_of(given["length"], "--length", least=2), number_of(given["tokens"], "--tokens", least=4)
    skip = number_of(given["skip"], "--skip", least=0)
    check_window(given, read, f"--length {read:,}", "Lower --window, or raise --length.")
    return read, written, skip
