"""`hgca batch --dry-run`: every line checked, its tokens counted, and what a run would take. No weights are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hgca_cli.batch.check import Checked
from hgca_cli.batch.lines import Lines
from hgca_cli.batch.rows import Reader
from hgca_cli.errors import HgcaError
from hgca_cli.units import format_seconds

if TYPE_CHECKING:
    from hgca_cli.commands.job import Job

FAILED = 3


def count_tokens(job: Job, lines: Lines, reader: Reader, checked: Checked) -> int:
    """Tell what the job is; returns the exit code: 3 if rows will fail."""
    from hgca_cli.batch.work import prompt_ids
    from hgca_cli.commands.setup import check_template
    from hgca_cli.hf.tokenizer import Tokenizer

    choice, files, plan, sizes = job.plan()
    tokenizer = Tokenizer.load(files.path, trust_remote_code=choice.trust_remote_code)
    if job.template is not None:
        tokenizer.with_template(job.template)
    check_template(tokenizer, job.sampling, job.given["think"], job.template_options)
    prompts: list[int] = []
    answers = failing = 0
    good = [entry for entry in checked.entries if entry.error is None]
    for entry in good:
        row = reader.row(lines.at(entry.begin, entry.number))
        try:
            length = len(prompt_ids(row, tokenizer, job.options(), plan.context))
        except HgcaError as error:
            job.view.note(f"line {entry.number:,}: {error}")
            failing += 1
            continue
        if length == 0 or length >= plan.context:
            what = "the prompt has no token" if not length else f"{length:,} tokens, the context is {plan.context:,}"
            job.view.note(f"line {entry.number:,}: {what}")
            failing += 1
            continue
        most = row.settings.get("max_tokens", job.given["max_tokens"])
        prompts += [length] * row.choices
        answers += row.choices * min(most, plan.context - length)
    slots = job.slots or sizes.sequences(job.common_length(good), shared=job.shared_length(good))
    mean = answers // max(1, len(prompts))
    told: dict[str, Any] = {
        "rows": len(checked.entries),
        "invalid": len(checked.bad) + failing,
        "prompt_tokens": sum(prompts),
        "longest_prompt": max(prompts, default=0),
        "most_completion_tokens": answers,
        "context": plan.context,
        "concurrency": slots,
        "seconds": round(sizes.seconds(prompts, mean, slots), 1),
    }
    if job.given["json"]:
        print(json.dumps(told), flush=True)
    job.view.tell(
        f"{told['rows']:,} rows, {told['invalid']:,} of them cannot run\n"
        f"prompts: {told['prompt_tokens']:,} tokens, the longest {told['longest_prompt']:,}; "
        f"answers: at most {answers:,} tokens\n"
        f"{slots} rows at once; at most {format_seconds(told['seconds'])} (predicted; prompts that begin alike take less)"
    )
    return FAILED if told["invalid"] else 0
