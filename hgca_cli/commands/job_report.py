"""How a job ended: its figures, where the answers are, and the command that goes on."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from hgca_cli.errors import ModelError
from hgca_cli.ui.job import job_table

if TYPE_CHECKING:
    from hgca_cli.commands.job import Job


def report(job: Job, summary: dict[str, Any]) -> None:
    """Tell the figures of a job, and write them where --metrics says. Raises ModelError if that cannot be written."""
    given = job.given
    if given["json"]:
        print(json.dumps(summary), flush=True)
    job.view.note(job_table(summary))
    if job.paths[0] is not None and summary["done"] + summary["failed"]:
        apart = f", errors in {job.paths[1]}" if job.paths[1] is not None and summary["failed"] else ""
        job.view.note(f"answers are in {job.paths[0]}{apart}")
    if given["metrics"] is not None:
        try:
            given["metrics"].expanduser().write_text(json.dumps(summary, indent=1) + "\n")
        except OSError as error:
            raise ModelError(
                f"cannot write {given['metrics']}: {error.strerror}.", "Answers are written; the figures are above."
            ) from error


def again(job: Job, begun: bool) -> str:
    """The command that goes on; what it takes out of an output is gone once that was begun."""
    words = sys.argv[1:]
    if "batch" not in words:
        words = ["batch", job.given["source"], *(["-o", str(job.paths[0])] if job.paths[0] else [])]
    return shlex.join(["hgca", *(word for word in words if not begun or word not in ("--overwrite", "--retry-errors"))])
