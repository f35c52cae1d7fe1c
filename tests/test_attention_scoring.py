"""Rows chosen where the query is: held to float64 over the codes, and the kernels to what torch does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hgca_cli import indexing, selection
from hgca_cli.attention.scoring import BINS, WHOLE, Guessed, Scoring, decoded, merged
from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.mirror import Mirror
from hgca_cli.attention.tables import placed
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.selection import EVERY, Selection

ROOM = 1100
CPU = torch.device("cpu")


class Case:
    """A store of rows, their codes on a device, and one query."""

    def __init__(
        self, heads: int, kv_heads: int, dim: int, rows: int, rng: torch.Generator, sharp: float = 2.0
    ) -> None:
        self.layout, self.rows = LayerLayout(heads, kv_heads, dim, dim), rows
        self.store = Store(self.layout, ROOM, torch.bfloat16)
        keys, values = torch.randn(2, kv_heads, rows, dim, generator=rng)
        self.store.append(sharp * keys, values)
        self.codes = Codes(self.layout, ROOM)
        self.codes.extend(self.store)
        self.query = torch.randn(heads, dim, generator=rng)
        self.beside = torch.randn(heads, generator=rng)
        self.scale = dim**-0.5

    def choose(
        self, mass: float, *, least: int = 64, most: int = EVERY, softcap: float = 0.0, device: torch.device = CPU
    ) -> tuple[list[list[int]], Guessed]:
        """The rows of each KV head, and what is guessed."""
        limits = torch.zeros(1, 5, dtype=torch.int64, device=device)
        scoring = Scoring(self.layout, ROOM, limits)
        chosen = Selection(
            self.layout.heads, self.store.keys, self.store.values, self.codes.whole, mass=mass, least=least, most=most
        )
        chosen.hold(self.rows, self.codes.rows)
        limits.copy_(torch.tensor([scoring.wanted(chosen)]))
        mirror = Mirror(self.layout, 1, ROOM, device)
        mirror.follow([self.codes])
        starts = torch.zeros(1, self.layout.kv_heads + 1, dtype=torch.int64, pin_memory=device.type == "cuda")
        query, beside = self.query[None].to(device), self.beside[None].to(device)
        window = torch.zeros(2, self.layout.kv_heads, 1, self.layout.key_dim, device=device).unbind()
        places = placed([window], mirror.layers)
        guessed = scoring.choose(query, places, beside, starts, turn=1, scale=self.scale, softcap=softcap)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends = zip(starts[0, :-1].tolist(), starts[0, 1:].tolist(), strict=True)
        lists = [scoring.row[1, 0, a:b].tolist() for a, b in ends]
        return lists, Guessed(*(one[0].cpu() for one in guessed))

    def weights(self, softcap: float = 0.0) -> Tensor:
        """Share f64 [kv_heads, group, rows] of everything, by the codes."""
        keys = decoded(self.codes.whole[:, : -(-self.rows // 128)], self.layout.key_dim)[:, : self.rows].double()
        score = self.query.double().view(self.layout.kv_heads, -1, self.layout.key_dim) @ keys.mT * self.scale
        score = softcap * torch.tanh(score / softcap) if softcap else score
        beside = self.beside.double().view(self.layout.kv_heads, -1, 1)
        return torch.exp(score - torch.logaddexp(score.logsumexp(-1, keepdim=True), beside))


SHAPES = [(8, 2, 64, 700), (9, 3, 64, 1000), (4, 1, 128, 300), (4, 4, 16, 129), (64, 2, 32, 513)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mass", [0.5, 0.9, 0.98])
def test_what_is_left_is_no_more_than_asked(shape: tuple[int, ...], mass: float, rng: torch.Generator) -> None:
    case = Case(*shape, rng, sharp=4.0)
    lists, guessed = case.choose(mass, least=1)
    pooled = case.weights().mean(1)
    for rows, weight in zip(lists, pooled, strict=True):
        assert rows == sorted(set(rows)), "in order, each once"
        left = float(weight.sum() - weight[rows].sum())
        assert left <= (1 - mass) * 1.03, "weights are counted by the middle of their bin"
        order = weight.argsort(descending=True)[: len(rows)]
        lightest, heaviest = float(weight[rows].min()), float(weight.sum() if len(rows) == shape[3] else 0)
        assert lightest >= float(weight[order].min()) * 2**-0.126 or heaviest, "no bin lighter than needed"
        fewer = float(weight.sum() - weight[order[: max(1, int(len(rows) * 0.8))]].sum())
        assert len(rows) < 20 or fewer > (1 - mass) * 0.5, "not many more than needed"
    assert guessed.out.shape[0] == guessed.lse.shape[0] == case.layout.heads


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_guessed_holds_what_is_not_read(shape: tuple[int, ...], rng: torch.Generator) -> None:
    case = Case(*shape, rng)
    lists, guessed = case.choose(0.8, softcap=5.0)
    whole = merged(guessed)
    weight = case.weights(5.0)
    values = case.store.values[:, : case.rows].double()
    means = torch.stack([block.mean(1) for block in values.split(128, dim=1)], dim=1)
    for head, rows in enumerate(lists):
        rest = weight[head].clone()
        rest[:, rows] = 0.0
        group = slice(head * rest.shape[0], (head + 1) * rest.shape[0])
        held = torch.stack([one.sum(-1) for one in rest.split(128, dim=-1)], dim=-1)
        share = torch.exp(whole.lse[group].double() - total(case, 5.0)[group])
        assert (share - held.sum(-1)).abs().max() <= 1e-5
        wanted = held @ means[head]
        assert (whole.out[group] * share.unsqueeze(-1) - wanted).abs().max() <= 2e-3, "means are bf16"


def total(case: Case, softcap: float) -> Tensor:
    """Log-sum-exp f64 [heads] of everything, by the codes."""
    weight = case.weights(softcap)
    return case.beside.double() - torch.log(1.0 - weight.sum(-1)).view(-1)


def test_at_most_so_many_rows_and_at_least(rng: torch.Generator) -> None:
    case = Case(8, 2, 64, 700, rng)
    for most in (1, 40, 333):
        lists, _ = case.choose(0.999, least=1, most=most)
        assert [len(rows) for rows in lists] == [most, most]
    lists, _ = case.choose(0.1, least=64)
    assert all(64 <= len(rows) < 200 for rows in lists)


def test_as_the_library_chooses(rng: torch.Generator) -> None:
    """Where nothing is estimated, and no query head shares rows with another: the library goes by the largest weight of a group."""
    case = Case(2, 2, 64, 1000, rng, sharp=4.0)
    lists, _ = case.choose(0.9)
    chosen = Selection(2, case.store.keys, case.store.values, case.codes.whole, mass=0.9, least=64)
    chosen.hold(case.rows, case.codes.rows)
    selection.start([selection.Aimed(chosen, case.query, case.scale, beside=case.beside)]).wait()
    for rows, read in zip(lists, chosen.rows_read.tolist(), strict=True):
        assert abs(len(rows) - read) <= 0.1 * read, "the same mass; the library rounds queries to 8 bits"


def test_what_is_no_number_hides_nothing(rng: torch.Generator) -> None:
    case = Case(8, 2, 64, 300, rng)
    case.store.keys[1, 7, 3] = math.nan
    case.codes.truncate(0)
    case.codes.extend(case.store)
    lists, guessed = case.choose(0.5)
    assert len(lists[0]) < 300 and lists[1] == list(range(300))
    assert guessed.lse[4:].isneginf().all() and guessed.out[4:].eq(0).all()


def test_the_copy_follows_rows_that_come_and_go(rng: torch.Generator) -> None:
    cases = [Case(4, 2, 64, 200, rng) for _ in "ab"]
    mirror = Mirror(cases[0].layout, 2, ROOM, CPU)
    codes = [case.codes for case in cases]
    for rows, more in ((200, 100), (150, 300), (10, 600), (600, 64), (650, 64)):
        mirror.follow(codes)
        for case in cases:
            case.store.truncate(rows)
            case.codes.truncate(rows)
            case.store.append(*torch.randn(2, 2, more, 64, generator=rng))
            case.codes.extend(case.store)
        mirror.follow(codes)
        blocks = -(-cases[0].store.rows // indexing.BLOCK)
        for coded, of in zip(mirror.layers, codes, strict=True):
            assert torch.equal(coded.codes[:, :blocks], of.whole[:, :blocks])
            assert torch.equal(coded.means[:, :blocks], of.means[:, :blocks])
            assert of.kept == blocks


def test_limits_say_what_is_too_light() -> None:
    layout = LayerLayout(2, 1, 16, 16)
    scoring = Scoring(layout, 128, torch.zeros(1, 5, dtype=torch.int64))
    rows = torch.zeros(1, 128, 16)
    chosen = Selection(2, rows, rows, None, mass=0.75, least=3, most=9)
    chosen.hold(128, 128)
    assert scoring.wanted(chosen) == [128, 3, 9, int(8 * math.log2(1024)), WHOLE // 4]
    chosen.limit(1.0, 3, 9)
    assert scoring.wanted(chosen)[3:] == [BINS - 8, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [{}, {"softcap": 5.0}, {"most": 40}, {"least": 200}])
def test_the_kernels_choose_what_torch_does(shape: tuple[int, ...], how: dict[str, Any], rng: torch.Generator) -> None:
    case = Case(*shape, rng)
    for mass in (0.5, 0.95, 1.0):
        wanted, guessed = case.choose(mass, **how)
        got, its = case.choose(mass, device=torch.device("cuda"), **how)
        for a, b in zip(wanted, got, strict=True):
            assert b == sorted(set(b))
            assert len(set(a) ^ set(b)) <= max(2, len(a) // 50), "sums and halves of last digits"
        mine, other = merged(guessed), merged(its)
        same = torch.tensor([a == b for a, b in zip(wanted, got, strict=True)])
        heads = same.repeat_interleave(case.layout.heads // case.layout.kv_heads) & ~mine.lse.isneginf()
        assert (mine.lse - other.lse)[heads].abs().sum() <= 1e-2 * heads.sum()
        assert ((mine.out - other.out)[heads].abs() <= 1e-2).all()
        assert torch.equal(mine.lse.isneginf()[heads], other.lse.isneginf()[heads])


@pytest.mark.gpu
def test_the_kernels_hide_no_strange_number(rng: torch.Generator) -> None:
    case = Case(8, 2, 64, 300, rng)
    case.store.keys[1, 7, 3] = math.nan
    case.codes.truncate(0)
    case.codes.extend(case.store)
    lists, guessed = case.choose(0.5, device=torch.device("cuda"))
    assert len(lists[0]) < 300 and lists[1] == list(range(300))
    assert guessed.lse[4:].isneginf().all() and guessed.out[4:].eq(0).all()
