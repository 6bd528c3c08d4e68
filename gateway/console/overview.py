"""Overview: calls and refusals lately, how long they took, and how Redis, the credentials, the writers and the sealer are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gateway.audit import rfc3339
from gateway.config import Account
from gateway.console.visit import View, Visit
from gateway.ledger.ends import Ended, Event, Outage, Span, Tried, read_ends
from gateway.ledger.health import AccountHealth, account_health, store_health
from gateway.ledger.names import Names
from gateway.model import RESULTS, SLOTS
from gateway.trail.archive import ArchiveError, Reader
from gateway.trail.index import BrokenIndex
from gateway.trail.search import order

_PROBLEMS_MAX, _SERVICES_MAX = 12, 12
_LATE_SECONDS: Final = 60.0
_STUCK_SECONDS: Final = 120.0

Ends = Mapping[Ended, int]
"""How many requests ended how."""


async def overview(visit: Visit) -> View:
    """Show how it is now, and how it was in the last hour or day."""
    span: Span = "day" if visit.query.get("span") == "day" else "hour"
    settings, accounts = visit.opened.settings, list(visit.opened.settings.accounts)
    reader, unread = _reader(visit)
    async with visit.opened.client() as client:
        ends_of = {account: await read_ends(client, account, span, visit.now) for account in accounts}
        health = [await account_health(client, account) for account in accounts]
        store = await store_health(client)
        lags = {account: await _lag(client, account, reader, visit.now) for account in accounts}
    buckets = {at: _sum(counted[at] for counted in ends_of.values()) for at in next(iter(ends_of.values()))}
    ends = _ends(_sum(buckets.values()))
    data = {
        "span": span,
        "since": min(buckets),
        "unread": unread,
        "calls": _calls(ends),
        "latency_ms": _latency(ends),
        "buckets": [{"at": at, "label": rfc3339(at)[11:16], **_results(_ends(counts))} for at, counts in buckets.items()],
        "problems": _problems(ends),
        "services": _services(ends),
        "outages": sum(Outage() in counts for counts in buckets.values()),
        "redis": {**asdict(store), "durable": store.durable},
        "accounts": [
            {
                "account": one.account,
                "slots": _slots(one, _sum(ends_of[one.account].values()), settings.accounts[one.account]),
                "writers": [
                    {"writer": writer, "beat_at": at, "late": visit.now - at > _LATE_SECONDS} for writer, at in one.writers
                ],
                "open_intents": one.open_intents,
                "oldest_open_at": one.oldest_open,
                "stuck": one.oldest_open is not None and visit.now - one.oldest_open > _STUCK_SECONDS,
                "unsealed": one.unsealed,
                "seal_lag_seconds": lags[one.account],
                "seal_late": (lags[one.account] or 0.0) > _LATE_SECONDS,
            }
            for one in health
        ],
        "archive": None if reader is None else _archive(reader),
    }
    return View("overview.html", "Overview", data)


def _reader(visit: Visit) -> tuple[Reader | None, str]:
    """Return the sealed trail, and why it cannot be read where it is there and cannot."""
    try:
        reader = visit.opened.reader
        if reader is not None and reader.index.size < reader.state.size:
            return None, "its index is being made"
        return reader, ""
    except (ArchiveError, BrokenIndex) as error:
        return None, str(error)
    except OSError as error:
        return None, error.strerror or type(error).__name__


def _sum(counted: Iterable[Counter[Event]]) -> Counter[Event]:
    total = Counter[Event]()
    for counts in counted:
        total.update(counts)
    return total


def _ends(counts: Mapping[Event, int]) -> Ends:
    return {event: count for event, count in counts.items() if isinstance(event, Ended)}


def _results(ends: Ends) -> dict[str, int]:
    found: dict[str, int] = dict.fromkeys(RESULTS, 0)
    for end, count in ends.items():
        found[end.result] += count
    return found


def _calls(ends: Ends) -> dict[str, int]:
    """Count requests by what became of them."""
    return {
        "all": sum(ends.values()),
        **_results(ends),
        "denied": sum(count for end, count in ends.items() if end.denied),
        "degraded": sum(count for end, count in ends.items() if end.degraded),
    }


def _latency(ends: Ends) -> dict[str, float | None]:
    """Return within how many milliseconds a part of the calls of the vendor were answered, or given up."""
    took = Counter[float]()
    for end, count in ends.items():
        if end.within_ms is not None:
            took[end.within_ms] += count
    return {name: _percentile(took, part) for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def _percentile(took: Counter[float], part: float) -> float | None:
    """Return the smallest bound within which so large a part is."""
    wanted, so_far = part * took.total(), 0
    for within, count in sorted(took.items()):
        so_far += count
        if so_far >= wanted:
            return within
    return None


def _problems(ends: Ends) -> list[dict[str, Any]]:
    counts = Counter[tuple[str, str]]()
    for end, count in ends.items():
        if end.problem and end.result != "answered":
            counts[end.problem, end.origin or "–"] += count
    return [
        {"problem": problem, "origin": origin, "count": count} for (problem, origin), count in counts.most_common(_PROBLEMS_MAX)
    ]


def _services(ends: Ends) -> list[dict[str, Any]]:
    by: defaultdict[str | None, dict[Ended, int]] = defaultdict(dict)
    for end, count in ends.items():
        by[end.service][end] = count
    told: list[dict[str, Any]] = [{"service": service, **_calls(own), "p95": _latency(own)["p95"]} for service, own in by.items()]
    return sorted(told, key=lambda row: row["all"], reverse=True)[:_SERVICES_MAX]


def _slots(health: AccountHealth, events: Mapping[Event, int], configured: Account) -> list[dict[str, Any]]:
    """Return what is known of an account's credentials without having one: which is in use, and what the vendor said of it."""
    told = []
    for slot in SLOTS:
        if configured.slot(slot).given:
            at, version = health.tried.get(slot, (None, None))
            rejected = events.get(Tried(slot, rejected=True), 0)
            used = rejected + events.get(Tried(slot, rejected=False), 0)
            told.append(
                {
                    "slot": slot, "active": slot == health.active, "version": version,
                    "used": used, "rejected": rejected, "last_used_at": at,
                }
            )  # fmt: skip
    return told


async def _lag(client: Any, account: str, reader: Reader | None, now: float) -> float | None:
    """Return for how many seconds the oldest record that is not sealed has waited; None where that is not to be known here."""
    if reader is None:
        return None
    name = Names(account).audit
    position = reader.state.positions.get(name)
    found = await client.xrange(name, "-" if position is None else f"({position}", "+", count=1)
    return max(0.0, now - order(found[0][0].decode())[0] / 1000) if found else 0.0


def _archive(reader: Reader) -> dict[str, Any]:
    checkpoint: Path = reader.folder / "checkpoint"
    return {"records": reader.state.size, "signed_at": checkpoint.stat().st_mtime if checkpoint.exists() else None}
