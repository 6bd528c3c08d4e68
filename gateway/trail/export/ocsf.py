"""Events of the Open Cybersecurity Schema Framework, <https://schema.ocsf.io/1.8.0>."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.audit import chained
from gateway.model import NUMBER_FIELDS
from gateway.trail.export.reading import (
    LONG,
    NO_TIME,
    Ending,
    ending,
    is_address,
    is_change,
    milliseconds,
    read,
    record_id,
    usual_and_odd,
)
from gateway.trail.export.writing import json_line, move, put
from gateway.trail.search import Row

VERSION: Final = "1.8.0"

_PRODUCT: Final = "Masking Gateway"
_UNKNOWN: Final = "unknown"
"""Stands where the schema demands a name and the record has none."""


@dataclass(frozen=True, slots=True)
class _Class:
    uid: int
    name: str

    @property
    def category_uid(self) -> int:
        return self.uid // 1000


_BASE: Final = _Class(0, "Base Event")
_API: Final = _Class(6003, "API Activity")
_LIFECYCLE: Final = _Class(6002, "Application Lifecycle")
# Changes of keys, slots and limits, and searches, are what this class is of: an operator at a console who creates, reads or
# changes what is managed. Account Change (3001) has no activity for a limit and demands a user who is changed; API Activity
# demands an address they came from, and they come from the gateway's own host.
_MANAGEMENT: Final = _Class(3004, "Entity Management")

_EVERY: Final = {
    "account": "metadata.tenant_uid",
    "at": "metadata.original_time",
    "change": "metadata.event_code",
    "count": "count",
    "problem": "status_code",
    "request_id": "metadata.correlation_uid",
    "result": "status_detail",
    "seq": "metadata.sequence",
    "stage": "metadata.type",
    "version": "metadata.product.version",
    "writer": "metadata.log_source",
}
_CALL: Final = {
    "code": "api.response.code",
    "error": "api.response.error_message",
    "key_id": "api.token.uid",
    "operation": "api.operation",
    "policy": "policy.name",
    "proof": "api.token.type",
    "service": "actor.user.name",
    "status": "http_response.code",
    "trace_id": "trace.uid",
}
_CHANGE: Final = {"after": "entity_result.data", "before": "entity.data", "operator": "actor.user.name", "why": "comment"}
_POLICY: Final = 5
_ENTITIES: Final[Mapping[str, tuple[str, int, Mapping[str, str]]]] = {
    "key": ("Key", 99, {"key_id": "entity.uid", "service": "entity.name"}),
    "limit": ("Policy", _POLICY, {"policy": "entity.name", "subject": "entity.uid"}),
    "slot": ("Slot", 99, {"credential": "entity.version", "slot": "entity.name"}),
}
"""By what the name of a change begins with: what is changed, its type's number, and where its fields stand."""

Activity = tuple[int, str]
_OTHER_ACTIVITY: Final = 99
_CALLED: Final[Mapping[str, Activity]] = {"end": (4, "Delete"), "reschedule": (3, "Update")}
_CHANGED: Final[Mapping[str, Activity]] = {
    "key.issued": (1, "Create"),
    "key.extended": (3, "Update"),
    "key.rotated": (3, "Update"),
    "key.revoked": (9, "Disable"),
    "limit.applied": (3, "Update"),
    "limit.reset": (3, "Update"),
    "limit.set": (3, "Update"),
    "slot.promoted": (10, "Activate"),
    "slot.rolled_back": (10, "Activate"),
    "slot.switched": (10, "Activate"),
}
_LIVED: Final[Mapping[str, Activity]] = {
    "open": (3, "Start"),
    "close": (4, "Stop"),
    # The application itself is neither disabled nor changed when its Redis is away.
    "beat": (_OTHER_ACTIVITY, "beat"),
    "degraded": (_OTHER_ACTIVITY, "degraded"),
    "recovered": (_OTHER_ACTIVITY, "recovered"),
}
_STATUS: Final[Mapping[Ending, Activity]] = {"unknown": (0, "Unknown"), "success": (1, "Success"), "failure": (2, "Failure")}
_SEVERITIES: Final = {1: "Informational", 2: "Low", 3: "Medium"}
_PROFILES: Final = {"security_control": {"action_id", "policy"}, "trace": {"trace"}}
"""What stands in an event only if it says that it follows the profile."""


def ocsf_line(record: bytes) -> bytes:
    """Return a record as an event. Raises: NotExportable."""
    rest, odd = usual_and_odd(read(record))
    kind = _class_of(rest)
    severity, end = _severity(rest), ending(rest)
    event: Row = {
        "class_uid": kind.uid,
        "class_name": kind.name,
        "category_uid": kind.category_uid,
        "activity_id": 0,
        "activity_name": "",
        "type_uid": 0,
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
        "time": milliseconds(rest.get("at", NO_TIME)),
        "metadata": {
            "version": VERSION,
            "product": {"name": _PRODUCT, "vendor_name": _PRODUCT},
            "log_name": "audit",
        },
        # By this the line is found again in the sealed trail; it is also what the writer's next record names.
        "raw_data_hash": {"value": chained(record).hex(), "algorithm": "RFC 6962 leaf, SHA-256", "algorithm_id": 99},
    }
    if (identity := record_id(rest)) is not None:
        event["metadata"]["uid"] = identity
    if end is not None:
        event["status_id"], event["status"] = _STATUS[end]
    if "duration_ms" in rest and abs(rest["duration_ms"]) < LONG:
        event["duration"] = round(rest["duration_ms"])  # Whole milliseconds; `unmapped` has it as it was recorded.
    if kind is _API:
        activity = _called(rest, event)
    elif kind is _MANAGEMENT:
        activity = _managed(rest, event)
    elif kind is _LIFECYCLE:
        activity = _lived(rest, event)
    else:
        activity = (_OTHER_ACTIVITY, _UNKNOWN)
    event["activity_id"], event["activity_name"] = activity
    event["type_uid"] = kind.uid * 100 + event["activity_id"]
    move(rest, event, _EVERY)
    if profiles := [name for name, parts in _PROFILES.items() if parts & event.keys()]:
        event["metadata"]["profiles"] = profiles
    if unmapped := rest | odd:
        event["unmapped"] = unmapped
    return json_line(event)


def _class_of(told: Row) -> _Class:
    if is_change(told) or told.get("stage") == "search":
        return _MANAGEMENT
    match told.get("stage"):
        case "intent" | "outcome" | "refusal" | "abort":
            return _API
        case "open" | "beat" | "degraded" | "recovered" | "close":
            return _LIFECYCLE
        case _:
            return _BASE


def _severity(told: Row) -> int:
    stage, end = told.get("stage"), ending(told)
    if stage == "degraded" or (stage != "intent" and end == "unknown"):
        return 3  # Whether the vendor acted is not known, or limits are decided without Redis: somebody should look.
    return 2 if end == "failure" else 1


def _called(rest: Row, event: Row) -> Activity:
    operation = rest.get("operation")
    move(rest, event, _CALL)
    event.setdefault("api", {}).setdefault("operation", _UNKNOWN)
    event["api"]["service"] = {"name": _PRODUCT}
    if "request_id" in rest:
        event["api"]["request"] = {"uid": rest["request_id"]}
    if "problem" in rest:
        put(event, "api.response.error", rest["problem"])
    if "token" in event["api"]:
        event["api"]["token"]["type_id"] = 99 if "type" in event["api"]["token"] else 0
    event.setdefault("actor", {"app_name": _UNKNOWN})
    if "user" in event["actor"]:
        event["actor"]["user"].update({"type_id": 4, "type": "Service"})
    source = rest.pop("source", _UNKNOWN)
    event["src_endpoint"] = {"ip" if is_address(source) else "name": source}
    if resources := [resource for field in NUMBER_FIELDS if (resource := _pseudonym(field, rest))]:
        event["resources"] = resources
        rest.pop("pseudonym_key", None)
    _decide(rest, event)
    if operation is None:
        return 0, "Unknown"
    return _CALLED.get(operation, (_OTHER_ACTIVITY, operation))


def _pseudonym(field: str, rest: Row) -> Row | None:
    """Return the number of a body's field as a resource, under the name of its field."""
    resource: Row = {}
    move(rest, resource, {field: "uid", f"{field}_country": "data.country", f"{field}_last2": "data.last2"})
    if not resource:
        return None
    if "pseudonym_key" in rest:
        # Two pseudonyms can be compared only where one key made both.
        resource["namespace"] = rest["pseudonym_key"]
    return resource | {"name": field, "type": "Pseudonym of a telephone number", "role_id": 1, "role": "Target"}


def _managed(rest: Row, event: Row) -> Activity:
    change = rest.get("change", "")
    move(rest, event, _CHANGE)
    entity = event.setdefault("entity", {})
    if rest.get("stage") == "search":
        entity.update({"name": "audit trail", "type": "Audit trail", "type_id": 99})
        activity = (2, "Read")
    else:
        name, number, places = _ENTITIES.get(change.partition(".")[0], (_UNKNOWN, 99, {}))
        move(rest, event, places)
        entity.setdefault("name", _UNKNOWN)
        entity.update({"type": name, "type_id": number})
        activity = _CHANGED.get(change, (_OTHER_ACTIVITY, change or _UNKNOWN))
    if entity["type_id"] == _POLICY:
        entity["policy"] = {"name": entity["name"]}
    if "entity_result" in event:
        event["entity_result"]["name"] = entity["name"]
    if (source := rest.pop("source", None)) is not None:
        event["src_endpoint"] = {"ip" if is_address(source) else "name": source}
    _decide(rest, event)
    return activity


def _lived(rest: Row, event: Row) -> Activity:
    event["app"] = {"name": _PRODUCT, "vendor_name": _PRODUCT}
    if "version" in rest:
        event["app"]["version"] = rest["version"]
    return _LIVED[rest["stage"]]


def _decide(rest: Row, event: Row) -> None:
    """Tell what was decided, in the terms of the profile for what controls access."""
    if (decision := rest.pop("decision", None)) is not None:
        allowed = decision == "allowed"
        event["action_id"], event["action"] = (1, "Allowed") if allowed else (2, "Denied")
        event["disposition_id"], event["disposition"] = (1, "Allowed") if allowed else (2, "Blocked")
        event["authorizations"] = [{"decision": decision}]
