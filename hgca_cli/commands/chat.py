"""`hgca chat`: a conversation, or one answer and done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import options
from hgca_cli.commands.flags import (
    OVERFLOW,
    balance_of,
    dashboard_of,
    exclude,
    exclude_prompt_flags,
    naming_variables,
    one_of,
    plan_request,
    sampling_flags,
    sampling_of,
)
from hgca_cli.commands.inputs import prompt_text, read_document, read_stdin, read_text, stdin_has_text
from hgca_cli.commands.keeping import DISK_LIMIT, Keeper, Keeping, latest_session
from hgca_cli.commands.origins import setter
from hgca_cli.commands.setup import ModelChoice, check_template, plan_model, start_engine
from hgca_cli.commands.wanted import template_options
from hgca_cli.engine.sessions import find_session
from hgca_cli.errors import UsageError
from hgca_cli.events import Notice
from hgca_cli.hf.registry import DEFAULT, aliases
from hgca_cli.ui.console import MARKDOWN, make_sink
from hgca_cli.ui.figures import plan_table
from hgca_cli.ui.style import Style, is_terminal, style_of
from hgca_cli.units import parse_bytes

if TYPE_CHECKING:
    from hgca_cli.commands.inputs import Document
    from hgca_cli.commands.talk import Talk
    from hgca_cli.hardware.settings import PlanRequest
    from hgca_cli.ui.console import Sink


def chat(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Answer this and exit.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Answer this and exit.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", metavar="FILE", help="Text to read first; - is stdin. May be repeated."),
    ] = None,
    model: options.Model = DEFAULT,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    offline: options.Offline = False,
    ctx: options.Ctx = "auto",
    yarn: options.Yarn = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    kv_dtype: options.KvDtype = "auto",
    window: options.Window = "auto",
    sinks: options.Sinks = None,
    select: options.Select = "auto",
    exact: options.Exact = False,
    quality: options.Quality = "auto",
    budget: options.Budget = "auto",
    dense_layers: options.DenseLayers = 0,
    balance: options.Balance = "auto",
    threads: options.Threads = "auto",
    prefill_chunk: options.PrefillChunk = "auto",
    gpu_mem: options.GpuMem = None,
    vram_margin: options.VramMargin = None,
    ram_limit: options.RamLimit = None,
    store_dir: options.StoreDir = None,
    profile: options.Profile = "auto",
    plan: options.ShowPlan = False,
    max_tokens: options.MaxTokens = None,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    system_file: options.SystemFile = None,
    chat_template: options.ChatTemplate = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    json_schema: options.JsonSchema = None,
    json_schema_file: options.JsonSchemaFile = None,
    reasoning_budget: options.ReasoningBudget = None,
    raw: options.Raw = False,
    think: options.Think = None,
    hide_thinking: options.HideThinking = False,
    overflow: options.Overflow = "error",
    session: options.SessionName = None,
    continue_: options.Continue = False,
    no_save: options.NoSave = False,
    no_save_kv: options.NoSaveKv = False,
    no_cache: options.NoCache = False,
    kv_disk_limit: options.KvDiskLimit = DISK_LIMIT,
    reread: options.Reread = False,
    json: options.JsonLines = False,
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats", envvar="HGCA_STATS", help="Figures after an answer. Default: on a terminal."
        ),
    ] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", envvar="HGCA_NO_STREAM", help="Show an answer when it is whole.")
    ] = False,
    markdown: options.Markdown = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", envvar="HGCA_PLAIN", help="No colours, no bar, no line editor.")
    ] = False,
    dashboard: options.Dashboard = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Chat with a model over long documents: the newest rows on the device, the rest in CPU memory.

    With PROMPT, -p or a pipe: one answer, then exit. Without: a conversation.
    """
    given = dict(locals())  # the options, by name
    with naming_variables(context):
        style, request, sampling = _checked(given)
        balanced = balance_of(balance)
        shown = dashboard_of(given)
        made_with = template_options(given)
        template = read_text(chat_template.expanduser(), str(chat_template)) if chat_template else None
        message = _system_message(system, system_file)
        keeping = _keeping(given)
        question, documents = (None, []) if plan else _inputs(given)
        sink = _sink(given, style)
        for text in _meant_otherwise(given):
            sink.show(Notice(text))
        name = latest_session() if continue_ else session
        model, revision = _model_of(context, name, message, model, revision)
        choice = ModelChoice(model, revision, trust_remote_code, offline, template)
        keeper = None if plan or raw else Keeper(keeping, model, revision, one_answer=question is not None)
        if keeper is not None:
            context.call_on_close(keeper.close)
            if name is not None:
                keeper.open(name)  # refused before minutes of loading
        files, planned = plan_model(choice, request, sink.show, profile=profile, elsewhere=plan)
    if plan:
        sink.plan(planned, model, detailed=True) if json else typer.echo(plan_table(planned, model))
        return
    if verbose:
        sink.plan(planned, model, detailed=True)
    elif json or is_terminal(sys.stderr):
        sink.plan(planned, model)
    engine = start_engine(choice, files, planned, balance=balanced)
    check_template(engine.loaded.tokenizer, sampling, think, made_with)
    settings, origins, wrong = sampling_of(sampling, engine.loaded.model.generation_config.to_diff_dict())
    for text in wrong:
        sink.show(Notice(text))
    from hgca_cli.commands.board import with_board
    from hgca_cli.commands.talk import Talk

    sink = with_board(sink, engine, planned, style, shown, as_json=json)
    trim = overflow == "trim-oldest"
    hidden = style.bar and not json
    talk = Talk(
        engine, message, settings, origins, sink, raw=raw, keeper=keeper, plan=planned, trim=trim, unechoed=hidden
    )
    talk.conversation.options |= made_with
    if think is not None:
        talk.think(think)
    for document in documents:
        talk.attach(document)
    if question is not None:
        raise typer.Exit(talk.answer(question))
    _converse(talk, sink, plain=plain or json, color=style.color)


def _keeping(given: Mapping[str, Any]) -> Keeping:
    """What is kept on disk. Raises UsageError for a size that is none."""
    limit = parse_bytes(given["kv_disk_limit"], "--kv-disk-limit")
    save, rows = not given["no_save"], not given["no_save_kv"]
    return Keeping(save=save, rows=rows, cache=not given["no_cache"], limit=limit, reread=given["reread"])


def _model_of(
    context: typer.Context, name: str | None, message: str | None, model: str, revision: str | None
) -> tuple[str, str | None]:
    """The model a session is of, unless another was asked for. Raises UsageError if it has a system message and gets another."""
    there = find_session(name) if name is not None else None
    if there is None or there.record is None:
        return model, revision
    if message is not None and there.record.turns:
        raise UsageError(
            f"session {there.name} has its own beginning: a system message comes too late.",
            "Drop it, or begin another session.",
        )
    if setter(context, "model") is None and setter(context, "revision") is None:
        return there.record.model, there.record.revision
    return model, revision


def _checked(given: Mapping[str, Any]) -> tuple[Style, PlanRequest, dict[str, Any]]:
    """What can be refused without looking at any file."""
    exclude_prompt_flags(given)
    exclude(given, "json", "plain")
    exclude(given, "raw", "session")
    one_of(given["overflow"], "--overflow", OVERFLOW)
    if one_of(given["markdown"], "--markdown", MARKDOWN) == "on" and (given["json"] or given["plain"]):
        other = "--json" if given["json"] else "--plain"
        raise UsageError(f"--markdown on and {other} exclude each other.", "Drop one of them.")
    if given["continue_"] and (given["session"] or given["raw"]):
        other = "--session" if given["session"] else "--raw"
        raise UsageError(f"--continue and {other} exclude each other.", "Drop one of them.")
    if given["reread"] and not (given["continue_"] or given["session"]):
        raise UsageError("--reread needs a session.", "Add --session NAME.")
    if given["prompt"] is not None and given["words"]:
        raise UsageError("--prompt and a prompt without a flag exclude each other.", "Drop one of them.")
    return style_of(given["color"], plain=given["plain"]), plan_request(given), sampling_flags(given)


def _meant_otherwise(given: Mapping[str, Any]) -> list[str]:
    """What is likely meant as other tools take it."""
    told = []
    if given["words"] and given["words"][0] in aliases():
        name = given["words"][0]
        told.append(f"{name} is the name of a model, and taken for the question: -m {name} chooses the model")
    if given["system"] is not None and given["system"].strip().isdigit():
        told.append(f"the system message is {given['system']}: --seed sets the seed")
    return told


def _sink(given: Mapping[str, Any], style: Style) -> Sink:
    stats = given["stats"] if given["stats"] is not None else is_terminal(sys.stderr) and not given["quiet"]
    stream, quiet, verbose = not given["no_stream"], given["quiet"], given["verbose"]
    return make_sink(
        style,
        as_json=given["json"],
        stats=stats,
        stream=stream,
        quiet=quiet,
        verbose=verbose,
        markdown="off" if given["plain"] or given["raw"] else given["markdown"],
        thoughts=not given["hide_thinking"],
    )


def _system_message(text: str | None, file: Path | None) -> str | None:
    if file is not None:
        return read_text(file.expanduser(), str(file)).strip()
    return None if text is None else prompt_text(text, "--system")


def _inputs(given: Mapping[str, Any]) -> tuple[str | None, list[Document]]:
    """The question, None for a conversation, and the documents: a pipe comes before the words of the command line."""
    paths = given["file"] or []
    if paths.count("-") > 1:
        raise UsageError("--file -: standard input can be read only once.", "Give it once.")
    said = given["prompt"] if given["prompt"] is not None else " ".join(given["words"] or ())
    said = prompt_text(said, "the prompt")
    documents = [read_document(path) for path in paths]
    if given["prompt"] is None and not given["words"] and not stdin_has_text():
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("standard input is closed: there is nobody to talk to.", "Give a prompt: hgca chat -p ...")
        return None, documents
    piped = read_stdin() if "-" not in paths and stdin_has_text() else ""
    if not given["raw"]:
        piped = piped.strip()
    question = f"{piped}\n\n{said}" if piped and said else piped or said
    if not question.strip():
        raise UsageError("the prompt is empty.", "Give one: hgca chat -p 'your question'")
    return question, documents


def _converse(talk: Talk, sink: Sink, *, plain: bool, color: bool) -> None:
    from hgca_cli.commands.slash import COMMANDS, FOLLOWING
    from hgca_cli.ui.editor import Editor, make_reader
    from hgca_cli.ui.history import history_file

    def bar() -> str:
        return f" {talk.meter()}   /help   Ctrl-D leaves "

    commands = [f"/{name}" for name in COMMANDS]
    reader = make_reader(commands, FOLLOWING, bar, history_file, plain=plain, color=color)
    if isinstance(reader, Editor):
        sink.note("/help lists what can be typed; Esc Enter begins a new line; Ctrl-D leaves")
    talk.converse(reader)
