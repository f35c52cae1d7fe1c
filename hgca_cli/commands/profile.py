"""`hgca profile`: measure the machine, keep what was found, and show what it means for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import options
from hgca_cli.commands.files import check_files
from hgca_cli.commands.flags import exclude, naming_variables, plan_request
from hgca_cli.commands.setup import ModelChoice
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Notice
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.profile_table import length_lines, profile_lines
from hgca_cli.ui.style import style_of
from hgca_cli.ui.work import StageSink

if TYPE_CHECKING:
    from hgca_cli.hardware.place import Case
    from hgca_cli.hardware.rates import Profile

LENGTHS = (4096, 32768, 131072, 1 << 20)  # tokens of context that are compared


def profile(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Ten seconds instead of a minute: rougher.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Measure nothing: show what was measured last.")] = False,
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", help="Measure nothing: plan for this machine, by name or file."),
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="List the profiles there are.")] = False,
    save: Annotated[
        str | None, typer.Option("--save", metavar="NAME", help="Keep what is measured under this name.")
    ] = None,
    model: options.Model = DEFAULT,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    offline: options.Offline = False,
    ctx: options.Ctx = "auto",
    yarn: options.Yarn = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quant: options.Quant = "auto",
    kv_dtype: options.KvDtype = "auto",
    window: options.Window = "auto",
    sinks: options.Sinks = None,
    select: options.Select = "auto",
    exact: options.Exact = False,
    quality: options.Quality = "auto",
    budget: options.Budget = "auto",
    dense_layers: options.DenseLayers = 0,
    threads: options.Threads = "auto",
    prefill_chunk: options.PrefillChunk = "auto",
    gpu_mem: options.GpuMem = None,
    vram_margin: options.VramMargin = None,
    ram_limit: options.RamLimit = None,
    store_dir: options.StoreDir = None,
    json: options.JsonDocument = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw a token's time at each length: .svg or .png.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Measure this machine, keep the figures, and show the plan for a model: its config is enough.

    What each part of a token takes is shown at 4k, 32k, 128k and 1M tokens. chat plans with what is measured here.
    """
    given = dict(locals())
    with naming_variables(context):
        for one, other in (("profile", "show"), ("profile", "quick"), ("profile", "save"), ("show", "quick"),
                           ("show", "save"), ("quiet", "verbose")):  # fmt: skip
            exclude(given, one, other)
        request = plan_request(given)
        check_files(None, plot)
        style = style_of(color, plain=False)
    sink = HumanSink(style, stats=False, stream=True, quiet=quiet or json)
    if names:
        _list(json)
        return
    from hgca_cli.commands.describe import describe_config

    choice = ModelChoice(model, revision, trust_remote_code, offline)
    shape = describe_config(choice, sink.show)  # a model that nobody has is told before a minute of measuring
    found, file = _found(given, StageSink(sink, style, quiet=quiet or json))
    from hgca_cli.hardware.place import Case
    from hgca_cli.hardware.probe import probe_machine
    from hgca_cli.hardware.profiles import machine_of
    from hgca_cli.hardware.sheets import oddities

    odd = oddities(found)
    if not json:
        typer.echo("\n".join(profile_lines(found)))
    for text in odd:
        sink.show(Notice(text))
    if file is not None:
        sink.note(f"kept in {file}")
    machine = machine_of(found) if profile is not None else probe_machine()
    _plans(Case(shape, machine, request, found), model, odd, as_json=json, plot=plot)


def _found(given: Mapping[str, Any], stage: StageSink) -> tuple[Profile, Path | None]:
    """The profile that is shown, and where it was put if it was measured now."""
    from hgca_cli.hardware import profile as files
    from hgca_cli.hardware.profiles import find, path_of, profile_dir

    if given["profile"] is not None:
        return find(given["profile"]), None
    from hgca_cli import native

    path = path_of(native.usable_processors())
    if given["show"]:
        if not path.is_file():
            raise UsageError("this machine was not measured yet.", "Run hgca profile without --show.")
        return files.read(path), None
    name = given["save"] or path.stem
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UsageError(f"--save: {name!r} is not a plain name.", "Use letters, digits, dots and dashes.")
    path = profile_dir() / f"{name}.toml"
    from hgca_cli.hardware.probes.run import measure_profile

    try:
        measured = measure_profile(quick=given["quick"], tell=stage.stage)
    finally:
        stage.clear()
    files.write(measured if given["save"] is None else replace(measured, name=name), path)
    return files.read(path), path  # as it will be read again: rounded


def _plans(case: Case, model: str, odd: list[str], *, as_json: bool, plot: Path | None) -> None:
    """Time per token at each length, and the plan asked for. Raises DoesNotFitError if there is none."""
    from hgca_cli.hardware.plan import draw_up
    from hgca_cli.hardware.refusal import does_not_fit
    from hgca_cli.ui.figures import plan_table
    from hgca_cli.ui.json_lines import plan_record

    lengths = {length: draw_up(case.asking(context=length)) for length in LENGTHS}
    plan = draw_up(case)
    if as_json:
        from dataclasses import asdict

        told = {f"{length}": plan_record(one) | {"fits": one.fits} for length, one in lengths.items()}
        document = {"profile": asdict(case.profile), "odd": odd, "model": model, "lengths": told}
        typer.echo(dumps(document | {"plan": plan_record(plan) | {"fits": plan.fits}}))
    else:
        typer.echo(f"\n{model}: a token of a full context, in milliseconds")
        typer.echo("\n".join(length_lines(lengths, case.model.trained_context)))
        typer.echo(f"\n{plan_table(plan, model)}")
    if plot is not None:
        from hgca_cli.ui.plot import plot_steps

        plot_steps(
            plot,
            f"{model} on {case.profile.name}",
            {length: one.predicted.step.parts for length, one in lengths.items()},
        )
    if not plan.fits:
        error: HgcaError = does_not_fit(case, plan, draw_up)
        raise error


def _list(as_json: bool) -> None:
    from hgca_cli.hardware.profile import read
    from hgca_cli.hardware.profiles import available

    known: dict[str, Any] = {}
    for name, path in available().items():
        try:
            known[name] = read(path)
        except HgcaError as error:
            typer.echo(f"{error}", err=True)
    if as_json:
        typer.echo(
            dumps(
                [
                    {"name": name, "origin": one.origin, "date": one.date, "note": one.note}
                    for name, one in known.items()
                ]
            )
        )
        return
    for name, one in known.items():
        gpus = ", ".join(gpu.name for gpu in one.gpus) or "no GPU"
        typer.echo(f"{name:22} {one.origin:10} {one.host.processor}, {gpus}")
