"""`hgca eval fidelity`: next-token distributions of every policy beside those of exact attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import eval_options, options
from hgca_cli.commands.eval_policies import Policy, policies_of
from hgca_cli.commands.eval_run import EvalRun, start_run
from hgca_cli.commands.eval_texts import check_window, ids_of, number_of, read_texts
from hgca_cli.commands.files import check_files
from hgca_cli.commands.flags import naming_variables
from hgca_cli.errors import UsageError
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.eval_table import FIDELITY, FIDELITY_LEGEND, EvalTable

if TYPE_CHECKING:
    from hgca_cli.measure.fidelity import Fidelity

ALL_TEXTS = "all texts"


def fidelity(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-f", metavar="FILE", help="Long text to predict; - is stdin. May be repeated."),
    ] = None,
    ctx: Annotated[
        str, typer.Option("--ctx", "-c", envvar="HGCA_CTX", metavar="N[k]", help="Tokens of a text: 4k is 4,096.")
    ] = "4k",
    positions: Annotated[
        str, typer.Option("--positions", metavar="N[k]", help="The last of them, fed one by one and scored.")
    ] = "512",
    skip: Annotated[
        str, typer.Option("--skip", metavar="N[k]", help="Tokens at the beginning of a text to pass over.")
    ] = "0",
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
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw KL over bytes read: .svg or .png.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """How near each policy's next-token distributions are to exact attention's, over long texts.

    A text is read exactly up to its last --positions tokens; these are fed one by one, the policy choosing rows.
    """
    given = dict(locals())
    with naming_variables(context):
        policies = policies_of(select or [], budget or [], quality or [])
        tokens, scored, passed = _lengths(given)
        check_files(record, plot)
        documents = read_texts(text)
        run = start_run(given)
    texts = {one.name: ids_of(run.engine, one, passed, tokens + 1, "--ctx") for one in documents}
    run.machine |= {"ctx": tokens, "positions": scored}
    try:
        with run:
            measure_all(run, texts, policies, scored)
    finally:  # Ctrl-C after an hour: what is done is drawn
        if plot is not None:
            plot_all(plot, run)


def measure_all(run: EvalRun, texts: Mapping[str, list[int]], policies: Sequence[Policy], positions: int) -> None:
    """Every text and policy, shown and recorded as it is done; then each policy over all texts."""
    from hgca_cli.measure.fidelity import EXACT, mean_fidelity, measure_fidelity, tokens_of

    context = len(next(iter(texts.values()))) - 1
    settings = run.settings(policies, context)
    planned = tokens_of(run.engine, context + 1, positions, list(settings.values()))
    run.work.plan({stage: len(texts) * count for stage, count in planned.items()})
    run.begin(
        EvalTable(FIDELITY, [*texts, ALL_TEXTS][: len(texts) + (len(texts) > 1)], [EXACT, *settings], FIDELITY_LEGEND)
    )
    found: dict[str, list[Fidelity]] = {}
    for name, ids in texts.items():
        run.work.begin(name)
        for policy, one in measure_fidelity(run.engine, ids, positions, settings, run.work.tell):
            found.setdefault(policy, []).append(one)
            run.result(name, fidelity_record(name, policy, one))
    if len(texts) > 1:
        for policy, parts in found.items():
            run.result(ALL_TEXTS, fidelity_record(ALL_TEXTS, policy, mean_fidelity(parts)))
    run.end()


def fidelity_record(text: str, policy: str, one: Fidelity) -> dict[str, Any]:
    """One result as plain data (docs/cli.md)."""
    figures = asdict(one)
    for name in ("nll", "exact_nll"):
        del figures[name]
    return {
        "type": "fidelity",
        "text": text,
        "policy": policy,
        **figures,
        "perplexity": one.perplexity,
        "exact_perplexity": one.exact_perplexity,
        "perplexity_change": one.perplexity_change,
    }


def plot_all(file: Path, run: EvalRun) -> None:
    """A curve per policy, over all texts; if these are not done, over the one of which most is. Nothing without results."""
    from hgca_cli.ui.plot import plot_divergence

    texts: dict[str, list[dict[str, Any]]] = {}
    for one in run.results:
        if one["policy"] != "exact":
            texts.setdefault(one["text"], []).append(one)
    if not texts:
        return
    shown = ALL_TEXTS if ALL_TEXTS in texts else max(texts, key=lambda name: len(texts[name]))
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in texts[shown]:
        curves.setdefault(one["policy"].partition(":")[0], []).append((one["bytes_share"], one["kl"]))
    machine = run.machine
    plot_divergence(
        file, f"{machine['model']}, context {machine['ctx']:,}, window {machine['window']:,}, {shown}", curves
    )


def _lengths(given: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tokens of a text, those that are scored, and those passed over."""
    tokens, positions = number_of(given["ctx"], "--ctx"), number_of(given["positions"], "--positions")
    skip = number_of(given["skip"], "--skip", least=0)
    if positions >= tokens:
        raise UsageError(
            f"--positions {positions:,} leaves nothing of --ctx {tokens:,} to be read before.", "Lower it."
        )
    before = tokens - positions
    what = f"the {before:,} tokens before the scored ones"
    check_window(given, before, what, "Lower --window or --positions, or raise --ctx.")
    return tokens, positions, skip
