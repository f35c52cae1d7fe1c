"""A job on an engine: lines become requests when there is room for them, answers become lines when they are whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from hgca_cli.batch.check import Entry, shown
from hgca_cli.batch.lines import Lines
from hgca_cli.batch.logprobs import of_messages, of_text
from hgca_cli.batch.output import Output
from hgca_cli.batch.results import Choice, answered, failed, openai_form
from hgca_cli.batch.rows import COMPLETION, Reader, Row, RowError, bad_row
from hgca_cli.batch.tally import Tally
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.prefill import check_characters, check_room
from hgca_cli.engine.reasoning import BEGIN, ThoughtStream
from hgca_cli.errors import HgcaError
from hgca_cli.events import Done, Notice
from hgca_cli.hf.tokenizer import Tokenizer


class TooManyErrorsError(HgcaError):
    """More rows failed than may."""

    exit_code = 3
    code = "too_many_errors"


@dataclass(frozen=True)
class Terms:
    """How rows are answered.

    sampling  of rows that set nothing; options: for the chat template
    form      one of results.FORMATS; model: its name in answers
    seconds   most for one row; errors: most rows that may fail; None: no limit
    """

    sampling: SamplingSettings
    model: str
    form: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    errors: int | None = None


class Work:
    """The rows of a job that are missing. tell: what became of a row that failed, once it ran."""

    def __init__(
        self,
        lines: Lines,
        reader: Reader,
        output: Output,
        terms: Terms,
        tally: Tally,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._tell = tell
        self.begun = False
        self.lines, self.reader, self._output, self.terms = lines, reader, output, terms
        self.tally = tally
        self._open: dict[str, _Open] = {}  # rows that run, by id

    def begin(self, told: Mapping[str, Any], bad: Iterable[Entry]) -> None:
        """From here on the output is this job's (`told`: of Output.begin). Lines that cannot run get theirs."""
        self._output.begin(told)
        self.begun = True
        for entry in bad:
            self.refuse(entry, known=True)

    def refuse(self, entry: Entry, *, known: bool = False) -> None:
        """A line that cannot run gets its line in the output. known: it was told already."""
        assert entry.error is not None
        row = Row(entry.number, entry.id, entry.form, digest=entry.digest)
        self._fail(row, entry, *entry.error, known=known)

    def run(
        self,
        batch: Batch,
        entries: Iterable[Entry | None],
        stop: threading.Event,
        notify: Callable[[Notice | Progress], None],
    ) -> None:
        """Answer these rows; ends early once `stop` is set, with what is finished written. None among them: there is no other at
        present; with nothing to run this ends it.

        Raises TooManyErrorsError, and what writing the output raises.
        """
        events = batch.run(self._requests(entries, batch), stop)
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Answer):
                    self._take(event, batch)
                    continue
                if isinstance(event, Progress):
                    self.tally.read += event.read
                    self.tally.written += event.written
                    self.tally.running, self.tally.waiting = event.writing, event.reading
                    self.tally.aside, self.tally.set_aside = event.aside, batch.set_aside
                notify(event)

    def _requests(self, entries: Iterable[Entry | None], batch: Batch) -> Iterator[Request | None]:
        for entry in entries:
            if entry is None:
                yield None
                continue
            line = self.lines.at(entry.begin, entry.number)
            row = bad_row(line, self.reader)
            try:
                row = self.reader.row(line)
                ids = self.ids(row, batch)
                check_room(len(ids), batch.engine.context, batch.engine.loaded.trained_context)
                sampling = replace(self.terms.sampling, **row.settings)
                guides = [batch.engine.guide(sampling) for _ in range(row.choices)]
            except RowError as error:  # a file it names has changed
                self._fail(row, entry, error.message, error.code)
                continue
            except HgcaError as error:
                self._fail(row, entry, str(error), error.code)
                continue
            opened = self._open[row.id] = _Open(row, entry, [None] * row.choices, self._thinks(ids, row, batch))
            for choice, guide in enumerate(guides):
                if opened.failed:
                    break
                seed = sampling.seed if sampling.seed is None else (sampling.seed + choice) % 2**63
                yield Request(
                    (row.id, choice),
                    ids,
                    replace(sampling, seed=seed),
                    continues=row.messages is None,
                    seconds=self.terms.seconds,
                    likeliest=row.likeliest,
                    guide=guide,
                    thinks=opened.thinks,
                )

    def ids(self, row: Row, batch: Batch) -> list[int]:
        """The tokens of a row's prompt. Raises HgcaError if its template fails."""
        return prompt_ids(row, batch.engine.loaded.tokenizer, self.terms.options, batch.engine.context)

    def _thinks(self, ids: list[int], row: Row, batch: Batch) -> bool:
        return row.messages is not None and batch.engine.loaded.tokenizer.ends_with(ids, BEGIN)

    def _take(self, answer: Answer, batch: Batch) -> None:
        name, choice = answer.request.key
        opened = self._open.get(name)
        if opened is None:  # another answer of this row failed
            return
        if answer.done is None:
            error = answer.error
            assert error is not None
            opened.failed = True
            del self._open[name]
            self._fail(opened.row, opened.entry, str(error), error.code, answer.text)
            return
        opened.done[choice] = answer
        whole = [one for one in opened.done if one is not None]
        if len(whole) < len(opened.done):
            return
        del self._open[name]
        openai = openai_form(opened.row, self.terms.form)
        choices = [_choice(one, opened, batch.engine.loaded.tokenizer) for one in whole]
        record = answered(opened.row, choices, openai=openai, model=self.terms.model, created=int(time.time()))
        self._output.write(name, record)
        self.tally.finish(opened.entry.size, [one.done for one in whole if one.done is not None])

    def take(self, name: str, record: Mapping[str, Any], size: int, answers: Sequence[Done]) -> None:
        """A row that was answered elsewhere: its line, and what it took. Errors as of `run`."""
        self._output.write(name, record)
        self.tally.finish(size, answers)
        if not answers:
            self._lost(f"id {shown(name)}", record["error"]["message"])

    def _fail(self, row: Row, entry: Entry, message: str, code: str, partial: str = "", *, known: bool = False) -> None:
        openai = openai_form(row, self.terms.form)
        self._output.write(entry.id, failed(row, message, code, openai=openai, partial=partial))
        self.tally.finish(entry.size, ())
        self._lost(f"line {entry.number:,}", message, known=known)

    def _lost(self, which: str, message: str, *, known: bool = False) -> None:
        if not known:
            self._tell(f"{which} failed: {message}")
        most = self.terms.errors
        if most is not None and self.tally.failed > most:
            raise TooManyErrorsError(
                f"{self.tally.failed:,} rows failed, the last one ({which}): {message.rstrip('.')}.",
                "Look at the output's errors, or raise --max-errors.",
            )


@dataclass
class _Open:
    """A row that runs, and its answers so far. thinks: its prompt ended with the mark a thought begins with."""

    row: Row
    entry: Entry
    done: list[Answer | None]
    thinks: bool
    failed: bool = False


def prompt_ids(row: Row, tokenizer: Any, options: dict[str, Any], context: int) -> list[int]:
    """Token ids of a row's prompt. Raises HgcaError if the chat template fails, for ids that are not there, or for a text that is
    so much longer than the context that it costs gigabytes to find out by how much.
    """
    characters = len(row.prompt) + sum(len(one["content"]) for one in row.messages or ())
    check_characters("prompt", characters, tokenizer, context)
    if row.ids is not None:
        if max(row.ids) > tokenizer.largest_id:
            raise HgcaError(f"prompt: there is no token {max(row.ids)}.", f"The largest is {tokenizer.largest_id}.")
        return row.ids
    if row.messages is None:
        return list(tokenizer.encode_prompt(row.prompt))
    return list(tokenizer.encode_chat(row.messages, add_generation_prompt=True, **{**options, **row.options}))


def _choice(answer: Answer, opened: _Open, tokenizer: Tokenizer) -> Choice:
    done = answer.done
    assert done is not None
    text, thought = done.text, ""
    if opened.row.messages is not None:
        stream = ThoughtStream(open=opened.thinks)
        stream.push(text)
        stream.finish()
        text, thought = stream.text, stream.thought
    timings = {
        "prefill_seconds": round(done.prefill_seconds, 4),
        "ttft_seconds": round(done.ttft_seconds, 4),
        "decode_seconds": round(done.decode_seconds, 4),
        "tokens_per_second": round(done.tokens_per_second, 2),
    }
    rows = {
        "window": done.rows.window,
        "store": done.rows.store,
        "read_share": round(done.rows.read_share, 4),
        "quality": None if done.rows.quality is None else round(done.rows.quality, 4),
    }
    logprobs = None
    if opened.row.likeliest is not None:
        shape = of_text if opened.row.form == COMPLETION else of_messages
        logprobs = shape(answer.chances, tokenizer)
    return Choice(
        text, thought, done.finish_reason, done.prompt_tokens, done.cached_tokens, done.completion_tokens, done.seed,
        timings, rows, logprobs,
    )  # fmt: skip
