"""Copies of a model's weights, looked for by several threads: each layer gets its own, and nothing waits for what nobody wants."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hgca_cli.hf import quicken as module
from hgca_cli.hf.linear import QuickLinear


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(nn.Linear(64, 16, bias=False) for _ in range(count))
        for place, layer in enumerate(self.all):
            assert isinstance(layer, nn.Linear)
            layer.weight.data = torch.full((16, 64), float(place + 1))
        last = self.all[-1]
        assert isinstance(last, nn.Linear) and isinstance(self.all[0], nn.Linear)
        last.weight = self.all[0].weight  # tied


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_layer_gets_its_own_copy_and_tied_ones_share_one(threads: None) -> None:
    model = Layers(9)
    taken = module.quicken(model)
    for place, layer in enumerate(model.all):
        assert isinstance(layer, QuickLinear)
        got = layer.quick.product(torch.ones(1, 64))
        assert torch.allclose(got, torch.full((1, 16), 64.0 * (place % 8 + 1)))
    first, last = model.all[0], model.all[-1]
    assert isinstance(first, QuickLinear) and isinstance(last, QuickLinear) and first.quick is last.quick
    assert taken == 8 * first.quick.copied > 0
    assert torch.get_num_threads() == 3


def test_what_goes_wrong_ends_the_search(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Tensor] = []

    def failing(weight: Tensor) -> None:
        begun.append(weight)
        time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "copy_of", failing)
    with pytest.raises(KeyboardInterrupt):
        module.quicken(Layers(40))
    assert len(begun) < 39
