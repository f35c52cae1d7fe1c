"""Pages: what is known of them against float64, which are read, and the index as rows come and go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hgca_cli import indexing, selection
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.select.exact import Exact
from hgca_cli.attention.select.page import Page
from hgca_cli.config import CacheSettings
from hgca_cli.errors import NativeError, UsageError
from hgca_cli.indexing import GROUP
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.selection import Aimed, Selection
from tests import reference

KV_HEADS, GROUP_HEADS, DIM = 2, 3, 20
BIN = 1 + 1 / 8  # weights that share a bin, an eighth of an octave, are taken in the order of rows
KINDS = ["box", "centre", "mean"]


def known(pages: Tensor, kind: str) -> Tensor:
    """Pages as they lie in memory -> float64 [heads, pages, sides, dim]."""
    sides = 2 if kind == "box" else 1
    lying = pages.view(torch.bfloat16).view(pages.shape[0], pages.shape[1], -1, sides, GROUP)
    return lying.permute(0, 1, 4, 3, 2).flatten(1, 2).double()


def written(keys: Tensor, kind: str, scale: Tensor | None = None) -> Tensor:
    blocks = -(-keys.shape[1] // GROUP**2)
    pages = torch.zeros(keys.shape[0], blocks, indexing.page_bytes(keys.shape[2], kind), dtype=torch.uint8)
    indexing.write_pages(keys, pages, 0, kind=kind, scale=scale)
    return pages


def pages_of(keys: Tensor) -> list[Tensor]:
    return list(keys.double().split(GROUP, dim=1))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 255, 256, 257, 1300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_what_is_known_of_a_page(rows: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    keys, scale = torch.randn(KV_HEADS, rows, DIM, generator=rng), None
    if dtype == torch.int8:
        scale = torch.rand(KV_HEADS, rows, generator=rng) / 32
        keys = torch.randint(-127, 128, keys.shape, generator=rng).to(torch.int8)
    keys = keys.to(dtype)
    real = keys.double() if scale is None else keys.float().mul(scale.unsqueeze(-1)).double()
    low, high = (known(written(keys, "box", scale), "box")[:, : -(-rows // GROUP), side] for side in (0, 1))
    lowest = torch.stack([page.amin(1) for page in pages_of(real)], 1)
    highest = torch.stack([page.amax(1) for page in pages_of(real)], 1)
    assert (low <= lowest).all() and (low >= lowest - lowest.abs() / 128).all()
    assert (high >= highest).all() and (high <= highest + highest.abs() / 128).all()
    centre = known(written(keys, "centre", scale), "centre")[:, : low.shape[1], 0]
    torch.testing.assert_close(centre, (lowest + highest) / 2, rtol=2**-8, atol=1e-6)
    mean = known(written(keys, "mean", scale), "mean")[:, : low.shape[1], 0]
    torch.testing.assert_close(mean, torch.stack([page.mean(1) for page in pages_of(real)], 1), rtol=2**-8, atol=1e-6)


class Case:
    """A store whose values tell which pages were read, and what the pages weigh by float64."""

    def __init__(self, rng: torch.Generator, rows: int, kind: str, softcap: float) -> None:
        self.rows, self.kind, self.softcap, self.scale = rows, kind, softcap, DIM**-0.5
        self.keys = torch.randn(KV_HEADS, rows, DIM, generator=rng)
        self.query = torch.randn(KV_HEADS * GROUP_HEADS, DIM, generator=rng) * 2
        self.count = -(-rows // GROUP)
        page = torch.arange(rows) // GROUP
        self.values = torch.nn.functional.one_hot(page, self.count).float().expand(KV_HEADS, -1, -1).contiguous()
        self.pages = written(self.keys, kind)
        self.weight = self._weight()

    def _weight(self) -> Tensor:
        """Softmax over the pages' scores, the largest of the group: float64 [kv_heads, pages]."""
        sides = known(self.pages, self.kind)[:, : self.count].unsqueeze(1)
        query = self.query.double().view(KV_HEADS, GROUP_HEADS, 1, 1, DIM)
        score = (query * sides).amax(3).sum(-1) * self.scale
        score = self.softcap * torch.tanh(score / self.softcap) if self.softcap else score
        return torch.softmax(score, -1).amax(1)

    def read(self, mass: float, most: int) -> tuple[list[Tensor], Tensor, Tensor, Selection]:
        """Pages of each KV head that were read, out and lse."""
        job = Selection(KV_HEADS * GROUP_HEADS, self.keys, self.values, None, mass=mass)
        job.hold(self.rows, self.rows)
        job.page(self.pages, kind=self.kind, mass=mass, most=most)
        out, lse = selection.start([Aimed(job, self.query, self.scale, self.softcap)]).wait()[0]
        seen = [torch.nonzero(head.sum(0) > 0).flatten() for head in out.view(KV_HEADS, GROUP_HEADS, -1)]
        return seen, out, lse, job


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 17, 250, 257, 2000, 5000])
def test_the_pages_that_weigh_most_are_read(
    isa: str, rows: int, kind: str, softcap: float, rng: torch.Generator
) -> None:
    case = Case(rng, rows, kind, softcap)
    most = max(1, case.count // 5)
    seen, out, lse, job = case.read(0.9999999, most)
    lists = []
    for weight, pages in zip(case.weight, seen, strict=True):
        assert len(pages) == most
        left = torch.ones(case.count, dtype=torch.bool)
        left[pages] = False
        assert not left.any() or weight[pages].min() * BIN * 1.01 >= weight[left].max()
        lists.append([row for page in pages.tolist() for row in range(page * GROUP, min(rows, (page + 1) * GROUP))])
    wanted, wanted_lse = reference.attend(case.query, case.keys, case.values, case.scale, softcap, lists)
    assert (out - wanted).abs().max() <= 1e-5 and (lse - wanted_lse).abs().max() <= 1e-5
    read = sum(len(one) for one in lists)
    assert job.rows_read.tolist() == [len(one) for one in lists] and job.reads.read == read
    blocks = -(-rows // GROUP**2) * indexing.page_bytes(DIM, kind) * KV_HEADS
    assert job.reads.bytes == blocks + read * (DIM + case.count) * 4


@pytest.mark.parametrize("mass", [0.3, 0.7, 0.95])
def test_pages_are_read_until_the_mass_is_held(isa: str, mass: float, rng: torch.Generator) -> None:
    case = Case(rng, 3000, "mean", 0.0)
    seen, _, _, _ = case.read(mass, selection.EVERY)
    for weight, pages in zip(case.weight, seen, strict=True):
        held = weight[pages]
        assert weight.sum() - held.sum() <= 1 - mass + 0.01
        assert weight.sum() - held[held > held.min() * BIN * 1.01].sum() > 1 - mass - 0.01  # all but the last bin


def test_equal_pages_keep_to_the_budget(isa: str) -> None:
    case = Case(torch.Generator().manual_seed(1), 3200, "box", 0.0)
    case.keys[:] = case.keys[:, :1]
    case.pages = written(case.keys, "box")
    seen, *_ = case.read(0.99, 10)
    assert [len(pages) for pages in seen] == [10, 10]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_hidden(isa: str, odd: float, kind: str, rng: torch.Generator) -> None:
    case = Case(rng, 1000, kind, 0.0)
    case.keys[0, 500, 3] = odd
    case.pages = written(case.keys, kind)
    seen, out, _, job = case.read(0.5, 3)
    assert job.rows_read[0] == 1000 and out[:GROUP_HEADS].isnan().any()
    assert len(seen[1]) <= 3


def test_refusals(rng: torch.Generator) -> None:
    keys = torch.randn(2, 40, 8, generator=rng)
    with pytest.raises(NativeError, match="cannot be those"):
        indexing.write_pages(keys, torch.zeros(2, 1, 5, dtype=torch.uint8), 0, kind="box")
    with pytest.raises(NativeError):
        indexing.write_pages(keys, written(keys, "box"), 3, kind="box")
    case = Case(rng, 100, "box", 0.0)
    job = Selection(6, case.keys, case.values, None, mass=0.9)
    job.hold(100, 100)
    job.page(case.pages, kind="box", mass=0.9)
    job.hold(100, 90)
    with pytest.raises(NativeError):
        selection.start([Aimed(job, case.query, 1.0)])


LAYOUT = LayerLayout(heads=6, kv_heads=2, key_dim=DIM, value_dim=12)


def filled(rng: torch.Generator, rows: int, dtype: torch.dtype) -> tuple[Store, Tensor, Tensor]:
    keys, values = (torch.randn(2, rows, dim, generator=rng) for dim in (DIM, 12))
    store = Store(LAYOUT, 2000, dtype)
    return store, keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_an_index_that_grew_and_was_rewound_is_the_one_built_at_once(dtype: torch.dtype, rng: torch.Generator) -> None:
    store, keys, values = filled(rng, 900, dtype)
    grown = Page(LAYOUT, 2000, mass=1.0)
    query = torch.randn(6, DIM, generator=rng)
    for first, end in ((0, 5), (5, 64), (64, 300), (300, 700)):
        store.append(keys[:, first:end], values[:, first:end])
        grown.stored(store)
    store.truncate(333)
    grown.truncate(333, 0)
    grown.choose(query, store)
    short = Page(LAYOUT, 2000, mass=1.0)
    short.stored(store)
    for one in (grown, short):
        one.choose(query, store)
    assert torch.equal(index(grown, 333), index(short, 333))
    store.append(keys[:, 333:900], values[:, 333:900])
    grown.stored(store)
    whole = Page(LAYOUT, 2000, mass=1.0)
    whole.stored(store)
    assert torch.equal(index(grown, 900), index(whole, 900))


def index(policy: Page, rows: int) -> Tensor:
    return known(policy.pages[:, : -(-rows // GROUP**2)].contiguous(), policy.kind)[:, : -(-rows // GROUP)]


@pytest.mark.parametrize(
    ("asked", "read"),
    [({}, 0.2), ({"budget": 0.1}, 0.1), ({"budget": 1.0}, 1.0), ({"quality": 1.0}, 1.0), ({"quality": 0.02}, None)],
)
def test_what_is_asked_for_is_what_limits(asked: dict[str, float], read: float | None, rng: torch.Generator) -> None:
    store, keys, values = filled(rng, 1600, torch.float32)
    store.append(keys, values)
    policy = make_selector(CacheSettings(select="page", **asked), LAYOUT, 0)  # type: ignore[arg-type]
    query = torch.randn(6, DIM, generator=rng)
    job = policy.choose(query, store)
    assert isinstance(job, Selection)
    out, _ = selection.start([Aimed(job, query, DIM**-0.5)]).wait()[0]
    if read is None:
        assert 0 < job.reads.read < 0.25 * 3200
        return
    assert job.reads.read == read * 3200
    if read == 1.0:
        wanted, _ = reference.attend(query, keys, values, DIM**-0.5)
        assert (out - wanted).abs().max() <= 1e-5


def test_first_layers_may_be_dense() -> None:
    settings = CacheSettings(select="page", dense_layers=2)
    kinds = [type(make_selector(settings, LAYOUT, layer)) for layer in range(4)]
    assert kinds == [Exact, Exact, Page, Page]
    with pytest.raises(UsageError, match="--dense-layers: -1 is negative"):
        CacheSettings(dense_layers=-1)
