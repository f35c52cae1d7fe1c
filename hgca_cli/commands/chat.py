"""`hgca chat`: a conversation, or one answer and done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgca_cli.commands import options
from hgca_cli.commands.inputs import decode_text, prompt_text, read_document, read_stdin, stdin_has_text
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.console import make_sink, plan_table

if TYPE_CHECKING:
    from hgca_cli.commands.inputs import Document
    from hgca_cli.hardware.plan import PlanRequest


def chat(
    prompt_words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="Answer this and exit.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and exit.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="Text file to read first; - is standard input. May be repeated."),
    ] = None,
    model: options.Model = DEFAULT,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    offline: options.Offline = False,
    ctx: options.Ctx = None,
    yarn: options.Yarn = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    kv_dtype: options.KvDtype = "auto",
    window: options.Window = "auto",
    sinks: options.Sinks = None,
    select: options.Select = "auto",
    exact: options.Exact = False,
    budget: options.Budget = "auto",
    threads: options.Threads = None,
    prefill_chunk: options.PrefillChunk = None,
    gpu_mem: options.GpuMem = None,
    ram_limit: options.RamLimit = None,
    max_tokens: options.MaxTokens = None,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    system_file: options.SystemFile = None,
    chat_template: options.ChatTemplate = None,
    raw: options.Raw = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be where, and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")] = False,
    stats: Annotated[
        bool | None, typer.Option("--stats/--no-stats", help="Figures after each answer. Default: on a terminal.")
    ] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Show an answer when it is whole.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No colours, bars or line editor.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the answer and errors.")] = False,
) -> None:
    """Chat with a model over long documents: the newest rows on the device, the rest in CPU memory.

    With PROMPT, -p or a pipe: one answer, then exit. Without: a conversation.
    """
    from hgca_cli.commands.talk import Talk, sampling_of
    from hgca_cli.engine.conversation import Conversation

    request = _request(
        device,
        dtype,
        kv_dtype,
        ctx,
        window,
        sinks,
        prefill_chunk,
        threads,
        select,
        exact,
        budget,
        gpu_mem,
        ram_limit,
        yarn,
    )
    chosen = {
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": tuple(stop) if stop else None,
    }
    sampling_of(chosen, {})  # a bad value is refused before anything loads
    template = _text_of(chat_template, "--chat-template")
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude each other.", "Drop one of them.")
    system = prompt_text(system, "--system") if system is not None else _text_of(system_file, "--system-file")
    one_shot = prompt is not None or bool(prompt_words) or stdin_has_text()
    question, documents = (None, []) if plan else _inputs(prompt, prompt_words, file, one_shot)

    watched = sys.stderr is not None and sys.stderr.isatty()
    sink = make_sink(
        as_json=as_json,
        stats=(watched if stats is None else stats) and not quiet,
        stream=not no_stream,
        quiet=quiet,
        plain=plain,
    )
    choice = ModelChoice(model, revision, trust_remote_code, offline, template)
    planned = plan_model(choice, request, sink.show)
    if plan:
        sink.plan(planned, model) if as_json else typer.echo(plan_table(planned, model))
        return
    if as_json or watched:
        sink.plan(planned, model)
    engine = start_engine(choice, planned, sink.show)
    sampling = sampling_of(chosen, engine.loaded.model.generation_config.to_diff_dict())
    conversation = Conversation(engine, system)
    talk = Talk(engine, conversation, sampling, sink, raw=raw, plain=plain)
    for document in documents:
        talk.attach(document)
    if question is not None:
        raise typer.Exit(talk.answer(question))
    talk.converse()


def _request(
    device: str,
    dtype: str,
    kv_dtype: str,
    ctx: str | None,
    window: str,
    sinks: int | None,
    chunk: int | None,
    threads: int | None,
    select: str,
    exact: bool,
    budget: str,
    gpu_mem: str | None,
    ram_limit: str | None,
    yarn: bool,
) -> PlanRequest:
    """Flags as a plan request. Raises UsageError for what is out of range or contradicts itself."""
    from hgca_cli.config import KV_DTYPES
    from hgca_cli.hardware.plan import PlanRequest

    for flag, value, least in (("--sinks", sinks, 0), ("--prefill-chunk", chunk, 1)):
        if value is not None and not least <= value <= options.MOST_ROWS:
            raise UsageError(f"{flag}: {value} is out of range.", f"Give {least} to {options.MOST_ROWS}.")
    policy, share = options.policy_of(select, exact, budget)
    context = options.count_of(ctx, "--ctx")
    if yarn and context is None:
        raise UsageError("--yarn needs a length to stretch to.", "Add --ctx, like --ctx 32k.")
    return PlanRequest(
        device=device,
        dtype=options.choice_of(dtype, "--dtype", KV_DTYPES),
        kv_dtype=options.choice_of(kv_dtype, "--kv-dtype", KV_DTYPES),
        context=context,
        window=options.count_of(window, "--window"),
        sinks=sinks,
        chunk=chunk,
        threads=options.threads_of(threads),
        select=policy,
        budget=share,
        gpu_memory=options.bytes_of(gpu_mem, "--gpu-mem"),
        ram_limit=options.bytes_of(ram_limit, "--ram-limit"),
        yarn=yarn,
    )


def _inputs(
    prompt: str | None, words: list[str] | None, files: list[str] | None, one_shot: bool
) -> tuple[str | None, list[Document]]:
    """The question, None for a conversation, and the documents: a pipe comes before the words of the command line."""
    if prompt is not None and words:
        raise UsageError("--prompt and a prompt without a flag exclude each other.", "Drop one of them.")
    documents = [read_document(path) for path in files or ()]
    said = prompt if prompt is not None else " ".join(words or ())
    said = prompt_text(said, "the prompt")
    if not one_shot:
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("standard input is closed: there is nobody to talk to.", "Give a prompt: hgca chat -p ...")
        return None, documents
    piped = read_stdin().strip() if "-" not in (files or ()) and stdin_has_text() else ""
    question = f"{piped}\n\n{said}" if piped and said else piped or said
    if not question.strip():
        raise UsageError("the prompt is empty.", "Give one: hgca chat -p 'your question'")
    return question, documents


def _text_of(path: Path | None, flag: str) -> str | None:
    if path is None:
        return None
    try:
        return decode_text(path.expanduser().read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{flag}: {path}: {error.strerror}.", "Check the path.") from error
