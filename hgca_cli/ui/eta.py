"""How long the rest of a prompt takes. A token costs as much as the one before it, and a little for every row before it."""

from __future__ import annotations

from hgca_cli.events import PrefillProgress

PRIOR = 1.0  # chunks that the growth predicted counts for, against those that were seen


class Eta:
    """Seconds left, from the chunks of one prompt.

    A token after p rows takes a + b p: what is done gives both (least squares), with b = a * growth, which the events tell,
    as one chunk more. So the first chunk already says what the later ones will take.
    """

    def __init__(self) -> None:
        self._last: PrefillProgress | None = None
        self._seen: list[tuple[float, float]] = []  # rows before the middle of a chunk, seconds of one of its tokens

    def add(self, event: PrefillProgress) -> float | None:
        """Seconds left after this event; None before the first chunk is read. A prompt that begins starts anew."""
        last = self._last
        self._last = event
        if last is None or event.processed <= event.cached or last.total != event.total:
            self._seen.clear()
            last = PrefillProgress(event.total, event.cached, event.cached, 0.0)
        if (tokens := event.processed - last.processed) > 0:
            self._seen.append(((last.processed + event.processed) / 2, (event.seconds - last.seconds) / tokens))
        if not self._seen:
            return None
        each, more = self._fit(event)
        rest = event.total - event.processed
        return rest * (each + more * (event.total + event.processed) / 2)

    def _fit(self, event: PrefillProgress) -> tuple[float, float]:
        """a and b. Positions are taken in units of the prompt's length."""
        unit = max(1, event.total)
        growth = event.growth * unit
        seen = [(at / unit, seconds) for at, seconds in self._seen]
        count, x, y = len(seen), sum(at for at, _ in seen), sum(seconds for _, seconds in seen)
        xx, xy = sum(at * at for at, _ in seen), sum(at * seconds for at, seconds in seen)
        # normal equations; b = growth a is one equation more, of length 1 as those of chunks are
        prior = PRIOR / (1.0 + growth * growth)
        aa, ab, bb = count + prior * growth * growth, x - prior * growth, xx + prior
        determinant = aa * bb - ab * ab
        each, more = (y * bb - xy * ab) / determinant, (xy * aa - y * ab) / determinant
        if more < 0.0:
            each, more = y / count, 0.0
        elif each < 0.0:
            each, more = 0.0, xy / xx
        return each, more / unit
