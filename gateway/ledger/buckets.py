"""What all processes count together in Redis: one hash for each span of time, which goes when it is old."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from itertools import islice
from typing import Any, Final

Submit = Callable[..., Awaitable[Any]]
"""Sends a command's words to Redis."""
_AT_ONCE: Final = 500


class Buckets:
    """Counts by name and span of time: those of this process that Redis has not, and where those of all are."""

    def __init__(self, base: str, seconds: int, kept_seconds: int, encode: Callable[[Any], str | bytes] = str) -> None:
        """`base`: what the hashes' names begin with; `seconds`: the length of a span; `kept_seconds`: how long it is asked for.

        `encode`: returns a name as it is kept.
        """
        self._seconds = seconds
        self._base = base
        self._kept_seconds = kept_seconds
        self._encode = encode
        self._fresh: Counter[tuple[int, Hashable]] = Counter()
        self._latest = 0
        self._lasting: set[int] = set()
        """Of which Redis is not known to know when they go."""

    def add(self, at: float, name: Hashable, count: int = 1) -> None:
        """Count. `at`: Unix seconds."""
        bucket = int(at) // self._seconds
        if bucket != self._latest:
            self._latest = bucket
            if self._fresh:  # While Redis is away they gather.
                oldest = bucket - self._kept_seconds // self._seconds
                self._fresh = Counter({key: found for key, found in self._fresh.items() if key[0] >= oldest})
        self._fresh[bucket, name] += count

    async def write(self, submit: Submit) -> bool:
        """Add some of what was counted to what Redis has; say whether it took all of that, and there is more.

        What it does not take is kept. Of a command that was not answered nobody knows whether it was carried out: its count may
        be told twice then.
        """
        # After a long outage there is much, and calls go by the same way.
        counts = dict(islice(self._fresh.items(), _AT_ONCE))
        for key in counts:
            del self._fresh[key]
        self._lasting |= {bucket for bucket, _ in counts}
        more = bool(self._fresh)
        lasting, kept = list(self._lasting), self._kept_seconds + 2 * self._seconds
        added = [submit("HINCRBY", self._name(bucket), self._encode(name), count) for (bucket, name), count in counts.items()]
        ending = [submit("EXPIRE", self._name(bucket), kept) for bucket in lasting]
        answers = await asyncio.gather(*added, *ending, return_exceptions=True)
        for (key, count), answer in zip(counts.items(), answers, strict=False):
            if isinstance(answer, BaseException):
                self._fresh[key] += count
                more = False
        for bucket, answer in zip(lasting, answers[len(added) :], strict=True):
            if not isinstance(answer, BaseException):
                self._lasting.discard(bucket)
        return more

    def names(self, now: float, seconds: float) -> dict[int, str]:
        """Return the hashes of a span of time up to now, oldest first, each by the Unix second in which it begins."""
        buckets = range(int(now - seconds) // self._seconds, int(now) // self._seconds + 1)
        return {bucket * self._seconds: self._name(bucket) for bucket in buckets}

    def _name(self, bucket: int) -> str:
        return f"{self._base}{bucket}"
