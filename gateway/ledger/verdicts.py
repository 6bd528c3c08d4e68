"""How the limits decided, counted: by this process since it began, for metrics, and by all of them in the last hour."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from gateway.ledger.buckets import Buckets, Submit
from gateway.ledger.connect import pairs
from gateway.ledger.names import Names
from gateway.model import Limit, Meter, Verdict

_BUCKET_SECONDS: Final = 600
_HOUR_SECONDS: Final = 3600
_RECENT_MAX: Final = 200
"""Calls of which it is told how much of a burst they left used."""
_SHAPES_MAX: Final = 1000


class Verdicts:
    """What one process counts of an account."""

    def __init__(self, names: Names) -> None:
        self.refusals: Counter[tuple[str, bool]] = Counter()
        """How often this process saw each policy refuse, by name and whether in shadow."""
        self._admitted: dict[tuple[Limit, ...], int] = {}
        """By all limits that a call fell under: how many were admitted. To add up by policy at each call would cost it 3 µs."""
        self._admitted_before: Counter[str] = Counter()
        self._recent: deque[tuple[Meter, ...]] = deque(maxlen=_RECENT_MAX)
        self._refused = Buckets(names.refused, _BUCKET_SECONDS, _HOUR_SECONDS)

    def count(self, found: Verdict, at: float) -> None:
        """Count a verdict. `at`: Unix seconds."""
        meters, refused = found.meters, False
        for meter in meters:
            if not meter.admitted:
                policy, shadow = meter.limit.policy, meter.limit.shadow
                refused = refused or not shadow
                self.refusals[policy, shadow] += 1
                self._refused.add(at, f"{'shadow' if shadow else 'enforce'} {policy}")
        self._recent.append(meters)
        if not refused:
            limits_met = tuple([meter.limit for meter in meters])
            self._admitted[limits_met] = self._admitted.get(limits_met, 0) + 1

    def admitted(self) -> Counter[str]:
        """Return how often this process asked each policy about a call that was admitted; by number once for each."""
        total = self._admitted_before.copy()
        for limits_met, count in self._admitted.items():
            for limit in limits_met:
                total[limit.policy] += count
        if len(self._admitted) > _SHAPES_MAX:  # Each live change brings limits of its own.
            self._admitted_before, self._admitted = total.copy(), {}
        return total

    def used_ratios(self) -> dict[str, float]:
        """Return the largest share of each policy's burst that one of the latest calls left used, since this was last asked."""
        found: dict[str, float] = {}
        while self._recent:
            for meter in self._recent.popleft():
                limit = meter.limit
                found[limit.policy] = max(1 - meter.remaining / limit.burst, found.get(limit.policy, 0.0))
        return found

    async def write(self, submit: Submit) -> bool:
        """Add some of the refusals to what Redis has; say whether it took all of that, and there is more."""
        return await self._refused.write(submit)

    async def refused_last_hour(self, submit: Submit, now: float) -> Counter[tuple[str, bool]]:
        """Return how often each policy refused anywhere, to within ten minutes, by name and whether in shadow.

        `now`: Unix seconds. Raises: what `submit` does.
        """
        total: Counter[tuple[str, bool]] = Counter()
        for bucket in self._refused.names(now, _HOUR_SECONDS).values():
            kept: Any = await submit("HGETALL", bucket)
            for name, count in pairs(kept):
                shadow, _, policy = name.decode().partition(" ")
                total[policy, shadow == "shadow"] += int(count)
        return total
