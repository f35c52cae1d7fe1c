"""`hgca doctor`: what there is, every setting of a run with its origin, and what looks wrong. Nothing is measured or fetched."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from json import dumps
from typing import TYPE_CHECKING, Any

import typer

from hgca_cli.commands import answer_options, options
from hgca_cli.commands.diagnosis import diagnose
from hgca_cli.commands.flag_values import balance_of, guesses_of, one_of
from hgca_cli.commands.flags import OVERFLOW, exclude_prompt_flags, naming_variables, plan_request, sampling_flags
from hgca_cli.commands.wanted import template_options
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.ui.doctor_table import doctor_lines, finding_lines
from hgca_cli.ui.style import Style, style_of
from hgca_cli.ui.wrapped import columns_of, wrapped

if TYPE_CHECKING:
    from hgca_cli.hardware.settings import PlanRequest

# Variables that are no option's
VARIABLES = ("HGCA_CACHE_DIR", "HGCA_CONFIG", "HGCA_DATA_DIR", "HGCA_PROFILE_DIR", "HGCA_ISA", "HGCA_CUDA_GRAPHS")


def doctor(
    context: typer.Context,
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
    overflow: answer_options.Overflow = "error",
    json: options.JsonDocument = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Show environment, kernels, devices, profile, models, every setting with its origin, and what looks wrong.

    Takes the settings of chat and says what they would lead to. Measures, fetches and changes nothing. --quiet leaves the
    findings, --verbose adds the profile's figures.
    """
    given = dict(locals())
    with naming_variables(context):
        style, request, sampling = _checked(given)
    found = diagnose(context, given, request, sampling, known_variables(context))
    if json:
        typer.echo(dumps(found.record))
    else:
        shown = [] if quiet else doctor_lines(found.facts, found.settings, verbose=verbose)
        text = "\n".join([*shown, *finding_lines(found.findings, color=style.color)])
        typer.echo(wrapped(text, columns_of(sys.stdout)), color=style.color)
    raise typer.Exit(found.exit_code)


def known_variables(context: typer.Context) -> set[str]:
    """The variables of all commands' options, and those that are no option's."""
    found = set(VARIABLES)
    commands: list[Any] = [context.find_root().command]
    while commands:
        command = commands.pop()
        found |= {one.envvar for one in command.params if isinstance(one.envvar, str)}
        commands += getattr(command, "commands", {}).values()
    return found


def _checked(given: Mapping[str, Any]) -> tuple[Style, PlanRequest, dict[str, Any]]:
    """What can be refused without looking at anything, as chat would."""
    exclude_prompt_flags(given)
    balance_of(given["balance"])
    guesses_of(given["prompt_lookup"])
    one_of(given["overflow"], "--overflow", OVERFLOW)
    template_options(given)
    request, sampling = plan_request(given), sampling_flags(given)
    return style_of(given["color"], plain=False, stream=sys.stdout), request, sampling
