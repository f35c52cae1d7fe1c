"""A token of several sequences in one forward pass, and of each by itself where that is faster or memory runs out; several prompts
likewise.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from hgca_cli.engine.member import Member
from hgca_cli.engine.sequence import GRAPHS, is_refusal
from hgca_cli.errors import HgcaError
from hgca_cli.hf.joint import JointCache, Prompts, joint_forward, most_in_a_call, pays_from
from hgca_cli.hf.joint_graph import graphs_of
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.threads import one_thread


class Together:
    """One forward pass for the members of a batch."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._graphs = graphs_of(loaded) if GRAPHS else None
        self._least = 2 if self._graphs is not None else pays_from(loaded)
        self._in_a_call = most_in_a_call(loaded)
        self._joints: list[tuple[list[Member], JointCache]] = []  # of members that are one pass
        self._prompts = Prompts(loaded)
        self.joint = False  # whether the latest tokens were computed in one pass

    def forward(self, members: list[Member]) -> list[tuple[Member, HgcaError]]:
        """Compute each member's token: logits of each. Returns those it failed for; the others are not held up."""
        fit = self._fit(members)
        if len(fit) < len(members):
            rest = [member for member in members if member not in fit]
            return [*self.forward(fit), *(failure for member in rest for failure in self._alone(member))]
        if self._graphs is None and len(members) > self._in_a_call >= self._least:
            passes, all_of = -(-len(members) // self._in_a_call), len(members)
            ends = [all_of * at // passes for at in range(passes + 1)]  # as even as can be
            return [failure for at in range(passes) for failure in self.forward(members[ends[at] : ends[at + 1]])]
        self.joint = len(members) >= self._least
        if not self.joint:
            self.let_go()
            return [failure for member in members for failure in self._alone(member)]
        for member in members:
            member.settle()
        before = [member.sequence.mark() for member in members]
        tokens, lengths = [one.token for one in members], [mark.length for mark in before]
        try:
            joint = self._of(members)
            if self._graphs is not None:
                logits = self._graphs.step(joint, tokens)
                self._give_up_graphs()
            else:
                with one_thread() if len(members) <= self._in_a_call else nullcontext():
                    logits = joint_forward(self._loaded, joint, tokens, lengths)
        except BaseException as error:
            self.let_go()
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

    def _fit(self, members: list[Member]) -> list[Member]:
        """Those that may be computed together."""
        if self._graphs is None or self._kept(members) is not None:
            return members
        return [member for member in members if self._graphs.serves(member.sequence.cache)]

    def _give_up_graphs(self) -> None:
        """If they cannot be made sequences go on one by one."""
        if self._graphs is not None and self._graphs.failed is not None:
            self.let_go()
            self._graphs, self._least = None, pays_from(self._loaded)

    def let_go(self) -> None:
        """Nobody's memory is held: somebody is about to give it back."""
        self._joints = []
        if self._graphs is not None:
            self._graphs.let_go()

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
        try:
            member.compute_alone()
        except HgcaError as error:
            return [(member, error)]
        return []

    def _of(self, members: list[Member]) -> JointCache:
        if (kept := self._kept(members)) is not None:
            return kept
        joint = JointCache([member.sequence.cache for member in members])
        self._joints = [one for one in self._joints if not any(member in members for member in one[0])]
        self._joints.append((list(members), joint))
        return joint

    def _kept(self, members: list[Member]) -> JointCache | None:
        return next((joint for kept, joint in self._joints if kept == members), None)
