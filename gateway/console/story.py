"""The story of one request: its records in their order, what the limits said, and the proof that all of it is sealed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from gateway.audit import REPLAYED, chained, unix_seconds
from gateway.console.audit import LIVE_MAX, href, numbers, on_trail
from gateway.console.signed import read_signed
from gateway.console.tops import tops_of
from gateway.console.visit import Download, Missing, View, Visit
from gateway.ledger.names import KEYS_TAG
from gateway.opened import Opened, UsageError
from gateway.trail.archive import Reader
from gateway.trail.export.reading import usual
from gateway.trail.prove import ProofError
from gateway.trail.search import Row, Trail
from gateway.trail.story import Chapter, Story, teller, verdicts

_SOON_SECONDS: Final = 10.0
"""A sealer signs each second; one that did not for so long is late."""
_WHO: Final = ("service", "key_id", "key_version", "proof", "source", "operator", "account", "trace_id")
_WHAT: Final = ("operation", "change", "subject", "policy", "before", "after", "until", "why", "expiry_time", "expiry_duration",
                "both_expiry_fields", "slot", "credential", "field", "error", "version", "config")  # fmt: skip
_ENDS: Final = ("outcome", "refusal", "abort")
_LIVED: Final = {
    "search": "A number was searched for",
    "open": "The writer began",
    "beat": "The writer was there",
    "close": "The writer ended",
    "degraded": "Redis went away",
    "recovered": "Redis came back",
}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NAME_MAX: Final = 80


async def page(visit: Visit) -> View:
    """Show the story of a request, or of one record."""
    name = visit.path["record"]
    (story, sealing), missing = await _told(visit)
    chapters = [_chapter(chapter, name, story) for chapter in story.chapters]
    told = [usual(chapter.row) for chapter in story.chapters]
    data = {
        "name": name,
        "request_id": story.request_id,
        "chapters": chapters,
        "ended": _ended(told),
        "who": _facts(told, _WHO),
        "what": _facts(told, _WHAT),
        "numbers": _numbers(told),
        "degraded": any(row.get("degraded") for row in told),
        "several": len({(row["account"], row.get("service"), row.get("key_id")) for row in told if row["stage"] in _ENDS}) > 1,
        "limits": [line for row in told if row["stage"] in ("outcome", "refusal") and _timed(row) for line in verdicts(row)],
        "timeline": _timeline(told),
        "repeats": _linked(told, "repeats"),
        "whole": story.whole,
        "more": story.more,
        "live_max": LIVE_MAX,
        "missing": missing,
        "sealing": sealing,
        "file": f"{href(name)}.proof",
        "file_name": _file_name(name),
        "search": f"/audit?request_id={story.request_id}"
        if story.request_id and not _NOT_IN_NAMES.search(story.request_id)
        else None,
    }
    return View("story.html", "A request", data)


async def proof(visit: Visit) -> Download:
    """Send the proof that the sealed records of a story are sealed."""
    name = visit.path["record"]
    (_, sealing), _ = await _told(visit)
    if sealing["proof"] is None:
        soon = "proofs are being prepared" if sealing["preparing"] else "it is not sealed yet"
        raise UsageError(f"there is no proof of it yet: {sealing['wrong'] or f'{soon}; try again in a few seconds'}")
    text = json.dumps(sealing["proof"], indent=1).encode()

    async def parts(_: Opened) -> AsyncIterator[bytes]:
        yield text

    return Download(_file_name(name), "application/json", parts)


async def _told(visit: Visit) -> tuple[tuple[Story, dict[str, Any]], list[str]]:
    """Return the story that the path names with its seal, and what is missing. Raises: Missing, as `on_trail`."""
    name = visit.path["record"]

    async def ask(trail: Trail, reader: Reader | None) -> tuple[Story | None, bool, Reader | None]:
        told = await teller(trail, reader, LIVE_MAX)
        return told.tell(name), told.whole, reader

    (story, whole, reader), missing = await on_trail(visit, [*visit.opened.settings.accounts, KEYS_TAG], ask)
    if story is None:
        if not whole:
            missing.append(f"Of what is not sealed yet {LIVE_MAX} records were looked at: it may be behind them.")
        raise Missing(f"Nothing is recorded under this id. {' '.join(missing)}".strip())
    return (story, await _sealing(story, reader, visit)), missing


async def _sealing(story: Story, reader: Reader | None, visit: Visit) -> dict[str, Any]:
    """Return how far a story is sealed: under which checkpoint, and with what proof."""
    where = [chapter.where for chapter in story.chapters if chapter.where is not None]
    state = "sealed" if len(where) == len(story.chapters) else "partly" if where else "waiting"
    told: dict[str, Any] = {
        "state": "none" if reader is None else state,
        "checkpoint": None, "proof": None, "steps": 0, "paths": [], "wrong": "", "age_seconds": None, "late": False, "key": "",
        "preparing": False,
    }  # fmt: skip
    if reader is None:
        return told
    seen = read_signed(visit.opened.settings, reader.folder)
    found = None if seen.fault else seen.checkpoint
    told["key"] = str(seen.key or "")
    told["wrong"] = seen.told
    if found is not None:
        age = max(0.0, visit.now - unix_seconds(found.at))
        told["checkpoint"] = {"size": found.size, "root": found.root.hex(), "at": found.at, "origin": found.origin}
        told |= {"age_seconds": age, "late": age > _SOON_SECONDS}
    signed = [place for place in where if found is not None and place[0] < found.size]
    if len(signed) < len(where) and told["state"] == "sealed":
        told["state"] = "partly" if signed else "waiting"
    tops = tops_of(reader.folder, reader.state.id)
    told["preparing"] = bool(signed) and not tops.near(reader.state.size)
    if signed and not told["preparing"]:
        try:
            told["proof"] = await asyncio.to_thread(tops.prove, reader, signed, seen.note)
            told["paths"] = [{"place": row["place"], "steps": row["proof"]} for row in told["proof"]["records"]]
        except ProofError as error:
            told["wrong"] = f"{error}"
    return told


def _chapter(chapter: Chapter, name: str, story: Story) -> dict[str, Any]:
    told = usual(chapter.row)
    writer, seq = chapter.row["writer"], chapter.row["seq"]
    return {
        "id": chapter.id,
        "href": href(chapter.id),
        "meant": name == chapter.id and len(story.chapters) > 1,
        "at": chapter.row["at"],
        "stage": chapter.row["stage"],
        "words": _words(told),
        "tone": _tone(told),
        "attempt": told.get("attempt", 1),
        "degraded": told.get("degraded", False),
        "count": told.get("count", 1),
        "duration_ms": told.get("duration_ms"),
        "account": chapter.row["account"],
        "who": told.get("service") or told.get("operator"),
        "closes": {"id": told["intent"], "href": href(told["intent"])} if told.get("intent") else None,
        "repeats": {"id": told["repeats"], "href": href(told["repeats"])} if told.get("repeats") else None,
        "status": told.get("status"),
        "code": told.get("code"),
        "upstream_status": told.get("upstream_status"),
        "origin": told.get("origin"),
        "retry_after_seconds": told.get("retry_after_seconds"),
        "shadow_deny": told.get("shadow_deny"),
        "policy": told.get("policy"),
        "writer": writer,
        "seq": seq,
        "prev": told.get("prev") or None,
        "hash": chained(chapter.record).hex(),
        "follows": chapter.follows,
        "before": href(f"{writer}-{seq - 1}") if seq > 0 else None,
        "after": href(f"{writer}-{seq + 1}") if chapter.followed else None,
        "place": chapter.where[0] if chapter.where is not None else None,
        "raw": chapter.record.decode(errors="replace"),
    }


def _words(told: Row) -> str:
    """Return what one record says, in words."""
    how = told.get("problem") or told.get("result") or "done"
    match told.get("stage"):
        case "intent":
            again = f", try {told['attempt']}" if told.get("attempt", 1) > 1 else ""
            return f"Recorded before anything was done{again}"
        case "outcome":
            by = {"vendor": " by the vendor", "gateway": " by the gateway"}.get(told.get("origin", ""), "")
            return "The vendor answered" if told.get("result") == "answered" else f"Ended{by}: {how}"
        case "refusal" if how == REPLAYED:
            return "The answer to an earlier call was given again"
        case "refusal":
            return f"Refused: {how}"
        case "abort":
            return "Nobody knows whether the vendor acted" if told.get("result") == "unknown" else f"Not done: {how}"
        case "change":
            return f"Changed: {told.get('change', 'something')}"
        case stage:
            return _LIVED.get(str(stage), str(stage))


def _tone(told: Row) -> str:
    if told.get("result") == "answered" or told.get("problem") == REPLAYED:
        return "good"
    if told.get("decision") == "denied":
        return "warn"
    return "bad" if told.get("result") in ("failed", "unknown") else "quiet"


def _ended(told: Sequence[Row]) -> dict[str, Any]:
    """Return how it ended, by its last record that closes something."""
    ends = [row for row in told if row["stage"] in _ENDS]
    if not ends:
        waits = told[-1]["stage"] == "intent"
        return {
            "text": "no outcome yet" if waits else told[-1]["stage"],
            "tone": "warn" if waits else "quiet",
            "duration_ms": None,
        }
    last = ends[-1]
    text = last.get("problem") or last.get("result") or last["stage"]
    return {"text": text, "tone": _tone(last), "duration_ms": last.get("duration_ms")}


def _facts(told: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return the values of fields, each as the last record that has it tells it."""
    return {name: row[name] for name in names for row in told if name in row}


def _numbers(told: Sequence[Row]) -> list[dict[str, Any]]:
    found = {number["field"]: number for row in told for number in numbers(row)}
    return [{**number, "href": f"/audit?pseudonyms={number['pseudonym']}"} for number in found.values()]


def _linked(told: Sequence[Row], field: str) -> dict[str, str] | None:
    name = next((row[field] for row in told if field in row), None)
    return {"id": name, "href": href(name)} if name is not None else None


def _timed(row: Row) -> bool:
    return "at" in row


def _timeline(told: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a bar for each record that closes something: from where the one before ended, in milliseconds from the arrival."""
    if not all(_timed(row) for row in told):
        return []
    start = min(unix_seconds(row["at"]) for row in told)
    bars, begun = [], 0.0
    for row in (row for row in told if row["stage"] in _ENDS):
        # A refusal tells when its call arrived, all else when it ended.
        after = row.get("duration_ms", 0.0) if row["stage"] == "refusal" else 0.0
        ended = (unix_seconds(row["at"]) - start) * 1000 + after
        bars.append(
            {
                "from_ms": min(begun, ended),
                "to_ms": ended,
                "tone": _tone(row),
                "words": _words(row),
                "attempt": row.get("attempt", 1),
            }
        )
        begun = ended
    whole = max((bar["to_ms"] for bar in bars), default=0.0)
    return (
        [{**bar, "left": 100 * bar["from_ms"] / whole, "width": 100 * (bar["to_ms"] - bar["from_ms"]) / whole} for bar in bars]
        if whole > 0
        else []
    )


def _file_name(name: str) -> str:
    return f"{_NOT_IN_NAMES.sub('_', name)[:_NAME_MAX]}.proof"
