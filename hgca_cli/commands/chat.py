"""`hgca chat`: a conversation, or one answer and done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import answer_options, options
from hgca_cli.commands.flag_values import balance_of, dashboard_of, guesses_of, guesses_on
from hgca_cli.commands.flags import naming_variables, sampling_of
from hgca_cli.commands.inputs import read_text
from hgca_cli.commands.keeping import DISK_LIMIT, Keeper, anywhere, latest_session
from hgca_cli.commands.origins import setter
from hgca_cli.commands.question import checked, inputs_of, keeping_of, meant_otherwise, system_message
from hgca_cli.commands.setup import ModelChoice, check_template, lost_guesses, plan_model, start_engine
from hgca_cli.commands.wanted import template_options
from hgca_cli.engine.sessions import find_session
from hgca_cli.errors import UsageError
from hgca_cli.events import Notice
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.console import make_sink
from hgca_cli.ui.figures import plan_table
from hgca_cli.ui.style import Style, is_terminal

if TYPE_CHECKING:
    from hgca_cli.commands.talk import Talk
    from hgca_cli.engine.sessions import Listed
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
    quant: options.Quant = "auto",
    kv_dtype: options.KvDtype = "auto",
    window: options.Window = "auto",
    sinks: options.Sinks = None,
    select: options.Select = "auto",
    exact: options.Exact = False,
    quality: options.Quality = "auto",
    budget: options.Budget = "auto",
    dense_layers: options.DenseLayers = 0,
    balance: options.Balance = "auto",
    prompt_lookup: answer_options.PromptLookup = "auto",
    threads: options.Threads = "auto",
    prefill_chunk: options.PrefillChunk = "auto",
    gpu_mem: options.GpuMem = None,
    vram_margin: options.VramMargin = None,
    ram_limit: options.RamLimit = None,
    store_dir: options.StoreDir = None,
    profile: options.Profile = "auto",
    plan: options.ShowPlan = False,
    max_tokens: answer_options.MaxTokens = None,
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
    hide_thinking: answer_options.HideThinking = False,
    overflow: answer_options.Overflow = "error",
    session: answer_options.SessionName = None,
    continue_: answer_options.Continue = False,
    no_save: answer_options.NoSave = False,
    no_save_kv: answer_options.NoSaveKv = False,
    no_cache: answer_options.NoCache = False,
    kv_disk_limit: answer_options.KvDiskLimit = DISK_LIMIT,
    reread: answer_options.Reread = False,
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
    markdown: answer_options.Markdown = "auto",
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
        style, request, sampling = checked(given)
        balanced, guesses = balance_of(balance), guesses_of(prompt_lookup)
        shown = dashboard_of(given)
        made_with = template_options(given)
        template = read_text(chat_template.expanduser(), str(chat_template)) if chat_template else None
        message = system_message(system, system_file)
        keeping = keeping_of(given)
        question, documents = (None, []) if plan else inputs_of(given)
        sink = _sink(given, style)
        for text in meant_otherwise(given):
            sink.show(Notice(text))
        name = latest_session() if continue_ else session
        if name is not None and (there := find_session(name)) is not None:
            model, revision = _model_of(context, there, message, model, revision)
            request = _packed_as(context, there, model, request)
        choice = ModelChoice(model, revision, trust_remote_code, offline, template)
        keeper = None if plan or raw else Keeper(keeping, model, revision, one_answer=question is not None)
        if keeper is not None:
            context.call_on_close(keeper.close)
            if name is not None:
                keeper.open(name)  # refused before minutes of loading
        measure = plan or sampling.get("max_tokens") != 0  # for an answer that is to be fast
        files, planned = plan_model(choice, request, sink.show, profile=profile, elsewhere=plan, measure=measure)
        most = guesses_on(guesses, planned.device)
    if plan:
        sink.plan(planned, model, detailed=True) if json else typer.echo(plan_table(planned, model))
        return
    if verbose:
        sink.plan(planned, model, detailed=True)
    elif json or is_terminal(sys.stderr):
        sink.plan(planned, model)
    engine = start_engine(choice, files, planned, balance=balanced, guesses=most, notify=sink.show)
    if lost := lost_guesses(engine, guesses):
        sink.show(Notice(lost))
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


def _model_of(
    context: typer.Context, there: Listed, message: str | None, model: str, revision: str | None
) -> tuple[str, str | None]:
    """The model a session is of, unless another was asked for. Raises UsageError if it has a system message and gets another."""
    if there.record is None:
        return model, revision
    if message is not None and there.record.turns:
        raise UsageError(
            f"session {there.name} has its own beginning: a system message comes too late.",
            "Drop it, or begin another session.",
        )
    if setter(context, "model") is None and setter(context, "revision") is None:
        return there.record.model, there.record.revision
    return model, revision


def _packed_as(context: typer.Context, there: Listed, model: str, request: PlanRequest) -> PlanRequest:
    """With its model's weights rounded as a session's were, or its rows would be of other weights; unless something else was asked for.

    A file's own bits nobody asked for: they are taken where they would be without a session.
    """
    asked = any(setter(context, name) is not None for name in ("quant", "dtype"))
    if there.record is None or asked or there.record.model != anywhere(model) or there.record.quant == "file":
        return request
    return replace(request, quant=there.record.quant)


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


def _converse(talk: Talk, sink: Sink, *, plain: bool, color: bool) -> None:
    from hgca_cli.commands.slash import COMMANDS, FOLLOWING
    from hgca_cli.ui.editor import Editor, make_reader
    from hgca_cli.ui.history import history_file

    def bar() -> list[str]:
        return [*talk.meter(), "   /help", "   Ctrl-D leaves"]

    commands = [f"/{name}" for name in COMMANDS]
    reader = make_reader(commands, FOLLOWING, bar, history_file, plain=plain, color=color)
    if isinstance(reader, Editor):
        sink.note("/help lists what can be typed; Esc Enter begins a new line; Ctrl-D leaves")
    talk.converse(reader)
