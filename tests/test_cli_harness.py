"""hgca as a model of the lm-evaluation-harness; a stub stands for the harness, which is large and only an extra."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import UsageError
from tests.cli_process import here, save_tiny

MODELS: dict[str, Any] = {}


class StubLM:
    """What the harness's base class gives."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


def stub_main() -> None:
    """Where the harness would read its words: shows them, and that the model is registered."""
    print(sys.argv, sorted(MODELS))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    def register(name: str) -> Any:
        return lambda kind: MODELS.setdefault(name, kind)

    parts = {"": {}, ".api": {}, ".api.model": {"LM": StubLM}, ".api.registry": {"register_model": register}}
    for name, held in (parts | {".__main__": {"cli_evaluate": stub_main}}).items():
        stub = ModuleType("lm_eval" + name)
        vars(stub).update(held)
        stub.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        stub.__path__ = []
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.delitem(sys.modules, "hgca_cli.commands.harness", raising=False)
    MODELS.clear()
    before = native.threads(), torch.get_num_threads()
    import hgca_cli.commands.harness

    yield MODELS["hgca"]
    sys.modules.pop(hgca_cli.commands.harness.__name__, None)
    native.set_threads(before[0])
    torch.set_num_threads(before[1])
    native.share_openmp(False)


def asked(*args: Any) -> list[Any]:
    return [SimpleNamespace(args=one) for one in args]


def test_requests(model: Any, tmp_path: Path) -> None:
    lm = model(model=save_tiny(tmp_path), window=16, ctx="128", threads=1, device="cuda:0", batch_size=4)
    tokenizer = lm.engine.loaded.tokenizer
    text = "the cat sat on the mat, " * 6

    def by_model(ids: list[int], count: int) -> float:
        lm.engine.loaded.model.set_attn_implementation("sdpa")
        rows = lm.engine.loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)[-count - 1 : -1]
        lm.engine.loaded.model.set_attn_implementation("hgca")
        return float(rows.gather(1, torch.tensor(ids[-count:])[:, None]).sum())

    pairs = [(text + "on", " the mat"), (text + "on ", "the mat"), ("", text)]
    ids = tokenizer.encode(text + "on the mat")
    count = len(ids) - len(tokenizer.encode(text + "on"))
    alone = tokenizer.encode(text)
    wanted = [by_model(ids, count), by_model(ids, count), by_model([0, *alone], len(alone))]
    found = lm.loglikelihood(asked(*pairs))
    assert [one for one, _ in found] == pytest.approx(wanted, abs=5e-3) and all(
        greedy in (True, False) for _, greedy in found
    )
    assert lm.loglikelihood_rolling(asked((text,))) == pytest.approx([wanted[2]], abs=5e-3)

    free = lm.generate_until(asked((text, {"until": [], "max_gen_toks": 12})))[0]
    assert (
        free
        and free == lm.generate_until(asked((text, {"max_gen_toks": 12, "do_sample": False, "temperature": 0.9})))[0]
    )
    assert free.startswith(lm.generate_until(asked((text, {"until": free[2:4], "max_gen_toks": 12})))[0] + free[2:4])
    drawn = lm.generate_until(asked((text, {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5})))[
        0
    ]
    assert drawn != free
    assert len(lm.generate_until(asked((text * 30, {"until": [], "max_gen_toks": 3})))[0]) > 0  # its end fits


def test_arguments(model: Any, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path)
    lm = model(model=directory, select="moving-average", budget=0.2, window=16, sinks=2, ctx=64, threads=1)
    settings = lm.engine.settings
    assert (settings.select, settings.budget, settings.window, settings.sinks) == ("moving-average", 0.2, 16, 2)
    with pytest.raises(UsageError, match="no model argument 'widow'"):
        model(model=directory, widow=3)
    with pytest.raises(UsageError, match="quality needs a policy"):
        model(model=directory, select="moving-average", quality=0.9, ctx=64)


def test_words_go_to_the_harness(model: Any) -> None:
    before = list(sys.argv)
    done = here("eval", "harness", "--tasks", "hellaswag", "--limit", "5", "--model_args", "window=16")
    assert done.returncode == 0 and sys.argv == before
    words = ["lm_eval", "--model", "hgca", "--tasks", "hellaswag", "--limit", "5", "--model_args", "window=16"]
    assert done.stdout.decode() == f"{words} ['hgca']\n"


def test_a_harness_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.commands.eval_harness.find_spec", lambda name: None)
    done = here("eval", "harness", "--tasks", "x")
    assert done.returncode == 5 and b"pip install 'hgca[eval]'" in done.stderr
