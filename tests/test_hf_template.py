"""A chat template from elsewhere runs in a sandbox and comes to an end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf import template
from tests.tiny_engine import tiny_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def render(text: str, seconds: float = 5.0, **options: Any) -> str:
    return template.render(tiny_tokenizer(text).hf, MESSAGES, seconds, add_generation_prompt=True, **options)


def test_it_renders() -> None:
    assert render("{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}") == "hi>"
    assert render("{{ mood }}", mood="calm") == "calm"


def test_nested_loops_are_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"ran for more than 0\.3 s\. .*--chat-template FILE"):
        render(FOR_EVER, seconds=0.3)
    assert time.monotonic() - began < 3
    assert not [thread for thread in threading.enumerate() if thread.name == "chat template"]


BAD = {
    "a range of 10^9": ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
    "it raises": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "not a template": ("{% for %}", "chat template failed"),
    "what is not there": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "python inside": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
    "python inside a function": ("{{ raise_exception.__globals__['os'] }}", "unsafe|undefined"),
    "a format string": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe|access"),
    "changing the messages": ("{{ messages.append(1) }}", "unsafe"),
    "importing": ("{% include '/etc/passwd' %}", "no loader"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_templates(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(ModelError, match=message) as caught:
        render(text)
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [("{% for %}", "failed: "), (FOR_EVER, "ran for more than")])
def test_a_template_of_the_users_is_called_so(text: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template.render, "__defaults__", (0.3,))
    tokenizer = tiny_tokenizer("{{ messages[0].content }}")
    tokenizer.with_template(text)
    with pytest.raises(UsageError, match=rf"the template of --chat-template {why}.*Mend it") as caught:
        tokenizer.render(MESSAGES, add_generation_prompt=True)
    assert caught.value.exit_code == 2


def test_none_is_a_mistake_of_usage() -> None:
    with pytest.raises(UsageError, match=r"no chat template.*--chat-template FILE") as caught:
        tiny_tokenizer(None).render(MESSAGES, add_generation_prompt=True)
    assert caught.value.exit_code == 2


def test_a_template_that_fails_does_not_stop_a_raw_prompt() -> None:
    tokenizer = tiny_tokenizer("{{ raise_exception('no') }}")
    assert tokenizer.end_ids == {tokenizer.hf.convert_tokens_to_ids("<|end|>")}
    assert tokenizer.encode_prompt("hi")
