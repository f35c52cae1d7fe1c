"""`hgca bench`: measurements that print what the machine could do at best beside what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import options
from hgca_cli.commands.bench_cases import cases_of
from hgca_cli.commands.files import append_line, check_files
from hgca_cli.commands.flag_values import MOST_ROWS, count_of
from hgca_cli.commands.flags import naming_variables
from hgca_cli.commands.lists import ListCommand
from hgca_cli.errors import DoesNotFitError, UsageError
from hgca_cli.measure.case import Case
from hgca_cli.ui.bench_table import HEADER, LEGEND, attention_line, bandwidth_line
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.plot import plot_rates
from hgca_cli.ui.style import style_of
from hgca_cli.units import format_bytes

if TYPE_CHECKING:
    from hgca_cli.measure.attention import Result
    from hgca_cli.measure.llama_cpp import Ggml

MOST_THREADS = 1024

bench = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@bench.callback()
def _group() -> None:
    """Measure parts of the program on this machine."""


@bench.command("attention", cls=ListCommand, short_help="Attention of one decode step on the CPU, beside others'.")
def attention(
    context: typer.Context,
    shape: Annotated[
        list[str], typer.Option("--shape", metavar="HEADS/KV_HEADS/DIM", help="Heads of one layer. May be repeated.")
    ] = ["32/8/128", "9/3/64"],  # noqa: B006  (Typer copies it)
    rows: Annotated[list[str], typer.Option("--rows", metavar="N[k]", help="Rows in the store. May be repeated.")] = [  # noqa: B006
        "4096",
        "32768",
        "131072",
    ],
    dtype: Annotated[
        list[str], typer.Option("--dtype", metavar="bf16|fp16|fp32|int8", help="Numbers of the rows. May be repeated.")
    ] = ["bf16"],  # noqa: B006
    pattern: Annotated[
        list[str],
        typer.Option(
            "--pattern",
            metavar="dense|runs64|runs16|rows",
            help="Read all rows, or a random tenth of them per KV head, in runs or singly. May be repeated.",
        ),
    ] = ["dense"],  # noqa: B006
    tokens: Annotated[
        list[int], typer.Option("--tokens", metavar="N", help="Query tokens that share the rows. May be repeated.")
    ] = [1],  # noqa: B006
    times: Annotated[int, typer.Option("--times", metavar="N", help="Turns; figures are their medians.")] = 9,
    layers: Annotated[
        str,
        typer.Option("--layers", metavar="N", help="Layers in a turn. auto: enough that the cache holds no rows."),
    ] = "auto",
    threads: options.Threads = "auto",
    own_threads: Annotated[
        bool, typer.Option("--own-threads", help="Use the library's threads, as with a GPU, not torch's.")
    ] = False,
    isa: Annotated[
        str | None, typer.Option("--isa", metavar="NAME", help="Instruction set. Default: the best.")
    ] = None,
    llama_cpp: Annotated[
        bool, typer.Option("--llama-cpp/--no-llama-cpp", help="Compare with llama.cpp, where it is installed.")
    ] = True,
    json: options.JsonLines = False,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Append all figures to it as one JSON line.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw GB/s over rows: .svg or .png.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Attention of one decode step on the CPU: our kernel, torch's and llama.cpp's beside the read bandwidth.

    The sides take turns on the same numbers, and so does a probe that only reads our rows.
    """
    given = dict(locals())
    with naming_variables(context):
        sink = HumanSink(style_of(color, plain=False), stats=False, stream=True, quiet=quiet)
        cases = cases_of(given)
        fixed = count_of(layers, "--layers", MOST_ROWS)
        wanted = count_of(threads, "--threads", MOST_THREADS)
        check_files(record, plot)
        used = _prepare(wanted, isa, own_threads)
    from hgca_cli.hardware.timing import bandwidths
    from hgca_cli.measure.attention import measure
    from hgca_cli.measure.llama_cpp import MISSING, load_ggml
    from hgca_cli.measure.machine import where_and_when

    ggml = load_ggml() if llama_cpp else None
    if llama_cpp and ggml is None:
        sink.note(MISSING)
    planned = [(case, fixed or case.layers()) for case in cases]
    _check_memory(planned, ggml)
    machine = {"type": "machine"} | where_and_when(used) | {"llama_cpp": ggml.version if ggml else None}
    if json:
        typer.echo(dumps(machine))
    else:
        typer.echo(f"{machine['processor']}, {machine['isa']}, {used} threads, torch {machine['torch']}\n\n{HEADER}")
    results = []
    rates: dict[int, list[float]] = {}
    for case, count in planned:
        if verbose:
            sink.tell(f"{case.shape} {case.dtype} {case.pattern}: {case.rows:,} rows, {count} layers, {times} turns")
        measured = measure(case, times=times, layers=count, threads=used, ggml=ggml)
        for number, kept in measured.rates.items():
            rates.setdefault(number, []).extend(kept)
        result = attention_record(measured)
        results.append(result)
        typer.echo(dumps(result) if json else attention_line(result))
    reads = [asdict(one) for one in bandwidths(rates)]
    read = {"type": "bandwidth", "read": reads}
    typer.echo(dumps(read) if json else f"\n{bandwidth_line(read)}\n{LEGEND}")
    if record is not None:
        append_line(record, {**machine, "type": "bench attention", "times": times, "read": reads, "results": results})
    if plot is not None:
        _plot(plot, machine, reads, results)


def attention_record(result: Result) -> dict[str, Any]:
    """One case as plain data (docs/cli.md). Milliseconds are of one layer."""
    case = result.case
    return {
        "type": "attention",
        "shape": case.shape,
        "dtype": case.dtype,
        "pattern": case.pattern,
        "rows": case.rows,
        "tokens": case.tokens,
        "layers": result.layers,
        "passes": case.passes(result.layers),
        "bytes": result.bytes,
        "ms": result.seconds["hgca"] * 1e3,
        "gb_s": result.gb_s,
        "share": result.share,
        "share_of_best": result.share_of_best,
        "read_gb_s": result.read.median_gb_s,
        "best_read_gb_s": result.read.best_gb_s,
        "over": result.over,
        "cost_over_one_token": result.cost_over_one_token,
        "median_ms": {name: one * 1e3 for name, one in result.seconds.items()},
        "fastest_ms": {name: one * 1e3 for name, one in result.fastest.items()},
        "max_difference": result.max_difference,
    }


def _prepare(wanted: int | None, isa: str | None, own_threads: bool) -> int:
    """Threads and instruction set as asked for; returns how many threads are used."""
    import torch

    from hgca_cli import native

    if isa is not None and isa not in native.isas():
        raise UsageError(f"--isa: this machine has no {isa!r}.", f"Choose from {', '.join(native.isas())}.")
    if isa is not None:
        native.use_isa(isa)
    threads = wanted or native.usable_processors()
    native.set_threads(threads)
    native.share_openmp(not own_threads)
    torch.set_num_threads(threads)
    return threads


def _check_memory(planned: list[tuple[Case, int]], ggml: Ggml | None) -> None:
    """Raises DoesNotFitError if the largest case needs more memory than there is."""
    from hgca_cli.hardware.probe import host_memory

    needed = max(case.memory(layers, llama_cpp=ggml is not None) for case, layers in planned)
    free = host_memory()[1]
    if needed > free:
        raise DoesNotFitError(
            f"the largest case needs {format_bytes(needed)}, and {format_bytes(free)} are free.",
            "Give fewer --rows or --layers.",
        )


def _plot(file: Path, machine: Mapping[str, Any], read: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for one in results:
        tokens = f" {one['tokens']} tokens" if one["tokens"] > 1 else ""
        label = f"{one['shape']} {one['dtype']} {one['pattern']}{tokens}"
        curves.setdefault(label, []).append((one["rows"], one["gb_s"]))
    most = read[-1]
    ceilings = {f"read bandwidth, {most['threads']} threads, median": most["median_gb_s"], "best": most["best_gb_s"]}
    plot_rates(file, f"Attention on {machine['processor']}, {machine['isa']}", curves, ceilings)
