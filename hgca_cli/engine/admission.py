"""Who may begin and who may grow, beside whom: what members of a batch claim, and beginnings that are given up for them."""

from __future__ import annotations

from collections.abc import Callable

from hgca_cli.engine.beginnings import Beginning, Beginnings
from hgca_cli.engine.member import Member, Request
from hgca_cli.engine.room import QUANTUM, Claim, Lengths, Room
from hgca_cli.engine.sequence import Sequence, is_refusal

CROWDED = 0.5  # of the room


class Admission:
    """The room of a batch.

    context  most tokens of a sequence
    running  everybody who runs at present
    """

    def __init__(self, room: Room, beginnings: Beginnings, context: int, running: Callable[[], list[Member]]) -> None:
        self.lengths = Lengths()
        self._room, self._beginnings, self._context, self._running = room, beginnings, context, running

    def _most(self, request: Request) -> int:
        """Tokens that a request may become."""
        return max(1, min(self._context, len(request.ids) + request.sampling.max_tokens))

    def enter(self, member: Member) -> None:
        """There is room for one more: for its prompt and its first tokens."""
        member.beginning = self._beginnings.of(member.request.ids)
        member.granted = self._first(member.request, 0).granted

    def has_room(self, request: Request) -> bool:
        """Whether a request fits beside those that run, once beginnings that are not its own are given up: if answers become as
        long as they use to, and so that all can be finished if they become longer.
        """
        shared = self._beginnings.of(request.ids).tokens
        while not (self._fits(request, shared) and self._safe(self._first(request, shared))):
            if not self.drop(request.ids):
                return not self._running() and (not self.drop() or self.has_room(request))
        return True

    @property
    def crowded(self) -> bool:
        """Whether those that run may take more than half of what there is."""
        room, claims = self._room, [self._claim(one, one.granted) for one in self._running()]
        return not room.fits(claims, self._beginnings.lengths, CROWDED)

    def fits_kept(self, member: Member, tokens: int) -> bool:
        """Whether the first so many tokens of a member's prompt can be kept, whose rows it shares then."""
        return self._fits(member.request, tokens, member, [tokens])

    def grants(self, member: Member) -> bool:
        """Whether there is room for a member's next token; it may grow, if all can still be finished afterwards."""
        if member.length <= member.granted or member.granted >= self._most(member.request):
            return True
        asked = self._more(member)
        granted = self._safe(asked, member)
        while not granted and self.drop():
            granted = self._safe(asked, member)
        if granted:
            member.granted = asked.granted
        return granted

    def grant_anyway(self, member: Member) -> None:
        """Let one grow, whatever happens."""
        member.granted = self._more(member).granted

    def begin(self, member: Member) -> Sequence:
        """A sequence with address space, and a window, for what a member can need, and what is known of its prompt."""
        most = self._most(member.request)
        member.beginning = self._beginnings.of(member.request.ids)
        try:
            return self._beginnings.sequence_for(member.beginning, most)
        except Exception as error:
            if not is_refusal(error):
                raise
            member.beginning = Beginning()
            while self.drop(refused=member):
                pass  # it reads all of its prompt by itself
            return self._beginnings.sequence_for(member.beginning, most)

    def keep(self, member: Member, sequence: Sequence) -> None:
        """What a member has read is what others begin with."""
        try:
            member.beginning = self._beginnings.keep(sequence, _used(self._running()))
        except Exception as error:  # it is read again then
            if not is_refusal(error):
                raise
        self._look_again()

    def drop(self, ids: list[int] | None = None, *, refused: Member | None = None) -> bool:
        """Give up a beginning that nobody has or waits for, nor a prompt; where memory was refused to one, though some wait for it."""
        running = self._running()
        if refused is not None:
            running = [refused, *(one for one in running if one.begun)]
        dropped = self._beginnings.drop(ids, _used(running))
        if dropped and refused is not None:
            self._look_again()
        return dropped

    def _look_again(self) -> None:
        """What is kept has changed: what those begin with whose prompts are not begun."""
        for member in self._running():
            if not member.begun:
                member.beginning = self._beginnings.of(member.request.ids)

    def _fits(self, request: Request, shared: int, member: Member | None = None, more: list[int] | None = None) -> bool:
        """Whether expected lengths fit: of a request, or of the member that has it, and of the others."""
        others = [one for one in self._running() if one is not member]
        expected = [self._expected(one.request, one.written, one.beginning.tokens) for one in others]
        return self._room.fits(
            [self._expected(request, 0, shared), *expected], [*self._beginnings.lengths, *(more or [])]
        )

    def _safe(self, asked: Claim, of: Member | None = None) -> bool:
        """Whether all can still be finished if this is granted, to one of them or to one more."""
        running, kept = self._running(), self._beginnings.lengths
        claims = [asked, *(self._claim(one, one.granted) for one in running if one is not of)]
        begun = [self._claim(one, max(1, one.sequence.cached)) for one in running if one.begun]
        return self._room.safe(claims, kept, self._room.limits_now(begun, kept))

    def _claim(self, member: Member, granted: int) -> Claim:
        return Claim(granted, self._most(member.request), member.beginning.tokens)

    def _more(self, member: Member) -> Claim:
        most = self._most(member.request)
        return self._claim(member, min(most, max(member.granted, member.length - 1) + QUANTUM))

    def _first(self, request: Request, shared: int) -> Claim:
        most = self._most(request)
        return Claim(min(most, len(request.ids) + QUANTUM), most, shared)

    def _expected(self, request: Request, written: int, shared: int) -> Claim:
        most = self._most(request)
        tokens = self.lengths.expected(len(request.ids), written, request.sampling.max_tokens)
        return Claim(max(1, min(most, tokens)), most, shared)


def _used(members: list[Member]) -> list[Sequence]:
    """Kept sequences that these begin with."""
    return [one.beginning.kept for one in members if one.beginning.kept is not None]
