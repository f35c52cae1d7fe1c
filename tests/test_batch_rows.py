"""Lines of a job: what is a request, what is not and why, and under which id."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hgca_cli.batch import lines as lines_module
from hgca_cli.batch.check import check
from hgca_cli.batch.lines import Line, Lines
from hgca_cli.batch.results import Choice, answered, encoded, failed
from hgca_cli.batch.rows import CHAT, COMPLETION, Reader, Row, RowError
from hgca_cli.config import NO_LIMIT
from hgca_cli.errors import ModelError, UsageError

USER = [{"role": "user", "content": "hi"}]


def row(value: Any, number: int = 1, **reader: Any) -> Row:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Reader(**reader).row(Line(number, 0, content))


def written(path: Path, content: bytes) -> Lines:
    path.write_bytes(content)
    return Lines(str(path))


def test_an_openai_line() -> None:
    body = {
        "model": "gpt-4o",
        "messages": USER,
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "n": 2,
    }
    made = row({"custom_id": "a", "method": "POST", "url": CHAT, "body": body | {"stop": "x", "user": "u"}})
    assert (made.id, made.form, made.messages, made.choices, made.model) == ("a", CHAT, USER, 2, "gpt-4o")
    assert made.settings == {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "seed": 7, "stop": ("x",)}
    assert made.unknown == ()


def test_what_minus_one_means_elsewhere() -> None:
    settings = row({"prompt": "a", "max_tokens": -1, "seed": -1, "top_k": -1, "reasoning_budget": -1}).settings
    assert settings == {"max_tokens": NO_LIMIT, "seed": None, "top_k": 0, "reasoning_budget": None}


def test_a_completion_line_continues_its_text_or_its_tokens() -> None:
    made = row({"custom_id": 3, "url": COMPLETION, "body": {"prompt": ["Once"]}})
    assert (made.id, made.messages, made.prompt) == ("3", None, "Once")
    assert row({"url": COMPLETION, "body": {"prompt": [[5, 6]]}}).ids == [5, 6]
    assert row({"url": COMPLETION, "body": {"prompt": [5, 6]}}).ids == [5, 6]


def test_a_body_without_a_url_is_what_it_asks() -> None:
    made = row({"custom_id": "a", "body": {"messages": USER, "max_tokens": 3}})
    assert (made.form, made.messages, made.settings) == (CHAT, USER, {"max_tokens": 3})
    made = row({"custom_id": "a", "body": {"prompt": "Once"}})
    assert (made.form, made.prompt) == (COMPLETION, "Once")


def test_a_line_that_is_no_json_says_where() -> None:
    for content, where in ((b'{"prompt": "a" "b"}', "character 16"), (b"nonsense", "character 1")):
        with pytest.raises(RowError, match=rf"expecting .* \({where}\)$"):
            row(content)
    with pytest.raises(RowError, match=r"^id is a number"):
        row({"id": 3.5, "prompt": "a"})


def test_lines_of_our_own() -> None:
    assert row({"prompt": "hi", "max_tokens": 3}).messages == USER
    assert row({"prompt": "hi"}, system="be brief").messages == [{"role": "system", "content": "be brief"}, *USER]
    assert row({"messages": USER}, number=4).id == "line-4"
    assert row("hi").messages == USER
    assert row(b"hi", text=True).messages == USER
    assert row(b"hi", text=True, raw=True).prompt == "hi" and row(b"hi", text=True, raw=True).messages is None
    assert row({"id": "x", "prompt": "hi", "colour": 1}).unknown == ("colour",)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert row({"messages": [{"role": "developer", "content": parts}, *USER]}).messages == [
        {"role": "system", "content": "a\nb"},
        *USER,
    ]


@pytest.mark.parametrize(
    "value",
    [
        b"nonsense", b"5", b"null", b"[]", b"{}", b"[" * 100_000, b'{"prompt": NaN}', b"\xff\xfe", b'"\\ud800"',
        {"prompt": ""}, {"prompt": 5}, {"prompt": "a", "messages": USER}, {"messages": []}, {"messages": "hi"}, {"messages": [5]},
        {"messages": [{"role": "wizard", "content": "a"}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"file": "a.txt"}]}]},
        {"prompt": "a", "temperature": "hot"}, {"prompt": "a", "temperature": -1}, {"prompt": "a", "temperature": 10**400},
        {"prompt": "a", "top_p": 2}, {"prompt": "a", "max_tokens": 1.5}, {"prompt": "a", "max_tokens": True},
        {"prompt": "a", "seed": 2**64}, {"prompt": "a", "n": 0}, {"prompt": "a", "stop": ["", "b"]}, {"prompt": "a", "stop": 5},
        {"prompt": "a", "logprobs": 3}, {"prompt": "a", "top_logprobs": 3}, {"prompt": "a", "logprobs": True, "top_logprobs": 21},
        {"prompt": "a", "logprobs": "yes"}, {"url": COMPLETION, "body": {"prompt": "a", "logprobs": 21}},
        {"prompt": "a", "response_format": {"type": "json_schema"}}, {"prompt": "a", "response_format": {"type": "grammar"}},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
        {"prompt": "a", "guided_json": "{"}, {"prompt": "a", "guided_json": 5}, {"prompt": "a", "structured_outputs": {"regex": "a"}},
        {"prompt": "a", "guided_json": {"type": "integer"}, "response_format": {"type": "json_object"}},
        {"prompt": "a", "guided_json": {"type": 5}}, {"prompt": "a", "reasoning_budget": -2}, {"prompt": "a", "reasoning_budget": 1.5},
        {"prompt": "a", "chat_template_kwargs": 5}, {"prompt": "a", "chat_template_kwargs": {"messages": []}},
        {"prompt": "a", "presence_penalty": 2.5}, {"prompt": "a", "frequency_penalty": "x"}, {"prompt": "a", "id": ["b"]},
        {"url": "/v1/embeddings", "body": {"input": "a"}}, {"url": CHAT, "body": []}, {"url": CHAT, "body": {}},
        {"url": CHAT, "method": "GET", "body": {"messages": USER}}, {"url": COMPLETION, "body": {"prompt": ["a", "b"]}},
    ],
)  # fmt: skip
def test_what_cannot_run_says_so(value: Any) -> None:
    with pytest.raises(RowError) as error:
        row(value)
    assert 5 < len(error.value.message) < 250


def test_what_changes_nothing_is_let_through() -> None:
    neutral = {
        "logprobs": False,
        "presence_penalty": None,
        "tools": [],
        "response_format": {"type": "text"},
        "top_k": None,
    }
    made = row({"prompt": "a", **neutral, "stream": False, "metadata": {"a": "b"}})
    assert made.settings == {"json_schema": ""} and made.unknown == ()  # any text, whatever the job's schema


def test_chances_and_schemas_are_read() -> None:
    pytest.importorskip("llguidance")
    assert row({"prompt": "a", "logprobs": True}).likeliest == 0 and row({"prompt": "a"}).likeliest is None
    assert row({"prompt": "a", "logprobs": True, "top_logprobs": 20}).likeliest == 20
    assert row({"url": COMPLETION, "body": {"prompt": "a", "logprobs": 0}}).likeliest == 0
    assert row({"url": COMPLETION, "body": {"prompt": "a", "logprobs": 5}}).likeliest == 5

    def schema(**fields: Any) -> Any:
        return json.loads(row({"prompt": "a", **fields}).settings["json_schema"])

    assert schema(response_format={"type": "json_object"}) == {"type": "object"}
    integer = {"type": "integer"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": integer}}
    assert schema(response_format=wanted) == schema(json_schema=integer) == integer
    for form in (integer, json.dumps(integer)):
        assert schema(guided_json=form) == schema(structured_outputs={"json": form, "regex": None}) == integer


def test_a_schema_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.hf.grammar.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RowError, match=r"llguidance: pip install 'hgca\[json\]'") as error:
        row({"prompt": "a", "response_format": {"type": "json_object"}})
    assert error.value.code == "unsupported"


def test_documents_come_through_their_reader() -> None:
    texts = {"a.txt": ("a.txt", " the text\n")}
    content = [{"file": "a.txt"}, {"type": "text", "text": "Who?"}]
    made = row({"messages": [{"role": "user", "content": content}]}, document=texts.__getitem__)
    assert made.messages == [{"role": "user", "content": "a.txt:\n\nthe text\n\nWho?"}]
    texts["a.txt"] = ("a.txt", "another text")
    assert row({"messages": [{"role": "user", "content": content}]}, document=texts.__getitem__).digest != made.digest


def test_a_row_with_files_has_them_before_its_prompt() -> None:
    texts = {"a.txt": ("a.txt", "one\n"), "b/c.txt": ("c.txt", "two")}.__getitem__
    made = row({"id": "d1", "file": "a.txt", "prompt": "Who?"}, document=texts)
    assert made.messages == [{"role": "user", "content": "a.txt:\n\none\n\nWho?"}] and made.unknown == ()
    assert made.digest != row({"id": "d1", "file": "a.txt", "prompt": "Who?"}, document=lambda name: (name, "1")).digest
    made = row({"file": ["a.txt", "b/c.txt"], "prompt": "Who?"}, document=texts, raw=True)
    assert made.prompt == "one\n\n\ntwo\n\nWho?"
    for value in (
        {"file": 5, "prompt": "a"},
        {"file": "a.txt", "messages": USER},
        {"file": "a.txt"},
        {"file": [""], "prompt": "a"},
    ):
        with pytest.raises(RowError):
            row(value, document=texts)
    with pytest.raises(RowError, match="--root"):
        row({"file": "a.txt", "prompt": "Who?"})


def test_an_effort_is_told_to_the_template_and_what_would_be_lost_is_refused() -> None:
    made = row(
        {"prompt": "a", "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}, "skip_special_tokens": True}
    )
    assert made.options == {"reasoning_effort": "low", "x": 1} and made.unknown == ()
    for lost in (
        {"chat_template": "{{ x }}"},
        {"bad_words": ["a"]},
        {"use_beam_search": True},
        {"skip_special_tokens": False},
    ):
        with pytest.raises(RowError, match="is not supported"):
            row({"prompt": "a", **lost})


def test_lines_are_tolerant_of_how_they_end(tmp_path: Path) -> None:
    lines = written(tmp_path / "in", b'\xef\xbb\xbf"a"\r\n\n  \n"b"\n"c"')
    found = list(lines)
    assert [(line.number, line.content) for line in found] == [(1, b'"a"'), (4, b'"b"'), (5, b'"c"')]
    assert [lines.at(line.begin, line.number) for line in found] == found
    assert list(written(tmp_path / "empty", b"")) == []


def test_a_line_that_is_too_long_is_one_bad_row(tmp_path: Path) -> None:
    with mock.patch.object(lines_module, "MOST_LINE", 10):
        found = list(written(tmp_path / "in", b'"' + b"a" * 100 + b'"\n"b"\n'))
    assert [(line.number, line.content) for line in found] == [(1, None), (2, b'"b"')]
    with pytest.raises(RowError):
        Reader().row(found[0])


def test_what_is_piped_in_is_read_twice() -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'"a"\n"b"\n'))
    with mock.patch("sys.stdin", stdin):
        lines = Lines("-")
    assert [line.content for line in lines] == [line.content for line in lines] == [b'"a"', b'"b"']


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Lines(str(tmp_path / "none"))
    with pytest.raises(UsageError):
        Lines(str(tmp_path))


def test_every_line_is_looked_at_and_bad_ones_keep_their_ids(tmp_path: Path) -> None:
    content = b'{"id":"a","prompt":"x","odd":1}\n{"id":"b"}\nnonsense\n{"custom_id":"c","url":"/v1/chat/completions","body":{}}\n'
    checked = check(written(tmp_path / "in", content), Reader())
    assert [(entry.id, entry.error is None, entry.form) for entry in checked.entries] == [
        ("a", True, ""), ("b", False, ""), ("line-3", False, ""), ("c", False, CHAT),
    ]  # fmt: skip
    assert checked.unknown == ["odd"] and len(checked.bad) == 3
    assert len(check(Lines(str(tmp_path / "in")), Reader(), limit=2).entries) == 2
    with pytest.raises(UsageError, match="line 2"):
        check(written(tmp_path / "in2", content.replace(b',"odd":1', b"")), Reader(), strict=True)
    with pytest.raises(UsageError, match="odd"):
        check(written(tmp_path / "in", content), Reader(), strict=True)


def test_a_packed_input_is_no_text(tmp_path: Path) -> None:
    lines = written(tmp_path / "in.jsonl.gz", gzip.compress(b'{"prompt": "hi"}\n'))
    with pytest.raises(UsageError, match=r"in.jsonl.gz is packed by gzip. .*zcat FILE \| hgca batch -"):
        check(lines, Reader())


@pytest.mark.parametrize(
    "content", ['It was a dark night.\n\n  "Who?" she said.\n', "hi", "42\nanswers\n", "\n\n\xef\xbb\xbfa b\n"]
)
def test_a_text_is_no_input_but_with_text(content: str, tmp_path: Path) -> None:
    lines = written(tmp_path / "book.txt", content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"book.txt is a text, not JSON lines. With --text every line is a prompt"):
        check(lines, Reader())
    assert not check(lines, Reader(text=True)).bad


@pytest.mark.parametrize(
    "content", ['[\n {"prompt": "a"}\n]', '[{"prompt": "a"}]', '{\n  "prompt": "a"\n}\n{', '[ {"prompt": "a"},\n']
)
def test_json_over_several_lines_is_no_input(content: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"but not a line for each row\. jq -c"):
        check(written(tmp_path / "rows.json", content.encode()), Reader())


@pytest.mark.parametrize("content", ['{"prompt": broken\n', 'note\n{"prompt": "a"}\n', '"a"\nb\n', "a\n[1]\n"])
def test_one_line_that_may_be_a_row_makes_the_others_bad_rows(content: str, tmp_path: Path) -> None:
    assert check(written(tmp_path / "in", content.encode()), Reader()).bad


def test_an_id_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lines 1 and 3"):
        check(written(tmp_path / "in", b'{"id":"1","prompt":"x"}\n"y"\n{"custom_id":1,"prompt":"z"}\n'), Reader())


def test_lines_of_an_evaluation_are_called_by_their_task() -> None:
    assert (
        row({"task_id": "HumanEval/0", "prompt": "hi"}).id == "HumanEval/0"
        and row({"task_id": 11, "prompt": "hi"}).id == "11"
    )
    assert row({"task_id": "t", "id": "own", "prompt": "hi"}).id == "own"
    assert (
        row({"task_id": 1.5, "prompt": "hi"}, 4).id == "line-4" and row({"task_id": "t", "prompt": "hi"}).unknown == ()
    )


@pytest.mark.parametrize("name", ["../../x", "a/b", "x" * 10_000, "a\nb", "\0", "\x1b[2J", "\ud800"])
def test_ids_are_data(name: str) -> None:
    made = row({"id": name, "prompt": "hi"})
    line = encoded(failed(made, "no", "invalid_row", openai=False))
    assert line.count(b"\n") == 1 and b"\x1b" not in line and json.loads(line)["id"] == name


def test_answers_take_the_form_of_their_rows() -> None:
    choice = Choice("hello", "", "stop", 5, 2, 3, 1, {}, {})
    openai = answered(
        row({"custom_id": "a", "url": CHAT, "body": {"messages": USER}}), [choice], openai=True, model="m", created=1
    )
    body = openai["response"]["body"]
    assert openai["custom_id"] == "a" and openai["error"] is None and openai["response"]["status_code"] == 200
    assert body["object"] == "chat.completion" and body["choices"][0]["message"]["content"] == "hello"
    assert body["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip
    own = answered(row({"id": "b", "prompt": "hi"}), [choice, choice], openai=False, model="m", created=1)
    assert (own["id"], own["text"], own["texts"], own["error"]) == ("b", "hello", ["hello", "hello"], None)
    bad = failed(
        row({"custom_id": "a", "url": CHAT, "body": {"messages": USER}}), "no", "context_overflow", openai=True
    )
    assert bad["response"]["status_code"] == 400 and bad["error"] == {"code": "context_overflow", "message": "no"}
