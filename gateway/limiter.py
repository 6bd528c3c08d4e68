"""The limiter's arithmetic in this process' memory: what the admit script does, without Redis.

It answers while Redis is away, by the process' share of each limit, and it answers history: what would have been refused.
GCRA: each limit keeps one theoretical arrival time; a call may be early by the tolerance. Tested to agree with the script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.model import Charge, Limit, Meter, Verdict

_PRUNE_AT: Final = 10_000


class Touched:
    """Which numbers were touched, as long as each counts."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}
        self._prune_at = _PRUNE_AT

    def new(self, keys: Sequence[str], now_us: int) -> list[str]:
        """Return those that count as not touched."""
        return [key for key in keys if self._until.get(key, 0) <= now_us]

    def touch(self, keys: Sequence[str], now_us: int, life_ms: int) -> int:
        """Count those that are new as touched from now on; return how many were."""
        new = self.new(keys, now_us)
        self._until |= dict.fromkeys(new, now_us + life_ms * 1000)
        if len(self._until) >= self._prune_at:
            self._until = {key: until for key, until in self._until.items() if until > now_us}
            self._prune_at = max(_PRUNE_AT, 2 * len(self._until))
        return len(new)


class Limiter:
    """What was charged, as long as it matters."""

    def __init__(self, share: int = 1) -> None:
        """`share`: how many processes divide each limit among them."""
        self._share = share
        self._times: dict[str, tuple[int, int]] = {}  # With the interval, which a live change may have ended for.
        self._touched = Touched()
        self._places: dict[str, dict[str, int]] = {}
        self._prune_at = _PRUNE_AT

    def decide(self, charges: Sequence[Charge], now_us: int, holder: str) -> Verdict:
        """Make every charge, or none. `holder` is who takes the places among the calls under way.

        Of a share, the tolerance is the whole limit's: so `share` processes admit at most `share` − 1 units more than one.
        A call with more new numbers than a share has units is refused as long as there are shares.
        """
        looked = [self._look(charge, now_us) for charge in charges]
        admitted = not any(refuses and not charge.limit.shadow for charge, (_, _, refuses) in zip(charges, looked, strict=True))
        figures = []
        for charge, (figure, units, refuses) in zip(charges, looked, strict=True):
            kept = self._keep(charge, figure, units, now_us, holder) if admitted and not refuses else figure
            figures.append(-kept if refuses else kept)
        self._prune(now_us)
        return verdict(charges, now_us, figures, self._share)

    def release(self, keys: Sequence[str], holder: str) -> None:
        """Give places back."""
        for key in keys:
            places = self._places.get(key, {})
            places.pop(holder, None)
            if not places:
                self._places.pop(key, None)

    def _look(self, charge: Charge, now: int) -> tuple[int, int, bool]:
        """Return the limit's figure, the units the call draws, and whether it refuses them."""
        limit = charge.limit
        if not limit.interval_us:
            places = self._places.get(charge.key, {})
            for holder in [holder for holder, until in places.items() if until <= now]:
                del places[holder]
            return len(places), 1, len(places) >= _places_of(limit, self._share)
        units = 1 if charge.touched is None else len(self._touched.new(charge.touched, now))
        interval, tolerance = limit.interval_us * self._share, limit.tolerance_us
        at, before = self._times.get(charge.key, (now, interval))
        at = max(at, now)
        if before != interval:
            at = now - (now - at) * interval // before
            self._times[charge.key] = at, interval
        ahead = (units - 1) * interval
        if units and at + ahead - now > tolerance:
            return at + ahead, units, True
        return at, units, False

    def _keep(self, charge: Charge, figure: int, units: int, now: int, holder: str) -> int:
        limit = charge.limit
        if not limit.interval_us:
            self._places.setdefault(charge.key, {})[holder] = now + limit.life_ms * 1000
            return figure + 1
        if units:
            figure += units * limit.interval_us * self._share
            self._times[charge.key] = figure, limit.interval_us * self._share
            if charge.touched:
                self._touched.touch(charge.touched, now, limit.life_ms)
        return figure

    def _prune(self, now: int) -> None:
        """Forget what no longer matters, each time as much has come as was left."""
        if len(self._times) + len(self._places) < self._prune_at:
            return
        self._times = {key: kept for key, kept in self._times.items() if kept[0] > now}
        self._places = {key: places for key, places in self._places.items() if any(until > now for until in places.values())}
        self._prune_at = max(_PRUNE_AT, 2 * (len(self._times) + len(self._places)))


def verdict(charges: Sequence[Charge], now_us: int, figures: Sequence[int], share: int = 1) -> Verdict:
    """Return what the limiter's figures mean, one for each charge: a time, or the calls under way; negative: refused."""
    return Verdict(tuple([_meter(charge, now_us, figure, share) for charge, figure in zip(charges, figures, strict=True)]))


def _meter(charge: Charge, now: int, figure: int, share: int) -> Meter:
    limit = charge.limit
    if not limit.interval_us:
        left = 0 if figure < 0 else max(0, _places_of(limit, share) - figure)
        return Meter(limit, charge.field, left, 1, figure >= 0)
    interval, tolerance = limit.interval_us * share, limit.interval_us * (limit.burst - 1)
    if figure < 0:
        return Meter(limit, charge.field, 0, max(1, _seconds(-figure - now - tolerance)), admitted=False)
    remaining = max(0, (now + tolerance - figure) // interval + 1)
    wait = figure - now if remaining else figure - now - tolerance
    return Meter(limit, charge.field, remaining, max(1, _seconds(wait)), admitted=True)


def _places_of(limit: Limit, share: int) -> int:
    return max(1, limit.burst // share)


def _seconds(microseconds: int) -> int:
    return -(-microseconds // 1_000_000)
