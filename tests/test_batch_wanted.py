"""What a row may ask for beside its answer: the chances of its tokens, and JSON that fits a schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.engine.chances import chance_of
from hgca_cli.errors import HgcaError
from hgca_cli.hf.grammar import Grammars
from hgca_cli.hf.token_bytes import token_bytes
from tests.cli_process import here, save_tiny
from tests.tiny_engine import tiny_tokenizer

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["who", "count", "ok"],
    "properties": {
        "who": {"enum": ["the cat", "café 東京"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def run(tiny: str, folder: Path, rows: list[Any], *more: str) -> dict[str, Any]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = here("batch", str(source), "-m", tiny, *more)
    assert done.returncode == 0, done.stderr
    found = map(json.loads, (folder / "in.out.jsonl").read_bytes().splitlines())
    return {one.get("custom_id", one["id"]): one for one in found}


def chat(name: str, **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": f"the cat {name}"}], "max_tokens": 6, **body}
    return {"custom_id": name, "url": "/v1/chat/completions", "body": body}


def test_chances_are_those_of_the_model_whatever_is_drawn(tiny: str, tmp_path: Path) -> None:
    chat_types = pytest.importorskip("openai.types.chat")
    types = pytest.importorskip("openai.types")
    rows = [
        chat("greedy", logprobs=True, top_logprobs=4, temperature=0), chat("drawn", logprobs=True, temperature=2.0, seed=3, n=2),
        chat("none"), {"id": "own", "prompt": "hi", "logprobs": True, "max_tokens": 3, "n": 2},
        {"custom_id": "text", "url": "/v1/completions", "body": {"prompt": "the", "logprobs": 2, "max_tokens": 5, "temperature": 0}},
    ]  # fmt: skip
    found = run(tiny, tmp_path, rows)
    greedy = chat_types.ChatCompletion.model_validate_json(json.dumps(found["greedy"]["response"]["body"]), strict=True)
    content = greedy.choices[0].logprobs.content
    assert len(content) == 6
    for one in content:
        assert len(one.top_logprobs) == 4 and one.top_logprobs[0].logprob == one.logprob <= 0.0
        assert one.top_logprobs[0].token == one.token
        assert [other.logprob for other in one.top_logprobs] == sorted(
            (o.logprob for o in one.top_logprobs), reverse=True
        )
    said = bytes(byte for one in content for byte in one.bytes)
    assert said.decode(errors="replace") == greedy.choices[0].message.content
    drawn = found["drawn"]["response"]["body"]["choices"]
    assert all(
        len(one["logprobs"]["content"]) == 6 and not one["logprobs"]["content"][0]["top_logprobs"] for one in drawn
    )
    assert found["none"]["response"]["body"]["choices"][0]["logprobs"] is None
    assert len(found["own"]["logprobs"]["content"]) == 3 and len(found["own"]["logprobs_of_texts"]) == 2
    text = types.Completion.model_validate_json(json.dumps(found["text"]["response"]["body"]), strict=True).choices[0]
    assert len(text.logprobs.tokens) == 5 == len(text.logprobs.token_logprobs) == len(text.logprobs.text_offset)
    assert all(
        max(one.values()) == told
        for one, told in zip(text.logprobs.top_logprobs, text.logprobs.token_logprobs, strict=True)
    )


def test_a_chance_is_the_logarithm_of_a_probability() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, float("-inf")])
    share = math.exp(2.0) / (math.exp(1.0) + math.exp(2.0) + math.exp(3.0))
    told = chance_of(logits, 2, 2)
    assert told.logprob == pytest.approx(math.log(share)) and [token for token, _ in told.likeliest] == [1, 2]
    assert chance_of(logits, 3, 0).logprob == -math.inf


def test_bytes_of_tokens_are_those_of_the_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "naïve café 東京 🙂 def f(x)\n"
    assert b"".join(tokenizer.bytes_of(token) or b"?" for token in tokenizer.encode(text)).decode() == text
    assert (
        tokenizer.bytes_of(319) == b""
        and tokenizer.bytes_of(tokenizer.hf.convert_tokens_to_ids("<|end|>")) == b"<|end|>"
    )


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE6>": 2, "a": 3}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    hf = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>")
    assert [token_bytes(hf, token) for token in range(5)] == [b"<unk>", b" the", b"\xe6", b"a", b""]


@pytest.mark.parametrize("rows", [3, 20])  # one by one, and in one pass
def test_answers_fit_their_schema(rows: int, tiny: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("llguidance")
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    asked = [chat(str(at), response_format=wanted, max_tokens=200, temperature=1.0, n=1 + at % 2) for at in range(rows)]
    found = run(tiny, tmp_path, [*asked, chat("free")], "--concurrency", str(rows + 1), "--seed", "1")
    texts = set()
    for at in range(rows):
        for one in found[str(at)]["response"]["body"]["choices"]:
            assert one["finish_reason"] == "stop"
            jsonschema.validate(json.loads(one["message"]["content"]), SCHEMA)
            texts.add(one["message"]["content"])
    assert len(texts) > 1 and found["free"]["response"]["body"]["usage"]["completion_tokens"] == 6


def test_an_end_token_may_come_only_where_the_text_is_whole() -> None:
    pytest.importorskip("llguidance")
    tokenizer = tiny_tokenizer()
    end = next(iter(tokenizer.end_ids))
    guide = Grammars(tokenizer).guide('{"type": "integer"}')
    logits = torch.zeros(320)
    assert guide.allow(logits)[end] == -math.inf and len(guide.allow(logits)) == 320
    guide.take(tokenizer.encode("7")[0])
    allowed = guide.allow(logits)
    assert allowed[end] == 0.0 and allowed[tokenizer.encode("x")[0]] == -math.inf and not guide.done
    assert not allowed[300:].isfinite().any()


def test_a_schema_of_the_job_is_for_all_rows_but_those_that_say_otherwise(tiny: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "flag").mkdir()
    own = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
    rows = [
        chat("all", max_tokens=200), chat("own", response_format=own, max_tokens=20),
        {"id": "plain", "prompt": "the cat", "max_tokens": 200},
        chat("free", response_format={"type": "text"}),
        {"custom_id": "text", "url": "/v1/completions", "body": {"prompt": "the", "max_tokens": 200}},
    ]  # fmt: skip
    found = run(tiny, tmp_path, rows, "--json-schema-file", str(tmp_path / "schema.json"), "--seed", "1")
    for text in (said(found["all"]), found["plain"]["text"], said(found["text"])):
        jsonschema.validate(json.loads(text), SCHEMA)
    assert said(found["own"]) in ("true", "false")
    assert found["free"]["response"]["body"]["usage"]["completion_tokens"] == 6
    again = run(tiny, tmp_path / "flag", rows, "-j", json.dumps(SCHEMA), "--seed", "1")
    assert [said(again[name]) for name in ("all", "own")] == [said(found[name]) for name in ("all", "own")]


def said(line: dict[str, Any]) -> str:
    choice = line["response"]["body"]["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


ASKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if loud %}LOUD {{ loud }} {% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def test_options_of_the_template_are_the_jobs_or_a_rows(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "template").write_text(ASKING)
    folders = [tmp_path / name for name in ("none", "flag")]
    for folder in folders:
        folder.mkdir()
    rows = [
        chat("as it is", temperature=0), chat("louder", temperature=0, chat_template_kwargs={"loud": "and louder"}),
        chat("odd", temperature=0, chat_template_kwargs={"colour": 1}), chat("thinks", chat_template_kwargs={"enable_thinking": True}),
    ]  # fmt: skip
    words = ("--chat-template", str(tmp_path / "template"))
    quiet = run(tiny, folders[0], rows, *words)
    loud = run(tiny, folders[1], rows, *words, "--chat-template-kwargs", '{"loud": "now"}')

    def tokens(line: dict[str, Any]) -> int:
        return int(line["response"]["body"]["usage"]["prompt_tokens"])

    assert tokens(loud["as it is"]) > tokens(quiet["as it is"]) and said(loud["as it is"]) != said(quiet["as it is"])
    assert tokens(loud["louder"]) == tokens(quiet["louder"]) > tokens(quiet["odd"]) + 5
    assert quiet["thinks"]["response"]["body"]["choices"][0]["message"]["reasoning_content"]
    done = here("batch", str(folders[1] / "in.jsonl"), "-m", tiny, *words, "--chat-template-kwargs", '{"loud": 5}')
    assert done.returncode == 2 and b"chat_template_kwargs" in done.stderr  # another job


def test_a_budget_for_thoughts_is_the_jobs_or_a_rows(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "template").write_text(ASKING)
    rows = [chat("job", max_tokens=60), chat("row", max_tokens=60, thinking_token_budget=5)]
    found = run(
        tiny,
        tmp_path,
        rows,
        "--chat-template",
        str(tmp_path / "template"),
        "--think",
        "--reasoning-budget",
        "20",
        "--temp",
        "0",
    )
    thoughts = {
        name: line["response"]["body"]["choices"][0]["message"]["reasoning_content"] for name, line in found.items()
    }
    assert all(said(line) for line in found.values()) and 0 < len(thoughts["row"]) < len(thoughts["job"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--json-schema", "{"), b"no JSON"), (("--json-schema", "5"), b"not an object"), (("-j", '{"type": 5}'), b"cannot be used"),
        (("--json-schema-file", "none.json"), b"none.json"), (("-j", "{}", "--json-schema-file", "x"), b"exclude"),
        (("--chat-template-kwargs", "{"), b"no JSON"), (("--chat-template-kwargs", "[]"), b"no object"),
        (("--chat-template-kwargs", '{"messages": []}'), b"'messages'"), (("--chat-template-kwargs", '{"odd": 1}'), b"'odd'"),
        (("--raw", "--chat-template-kwargs", "{}"), b"exclude"), (("--raw", "--reasoning-budget", "3"), b"exclude"),
        (("--reasoning-budget", "-2"), b"--reasoning-budget"), (("--reasoning-budget", "5"), b"knows no thoughts"),
        (("--think",), b"no switch"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["batch", "chat", "dry"])
def test_what_cannot_be_wanted_is_refused_in_a_line(
    tiny: str, tmp_path: Path, command: str, words: tuple[str, ...], named: bytes
) -> None:
    (tmp_path / "in.jsonl").write_text('"the cat"\n')
    asked = ("chat", "-p", "the cat") if command == "chat" else ("batch", str(tmp_path / "in.jsonl"))
    done = here(*asked, "-m", tiny, *words, *(("--dry-run",) if command == "dry" else ()))
    assert done.returncode == (5 if b"none" in named else 2) and named in done.stderr, done.stderr
    assert done.stderr.count(b"error") == 1 and sorted(one.name for one in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_chat_keeps_to_them_too(tiny: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("llguidance")
    done = here("chat", "-m", tiny, "-p", "the cat", "-j", json.dumps(SCHEMA), "--seed", "1", "-n", "200")
    assert done.returncode == 0
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    (tmp_path / "template").write_text(ASKING)
    words = (
        "chat",
        "-m",
        tiny,
        "-p",
        "the cat",
        "--temp",
        "0",
        "-n",
        "40",
        "--chat-template",
        str(tmp_path / "template"),
        "--json",
    )
    plain, loud = (here(*words, *more) for more in ((), ("--chat-template-kwargs", '{"loud": 1}')))
    tokens = [json.loads(one.stdout.splitlines()[-1])["usage"]["prompt_tokens"] for one in (plain, loud)]
    assert tokens[1] > tokens[0] + 2
    bound, free = (
        json.loads(here(*words, "--think", *more).stdout.splitlines()[-1]) for more in (("--reasoning-budget", "4"), ())
    )
    assert bound["text"] and not free["text"] and len(bound["reasoning"]) < len(free["reasoning"])


@pytest.mark.parametrize("name", ["presence", "frequency", "repeat"])
def test_penalties_of_a_job_and_of_a_row(name: str, tiny: str, tmp_path: Path) -> None:
    field = "repetition_penalty" if name == "repeat" else f"{name}_penalty"
    for folder in ("free", "bound"):
        (tmp_path / folder).mkdir()
    rows = [{"id": "plain", "prompt": "the cat", "max_tokens": 60}]
    free = run(
        tiny, tmp_path / "free", [*rows, {"id": "own", "prompt": "the cat", "max_tokens": 60, field: 2}], "--temp", "0"
    )
    bound = run(tiny, tmp_path / "bound", rows, "--temp", "0", f"--{name}-penalty", "2")
    assert bound["plain"]["text"] == free["own"]["text"] != free["plain"]["text"]


def test_a_thought_comes_before_what_the_schema_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    from hgca_cli.config import CacheSettings, SamplingSettings
    from hgca_cli.engine.engine import Engine
    from hgca_cli.engine.member import Member, Request
    from tests.tiny_engine import tiny_loaded

    engine = Engine(tiny_loaded(), CacheSettings(window=16, sinks=2, context=512))
    tokenizer = engine.loaded.tokenizer
    said = iter(tokenizer.encode("hm</think>"))
    guide = Grammars(tokenizer).guide('{"enum": ["yes"]}')
    member = Member(Request("a", [5], SamplingSettings(max_tokens=50), guide=guide, thinks=True), engine)
    monkeypatch.setattr(
        type(member._chooser._sampler),
        "__call__",
        lambda self, logits, seen: next(said) if logits.isfinite().all() else int(logits.argmax()),
    )
    member.logits = torch.zeros(320)
    while member.answer is None:
        member.draw()
    assert member._stream.text == 'hm</think>"yes"'


def test_a_schema_that_cannot_be_kept_here_fails_its_row_alone(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")

    def refuse(self: Grammars, schema: str) -> None:
        raise HgcaError("this model's tokenizer cannot be used (as an example).", "Leave it out.")

    monkeypatch.setattr(Grammars, "guide", refuse)
    source = tmp_path / "in.jsonl"
    rows = [chat("bound", response_format={"type": "json_object"}, n=2), chat("free")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert here("batch", str(source), "-m", tiny).returncode == 3
    found = {one["custom_id"]: one for one in map(json.loads, (tmp_path / "in.out.jsonl").read_bytes().splitlines())}
    assert "tokenizer cannot be used" in found["bound"]["error"]["message"] and found["free"]["error"] is None
