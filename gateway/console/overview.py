"""Overview: calls and refusals lately, how long they took, and how Redis, the credentials, the writers and the sealer are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gateway.audit import rfc3339, unix_seconds
from gateway.console.chart import KINDS
from gateway.console.visit import View, Visit
from gateway.errors import Problem
from gateway.ledger.health import account_health, store_health
from gateway.ledger.names import Names
from gateway.model import SLOTS
from gateway.slots import is_rejection
from gateway.trail.archive import ArchiveError, Reader
from gateway.trail.export.reading import usual
from gateway.trail.index import BrokenIndex, Query
from gateway.trail.search import Row, Trail, order

_READ_MAX: Final = 20_000
"""Records that one page reads: half a second."""
_SPANS: Final = {"hour": (3600, 60), "day": (86_400, 1800)}
"""Seconds that a page is about, and of one bar."""
_PROBLEMS_MAX, _SERVICES_MAX = 12, 12
_SILENT_SECONDS: Final = 10.0
_LATE_SECONDS: Final = 60.0
_STUCK_SECONDS: Final = 120.0


async def overview(visit: Visit) -> View:
    """Show how it is now, and how it was in the last hour or day."""
    name = visit.query.get("span", "hour")
    name = name if name in _SPANS else "hour"
    seconds, step = _SPANS[name]
    settings, accounts = visit.opened.settings, list(visit.opened.settings.accounts)
    reader, unread = _reader(visit)
    async with visit.opened.client() as client:
        trail = Trail(client, [Names(account).audit for account in accounts], reader)
        page = await trail.page(Query(since=visit.now - seconds), _READ_MAX, live_max=_READ_MAX)
        rows = [row for one in page.rows if "at" in (row := usual(one))]
        health = [await account_health(client, account) for account in accounts]
        store = await store_health(client)
        lags = {account: await _lag(client, account, reader, visit.now) for account in accounts}
    closing = [row for row in rows if row["stage"] in ("outcome", "refusal", "abort") and row.get("problem") != "decided_anew"]
    capped = page.cut or len(page.found) >= _READ_MAX
    from_ = unix_seconds(rows[0]["at"]) if capped and rows else visit.now - seconds
    data = {
        "span": name,
        "since": from_,
        "capped": capped,
        "read_max": _READ_MAX,
        "unread": unread,
        "calls": _calls(closing),
        "latency_ms": _latency(closing),
        "buckets": _buckets(closing, visit.now, seconds, step),
        "problems": _problems(closing),
        "services": _services(closing),
        "outages": sum(row["stage"] == "degraded" for row in rows),
        "redis": {**asdict(store), "durable": store.durable},
        "accounts": [
            {
                "account": one.account,
                "slots": _slots(closing, one.account, one.active, settings.accounts[one.account]),
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


def _calls(closing: Sequence[Row]) -> dict[str, int]:
    """Count what became of calls; a refusal may stand for many."""
    counts: Counter[str] = Counter()
    for row in closing:
        times = int(row.get("count", 1))
        counts["all"] += times
        counts[_kind(row)] += times
        counts["denied"] += times * (row.get("decision") == "denied")
        counts["degraded"] += times * bool(row.get("degraded"))
    return {name: counts[name] for name in ("all", *KINDS, "denied", "degraded")}


def _kind(row: Row) -> str:
    result = row.get("result")
    return result if result in KINDS else "unknown"


def _latency(closing: Sequence[Row]) -> dict[str, float | None]:
    took = sorted(row["duration_ms"] for row in closing if row["stage"] == "outcome" and row.get("duration_ms") is not None)
    return {name: _percentile(took, part) for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def _percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the smallest value that so large a part does not exceed."""
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)] if ordered else None


def _buckets(closing: Sequence[Row], now: float, seconds: int, step: int) -> list[dict[str, Any]]:
    last = int(now // step)
    numbers = range(last - seconds // step + 1, last + 1)
    counts = {number: Counter[str]() for number in numbers}
    for row in closing:
        number = int(unix_seconds(row["at"]) // step)
        if number in counts:
            counts[number][_kind(row)] += int(row.get("count", 1))
    return [
        {"at": number * step, "label": rfc3339(number * step)[11:16], **{kind: counts[number][kind] for kind in KINDS}}
        for number in numbers
    ]


def _problems(closing: Sequence[Row]) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in closing:
        if row.get("problem") and _kind(row) != "answered":
            counts[row["problem"], row.get("origin") or "–"] += int(row.get("count", 1))
    return [
        {"problem": problem, "origin": origin, "count": count} for (problem, origin), count in counts.most_common(_PROBLEMS_MAX)
    ]


def _services(closing: Sequence[Row]) -> list[dict[str, Any]]:
    by: dict[str | None, list[Row]] = {}
    for row in closing:
        by.setdefault(row.get("service"), []).append(row)
    told: list[dict[str, Any]] = [
        {"service": service, **_calls(rows), "p95": _latency(rows)["p95"]} for service, rows in by.items()
    ]
    return sorted(told, key=lambda row: row["all"], reverse=True)[:_SERVICES_MAX]


def _slots(closing: Sequence[Row], account: str, active: str, configured: Any) -> list[dict[str, Any]]:
    """Return what is known of an account's credentials without having one: which is in use, and what the vendor said of it."""
    told = []
    for slot in SLOTS:
        if not configured.slot(slot).given:
            continue
        used = [row for row in closing if row["account"] == account and row.get("slot") == slot and row["stage"] == "outcome"]
        rejected = sum(is_rejection(Problem[row["problem"]]) for row in used if row.get("problem") in Problem.__members__)
        told.append(
            {
                "slot": slot,
                "active": slot == active,
                "version": next((row["credential"] for row in reversed(used) if "credential" in row), None),
                "used": len(used),
                "rejected": rejected,
                "last_used_at": unix_seconds(used[-1]["at"]) if used else None,
            }
        )
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
