"""`hgca batch`: a file of prompts in, a file of answers out."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hgca_cli.batch.results import FORMATS
from hgca_cli.commands import answer_options, options
from hgca_cli.commands.flag_values import count_of, dashboard_of, guesses_of, one_of, tokens_of
from hgca_cli.commands.flags import exclude, exclude_prompt_flags, naming_variables, plan_request, sampling_flags
from hgca_cli.commands.inputs import prompt_text, read_text, stdin_is_piped
from hgca_cli.commands.wanted import template_options
from hgca_cli.errors import UsageError
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.style import style_of

MAX_TOKENS = 512  # of an answer, unless a row or the command line says otherwise
DESCRIPTOR = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")
SUFFIX = ".out.jsonl"
ENGINES = ("local", "ray")


def batch(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="JSON lines; - is standard input, as is none behind a pipe.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where answers go; - is standard output. Default: INPUT with .out.jsonl in place of its ending.",
        ),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="Lines of rows that failed go there instead.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Every line of INPUT is a prompt, and no JSON.")] = False,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help='Directory of the files that rows name: {"file": "book.txt"}.'),
    ] = None,
    output_format: Annotated[
        str,
        typer.Option(
            "--output-format", metavar="auto|openai|simple", help="Form of an answer's line. auto: that of its row."
        ),
    ] = "auto",
    group_prefix: Annotated[
        bool,
        typer.Option(
            "--group-prefix/--no-group-prefix", help="Rows that begin alike run next to each other, and share that."
        ),
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="A line that cannot run ends the job before it begins.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew: what the output holds is lost.")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Rows that failed are done again.")] = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Answers in the order of the input, not as they are finished.")
    ] = False,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N", help="Most rows at once. auto: what pays, and fits.")
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="local|ray", help="Where rows run: here, or on a Ray cluster (hgca[ray])."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="The Ray cluster. Default: this machine's, or a new one.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Only every N-th row, from the I-th on: a share of the job.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every line, count tokens, show the plan and what it will take.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.0,
            help="Most that one row's own work may take: waiting is not counted.",
        ),
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option("--max-errors", metavar="N", min=0, help="End when more rows than this failed.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", metavar="FILE", help="The figures at the end, as JSON, into a file.")
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", metavar="FILE", help="What is told goes into a file, too, with the time."),
    ] = None,
    json: options.JsonDocument = False,
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
    prompt_lookup: answer_options.JobLookup = "auto",
    threads: options.Threads = "auto",
    prefill_chunk: options.PrefillChunk = "auto",
    gpu_mem: options.GpuMem = None,
    vram_margin: options.VramMargin = None,
    ram_limit: options.RamLimit = None,
    store_dir: options.StoreDir = None,
    profile: options.Profile = "auto",
    max_tokens: answer_options.BatchTokens = str(MAX_TOKENS),
    temp: answer_options.Temp = None,
    top_k: answer_options.TopK = None,
    top_p: answer_options.TopP = None,
    min_p: answer_options.MinP = None,
    repeat_penalty: answer_options.RepeatPenalty = None,
    presence_penalty: answer_options.PresencePenalty = None,
    frequency_penalty: answer_options.FrequencyPenalty = None,
    seed: answer_options.Seed = None,
    stop: answer_options.Stop = None,
    system: answer_options.System = None,
    system_file: answer_options.SystemFile = None,
    chat_template: answer_options.ChatTemplate = None,
    chat_template_kwargs: answer_options.ChatTemplateKwargs = None,
    json_schema: answer_options.JsonSchema = None,
    json_schema_file: answer_options.JsonSchemaFile = None,
    reasoning_budget: answer_options.ReasoningBudget = None,
    raw: answer_options.Raw = False,
    think: answer_options.Think = None,
    plain: Annotated[
        bool, typer.Option("--plain", envvar="HGCA_PLAIN", help="No colours, and nothing that redraws itself.")
    ] = False,
    dashboard: options.JobDashboard = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Answer every row of a file. Whatever ends it, the same command goes on with the rows that are missing.

    A row is a line: an OpenAI Batch request, {"prompt": ...}, {"messages": [...]}, or a JSON string.
    """
    given = dict(locals())  # the options, by name
    with naming_variables(context):
        if source is None:
            given["source"] = _piped()
        exclude_prompt_flags(given)
        for one, other in (("overwrite", "retry_errors"), ("dry_run", "overwrite"), ("text", "root")):
            exclude(given, one, other)
        if one_of(engine, "--engine", ENGINES) == "local" and address is not None:
            raise UsageError("--address names a Ray cluster.", "Add --engine ray.")
        one_of(output_format, "--output-format", FORMATS)
        share = shard_of(shard)
        given["guesses"] = guesses_of(prompt_lookup)
        slots = count_of(concurrency, "--concurrency", 4096)
        given["max_tokens"] = tokens_of(max_tokens, "--max-tokens", endless=False)
        style, request, sampling = style_of(color, plain=plain), plan_request(given), sampling_flags(given)
        paths, shown = _paths(given, share), dashboard_of(given, ("quiet",))
        said = read_text(system_file.expanduser(), str(system_file)).strip() if system_file else system
        made_with = template_options(given)
        template = read_text(chat_template.expanduser(), str(chat_template)) if chat_template else None
    from hgca_cli.commands.job import Job

    job = Job(
        given=given,
        paths=paths,
        style=style,
        request=request,
        sampling=sampling,
        system=None if said is None else prompt_text(said, "--system"),
        template=template,
        template_options=made_with,
        slots=slots,
        shard=share,
        profile=profile,
        dashboard=shown,
    )
    context.call_on_close(job.close)
    raise typer.Exit(job.done(job.count if dry_run else job.run))


def _piped() -> str:
    """The input nobody named. Raises UsageError where nothing is piped in."""
    if not stdin_is_piped():
        raise UsageError("Missing argument 'INPUT'.", "Name a file of JSON lines, or pipe them in.")
    return "-"


def shard_of(text: str | None) -> tuple[int, int]:
    """Which of how many shares, counted from 1. Raises UsageError."""
    if text is None:
        return 1, 1
    which, slash, of = text.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal() and which.isascii() and of.isascii() and len(text) < 20):
        raise UsageError(f"--shard: {text!r} is no share of a job.", "Give I/N, like 2/4 for the second of four.")
    if not 1 <= int(which) <= int(of):
        raise UsageError(
            f"--shard: there is no {which} of {of}.",
            f"Give 1/{max(1, int(of))} to {max(1, int(of))}/{max(1, int(of))}.",
        )
    return int(which), int(of)


def _paths(given: Mapping[str, Any], shard: tuple[int, int] = (1, 1)) -> tuple[Path | None, Path | None]:
    """Where answers and errors go: None is standard output, and no file of their own. Raises UsageError."""
    source, output = given["source"], given["output"]
    if output is None:
        if source == "-" or _is_stream(Path(source).expanduser()):
            output = "-"
        else:
            path = Path(source).expanduser()
            if not path.name or path.is_dir():
                raise UsageError(f"{source} is a directory.", "Name a file of JSON lines.")
            part = "" if shard[1] == 1 else f".{shard[0]}of{shard[1]}"
            output = str(path.with_name(path.stem + part + SUFFIX))
    answers = None if output == "-" else Path(output).expanduser()
    errors = given["errors"].expanduser() if given["errors"] is not None else None
    if answers is None and given["json"]:
        raise UsageError("--json and answers on standard output exclude each other.", "Name a file with -o.")
    if answers is None and (given["overwrite"] or given["retry_errors"] or errors is not None):
        flag = "--errors" if errors is not None else "--overwrite" if given["overwrite"] else "--retry-errors"
        raise UsageError(f"{flag} needs an output in a file.", "Name one with -o.")
    named = (("o", answers), ("-errors", errors), ("-metrics", given["metrics"]), ("-log-file", given["log_file"]))
    there = [one for _, one in named if one is not None]
    for flag, one in named:
        if (
            one is not None and not one.expanduser().absolute().parent.is_dir()
        ):  # not to be found out when all is read, or done
            raise UsageError(f"cannot write {one}: there is no such directory.", f"Name another file with -{flag}.")
    for at, (flag, one) in enumerate((flag, one) for flag, one in named if one is not None):
        if one.is_dir():
            raise UsageError(f"cannot write {one}: it is a directory.", "Name a file.")
        if source != "-" and _same(one, Path(source).expanduser()):
            raise UsageError(f"{one} is the input: it would be lost.", f"Name another file with -{flag}.")
        if any(_same(one, other) for other in there[:at]):
            raise UsageError(f"{one} is named for two things.", "Name another.")
    return answers, errors


def _is_stream(source: Path) -> bool:
    """Whether an input is a pipe, a device or a descriptor, beside which no file of answers belongs."""
    if DESCRIPTOR.fullmatch(str(source)):
        return True
    try:
        return stat.S_ISFIFO(mode := source.stat().st_mode) or stat.S_ISCHR(mode)
    except OSError:  # not there, or not to be looked at: told where it is read
        return False


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever links."""
    try:
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
    except (OSError, RuntimeError):
        return False
