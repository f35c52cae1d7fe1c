"""One line of a job to one request: OpenAI Batch lines, plain objects, bare strings, or plain text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hgca_cli.batch.lines import Line
from hgca_cli.batch.settings import read_settings

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
OWN = ("prompt", "messages", "id", "custom_id", "task_id", "file")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_SHOWN = 60
PARTS = 'a part is {"type": "text", "text": "..."} or {"file": "PATH"}'


class RowError(Exception):
    """What is wrong with one line; the others go on. code: the machine-readable word."""

    def __init__(self, message: str, code: str = "invalid_row") -> None:
        super().__init__(message)
        self.message, self.code = message, code


@dataclass(frozen=True)
class Row:
    """A request.

    id        what its line calls it, "line-N" if it does not
    form      CHAT or COMPLETION for an OpenAI line, "" for a line of our own
    messages  of a conversation; None for a text to continue, which is `prompt`, or `ids` if its tokens were given
    settings  sampling settings the line sets
    choices   answers that are wanted
    options   for the chat template, before those of the job
    likeliest tokens whose chances are told at each place; None: no chances
    unknown   fields that nobody looks at
    digest    of the line and the documents in it
    """

    number: int
    id: str
    form: str
    messages: list[dict[str, Any]] | None = None
    prompt: str = ""
    ids: list[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 1
    likeliest: int | None = None
    model: str = ""
    unknown: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Reader:
    """How lines are read. text: every line is a prompt; raw: prompts are continued, without a chat template.

    document  the name and the text of a file a line names
    """

    text: bool = False
    raw: bool = False
    system: str | None = None
    document: Callable[[str], tuple[str, str]] | None = None

    def row(self, line: Line) -> Row:
        """The request of a line. Raises RowError; `id_of` then says what to call it."""
        content = text_of(line)
        documents: list[str] = []
        if self.text:
            row = Row(line.number, name_of(line.number), "", **self._asked(content))
        else:
            row = self._object(line.number, parse(content), documents)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass"))
        for text in documents:
            digest.update(hashlib.sha256(text.encode()).digest())
        return _with_digest(row, digest.hexdigest()[:16])

    def _object(self, number: int, value: Any, documents: list[str]) -> Row:
        if isinstance(value, str):
            return Row(number, name_of(number), "", **self._asked(_unicode(value, "the prompt")))
        if not isinstance(value, dict):
            raise RowError(f"a line is a JSON object or a string, not {_kind(value)}")
        name = id_of(value, number)
        if "body" in value or "url" in value:
            return self._openai(number, name, value, documents)
        if ("prompt" in value) == ("messages" in value):
            raise RowError('a line has either "prompt" or "messages"' + (", not both" if "prompt" in value else ""))
        settings = read_settings({key: one for key, one in value.items() if key not in OWN}, RowError)
        if "messages" in value and value.get("file") is not None:
            raise RowError('"file" belongs to a "prompt"; in messages a part of a content names one')
        if "messages" in value:
            asked: dict[str, Any] = {"messages": self._messages(value["messages"], documents)}
        else:
            before = "".join(self._document(name, documents) for name in _files(value.get("file")))
            asked = self._asked(_text(value["prompt"], "prompt"), before)
        return Row(number, name, "", **asked, **settings)

    def _openai(self, number: int, name: str, value: dict[str, Any], documents: list[str]) -> Row:
        url, body = value.get("url"), value.get("body")
        if str(value.get("method", "POST")).upper() != "POST":
            raise RowError(f"method {_shown(value['method'])} is not POST")
        if url is None and isinstance(body, dict):  # as Together's lines: what is asked tells it
            url = COMPLETION if "prompt" in body and "messages" not in body else CHAT
        if url not in (CHAT, COMPLETION, None):
            raise RowError(f"url {_shown(url)} is not supported; {CHAT} and {COMPLETION} are", "unsupported")
        if not isinstance(body, dict):
            raise RowError(f"body is {_kind(body)}, not an object")
        told = {key: one for key, one in body.items() if key not in ("prompt", "messages")}
        settings = read_settings(told, RowError, counted=url == COMPLETION)
        if url == CHAT:
            if "messages" not in body:
                raise RowError("body has no messages")
            return Row(number, name, CHAT, messages=self._messages(body["messages"], documents), **settings)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, list):
            if not prompt or not all(type(one) is int and one >= 0 for one in prompt):
                raise RowError("prompt is neither a text nor a list of token ids; give several prompts a line each")
            return Row(number, name, COMPLETION, ids=prompt, **settings)
        return Row(number, name, COMPLETION, prompt=_text(prompt, "prompt"), **settings)

    def _asked(self, prompt: str, before: str = "") -> dict[str, Any]:
        if not prompt.strip():
            raise RowError("the prompt is empty")
        if self.raw:
            return {"prompt": before + prompt}
        return {"messages": [*self._system(), {"role": "user", "content": before + prompt}]}

    def _document(self, path: str, documents: list[str], where: str = "") -> str:
        """The text of a file a line names, as it stands before a question."""
        if self.document is None:
            raise RowError(f"{where}{path!r:.60} is a file: files are read under --root only", "file")
        name, text = self.document(path)
        documents.append(text)
        return f"{text}\n\n" if self.raw else f"{name}:\n\n{text.strip()}\n\n"

    def _messages(self, value: Any, documents: list[str]) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise RowError("messages is not a list of messages" if not isinstance(value, list) else "messages is empty")
        if self.raw:
            raise RowError('messages need a chat template: give a "prompt", or leave --raw out')
        made = []
        for at, message in enumerate(value):
            if not isinstance(message, dict):
                raise RowError(f"messages[{at}] is {_kind(message)}, not an object")
            role = message.get("role")
            if not isinstance(role, str) or role not in ROLES:
                raise RowError(f"messages[{at}]: no role {_shown(role)}; there are {', '.join(ROLES)}")
            content = self._content(message.get("content"), f"messages[{at}].content", documents)
            made.append({"role": ROLES[role], "content": content})
        return made if made[0]["role"] == "system" else [*self._system(), *made]

    def _content(self, value: Any, where: str, documents: list[str]) -> str:
        if not isinstance(value, list):
            return _text(value, where)
        said: list[str] = []
        for at, part in enumerate(value):
            if isinstance(part, dict) and isinstance(part.get("file"), str):
                said.append(self._document(part["file"], documents, f"{where}[{at}]: "))
            elif isinstance(part, dict) and part.get("type") in ("text", None) and "text" in part:
                said.append(_text(part["text"], f"{where}[{at}].text") + "\n")
            else:
                kind = part.get("type") if isinstance(part, dict) else part
                raise RowError(f"{where}[{at}]: {_shown(kind)} is not supported; {PARTS}", "unsupported")
        return "".join(said).removesuffix("\n")

    def _system(self) -> list[dict[str, Any]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


def text_of(line: Line) -> str:
    """Raises RowError for a line that is too long, or no text."""
    if line.content is None:
        raise RowError("the line is longer than 256 MiB")
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"the line is not UTF-8 text (byte {error.start:,})") from error


def parse(content: str) -> Any:
    """The JSON value of a line. Raises RowError."""
    try:
        return json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {str(error)[:120]}"
        if isinstance(error, json.JSONDecodeError):  # whose "line 1" is not the file's
            what = f"is not JSON: {error.msg[:1].lower()}{error.msg[1:]} (character {error.pos + 1:,})"
        raise RowError(f"the line {what}") from error


def id_of(value: Any, number: int) -> str:
    """What a line is called: custom_id or id, a text or a whole number; else the task_id of an evaluation's lines, if it is one.
    Raises RowError for a custom_id or an id that is none.
    """
    if not isinstance(value, dict):
        return name_of(number)
    given = value.get("custom_id", value.get("id"))
    if given is None and (isinstance(task := value.get("task_id"), str) or type(task) is int):
        given = task
    if given is None:
        return name_of(number)
    if not isinstance(given, str) and type(given) is not int:
        raise RowError(f"{'custom_id' if 'custom_id' in value else 'id'} is {_kind(given)}, not a text")
    return str(given)


def name_of(number: int) -> str:
    """What a line without an id is called."""
    return f"line-{number}"


def bad_row(line: Line, reader: Reader) -> Row:
    """What can be known of a line whatever is wrong with it: its id, and whether it is an OpenAI line."""
    name, form = name_of(line.number), ""
    if not reader.text:
        try:
            value = parse(text_of(line))
            form = CHAT if isinstance(value, dict) and ("body" in value or "url" in value) else ""
            name = id_of(value, line.number)
        except RowError:
            pass
    return Row(line.number, name, form, digest=hashlib.sha256(line.content or b"").hexdigest()[:16])


def _files(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RowError("file is not a path or a list of paths")
    return names


def _with_digest(row: Row, digest: str) -> Row:
    return Row(**{**vars(row), "digest": digest})


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where} is {_kind(value)}, not a text")
    return _unicode(value, where)


def _unicode(text: str, where: str) -> str:
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise RowError(f"{where} holds half of a surrogate pair: no Unicode text")
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value)[:MOST_SHOWN]
