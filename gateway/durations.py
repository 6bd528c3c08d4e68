"""How long something took, as Prometheus' histograms tell it."""

from __future__ import annotations

from bisect import bisect_left


class Durations:
    """How many durations were so long at most, by bound, and all of them together."""

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: seconds, rising."""
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self._sum += seconds

    def told(self) -> list[float]:
        """Return how many fell under each bound and not under the one before, then how many were longer, then their sum."""
        return [*self._counts, self._sum]
