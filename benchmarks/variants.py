"""A text read once, exactly, and followed by variants of a policy that no flag names: KL against exact attention.

As `hgca eval fidelity` does it: all but the last tokens of a text are read in chunks, these are fed one by one, whatever the
policy would say, and each variant begins from the same rows. Used by page.py and moving_average.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.attention.select.contract import Selector
from hgca_cli.attention.select.exact import Exact
from hgca_cli.commands.eval_texts import read_texts
from hgca_cli.config import CacheSettings
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.cache_layer import Policy
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.measure.fidelity import kl_divergence

CHUNK = 512


def exact(layout: LayerLayout, index: int) -> Selector:
    """Every row."""
    return Exact()


class Reading:
    """One text, read but for its last `positions` tokens.

    ids       of the text, one more than the tokens of its context
    policy    sees the reading; appended: so many of the tokens read are a turn of their own
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: list[int],
        positions: int,
        window: int,
        policy: Policy = exact,
        appended: int = 0,
    ) -> None:
        self._loaded = loaded
        self._settings = CacheSettings(window=window, context=len(ids), kv_dtype="bf16")
        first = len(ids) - positions - 1
        self._fed, self._truth = ids[first:-1], ids[first + 1 :]
        cache = HybridCache(loaded.model.config, self._settings, policy)
        for turn in (ids[: first - appended], ids[first - appended : first]):
            cache.expect(len(turn))
            for piece in torch.tensor([turn]).split(CHUNK, dim=1) if turn else ():
                loaded.forward(piece, cache, logits_to_keep=1)
        rows = cache.every_row()
        assert rows is not None, "a model with sliding layers forgets rows"
        self._rows = rows
        self._exact: Tensor | None = None

    def follow(self, policy: Policy, begin: Callable[[HybridCache], None] | None = None) -> dict[str, float]:
        """KL in nats, agreement, share of the store's rows and bytes read; `begin` is called before the first token."""
        if self._exact is None and policy is not exact:
            self.follow(exact)
        cache = HybridCache(self._loaded.model.config, self._settings, policy)
        cache.fill(self._rows, self._loaded.device, CHUNK)
        if begin is not None:
            begin(cache)
        found = []
        for token in self._fed:
            output = self._loaded.forward(torch.tensor([[token]]), cache)
            found.append(output.logits[0, -1].float().log_softmax(-1))
        logs, rows = torch.stack(found), cache.rows()
        cache.close()
        if self._exact is None:
            self._exact = logs
        truth = torch.arange(len(self._truth)), self._truth
        return {
            "kl": float(kl_divergence(self._exact, logs).mean()),
            "agree": float((self._exact.argmax(-1) == logs.argmax(-1)).float().mean()),
            "nll_change": float((self._exact[truth] - logs[truth]).mean()),
            "rows": rows.read_share,
            "bytes": rows.bytes_share,
        }


def arguments(about: str) -> argparse.ArgumentParser:
    """Options every such benchmark has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--skip", type=int, default=0, help="tokens at the beginning of a text to pass over")
    return parser


def prepared(options: argparse.Namespace) -> tuple[LoadedModel, list[list[int]]]:
    """The model, and of each text one token more than the context has."""
    native.share_openmp(True)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    quicken(loaded.model)
    loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    texts = [loaded.tokenizer.encode(one.text) for one in read_texts(options.texts)]
    return loaded, [ids[options.skip : options.skip + options.ctx + 1] for ids in texts]


def show(name: str, parts: list[dict[str, float]]) -> None:
    """One variant, the texts' mean, as a JSON line."""
    mean = {key: round(sum(part[key] for part in parts) / len(parts), 5) for key in parts[0]}
    print(json.dumps({"policy": name} | mean), flush=True)
