"""Prompts' float32 products by oneDNN: against float64, what it is not given, given up once it fails, a model's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hgca_cli.hf.products as products
from hgca_cli import native
from hgca_cli.hf.products import OneDNN, count_for, faster, linear, maker, takes
from hgca_cli.hf.quicken import quicken
from tests.tiny_engine import tiny_model

has_it = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="torch without oneDNN",
)


class Asked:
    """Stands for the operation: how many vectors it was given, each time."""

    def __init__(self, operation: Callable[..., Any]) -> None:
        self.counts: list[int] = []
        self._operation = operation

    def __call__(self, vectors: Tensor, *others: Any) -> Any:
        self.counts.append(len(vectors))
        return self._operation(vectors, *others)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """oneDNN computes whatever it takes, on any processor, however little that is."""
    one = Asked(torch.ops.mkldnn._linear_pointwise)
    use(one, monkeypatch)
    return one


def use(operation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> OneDNN:
    onednn = OneDNN(lambda: operation)
    monkeypatch.setattr(products, "here", lambda: onednn)
    monkeypatch.setattr(products, "LEAST", 1)
    return onednn


def error(got: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    want = nn.functional.linear(input.double(), weight.double(), None if bias is None else bias.double())
    assert got.shape == want.shape and got.dtype is torch.float32
    return float((got.double() - want).norm() / want.norm())


@has_it
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 64, 64), (16, 33, 100), (65, 300, 576), (512, 192, 576)])
def test_it_matches_float64(shape: tuple[int, int, int], biased: bool, asked: Asked, rng: torch.Generator) -> None:
    count, outputs, inputs = shape
    input, weight = torch.randn(count, inputs, generator=rng), torch.randn(outputs, inputs, generator=rng)
    bias = torch.randn(outputs, generator=rng) if biased else None
    assert error(linear(input, weight, bias), input, weight, bias) < 1e-6
    apart = torch.randn(inputs, count, generator=rng).t()
    assert not apart.is_contiguous()
    assert error(linear(apart, weight, bias), apart, weight, bias) < 1e-6
    several = torch.randn(2, count, inputs + 1, generator=rng)[..., :inputs]
    assert error(linear(several, weight, bias), several, weight, bias) < 1e-6
    assert asked.counts[-3:] == [count_for(count)] * 2 + [count_for(2 * count)]


@has_it
def test_a_vector_does_not_depend_on_the_others(asked: Asked, rng: torch.Generator) -> None:
    input, weight = torch.randn(130, 96, generator=rng), torch.randn(80, 96, generator=rng)
    whole = linear(input, weight)
    for count in (2, 15, 16, 17, 70, 129):
        assert (linear(input[:count], weight) - whole[:count]).norm() <= 1e-6 * whole[:count].norm()
    input[3] = float("nan")
    others = torch.arange(130) != 3
    assert torch.equal(linear(input, weight)[others], whole[others])


@has_it
def test_any_prompt_is_one_of_few_counts(asked: Asked, rng: torch.Generator) -> None:
    """oneDNN keeps code for each: 0.6 MB a layer's shape."""
    weight = torch.randn(8, 8, generator=rng)
    for count in range(2, 513):
        linear(torch.ones(count, 8), weight)
    assert len(set(asked.counts)) == 16
    assert all(n <= count_for(n) < n + 16 or count_for(n) <= 1.25 * n for n in range(1, 5000))
    assert [count_for(n) for n in (1, 16, 17, 64, 65, 128, 129, 512, 513)] == [16, 16, 32, 64, 80, 128, 160, 512, 640]


@has_it
def test_what_is_left_to_torch(asked: Asked, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    input, weight, bias = (torch.randn(shape, generator=rng) for shape in ((4, 32), (48, 32), (48,)))
    assert takes(input, weight) and takes(input, weight, bias)
    for other in (input[0], input[:1], input[:0], input.bfloat16(), input[:, :16]):
        assert not takes(other, weight)
    assert not takes(input, weight[:, ::2].contiguous()) and not takes(input[:, :16], weight[:, ::2])
    assert not takes(input, weight, bias[:1]) and not takes(input, weight, torch.randn(96)[::2])
    learned = nn.Parameter(weight)
    assert not takes(input, learned)
    with torch.no_grad():
        assert takes(input, learned)
        asked_to_learn = input.clone().requires_grad_()
        assert error(linear(asked_to_learn, learned), input, weight, None) < 1e-6
    asked.counts.clear()
    linear(input, learned).sum().backward()
    assert learned.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(input, weight)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert not takes(input, weight)
    monkeypatch.setattr(products, "LEAST", 4 * 48 * 32)
    assert takes(input, weight) and not takes(input[:3], weight)
    assert not asked.counts
    assert torch.equal(linear(input[:3], weight), nn.functional.linear(input[:3], weight)) and not asked.counts


@pytest.mark.parametrize("kind", products.FAILED)
def test_given_up_once_it_fails(kind: type[Exception], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    input, weight = torch.randn(4, 32, generator=rng), torch.randn(48, 32, generator=rng)
    want, calls = nn.functional.linear(input, weight), []

    def absent() -> Any:
        calls.append(0)
        raise kind("no such operation")

    onednn = OneDNN(absent)
    monkeypatch.setattr(products, "here", lambda: onednn)
    monkeypatch.setattr(products, "LEAST", 1)
    assert torch.equal(linear(input, weight), want) and torch.equal(linear(input, weight), want) and len(calls) == 1

    def later(vectors: Tensor, other: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
        calls.append(0)
        if other is weight:
            raise kind("another one by now")
        return nn.functional.linear(vectors, other, bias)

    use(later, monkeypatch)
    assert torch.equal(linear(input, weight), want) and torch.equal(linear(input, weight), want)
    assert len(calls) == 4  # looked for above; two to try, one of ours


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, w, b, *_: nn.functional.linear(a, w, b) * 1.0001,
        lambda a, w, b, *_: nn.functional.linear(a, w),
        lambda a, w, b, *_: nn.functional.linear(a, w, b) * float("nan"),
        lambda a, w, b, *_: nn.functional.linear(a, w, b).double(),
        lambda a, w, b, *_: nn.functional.linear(a, w, b).t(),
        lambda a, w: nn.functional.linear(a, w),
        lambda a, w, b, *_: None,
    ],
    ids=["off", "without bias", "nan", "another dtype", "another shape", "another signature", "nothing"],
)
def test_another_result_is_refused(
    wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    onednn = use(wrong, monkeypatch)
    input, weight, bias = (torch.randn(shape, generator=rng) for shape in ((4, 32), (48, 32), (48,)))
    assert torch.equal(linear(input, weight, bias), nn.functional.linear(input, weight, bias))
    assert onednn.product(input, weight, bias) is None


def test_which_processors_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    assert maker(told) == "AuthenticAMD" and maker(tmp_path / "none") == ""
    told.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert maker(told) == ""
    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native, "isas", lambda: ("avx512vnni", "avx512", "avx2", "scalar"))
    for one in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(one, "is_available", lambda: True)
    for name, wanted in (("AuthenticAMD", True), ("GenuineIntel", False), ("", False)):
        monkeypatch.setattr(products, "maker", lambda name=name: name)
        assert faster() == wanted
    monkeypatch.setattr(products, "maker", lambda: "AuthenticAMD")
    for owner, name, value in (
        (products.platform, "machine", "aarch64"),
        (native, "isas", ("avx2", "scalar")),
        (torch.backends.mkl, "is_available", False),
        (torch.backends.mkldnn, "is_available", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda value=value: value)
            assert not faster()
    assert faster()


def test_a_processor_it_is_not_for_keeps_torch(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setattr(products, "faster", lambda: False)
    monkeypatch.setattr(products, "LEAST", 1)
    products.here.cache_clear()
    try:
        input, weight = torch.randn(4, 32, generator=rng), torch.randn(48, 32, generator=rng)
        assert products.here().product(input, weight, None) is None
        assert torch.equal(linear(input, weight), nn.functional.linear(input, weight))
    finally:
        products.here.cache_clear()


@has_it
def test_logits_of_a_prompt(asked: Asked, rng: torch.Generator) -> None:
    model, ids = tiny_model(), torch.randint(0, 320, (1, 75), generator=rng)
    with torch.inference_mode():
        want = model(ids).logits
        quicken(model)
        asked.counts.clear()
        got = model(ids).logits
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert asked.counts.count(80) == 2 * 7 + 1  # two layers and the output's
