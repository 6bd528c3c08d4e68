"""Events of the Elastic Common Schema, <https://www.elastic.co/docs/reference/ecs>."""

from __future__ import annotations

from typing import Final

from gateway.audit import chained
from gateway.model import NUMBER_FIELDS
from gateway.trail.export.reading import LONG, NO_TIME, ending, is_address, is_change, read, record_id, usual_and_odd
from gateway.trail.export.writing import json_line, move, to_json
from gateway.trail.search import Row

VERSION: Final = "9.4.0"

_EVERY: Final = {
    "account": "cloud.account.name",
    "at": "@timestamp",
    "code": "event.code",
    "error": "error.type",
    **{field: f"masking_gateway.{field}.pseudonym" for field in NUMBER_FIELDS},
    **{f"{field}_country": f"masking_gateway.{field}.country" for field in NUMBER_FIELDS},
    **{f"{field}_last2": f"masking_gateway.{field}.last2" for field in NUMBER_FIELDS},
    "policy": "rule.name",
    "request_id": "http.request.id",
    "seq": "event.sequence",
    "source": "source.address",
    "status": "http.response.status_code",
    "trace_id": "trace.id",
    "version": "service.version",
    "writer": "service.node.name",
}
_CALL: Final = _EVERY | {
    "key_id": "user.id",
    "operation": "event.action",
    "problem": "event.reason",
    "service": "user.name",
}
_CHANGE: Final = _EVERY | {
    "change": "event.action",
    "key_id": "user.target.id",
    "operator": "user.name",
    "problem": "error.code",
    "service": "user.target.name",
    "why": "event.reason",
}
_LIVED: Final = {
    "open": ("event", ["start"]),
    "beat": ("state", ["info"]),
    "degraded": ("event", ["change"]),
    "recovered": ("event", ["change"]),
    "close": ("event", ["end"]),
}
_KEYS: Final = {"key.issued": "creation", "key.revoked": "deletion"}


def ecs_line(record: bytes) -> bytes:
    """Return a record as an event. Raises: NotExportable."""
    rest, odd = usual_and_odd(read(record))
    kind, categories, types = _categories(rest)
    event: Row = {
        "@timestamp": NO_TIME,
        "ecs": {"version": VERSION},
        "event": {
            "kind": kind,
            "category": categories,
            "type": types,
            "module": "masking_gateway",
            "dataset": "masking_gateway.audit",
            # By this the line is found again in the sealed trail; it is also what the writer's next record names.
            "hash": chained(record).hex(),
        },
        "service": {"name": "masking-gateway", "type": "masking-gateway"},
        "masking_gateway": {},
    }
    if (identity := record_id(rest)) is not None:
        event["event"]["id"] = identity
    if (end := ending(rest)) is not None:
        event["event"]["outcome"] = end
    if "duration_ms" in rest and abs(rest["duration_ms"]) * 1e6 < LONG:
        event["event"]["duration"] = round(rest["duration_ms"] * 1e6)
    if "code" in rest:
        rest["code"] = str(rest["code"])
    related = {"user": [rest[name] for name in ("service", "key_id", "operator") if name in rest]}
    if is_address(rest.get("source", "")):
        event["source"] = {"ip": rest["source"]}
        related["ip"] = [rest["source"]]
    if related := {name: found for name, found in related.items() if found}:
        event["related"] = related
    stage = rest.get("stage")
    move(rest, event, _CHANGE if is_change(rest) or stage == "search" else _CALL)
    event["event"].setdefault("action", stage or "unknown")
    event["masking_gateway"].update(rest)
    if odd:
        # As a text: Elasticsearch gives a field the type of its first value, and turns a whole line away for another.
        event["masking_gateway"]["odd"] = to_json(odd)
    return json_line(event)


def _categories(told: Row) -> tuple[str, list[str], list[str]]:
    """Return `event.kind`, `event.category` and `event.type`, which have to fit each other."""
    stage = told.get("stage")
    if stage in _LIVED:
        kind, types = _LIVED[stage]
        return kind, ["process"], types
    if is_change(told):
        change = told.get("change", "")
        return "event", ["iam" if change.startswith("key.") else "configuration"], [_KEYS.get(change, "change")]
    if stage == "search":
        return "event", ["database"], ["access"]
    if stage not in {"intent", "outcome", "refusal", "abort"}:
        return "event", [], []
    # A refusal that names no intent is the call's only record.
    types = ["start"] if stage == "intent" or (stage == "refusal" and "intent" not in told) else []
    types += ["end"] if stage != "intent" else []
    types += [told["decision"]] if "decision" in told else []
    return "event", ["api"], types
