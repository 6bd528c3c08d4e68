"""Records as other programs read them, against the published schemas of those programs.

OCSF 1.8.0 as `ocsf-json-schema` carries it: every attribute, type and enumeration, with nothing beside them. ECS 9.4.0: see
`tests/schemas/README.md`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema  # type: ignore[import-untyped]

from gateway.audit import Record, Stage, abort, chained, change
from gateway.trail.export import FORMATS, NotExportable

_AT = "2030-01-31T12:30:00.123Z"
_FIELDS = [field.name for field in msgspec.structs.fields(Record)]
_TEXTS = [field.name for field in msgspec.structs.fields(Record) if field.type in (str, str | None)]
_PSEUDONYM = "5f0c1d6a9b3e47820fd1c2b3a4958677"


def _call(stage: Stage, seq: int, **more: Any) -> Record:
    return Record(
        stage=stage, writer="host-1a2b3c4d", seq=seq, prev="ab" * 32, at=_AT, request_id="0b9e7c", trace_id="4b" * 16,
        account="main", service="crm", key_id="7f3k9q2mab", key_version=1, proof="key", source="10.0.0.7", operation="end",
        m1=_PSEUDONYM, m1_country="IN", m1_last2="10", pseudonym_key="k1", expiry_duration=-1, slot="primary",
        credential="v3", **more,
    )  # fmt: skip


def _own(stage: Stage, seq: int, **more: Any) -> Record:
    return Record(stage=stage, writer="host-1a2b3c4d", seq=seq, at=_AT, account="main", **more)


def _changed(what: str, **more: Any) -> Record:
    record = change(what, at=1_900_000_000.5, request_id="0b9e7d", account="main", operator="asha", **more)
    record.writer, record.seq = "host-1a2b3c4d", 9
    return record


_ANSWERED: dict[str, Any] = {
    "intent": "host-1a2b3c4d-6", "decision": "allowed", "result": "answered", "origin": "vendor", "status": 200,
    "upstream_status": 200, "limits": "caller=99/100 number:m1=9/10", "duration_ms": 12.3,
}  # fmt: skip
_LIMIT: dict[str, Any] = {"policy": "caller", "subject": "crm", "before": "20/s burst 20", "after": "50/s burst 100"}
_RECORDS: dict[str, Record] = {
    "open": _own("open", 0, version="0.1.0", config="cd" * 32),
    "beat": _own("beat", 1),
    "degraded": _own("degraded", 2),
    "recovered": _own("recovered", 3),
    "close": _own("close", 4),
    "intent": _call("intent", 6),
    "outcome": _call("outcome", 7, **_ANSWERED),
    "outcome, failed": _call(
        "outcome", 7,
        **_ANSWERED | {"result": "failed", "problem": "masking_not_found", "code": 1012, "status": 404, "attempt": 2},
    ),
    "outcome, unknown": _call("outcome", 7, **_ANSWERED | {"result": "unknown", "problem": "upstream_timeout", "status": 504}),
    "refusal": _call(
        "refusal", 7, intent="host-1a2b3c4d-6", decision="denied", result="refused", problem="quota_exceeded",
        origin="gateway", status=429, policy="number", limits="number:m1=0/10!2", retry_after_seconds=2, duration_ms=0.8,
    ),
    "refusals, nobody": Record(
        stage="refusal", writer="host-1a2b3c4d", seq=8, prev="ab" * 32, at=_AT, request_id="0b9e7c", account="main",
        source="2001:db8::7", decision="denied", result="refused", problem="credential_missing", origin="gateway", code=1020,
        status=401, count=40, duration_ms=0.2,
    ),
    "change of a key": _changed("key.revoked", service="crm", key_id="7f3k9q2mab", key_version=2),
    "change of a slot": _changed("slot.switched", slot="secondary", credential="v4"),
    "change of a limit": _changed("limit.set", **_LIMIT, until=1_900_003_600.0, why="a campaign"),
    "change, other": _changed("drill.began", why="a drill"),
    "search": _own("search", 5, operator="asha", m1=_PSEUDONYM, pseudonym_key="k1", request_id="0b9e7e"),
}  # fmt: skip
for _name, _closed, _why in (
    ("abort", "intent", "unknown_outcome"),
    ("abort, decided anew", "intent", "decided_anew"),
    ("abort of a change", "change of a limit", "ledger_unavailable"),
):
    _RECORDS[_name] = msgspec.structs.replace(abort(_RECORDS[_closed], _why, 1_900_000_000.5), writer="host-5e6f7a8b", seq=1)
_every_record = pytest.mark.parametrize("name", _RECORDS)


def test_the_records_here_are_of_every_stage() -> None:
    assert {record.stage for record in _RECORDS.values()} == set(get_args(Stage))


def _stored(name: str) -> bytes:
    return msgspec.json.encode(_RECORDS[name])


def _line(format_name: str, record: bytes) -> str:
    """One line of text, whatever a reader takes for the end of a line."""
    line = FORMATS[format_name].line(record).decode()
    assert line.endswith("\n")
    assert line.splitlines() == [line[:-1]]
    return line


def _event(format_name: str, record: bytes) -> dict[str, Any]:
    line = _line(format_name, record)
    # A strict reader, which refuses what Python's own lets pass.
    event: dict[str, Any] = msgspec.json.decode(line)
    assert event == json.loads(line)
    return event


# What is told


def _leaves(value: object) -> Iterator[str]:
    """Every value in a document as a text, and every name."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield _text(name)
            yield from _leaves(below)
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below)
    else:
        yield _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in value)
    return json.dumps(value)


def _lost(record: bytes, event: dict[str, Any]) -> set[str]:
    """What the values of a record say that an event does not."""
    told = set(_leaves(event))
    if "odd" in event.get("masking_gateway", {}):
        told.update(_leaves(json.loads(event["masking_gateway"]["odd"])))
    row = json.loads(record.decode("utf-8", "surrogatepass"))
    return {leaf for value in row.values() if value is not None for leaf in _leaves(value)} - told


@_every_record
@pytest.mark.parametrize("format_name", ["ocsf", "ecs"])
def test_nothing_of_a_record_is_lost(format_name: str, name: str) -> None:
    assert not _lost(_stored(name), _event(format_name, _stored(name)))


@_every_record
def test_jsonl_is_what_was_recorded_byte_for_byte(name: str) -> None:
    assert FORMATS["jsonl"].line(_stored(name)) == _stored(name) + b"\n"


@pytest.mark.parametrize("record", [b"not JSON", b"", b"\xff", b'{"text":"\\ud800"}'])
def test_jsonl_passes_on_what_cannot_be_read(record: bytes) -> None:
    assert FORMATS["jsonl"].line(record) == record + b"\n"


@pytest.mark.parametrize("record", [b'{\n"seq":1}', b"{}\r"])
def test_jsonl_refuses_what_would_be_two_lines(record: bytes) -> None:
    with pytest.raises(NotExportable, match="line breaks"):
        FORMATS["jsonl"].line(record)


@pytest.mark.parametrize("format_name", ["csv", "ocsf", "ecs"])
@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b"null", b'"text"', b"\xff{}", b'{"seq":NaN}', b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_object_is_not_exported(format_name: str, record: bytes) -> None:
    with pytest.raises(NotExportable):
        FORMATS[format_name].line(record)


# CSV


def _cells(record: bytes) -> dict[str, str]:
    header = FORMATS["csv"].header.decode()
    (row,) = csv.DictReader(io.StringIO(header + _line("csv", record)))
    return row


def _value(cell: str) -> str:
    return json.loads(cell) if cell.startswith('"') else cell


def test_the_columns_are_the_fields_of_a_record_and_one_for_what_has_none() -> None:
    assert FORMATS["csv"].header.decode() == ",".join([*_FIELDS, "other"]) + "\n"


@_every_record
def test_a_row_of_csv_reads_back_as_the_record(name: str) -> None:
    row = msgspec.json.decode(_stored(name), type=dict[str, Any])
    read = {field: cell for field, cell in _cells(_stored(name)).items() if cell}
    assert read == {
        field: value if isinstance(value, str) else json.dumps(value) for field, value in row.items() if value is not None
    }


@pytest.mark.parametrize(
    "why",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1", "\uff1d1+1", '"=1', "fine;=1", "a, -b", "a|@b", ";;=1"],
)
def test_no_text_begins_a_formula(why: str) -> None:
    record = msgspec.json.encode({"stage": "change", "why": why})
    cell = _cells(record)["why"]
    assert _value(cell) == why
    for separator in ",;|\t":
        for part in _line("csv", record).split(separator):
            assert part.strip('" \t\n')[:1] not in set("=+-@\uff1d\uff0b\uff0d\uff20") - {""}


def test_a_number_below_zero_stays_a_number() -> None:
    assert _cells(_stored("intent"))["expiry_duration"] == "-1"


def test_what_has_no_column_stands_in_the_last() -> None:
    assert json.loads(_cells(b'{"stage":"beat","added":{"later":1}}')["other"]) == {"added": {"later": 1}}


# OCSF


@cache
def _published() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0"))


@cache
def _ocsf_validator(class_uid: int, profiles: tuple[str, ...]) -> Draft202012Validator:
    name = _published().lookup_class_name_from_uid(class_uid)
    return Draft202012Validator(_published().get_class_schema(name, list(profiles)))


def _ocsf(record: bytes) -> dict[str, Any]:
    """An event that the published schema of its class accepts, with captions that are the schema's."""
    event = _event("ocsf", record)
    metadata = event["metadata"]
    assert metadata["version"] == "1.8.0"
    problems = [
        f"{error.json_path}: {error.message}"
        for error in _ocsf_validator(event["class_uid"], tuple(metadata.get("profiles", ()))).iter_errors(event)
    ]
    assert not problems
    published = _published().schema.schema["classes"][_published().lookup_class_name_from_uid(event["class_uid"])]
    assert event["class_name"] == published["caption"]
    for number, caption in (
        ("activity_id", "activity_name"), ("status_id", "status"), ("severity_id", "severity"), ("action_id", "action"),
        ("disposition_id", "disposition"),
    ):  # fmt: skip
        if number in event and event[number] != 99:
            assert event[caption] == published["attributes"][number]["enum"][str(event[number])]["caption"]
    return event


@_every_record
def test_ocsf_accepts_every_record(name: str) -> None:
    _ocsf(_stored(name))


def test_the_published_schema_does_refuse() -> None:
    event = _ocsf(_stored("outcome"))
    validator = _ocsf_validator(6003, ("security_control", "trace"))
    bends: list[dict[str, Any]] = [{"activity_id": 77}, {"time": _AT}, {"api": {}}, {"src_endpoint": {"ip": "here"}}, {"ours": 1}]
    for bent in bends:
        assert list(validator.iter_errors(event | bent))


_WHAT = {
    "open": (6002, "Start", None, 1),
    "beat": (6002, "beat", None, 1),
    "degraded": (6002, "degraded", None, 3),
    "recovered": (6002, "recovered", None, 1),
    "close": (6002, "Stop", None, 1),
    "intent": (6003, "Delete", "Unknown", 1),
    "outcome": (6003, "Delete", "Success", 1),
    "outcome, failed": (6003, "Delete", "Failure", 2),
    "outcome, unknown": (6003, "Delete", "Unknown", 3),
    "refusal": (6003, "Delete", "Failure", 2),
    "refusals, nobody": (6003, "Unknown", "Failure", 2),
    "abort": (6003, "Delete", "Unknown", 3),
    "abort, decided anew": (6003, "Delete", "Failure", 2),
    "change of a key": (3004, "Disable", "Success", 1),
    "change of a slot": (3004, "Activate", "Success", 1),
    "change of a limit": (3004, "Update", "Success", 1),
    "change, other": (3004, "drill.began", "Success", 1),
    "abort of a change": (3004, "Update", "Failure", 2),
    "search": (3004, "Read", "Success", 1),
}


@_every_record
def test_ocsf_says_what_happened(name: str) -> None:
    event = _ocsf(_stored(name))
    assert (event["class_uid"], event["activity_name"], event.get("status"), event["severity_id"]) == _WHAT[name]


def test_a_call_in_ocsf() -> None:
    event = _ocsf(_stored("refusal"))
    assert event["time"] == datetime.fromisoformat(_AT).timestamp() * 1000
    assert event["metadata"]["uid"] == "host-1a2b3c4d-7"
    assert event["metadata"]["correlation_uid"] == event["api"]["request"]["uid"] == "0b9e7c"
    assert event["actor"]["user"] == {"name": "crm", "type_id": 4, "type": "Service"}
    assert event["src_endpoint"] == {"ip": "10.0.0.7"}
    assert event["resources"] == [
        {
            "uid": _PSEUDONYM, "data": {"country": "IN", "last2": "10"}, "namespace": "k1", "name": "m1",
            "type": "Pseudonym of a telephone number", "role_id": 1, "role": "Target",
        }
    ]  # fmt: skip
    assert (event["status_code"], event["policy"], event["disposition"]) == ("quota_exceeded", {"name": "number"}, "Blocked")


def test_a_flood_is_counted_where_ocsf_counts() -> None:
    assert _ocsf(_stored("refusals, nobody"))["count"] == 40


def test_a_changed_limit_in_ocsf() -> None:
    event = _ocsf(_stored("change of a limit"))
    assert event["actor"]["user"]["name"] == "asha"
    assert (event["entity"]["policy"]["name"], event["comment"]) == ("caller", "a campaign")
    assert (event["entity"]["data"], event["entity_result"]["data"]) == ("20/s burst 20", "50/s burst 100")


# ECS

_ECS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "schemas" / "ecs-9.4.0.json").read_text())


def _flat(value: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, below in value.items():
        if isinstance(below, dict):
            yield from _flat(below, f"{above}{name}.")
        else:
            yield above + name, below


def _is_of(kind: str, value: Any) -> bool:
    """Whether Elasticsearch takes a value for a field of a type, as strictly as ECS describes it."""
    match kind:
        case "keyword" | "match_only_text" | "wildcard":
            return isinstance(value, str)
        case "long":
            return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        case "date":
            return datetime.fromisoformat(value).tzinfo is not None
        case "ip":
            return ip_address(value) is not None and "%" not in value
        case _:
            raise AssertionError(kind)


def _ecs(record: bytes) -> dict[str, Any]:
    """An event whose fields are those of ECS, with its types and values, or stand apart from them."""
    event = _event("ecs", record)
    assert event["ecs"]["version"] == "9.4.0"
    assert "@timestamp" in event
    for path, value in _flat(event):
        if path.startswith("masking_gateway."):
            continue
        field = _ECS[path]
        assert isinstance(value, list) == field.get("array", False), path
        for one in value if isinstance(value, list) else [value]:
            assert _is_of(field["type"], one), path
            assert one in field.get("allowed", [one]), path
    for category in event["event"]["category"]:
        assert set(event["event"]["type"]) <= set(_ECS["event.category"]["allowed"][category])
    return event


@_every_record
def test_ecs_accepts_every_record(name: str) -> None:
    _ecs(_stored(name))


_ECS_WHAT = {
    "open": ("process", ["start"], "open", None),
    "beat": ("process", ["info"], "beat", None),
    "degraded": ("process", ["change"], "degraded", None),
    "recovered": ("process", ["change"], "recovered", None),
    "close": ("process", ["end"], "close", None),
    "intent": ("api", ["start"], "end", "unknown"),
    "outcome": ("api", ["end", "allowed"], "end", "success"),
    "outcome, failed": ("api", ["end", "allowed"], "end", "failure"),
    "outcome, unknown": ("api", ["end", "allowed"], "end", "unknown"),
    "refusal": ("api", ["end", "denied"], "end", "failure"),
    "refusals, nobody": ("api", ["start", "end", "denied"], "refusal", "failure"),
    "abort": ("api", ["end"], "end", "unknown"),
    "abort, decided anew": ("api", ["end"], "end", "failure"),
    "change of a key": ("iam", ["deletion"], "key.revoked", "success"),
    "change of a slot": ("configuration", ["change"], "slot.switched", "success"),
    "change of a limit": ("configuration", ["change"], "limit.set", "success"),
    "change, other": ("configuration", ["change"], "drill.began", "success"),
    "abort of a change": ("configuration", ["change"], "limit.set", "failure"),
    "search": ("database", ["access"], "search", "success"),
}


@_every_record
def test_ecs_says_what_happened(name: str) -> None:
    event = _ecs(_stored(name))["event"]
    assert (*event["category"], event["type"], event["action"], event.get("outcome")) == _ECS_WHAT[name]


def test_a_call_in_ecs() -> None:
    event = _ecs(_stored("outcome, failed"))
    assert event["@timestamp"] == _AT
    assert (event["event"]["id"], event["event"]["duration"]) == ("host-1a2b3c4d-7", 12_300_000)
    assert (event["event"]["code"], event["event"]["reason"]) == ("1012", "masking_not_found")
    assert event["source"] == {"ip": "10.0.0.7", "address": "10.0.0.7"}
    assert event["user"] == {"name": "crm", "id": "7f3k9q2mab"}
    assert event["http"] == {"request": {"id": "0b9e7c"}, "response": {"status_code": 404}}
    assert event["masking_gateway"]["m1"] == {"pseudonym": _PSEUDONYM, "country": "IN", "last2": "10"}


def test_who_changed_a_key_is_not_whose_key_it_is() -> None:
    assert _ecs(_stored("change of a key"))["user"] == {"name": "asha", "target": {"name": "crm", "id": "7f3k9q2mab"}}


# What somebody else may have written


@_every_record
def test_a_line_is_found_again_by_its_leaf_in_the_sealed_trail(name: str) -> None:
    leaf = chained(_stored(name)).hex()
    assert _event("ocsf", _stored(name))["raw_data_hash"]["value"] == leaf
    assert _event("ecs", _stored(name))["event"]["hash"] == leaf


_any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.sampled_from(
    ["", "\ud800", "a\nb", "\u2028", "\x85", '"', "\\u0041", "\x00", "=1;=2", "10.0.0.7", "fe80::1%eth0", "key.issued", "end"]
)
_unhurried = settings(deadline=None)  # The first event of a class waits for its schema.
_any_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _any_text,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_any_text, below, max_size=3),
    max_leaves=5,
)
_stages = st.sampled_from(get_args(Stage))
_texts_everywhere = st.fixed_dictionaries(dict.fromkeys(_TEXTS, _any_text) | {"stage": _stages})
_hostile = st.dictionaries(st.sampled_from(_FIELDS) | _any_text, _any_value, max_size=12)
_rows = (
    _texts_everywhere
    | _hostile
    | st.tuples(_hostile, st.fixed_dictionaries({"stage": _stages})).map(lambda two: two[0] | two[1])
    | st.tuples(st.sampled_from(list(_RECORDS)), _hostile).map(lambda two: msgspec.json.decode(_stored(two[0])) | two[1])
)


def _written(row: dict[str, Any], escaped: bool) -> bytes:
    return json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


@_unhurried
@given(_rows, st.booleans())
@example(row={"stage": "\ud800"}, escaped=False)
def test_whatever_a_record_holds_is_one_event_that_ocsf_accepts(row: dict[str, Any], escaped: bool) -> None:
    record = _written(row, escaped)
    assert not _lost(record, _ocsf(record))


@_unhurried
@given(_rows, st.booleans())
@example(row={"stage": "\ud800"}, escaped=False)
def test_whatever_a_record_holds_is_one_event_that_ecs_accepts(row: dict[str, Any], escaped: bool) -> None:
    record = _written(row, escaped)
    assert not _lost(record, _ecs(record))


@_unhurried
@given(_rows, st.booleans())
def test_whatever_a_record_holds_is_one_row_that_reads_back(row: dict[str, Any], escaped: bool) -> None:
    cells = _cells(_written(row, escaped))
    other = cells.pop("other")
    for name, cell in cells.items():
        value = row.get(name)
        if isinstance(value, str):
            assert _value(cell) == value
        elif isinstance(value, dict | list):
            assert set(_leaves(json.loads(_value(cell)))) == set(_leaves(value))
        else:
            assert _value(cell) == ("" if value is None else json.dumps(value))
    beside = {name: value for name, value in row.items() if name not in _FIELDS}
    assert set(_leaves(json.loads(_value(other)) if other else {})) >= set(_leaves(beside))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "18446744073709551616"])
@pytest.mark.parametrize("field", ["seq", "status", "duration_ms", "count", "code"])
@pytest.mark.parametrize("stage", ["outcome", "close"])
def test_a_number_too_large_to_be_one_is_told_as_it_stands(number: str, field: str, stage: str) -> None:
    record = f'{{"stage":"{stage}","{field}":{number}}}'.encode()
    assert number in set(_leaves(_ocsf(record)["unmapped"]))
    assert number in _ecs(record)["masking_gateway"]["odd"]
    assert _value(_cells(record)[field]) == number


def test_what_is_nested_too_deeply_is_exported_or_refused_and_nothing_else() -> None:
    # Reading stops at one depth and writing at another, and both hang on how deep the caller stands.
    for depth in range(700, 1000):
        for format_name in ("csv", "ocsf", "ecs"):
            try:
                _line(format_name, b'{"seq":' + b"[" * depth + b"]" * depth + b"}")
            except NotExportable:
                continue


@pytest.mark.parametrize(
    "source", ["here", "", "10.0.0.256", "10.0.0.7 ", "fe80::1%eth0", "10.0.0.0/8", f"{'0000:' * 5}ffff:255.255.255.255"]
)
def test_a_source_that_is_no_address_is_not_told_as_one(source: str) -> None:
    record = msgspec.json.encode({"stage": "intent", "source": source})
    assert _ocsf(record)["src_endpoint"] == {"name": source}
    assert _ecs(record)["source"] == {"address": source}


@pytest.mark.parametrize("source", ["10.0.0.7", "::1", "::ffff:10.0.0.7", "2001:db8:1111:2222:3333:4444:5555:6666"])
def test_a_source_that_is_an_address_is_told_as_one(source: str) -> None:
    record = msgspec.json.encode({"stage": "intent", "source": source})
    assert _ocsf(record)["src_endpoint"] == {"ip": source}
    assert _ecs(record)["source"] == {"ip": source, "address": source}


def test_a_record_that_tells_nothing_is_still_an_event() -> None:
    assert _ocsf(b"{}")["time"] == 0
    assert _ecs(b"{}")["@timestamp"] == "1970-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    "at", ["2030-01-31", "2030-01-31T12:30:00.123", "2030-13-31T12:30:00.123Z", "now", "٢030-01-31T12:30:00.123Z"]
)
def test_a_time_that_cannot_be_read_is_kept_as_it_stands(at: str) -> None:
    record = msgspec.json.encode({"stage": "beat", "at": at})
    event = _ocsf(record)
    assert (event["time"], event["unmapped"]["at"]) == (0, at)
    assert at in set(_leaves(json.loads(_ecs(record)["masking_gateway"]["odd"])))
