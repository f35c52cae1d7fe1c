"""A token of several sequences in one forward pass, and of each by itself where that is faster or memory runs out; several prompts
likewise.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from hgca_cli.engine.member import Member
from hgca_cli.engine.sequence import is_refusal
from hgca_cli.errors import HgcaError
from hgca_cli.hf.joint import JointCache, Prompts, joint_forward, one_call_a_layer, pays_from
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.threads import one_thread


class Together:
    """One forward pass for the members of a batch."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._least = pays_from(loaded)
        self._calls = one_call_a_layer(loaded)
        self._joint: tuple[list[Member], JointCache] | None = None
        self._prompts = Prompts(loaded)
        self.joint = False  # whether the latest tokens were computed in one pass

    def forward(self, members: list[Member]) -> list[tuple[Member, HgcaError]]:
        """Compute each member's token: logits of each. Returns those it failed for; the others are not held up."""
        self.joint = len(members) >= self._least
        if not self.joint:
            self._joint = None
            return [failure for member in members for failure in self._alone(member)]
        before = [member.sequence.mark() for member in members]
        tokens, lengths = [one.token for one in members], [mark.length for mark in before]
        try:
            with one_thread() if self._calls else nullcontext():
                logits = joint_forward(self._loaded, self._of(members), tokens, lengths)
        except BaseException as error:
            self._joint = None
            for member, mark in zip(members, before, strict=True):
                member.sequence.forget_beyond(mark)
            if not is_refusal(error):
                raise
            if self._loaded.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(members) // 2
            return self._some(members[:half]) + self._some(members[half:])
        for member, row in zip(members, logits, strict=True):
            member.logits, member.owed = row, False
        return []

    def takes(self, member: Member, beside: int) -> bool:
        """Whether a member's whole prompt can be read in one pass with so many tokens of others'."""
        tokens = member.unread
        if not member.at_once or beside + tokens > self._prompts.most:
            return False
        try:
            return self._prompts.take(member.sequence.cache, tokens)
        except Exception as error:  # it is told when the prompt is read by itself
            if not is_refusal(error):
                raise
            return False

    def read(self, members: list[Member]) -> int:
        """Read the prompts that it `takes`: logits of each. Returns how many tokens: 0 where that is refused, and each is to be read by
        itself.
        """
        before = [member.sequence.mark() for member in members]
        new = [member.expect_all() for member in members]
        try:
            with one_thread():
                logits = self._prompts.read([member.sequence.cache for member in members], new)
        except BaseException as error:
            for member, mark in zip(members, before, strict=True):
                member.sequence.forget_beyond(mark)
                member.expect_none()
            if not is_refusal(error):
                raise
            return 0
        for member, row in zip(members, logits, strict=True):
            member.has_read(row)
        return sum(map(len, new))

    def _some(self, members: list[Member]) -> list[tuple[Member, HgcaError]]:
        return self._alone(members[0]) if len(members) == 1 else self.forward(members)

    def _alone(self, member: Member) -> list[tuple[Member, HgcaError]]:
        ids = torch.tensor([member.sequence.waiting], device=self._loaded.device)
        try:
            member.logits, member.owed = member.sequence.forward(self._loaded, ids), False
        except HgcaError as error:
            return [(member, error)]
        return []

    def _of(self, members: list[Member]) -> JointCache:
        if self._joint is None or self._joint[0] != members:
            self._joint = list(members), JointCache([member.sequence.cache for member in members])
        return self._joint[1]
