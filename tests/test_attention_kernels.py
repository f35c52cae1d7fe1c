"""The GPU's kernels for several sequences, held to what torch does: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import itertools
import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from hgca_cli.attention.merge import Partial
from hgca_cli.attention.scoring import LIMITS, Guessed, Scoring, merged
from hgca_cli.attention.select.codes import Codes
from hgca_cli.attention.select.mirror import Mirror
from hgca_cli.attention.slots import SlotAttention
from hgca_cli.attention.tables import Tables, placed
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store
from hgca_cli.selection import EVERY, Selection

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HEADS = [(8, 2), (9, 3), (4, 4)]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slots_of_several_sequences(heads: tuple[int, int], dtype: torch.dtype, rng: torch.Generator) -> None:
    from hgca_cli.attention import slots_triton

    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's numbers have no bf16")
    spans = [(3, 0, 5, 0, 0), (400, 0, 40, 100, 401), (-1, 0, 0, 0, 0), (0, 0, 333, 0, 0)]
    slots = [700, 512, 300, 333]
    taken = torch.tensor(spans)
    windows = [torch.randn(2, heads[1], count, 64, generator=rng).to(dtype) for count in slots]
    query = torch.randn(len(spans), heads[0], 64, generator=rng).to(dtype)
    new = torch.randn(2, len(spans), heads[1], 1, 64, generator=rng).to(dtype)
    far = torch.randn(len(spans), heads[0] * 65, generator=rng)
    far[1, heads[0] * 64 :] = float("-inf")
    guess_out, guess_lse = (torch.randn(len(spans), heads[0], 3, *more, generator=rng) for more in ((64,), ()))
    guess_lse[0] = float("-inf")
    results = []
    for there in (False, True):
        device = DEVICE if there else torch.device("cpu")
        kind = dtype if there else torch.float32
        rows = [tuple(one.to(device, kind, copy=True) for one in window) for window in windows]
        places = placed(rows, looked_up=there)  # type: ignore[arg-type]
        attention = SlotAttention(taken.to(device), heads[0], max(slots), 64)
        if there:
            attention._kernels = slots_triton.Kernels(len(spans), heads[0], max(slots), 64, device)
        attention.put(*new.to(device, kind), places)
        near = attention.near(query.to(device, kind), places, scale=0.125, softcap=5.0)
        near_lse, told = torch.zeros(2, len(spans), heads[0], device=device)
        out, lse = far.to(device).split([heads[0] * 64, heads[0]], dim=1)
        whole = near.finish(
            Partial(out.view(len(spans), heads[0], 64), lse),
            near_lse,
            Guessed(guess_out.to(device), guess_lse.to(device)),
            told,
        )
        assert torch.equal(near_lse, told)
        results.append([whole.out.float().cpu(), near_lse.cpu(), *(one.float().cpu() for pair in rows for one in pair)])
    off = 1e-5 if dtype == torch.float32 else 2e-2
    for index, (wanted, got) in enumerate(zip(*results, strict=True)):
        assert torch.equal(wanted.isinf(), got.isinf()), index
        assert (wanted - got).nan_to_num().abs().max() <= off, index


class Stored:
    """A store of some rows and their codes."""

    def __init__(self, layout: LayerLayout, rows: int, rng: torch.Generator) -> None:
        self.rows, self.store = rows, Store(layout, 1100, torch.bfloat16)
        self.codes = Codes(layout, 1100)
        keys, values = torch.randn(2, layout.kv_heads, rows, layout.key_dim, generator=rng)
        if rows:
            self.store.append(3.0 * keys, values)
            self.codes.extend(self.store)

    def wanted(self, layout: LayerLayout, mass: float, limits: Tensor) -> list[int]:
        if not self.rows:
            return [0] * 5
        chosen = Selection(
            layout.heads, self.store.keys, self.store.values, self.codes.whole, mass=mass, least=8, most=EVERY
        )
        chosen.hold(self.rows, self.codes.rows)
        return Scoring(layout, 1100, limits).wanted(chosen)


@pytest.mark.parametrize("heads", HEADS)
def test_scores_of_several_sequences(heads: tuple[int, int], rng: torch.Generator) -> None:
    from hgca_cli.attention import scoring_triton

    layout = LayerLayout(*heads, 64, 64)
    stores = [Stored(layout, rows, rng) for rows in (700, 0, 1000, 129)]
    query = torch.randn(len(stores), layout.heads, 64, generator=rng)
    beside = torch.randn(len(stores), layout.heads, generator=rng)
    beside[1] = float("-inf")
    windows = torch.zeros(2, layout.kv_heads, 1, 64)
    results: list[tuple[list[list[int]], Tensor, Tensor]] = []
    for there in (False, True):
        device = DEVICE if there else torch.device("cpu")
        limits = torch.zeros(len(stores), LIMITS, dtype=torch.int64)
        limits = torch.tensor([one.wanted(layout, 0.9, limits) for one in stores], device=device)
        scoring = Scoring(layout, 1100, limits)
        if there:
            scoring._kernels = scoring_triton.Kernels(scoring)
        mirrors = [Mirror(layout, 1, room, device) for room in (1100, 128, 1024, 300)]
        for mirror, one in zip(mirrors, stores, strict=True):
            mirror.follow([one.codes])
        tables = Tables(1, len(stores), layout.kv_heads, device, torch.float32, looked_up=there)
        for at, (mirror, one) in enumerate(zip(mirrors, stores, strict=True)):
            tables.put(0, at, tuple(windows.to(device)), mirror.layers[0] if one.rows else None)  # type: ignore[arg-type]
        tables.send()
        starts = torch.full((len(stores), layout.kv_heads + 1), -1, pin_memory=device.type == "cuda")
        asked = query.to(device), tables.layers[0], beside.to(device), starts
        for part in (slice(0, 3), slice(3, 4)) if there else (slice(None),):
            guessed = scoring.choose(*asked, turn=1, scale=0.125, softcap=0.0, part=part)
        if device.type == "cuda":
            torch.cuda.synchronize()
        lists = [
            row[a:b].tolist()
            for row, start in zip(scoring.row[1], starts.tolist(), strict=True)
            for a, b in itertools.pairwise(start)
        ]
        results.append((lists, *(one.cpu() for one in merged(guessed))))
    (wanted, *mine), (got, *its) = results
    assert [len(one) for one in got[layout.kv_heads : 2 * layout.kv_heads]] == [0] * layout.kv_heads
    for a, b in zip(wanted, got, strict=True):
        assert b == sorted(set(b)) and len(set(a) ^ set(b)) <= max(4, len(a) // 10), "last digits, at the edge of a bin"
    same = torch.tensor([a == b for a, b in zip(wanted, got, strict=True)]).view(len(stores), -1)
    alike = same.repeat_interleave(layout.heads // layout.kv_heads, dim=1)
    assert alike.float().mean() >= 0.5
    for a, b in zip(mine, its, strict=True):
        assert torch.equal(a.isinf()[alike], b.isinf()[alike])
        assert (a - b)[alike].nan_to_num().abs().max() <= 1e-2
