"""Files made for OpenAI's Batch API, or for `vllm run-batch`: what comes out is what the `openai` package takes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli_process import here, save_tiny

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

from openai.types import BatchError, Completion, chat, completion_create_params  # noqa: E402
from openai.types.chat import completion_create_params as chat_create_params  # noqa: E402
from openai.types.shared import ErrorObject  # noqa: E402

OURS = {"reasoning_content"}  # of a message, as vLLM has it
SAID = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Hello world!"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def line(name: str, body: dict[str, Any], url: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def run(tiny: str, folder: Path, rows: list[Any], code: int, *more: str) -> dict[str, dict[str, Any]]:
    """Lines of the output, by id; OpenAI's fields are all there."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = here("batch", str(source), "-m", tiny, "-n", "12", "--ctx", "400", *more)
    assert done.returncode == code, done.stderr
    lines = [json.loads(one) for one in (folder / "in.out.jsonl").read_bytes().splitlines()]
    for one in lines:
        assert set(one) == {"id", "custom_id", "response", "error", "hgca"}
        assert one["id"].startswith("batch_req_") and set(one["response"]) == {"status_code", "request_id", "body"}
    return {one["custom_id"]: one for one in lines}


def strictly(kind: Any, value: Any) -> Any:
    """A value as the package's type, nothing converted; fields that the type has not are ours to name."""
    made = kind.model_validate_json(json.dumps(value), strict=True)
    assert unknown(made) <= OURS, f"{kind.__name__} has no {unknown(made)}"
    return made


def unknown(made: Any) -> set[str]:
    """Fields of a model, and of those in it, that its type does not have."""
    if isinstance(made, list):
        return {name for one in made for name in unknown(one)}
    if not isinstance(made, pydantic.BaseModel):
        return set()
    return set(made.model_extra or ()) | {
        name for field in type(made).model_fields for name in unknown(getattr(made, field))
    }


def test_a_batch_file_round_trips_through_the_packages_types(tiny: str, tmp_path: Path) -> None:
    bodies: list[Any] = [
        {"model": "gpt-4o-mini", "messages": SAID, "max_tokens": 5},
        {"model": "gpt-4o-mini", "messages": [{"role": "developer", "content": "Be brief."}, *SAID[1:]], "n": 3, "seed": 5,
         "temperature": 1.0, "top_p": 0.9, "stop": ["\n\n"], "max_completion_tokens": 9, "user": "u", "store": False},
        {"model": "o", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "response_format": {"type": "text"},
         "metadata": {"a": "b"}, "service_tier": "auto", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
         "stream": False, "tools": [], "logprobs": False},
    ]  # fmt: skip
    asked = pydantic.TypeAdapter(chat_create_params.CompletionCreateParamsNonStreaming)
    for body in bodies:
        asked.validate_python(body)
    texts: list[Any] = [{"model": "gpt", "prompt": "Once upon", "max_tokens": 4}, {"model": "gpt", "prompt": [5, 6, 7]}]
    for body in texts:
        pydantic.TypeAdapter(completion_create_params.CompletionCreateParamsNonStreaming).validate_python(body)
    rows = [line(f"chat-{at}", body) for at, body in enumerate(bodies)]
    rows += [line(f"text-{at}", body, "/v1/completions") for at, body in enumerate(texts)]
    found = run(tiny, tmp_path, rows, 0)
    for row in rows:
        one = found[row["custom_id"]]
        assert one["error"] is None and one["response"]["status_code"] == 200
        kind = Completion if row["custom_id"].startswith("text") else chat.ChatCompletion
        made = strictly(kind, one["response"]["body"])
        assert len(made.choices) == row["body"].get("n", 1) and made.model == row["body"]["model"]
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
        assert [choice.index for choice in made.choices] == list(range(len(made.choices)))


# A line of OpenAI's documentation, and one of its answers: names of fields, and of those in them
ASKED = (
    '{"custom_id":"request-1","method":"POST","url":"/v1/chat/completions","body":{"model":"Qwen/Qwen2.5-7B-Instruct","messages":['
    '{"role":"system","content":"You are terse."},{"role":"user","content":"What is 2+2?"}],"max_completion_tokens":64,'
    '"temperature":0,"seed":1,"stop":["\\n\\n"]}}'
)
ANSWERED = (
    '{"id":"batch_req_403hYy7nMxrxXFWXiwvoLG1q","custom_id":"request-1","response":{"status_code":200,"request_id":'
    '"req_af0bac0d8253","body":{"id":"chatcmpl-A1Efhv97EZNQeHKSLPnTmZex20gf2","object":"chat.completion","created":1724858089,'
    '"model":"Qwen/Qwen2.5-7B-Instruct","choices":[{"index":0,"message":{"role":"assistant","content":"4","refusal":null},'
    '"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":24,"completion_tokens":2,"total_tokens":26,'
    '"prompt_tokens_details":{"cached_tokens":16}}}},"error":null}'
)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value).__name__


def test_a_line_has_the_fields_that_openais_has_and_the_kinds_of_their_values(tiny: str, tmp_path: Path) -> None:
    found = run(tiny, tmp_path, [json.loads(ASKED), {**json.loads(ASKED), "custom_id": "again"}], 0)
    wanted = shape(json.loads(ANSWERED))
    for one in found.values():
        assert shape({name: value for name, value in one.items() if name != "hgca"}) == wanted
    body = found["request-1"]["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "Qwen/Qwen2.5-7B-Instruct")


def test_errors_are_the_packages_too(tiny: str, tmp_path: Path) -> None:
    rows = [
        line("hot", {"model": "m", "messages": SAID, "temperature": "hot"}), line("long", {"model": "m", "messages": SAID * 300}),
        line("none", {"model": "m"}), line("where", {"input": "a"}, "/v1/embeddings"),
        line("tools", {"model": "m", "messages": SAID, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ]  # fmt: skip
    found = run(tiny, tmp_path, rows, 3)
    assert set(found) == {row["custom_id"] for row in rows}
    for one in found.values():
        assert one["response"]["status_code"] == 400
        made = strictly(ErrorObject, one["response"]["body"]["error"])
        assert made.type == "invalid_request_error" and made.message
        assert strictly(BatchError, one["error"]).code == made.code


def test_a_file_for_vllm_runs_unchanged(tiny: str, tmp_path: Path) -> None:
    model = "meta-llama/Meta-Llama-3-8B-Instruct"
    extra = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 0, "skip_special_tokens": True}
    rows = [
        line("request-1", {"model": model, "messages": SAID, "max_completion_tokens": 10}),
        line("request-2", {"model": model, "messages": [{"role": "system", "content": "You are an unhelpful assistant."}, SAID[1]],
                           "max_completion_tokens": 10, **extra}),
        line("request-3", {"model": model, "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0}, "/v1/completions"),
    ]  # fmt: skip
    found = run(tiny, tmp_path, rows, 0)
    assert {one["response"]["body"]["model"] for one in found.values()} == {model}
    for name in ("request-1", "request-2"):
        assert strictly(chat.ChatCompletion, found[name]["response"]["body"]).usage.completion_tokens == 10
    assert strictly(Completion, found["request-3"]["response"]["body"]).choices[0].finish_reason == "length"
