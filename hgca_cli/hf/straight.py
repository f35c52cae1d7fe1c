"""A token through a model's own modules one after the other, without the functions that hold them together.

Once all layers are one call (hf/stack.py) those take more time than the embedding, the positions and the output layer:
masks nobody needs, outputs by name, each layer asked to hand on what it gets. That a model is these modules and nothing
else is seen, not assumed: what each is given and gives must be the very numbers of the model's own forward, token after
token, before a token goes without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.linear import QuickLinear
from hgca_cli.hf.load import forward
from hgca_cli.hf.stack import Stack, stack_of
from hgca_cli.hf.threads import alone
from hgca_cli.hf.watched import Watched

INSIDE = ("embed_tokens", "layers", "norm", "rotary_emb")  # of what is below the output layer
ALIKE = 3  # tokens that must come out the same
MANY = 64  # positions
FIXED = ("default", "linear", "llama3", "yarn")  # kinds of rotation whose angles are a matter of the position alone
NAME = "hgca_straight"  # of a model's attribute


class Seen:
    """Tokens that came out the same; None: one did not, and no more are looked at."""

    def __init__(self) -> None:
        self.alike: int | None = 0

    @property
    def enough(self) -> bool:
        return self.alike == ALIKE

    def add(self, same: bool) -> None:
        self.alike = self.alike + 1 if same and self.alike is not None else None


class Straight:
    """The modules of a model that a token meets, or one of each of several sequences, in their order."""

    def __init__(self, model: nn.Module, inner: nn.Module, stack: Stack) -> None:
        self._seen = Seen(), Seen()  # of one, of several
        self._stack = stack
        self._embed, _, self._norm, rotary = (inner._modules[name] for name in INSIDE)
        assert rotary is not None
        self._rotary = rotary
        self._turns = Turns(rotary)
        self._head = model._modules["lm_head"]
        self._listeners = (model._forward_hooks, model._forward_pre_hooks)
        self._watched = Watched([model, inner])
        self._own = [one.__dict__ for one in (model, inner, self._embed, self._norm, rotary, self._head)]
        self._looked = False  # at all modules, since the model was asked last

    @property
    def alike(self) -> int | None:
        """Tokens of one sequence that came out the same; None: one did not."""
        return self._seen[0].alike

    @property
    def may_follow(self) -> bool:
        """Whether several tokens of one sequence can go through in one pass."""
        return self._turns.fixed and self._stack.most > 1

    def run(self, ids: Tensor, cache: HybridCache, places: Tensor | None = None) -> Tensor | None:
        """Logits [sequences, vocabulary] after one more token [sequences, 1] of each; None, and no row was put, where the model must be
        asked. places: of several, their positions [sequences, 1].
        """
        if not self._seen[places is not None].enough or not self._unchanged():
            return None
        x, turns = self._before(ids, cache.get_seq_length(), places)
        out = self._stack.compute(x, {"cache": cache, "position_embeddings": turns}, self._looked)
        self._looked = out is not None
        return None if out is None else self._after(out)

    def run_following(self, ids: Tensor, cache: HybridCache) -> Tensor | None:
        """Logits [tokens, vocabulary] after each of several tokens [tokens, 1] of one sequence, one behind the other, or of the first
        ones, where they are more than a call takes; None, and no row was put, where they are to be computed one by one.
        """
        if not self._seen[0].enough or not self.may_follow or not self._unchanged():
            return None
        x, turns = self._before(ids[: self._stack.most], cache.get_seq_length(), None)
        out = self._stack.follow(x, {"cache": cache, "position_embeddings": turns}, self._looked)
        self._looked = out is not None
        return None if out is None else self._after(out)

    def forget(self) -> None:
        """The model's own forward is about to run."""
        self._stack.last, self._looked = None, False

    def see(self, ids: Tensor, position: int, logits: Tensor, places: Tensor | None = None) -> None:
        """The model's own forward gave these logits [sequences, vocabulary] for tokens [sequences, 1]."""
        last, seen = self._stack.last, self._seen[places is not None]
        if last is None or seen.alike is None or seen.enough or not self._unchanged():
            return
        try:
            x, turns = self._before(ids, position, places)
            same = _same([x, *turns, self._after(last.out)], [last.x, *last.turns, logits])
        except (TypeError, ValueError, RuntimeError, AttributeError):
            same = False
        seen.add(same)

    def _before(self, ids: Tensor, position: int, places: Tensor | None) -> tuple[Tensor, Any]:
        x = self._embed(ids)  # type: ignore[misc]
        return x, self._turns(x, position) if places is None else self._rotary(x, places)

    def _after(self, out: Tensor) -> Tensor:
        logits: Tensor = self._head(self._norm(out))  # type: ignore[misc]
        return logits[:, -1]

    def _unchanged(self) -> bool:
        return not any(self._listeners) and not any("forward" in own for own in self._own) and self._watched.unchanged()


class Turns:
    """Cosine and sine of positions, of many at once where they depend on nothing else: six operations on a few numbers each.

    fixed  they depend on nothing else
    """

    def __init__(self, rotary: Callable[..., Any]) -> None:
        self._rotary = rotary
        self.fixed = getattr(rotary, "rope_type", None) in FIXED
        self._many = MANY if self.fixed else 1
        self._first, self._made = 0, (torch.empty(0, 0), torch.empty(0, 0))

    def __call__(self, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """x: [tokens, ...] of the model's dtype, on its device; cosine, sine [tokens, 1, dim] of positions one behind the other, from
        this one on. Several only if the angles are `fixed`.
        """
        count, at = x.shape[0], position - self._first
        if not 0 <= at <= self._made[0].shape[1] - count:
            many = max(self._many, count)
            self._made = self._rotary(x, torch.arange(position, position + many, device=x.device)[None])
            self._first, at = position, 0
        cosine, sine = (part[0, at : at + count, None] for part in self._made)
        return cosine, sine


def straighten(model: nn.Module) -> None:
    """Look for a model's modules, once its layers are stacked."""
    if model._modules.keys() != {"model", "lm_head"} or not isinstance(model._modules["lm_head"], QuickLinear):
        return
    inner = model._modules["model"]
    assert inner is not None
    if inner._modules.keys() != set(INSIDE) or None in inner._modules.values():
        return
    if (stack := stack_of(inner._modules["layers"])) is not None:  # type: ignore[arg-type]
        setattr(model, NAME, Straight(model, inner, stack))


def next_logits(model: Any, ids: Tensor, cache: HybridCache) -> Tensor:
    """Compute the rows of the next tokens [1, n] of the sequence in a cache: logits [vocabulary] after the last."""
    if ids.shape[1] == 1:
        with alone(model):
            return _straight(model, ids, cache)[0]
    if (straight := getattr(model, NAME, None)) is not None:
        straight.forget()
    return _own(model, ids, cache)[0]


def next_of_each(model: Any, ids: Tensor, cache: HybridCache, places: Tensor) -> Tensor:
    """Compute the row of the next token [sequences, 1] of each sequence in a cache, at its position: logits [sequences, vocabulary]."""
    return _straight(model, ids, cache, position_ids=places)


def takes_following(model: Any) -> bool:
    """Whether `following_logits` may have an answer, once some tokens were computed one by one."""
    straight: Straight | None = getattr(model, NAME, None)
    return straight is not None and straight.may_follow


def following_logits(model: Any, ids: Tensor, cache: HybridCache) -> Tensor | None:
    """Logits [tokens, vocabulary] after each of several tokens [tokens, 1], the next ones of the sequence in a cache, or of as many of
    them as a pass takes; None, and no row was put, where they cannot be computed in one pass as they would be one by one.
    """
    straight: Straight | None = getattr(model, NAME, None)
    return None if straight is None else straight.run_following(ids, cache)


def _straight(model: Any, ids: Tensor, cache: HybridCache, position_ids: Tensor | None = None) -> Tensor:
    straight: Straight | None = getattr(model, NAME, None)
    named = {} if position_ids is None else {"position_ids": position_ids}
    if straight is None:
        return _own(model, ids, cache, **named)
    if (logits := straight.run(ids, cache, position_ids)) is not None:
        return logits
    straight.forget()
    position = cache.get_seq_length()
    logits = _own(model, ids, cache, **named)
    straight.see(ids, position, logits, position_ids)
    return logits


def _own(model: Any, ids: Tensor, cache: HybridCache, **named: Any) -> Tensor:
    logits: Tensor = forward(model, ids, cache, logits_to_keep=1, **named).logits[:, -1]
    return logits


def _same(ours: list[Tensor], own: list[Tensor]) -> bool:
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in zip(ours, own, strict=True))
