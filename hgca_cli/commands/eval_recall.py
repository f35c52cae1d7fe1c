"""`hgca eval recall`: what is hidden in long prompts, and whether each policy still finds it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from json import dumps
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import answer_options, eval_options, options
from hgca_cli.commands.eval_asked import check_candidates, lengths_and_depths
from hgca_cli.commands.eval_cases import made_cases, prompt_ids, question_tokens, read_cases
from hgca_cli.commands.eval_policies import Policy, policies_of
from hgca_cli.commands.eval_run import EvalRun, start_run
from hgca_cli.commands.eval_texts import one_name_each
from hgca_cli.commands.files import check_files
from hgca_cli.commands.flag_values import tokens_of
from hgca_cli.commands.flags import naming_variables
from hgca_cli.commands.inputs import read_document
from hgca_cli.errors import ContextOverflowError, UsageError
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.measure.recall_cases import TASKS, Case
from hgca_cli.ui.eval_table import RECALL, RECALL_LEGEND, EvalTable

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine
    from hgca_cli.measure.recall import Answer

Group = tuple[str, int, list[tuple[Case, list[int]]]]  # task, tokens asked for, cases with their prompts' ids


def recall(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="|".join(TASKS),
            help="What is hidden: a number in running text, several, UUID pairs, or lines. May be repeated. "
            "Default: passkey, unless --cases are given.",
        ),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--cases",
            metavar="FILE",
            help='JSON lines, or .gz: {"prompt" or "messages", "answer" or "expected_number", "others": wrong answers, for '
            "--score}. May be repeated.",
        ),
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option("--length", metavar="N[k]", help="Tokens of a made prompt, about. May be repeated. Default: 4k."),
    ] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            "--depth",
            metavar="SHARE",
            help="Where in it the answer lies: 0 is the beginning. May be repeated. Default: spread evenly.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", metavar="N", help="Cases of each task and length, or of each file. Default: 20, or all."
        ),
    ] = None,
    needles: Annotated[int, typer.Option("--needles", metavar="N", help="Numbers hidden by --task needles.")] = 4,
    text: Annotated[
        str | None,
        typer.Option("--text", "-f", metavar="FILE", help="Running text to hide numbers in. Default: made up."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", envvar="HGCA_SEED", metavar="N", help="The same, the same cases.")] = 0,
    max_tokens: Annotated[
        str,
        typer.Option("--max-tokens", "-n", envvar="HGCA_MAX_TOKENS", metavar="N[k]", help="Most tokens of an answer."),
    ] = "48",
    score: Annotated[
        bool, typer.Option("--score", help="Also ask whether the right answer is the likeliest of ten.")
    ] = False,
    appended: Annotated[
        bool, typer.Option("--appended", help="The question is a turn of its own, after the rest was read.")
    ] = False,
    raw: answer_options.Raw = False,
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
    ctx: options.Ctx = "auto",
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
    """How often each policy finds what a long prompt hides, beside full attention.

    A prompt is read exactly once; every policy answers from there, greedily.
    """
    given = dict(locals())
    with naming_variables(context):
        policies = policies_of(select or [], budget or [], quality or [])
        lengths, depths = lengths_and_depths(context, given)
        files = list(dict.fromkeys(cases or ()))
        names = one_name_each([Path(path).name for path in files])
        read = {name: read_cases(path)[:count] for name, path in zip(names, files, strict=True)}
        for name, found in read.items():
            check_candidates(found, name, score=score)
        haystack = read_document(text).text if text else None
        check_files(record, None)
        run = start_run(given)
    groups = [(name, 0, [(one, prompt_ids(run.engine, one, raw=raw)) for one in found]) for name, found in read.items()]
    for name, tokens in product(task or ([] if cases else ["passkey"]), lengths):
        made = made_cases(run.engine, name, tokens, depths, haystack, given)
        groups.append((name, tokens, [(one, prompt_ids(run.engine, one, raw=raw)) for one in made]))
    with run:
        ask_all(run, groups, policies, given)


def ask_all(run: EvalRun, groups: list[Group], policies: list[Policy], given: Mapping[str, Any]) -> None:
    """Every case; a line per group and policy once it is done."""
    from hgca_cli.measure.prompt import Prompt
    from hgca_cli.measure.recall import ask, room_for

    engine = run.engine
    tokens, score = tokens_of(given["max_tokens"], "--max-tokens", endless=False), given["score"]
    compared = [Policy("exact"), *policies]
    rooms = [[room_for(engine, ids, case, tokens, score=score) for case, ids in asked] for _, _, asked in groups]
    for group, needed in zip(groups, rooms, strict=True):
        _check_room(engine, group, needed)
    ways = [one for one in run.settings(compared, engine.context).values() for _ in range(1 + score)]
    per_prompt = Prompt(engine, [0]).reads(ways)  # how often a prompt is read
    run.work.plan({"read": per_prompt * sum(len(ids) - 1 for _, _, asked in groups for _, ids in asked)})
    titles = [f"{name}, {_length(asked):,} tokens" for name, _, asked in groups]
    run.begin(EvalTable(RECALL, titles, [one.name for one in compared], RECALL_LEGEND))
    for title, (name, wanted, asked), needed in zip(titles, groups, rooms, strict=True):
        found: dict[str, list[Answer]] = {}
        for index, ((case, ids), rows) in enumerate(zip(asked, needed, strict=True)):
            run.work.begin(f"{name} {index + 1} of {len(asked)}")
            last = question_tokens(engine, case, ids, raw=given["raw"]) if given["appended"] else 0
            settings = run.settings(compared, rows)
            for policy, one in ask(engine, ids, case, settings, tokens, appended=last, score=score, tell=run.work.tell):
                found.setdefault(policy, []).append(one)
                _tell(run, name, case, policy, one, verbose=given["verbose"])
        for policy, answers in found.items():
            run.result(title, recall_record(name, wanted, _length(asked), policy, answers, found["exact"]))
        if not any(one.right for one in found["exact"]):
            run.say(
                "  full attention answers none of these, so no policy can lose one: shorter prompts or another model tell more"
            )
    run.end()


def recall_record(
    task: str, length: int, tokens: int, policy: str, answers: list[Answer], exact: list[Answer]
) -> dict[str, Any]:
    """One group and policy as plain data (docs/cli.md). exact: the answers to the same cases with every row read."""
    scored = [one for one in answers if one.place is not None]
    return {
        "type": "recall",
        "task": task,
        "length": length or None,
        "tokens": tokens,
        "policy": policy,
        "count": len(answers),
        "right": sum(one.right for one in answers),
        "lost": sum(whole.right and not one.right for one, whole in zip(answers, exact, strict=True)),
        "scored": len(scored),
        "first": sum(one.place == 1 for one in scored) if scored else None,
        "log_prob": mean(one.log_prob for one in scored if one.log_prob is not None) if scored else None,
        "read_share": mean(one.read_share for one in answers),
        "bytes_share": mean(one.bytes_share for one in answers),
        "bytes_read": mean(one.bytes_read for one in answers),
    }


def _length(asked: list[tuple[Case, list[int]]]) -> int:
    """Mean tokens of the prompts."""
    return round(mean(len(ids) for _, ids in asked))


def _check_room(engine: Engine, group: Group, needed: list[int]) -> None:
    """Each prompt fits into the context with its answer, and one of them at least has rows in the store."""
    name, wanted, asked = group
    for number, ((_, ids), rows) in enumerate(zip(asked, needed, strict=True), start=1):
        if rows > engine.context:
            raise ContextOverflowError(
                f"{name}: prompt {number} has {len(ids):,} tokens, and with its answer {rows:,} rows are needed; the "
                f"context is {engine.context:,}.",
                "Lower --length, or raise --ctx." if wanted else "Leave it out, or raise --ctx.",
            )
    held = engine.settings.window + engine.settings.sinks
    if max(needed) <= held:
        raise UsageError(
            f"{name}: window and sinks hold all rows of its prompts: nothing is in the store.", "Lower --window."
        )


def _tell(run: EvalRun, task: str, case: Case, policy: str, one: Answer, *, verbose: bool) -> None:
    if run.as_json:
        line: dict[str, Any] = {"type": "answer", "task": task, "policy": policy, "expected": case.answers[0]}
        line |= {"said": one.said, "right": one.right, "place": one.place, "log_prob": one.log_prob}
        typer.echo(dumps(line))
    elif verbose:
        verdict = "right" if one.right else f"wrong (expected {case.answers[0]})"
        run.say(f"  {policy}: {verdict}: {' '.join(one.said.split())}")
