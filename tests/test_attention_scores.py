"""Scores the GPU makes of codes, held to float64: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import itertools
import math
import os
import re
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from hgca_cli import indexing
from hgca_cli.attention.scoring import decoded
from hgca_cli.attention.select.mirror import Coded
from hgca_cli.attention.tables import Places, placed
from hgca_cli.hardware.memory import folded_bytes
from hgca_cli.kv.layout import LayerLayout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SHAPES = [(4, 1, 128), (9, 3, 64), (4, 4, 16), (7, 1, 32), (12, 1, 64), (16, 2, 128), (2, 1, 256)]
EACH = 640  # rows of a part: five blocks, of which a program takes four at once
ROOM = 2 * EACH


def made_up(layout: LayerLayout, rng: torch.Generator, sharp: float = 1.0) -> Tensor:
    """Codes u8 [kv_heads, blocks, bytes]. Every eighth number is large."""
    dim, blocks = layout.key_dim, ROOM // indexing.BLOCK
    width = indexing.block_bytes(dim)
    codes = torch.randint(0, 256, (layout.kv_heads, blocks, width), dtype=torch.uint8, generator=rng)
    step = sharp * (0.1 + torch.rand(layout.kv_heads, blocks, dim, generator=rng))
    step[..., ::8] *= 10
    scales = torch.cat([step, -7.5 * step + torch.randn(step.shape, generator=rng)], dim=-1)
    codes[..., : 4 * dim] = scales.bfloat16().contiguous().view(torch.uint8)
    return codes


class Made:
    """What `Scores` makes for sequences with these rows."""

    def __init__(
        self, layout: LayerLayout, query: Tensor, codes: list[Tensor], rows: list[int], softcap: float
    ) -> None:
        from hgca_cli.attention.scores_triton import Scores

        self.scores = Scores(layout, len(rows), ROOM, DEVICE)
        there = [one.to(DEVICE) for one in codes]
        means = torch.zeros(layout.kv_heads, ROOM // indexing.BLOCK, 32, dtype=torch.bfloat16, device=DEVICE)
        window = torch.zeros(2, layout.kv_heads, 1, 64, device=DEVICE).unbind()
        places: Places = placed([window] * len(rows), [Coded(one, means) for one in there], looked_up=True)
        limits = torch.tensor([[count, 0, 0, 0, 0] for count in rows], device=DEVICE)
        made = torch.full((len(rows), layout.heads, ROOM), math.nan, device=DEVICE)
        tops, sums = torch.full((2, len(rows), layout.heads, ROOM // EACH), math.nan, device=DEVICE)
        asked = query.to(DEVICE), places.codes, places.table, limits, made, tops, sums
        self.scores.make(*asked, each=EACH, scale=0.1, softcap=softcap, part=slice(None))
        self.made, self.tops, self.sums = made.cpu(), tops.cpu(), sums.cpu()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_scores_are_those_of_the_codes(shape: tuple[int, ...], softcap: float, rng: torch.Generator) -> None:
    layout = LayerLayout(*shape, shape[2])
    rows = [ROOM, 0, 517, 128, 1]
    codes = [made_up(layout, rng) for _ in rows]
    query = torch.randn(len(rows), layout.heads, layout.key_dim, generator=rng)
    query[..., ::8] /= 4
    got = Made(layout, query, codes, rows, softcap)
    for index, count in enumerate(rows):
        asked = query[index].double().view(layout.kv_heads, -1, layout.key_dim)
        score = (asked @ decoded(codes[index], layout.key_dim)[:, :count].double().mT).flatten(0, 1) * 0.1
        size = (asked.abs() @ decoded(codes[index], layout.key_dim)[:, :count].double().abs().mT).flatten(0, 1)
        steps = codes[index][..., : 2 * layout.key_dim].contiguous().view(torch.bfloat16).double()
        large = (asked.unsqueeze(2) * steps.unsqueeze(1)).abs().amax(-1).flatten(0, 1)  # heads, blocks
        rounded = large.repeat_interleave(indexing.BLOCK, 1)[:, :count] / (127 * 256 + 127) / 2 * 15 * layout.key_dim
        score = softcap * torch.tanh(score / softcap) if softcap else score
        off = (got.made[index, :, :count].double() - score).abs()
        assert (off <= 0.1 * (rounded + 4e-6 * size) + 4e-6 * (softcap + score.abs())).all()
        for part in range(ROOM // EACH):
            own = score[:, part * EACH : (part + 1) * EACH]
            if not own.shape[1]:
                assert got.tops[index, :, part].isneginf().all() and got.sums[index, :, part].eq(0).all()
                continue
            top = got.tops[index, :, part].double()
            assert (top - own.amax(-1)).abs().max() <= 1e-2
            assert (top + got.sums[index, :, part].double().log() - own.logsumexp(-1)).abs().max() <= 1e-2


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_what_is_no_number_stays_none(strange: float, rng: torch.Generator) -> None:
    layout = LayerLayout(8, 2, 64, 64)
    codes = [made_up(layout, rng) for _ in "ab"]
    codes[1][1, 3, :2] = torch.tensor(strange, dtype=torch.bfloat16).view(1).view(torch.uint8)
    query = torch.randn(2, 8, 64, generator=rng)
    query[0, 5, 9] = strange
    got = Made(layout, query, codes, [ROOM, ROOM], 0.0)
    assert got.made[0, 5].isnan().all() and got.sums[0, 5].isnan().all()
    assert got.made[1, 4:, 384:512].isnan().all() and got.sums[1, 4:, 0].isnan().all()
    sound = got.made.clone()
    sound[0, 5], sound[1, 4:, 384:512] = 0.0, 0.0
    assert sound.isfinite().all()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_have_what_the_matrix_units_want(shape: tuple[int, ...]) -> None:
    from hgca_cli.attention.scores_triton import matrix_units

    there = torch.cuda.get_device_capability() >= (8, 0)
    assert matrix_units(shape[0] // shape[1], shape[2], DEVICE) == there


def test_memory_is_as_counted() -> None:
    for heads, kv_heads, dim in [*SHAPES, (32, 8, 128), (64, 2, 32)]:
        layout = LayerLayout(heads, kv_heads, dim, dim)
        from hgca_cli.attention.scores_triton import Scores

        made = Scores(layout, 3, ROOM, DEVICE)
        assert sum(one.nbytes for one in made.memory) == 3 * ROOM * folded_bytes(layout)


def lanes(count: int, rng: torch.Generator) -> list[list[int]]:
    """Registers of 32 threads."""
    return torch.randint(0, 1 << 32, (32, count), generator=rng).tolist()


def bytes_of(word: int, signed: bool) -> list[int]:
    return list(memoryview(word.to_bytes(4, "little")).cast("b" if signed else "B"))


def product(a: list[list[int]], b: list[list[int]], c: list[list[int]]) -> list[list[int]]:
    """What `mma.m16n8k32` makes of u8 and s8 registers of 32 threads, after the PTX ISA's tables of who has what."""
    left, right = torch.zeros(16, 32, dtype=torch.int64), torch.zeros(32, 8, dtype=torch.int64)
    for lane, (i, k) in enumerate(itertools.product(range(8), range(4))):
        for at, word in enumerate(a[lane]):
            first = 4 * k + 16 * (at // 2)
            left[i + 8 * (at % 2), first : first + 4] = torch.tensor(bytes_of(word, signed=False))
        for at, word in enumerate(b[lane]):
            right[4 * k + 16 * at : 4 * k + 16 * at + 4, i] = torch.tensor(bytes_of(word, signed=True))
    sums = left @ right
    return [
        [c[lane][at] + int(sums[i + 8 * (at // 2), 2 * k + at % 2]) for at in range(4)]
        for lane, (i, k) in enumerate(itertools.product(range(8), range(4)))
    ]


def test_what_is_told_the_matrix_units(rng: torch.Generator) -> None:
    """The assembly, run by hand for 32 threads, adds up the numbers' products of rows and heads."""
    from hgca_cli.attention.products_triton import MULTIPLY

    values = [{f"${8 + at}": one for at, one in enumerate(words)} for words in lanes(12, rng)]
    begun = torch.randint(-1000, 1000, (32, 8), generator=rng)
    for lane, own in enumerate(values):
        own |= {f"${20 + at}": int(begun[lane, at]) for at in range(8)}
    for line in re.findall(r"(?:and|shr|mma)[^;]*", MULTIPLY.value):
        name, rest = line.split(maxsplit=1)
        if name.startswith("mma"):
            d, a, b, c = (re.split(r",\s*", one) for one in re.findall(r"\{([^}]*)\}", rest))
            made = product(*([[own[one] for one in names] for own in values] for names in (a, b, c)))
            for own, four in zip(values, made, strict=True):
                own |= dict(zip(d, four, strict=True))
            continue
        to, of, number = re.split(r",\s*", rest)
        for own in values:
            own[to] = own[of] & int(number, 16) if name.startswith("and") else own[of] >> int(number)
    for row, head in itertools.product(range(32), range(4)):
        for low in range(2):
            wanted = int(begun[row // 4 * 4 + head, row % 4 + 4 * low])
            for step, word in itertools.product(range(2), range(4)):
                code = bytes_of(values[row // 4 * 4 + word][f"${8 + 4 * step + row % 4}"], signed=False)
                asked = values[(2 * head + low) * 4 + word]
                for half in range(2):
                    numbers = bytes_of(asked[f"${16 + 2 * step + half}"], signed=True)
                    wanted += sum((one >> (4 * half) & 15) * other for one, other in zip(code, numbers, strict=True))
            assert values[row // 4 * 4 + head][f"${row % 4 + 4 * low}"] == wanted
