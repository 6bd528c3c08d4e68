"""A limit put to the audit history: what it would have refused, as a report for people and programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.admission import Policies
from gateway.config import Rate, read_policies
from gateway.ledger.names import Names
from gateway.model import Limit
from gateway.opened import Opened
from gateway.trail import plot
from gateway.trail.replay import HOUR_US, Replay, Tally, coarser, in_order, over_time, smallest_rate
from gateway.trail.table import minute

CANDIDATE: Final = "candidate"
_LATE_SECONDS: Final = 30.0

Pages = AsyncIterator[list[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What of the history is asked."""

    since: float
    """Unix seconds."""
    until: float | None = None
    """The same; None: now."""
    service: str | None = None
    """Whose calls are told; None: everybody's."""
    step_us: int = HOUR_US
    """How long the steps of the plot are: an hour, or a part of one."""


def candidate(table: Mapping[str, Any], account: str, opened: Opened) -> Policies:
    """Return one policy that is to be tried. `table`: as in the settings. Raises: ConfigError, SecretUnreadable."""
    return Policies(read_policies({CANDIDATE: table}), account, opened.pseudonyms, 1)


async def tried(
    opened: Opened, account: str, policies: Policies, asked: Span, unknown: Counter[str], passed: Callable[[Pages], Pages]
) -> Replay:
    """Put an account's history to some policies. `passed`: sees the records go by, and may end them; `unknown`: is counted up.

    Raises: Refusal `ledger_unavailable`, OSError, BrokenIndex.
    """
    replay = Replay(policies, asked.service, asked.step_us)
    until = asked.until or time.time()
    only_own = asked.service is not None and all("caller" in policy.by for policy in policies.policies().values())
    async with opened.trail([account]) as trail:
        last = None if asked.until is None else asked.until + _LATE_SECONDS
        async for now, demand in in_order(passed(trail.pages(Names(account).audit, asked.since, last)), unknown):
            # The journal may have brought it, long after its own time; and a clock may have been wrong.
            if not asked.since * 1_000_000 <= now <= until * 1_000_000:
                continue
            # What others did matters only to a limit that is shared with them.
            if not only_own or demand.service == asked.service:
                replay.put(now, demand)
    return replay


def report(limit: str, replays: list[Replay], asked: Span, unknown: Counter[str]) -> tuple[dict[str, Any], list[plot.Step]]:
    """Return what came out of replays that tried one thing on several accounts, and the same over time. `limit`: in words."""
    tallies: dict[tuple[str, int], Tally] = {}
    by_policy: Counter[tuple[str, bool]] = Counter()
    bursts: dict[tuple[str, str], int] = {}
    keys: set[str] = set()
    for replay in replays:
        by_policy += replay.by_policy
        keys |= replay.pseudonym_keys
        for of, burst in replay.bursts.items():
            bursts[of] = max(bursts.get(of, 0), burst)
        for where, tally in replay.tallies.items():
            tallies.setdefault(where, Tally()).add(tally)
    by_hour = coarser(tallies, HOUR_US)
    first = min((replay.first for replay in replays if replay.first), default=0)
    calls = sum(tally.calls for tally in by_hour.values())
    told = {
        "limit": limit,
        "span": f"{minute(asked.since)} to {minute(asked.until or time.time())}, {calls:,} calls",
        "callers": _callers(by_hour, bursts),
        "policies": [
            {"policy": policy, "shadow": shadow, "would_be_refused": count} for (policy, shadow), count in by_policy.most_common()
        ],
        "smallest": _smallest(replays),
        "hours": [
            {"service": service, "hour": minute(hour / 1_000_000), "calls": tally.calls, "would_be_refused": tally.refused}
            for (service, hour), tally in sorted(by_hour.items(), key=lambda item: (item[0][1], item[0][0]))
        ],
        "unknown": _unknown(asked.since, first, keys, unknown),
    }
    steps = over_time(tallies, asked.step_us)
    return told, [(step // 1_000_000, tally.calls, tally.refused) for step, tally in steps]


def _callers(by_hour: dict[tuple[str, int], Tally], bursts: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    callers: list[dict[str, Any]] = []
    for service in sorted({service for service, _ in by_hour}):
        own = {hour: tally for (of, hour), tally in by_hour.items() if of == service}
        worst = max(own, key=lambda hour: own[hour].refused)
        needed = [burst for (policy, of), burst in bursts.items() if of == service and policy == CANDIDATE]
        callers.append(
            {
                "service": service,
                "calls": sum(tally.calls for tally in own.values()),
                "refused_then": sum(tally.refused_then for tally in own.values()),
                "would_be_refused": sum(tally.refused for tally in own.values()),
                "worst_hour": minute(worst / 1_000_000),
                "worst_hour_refused": own[worst].refused,
                "burst_needed": needed[0] if needed else None,
            }
        )
    callers.sort(key=lambda caller: caller["would_be_refused"], reverse=True)
    return callers


def _smallest(replays: list[Replay]) -> list[str]:
    """Return for each policy the least that would have refused nobody."""
    told = []
    tried: dict[str, Limit] = {}
    for replay in replays:
        for policy, limit in replay.limits.items():
            tried.setdefault(policy, limit)
    for policy, limit in tried.items():
        rate, burst = Rate(limit.units, limit.window_seconds), limit.burst
        bursts = [found for replay in replays for (of, _), found in replay.bursts.items() if of == policy]
        if not bursts:
            continue  # Nobody who is told of drew on it.
        needed = max(bursts)
        line = f"{policy}: at {rate}, burst {needed}"
        measured = [one for replay in replays for (of, _), one in replay.smallest.items() if of == policy]
        if measured and all(one.seeks_rate for one in measured):
            rates = [smallest_rate(one.interval_us, rate.window_seconds) for one in measured]
            least = None if None in rates else max(found for found in rates if found is not None)
            line += f"; at burst {burst}, " + (
                str(Rate(least, rate.window_seconds)) if least else "no rate: more than that came in one millisecond"
            )
        told.append(line)
    return told or ["no call came under a limit"]


def _unknown(since: float, first: int, keys: set[str], unknown: Counter[str]) -> list[str]:
    told = [
        "how callers would have behaved: one that is refused may try again; one that was refused then may have called less",
        "the order within a millisecond: the history has the time of arrival, the live limiter that of admission, by Redis",
        "calls that were refused for their form or their key: they cost nothing, then as now",
        "limits on calls under way (concurrency): they are not tried",
        "how full the limits were when the history begins: they are taken for unused",
    ]
    if first and first / 1_000_000 - since > 3600:
        told.append(f"what was before {minute(first / 1_000_000)}: the history begins there")
    if unknown["late"]:
        told.append(f"when {unknown['late']:,} calls fall that an outage's journal brought late: they are left out")
    if unknown["unreadable"]:
        told.append(f"what {unknown['unreadable']:,} entries of the history say: they are no records, and left out")
    if len(keys) > 1:
        told.append(f"which numbers are one: pseudonyms were made with {len(keys)} keys ({', '.join(sorted(keys))})")
    return told
