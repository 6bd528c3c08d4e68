"""What is counted of requests stays bounded, and adds up."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import pytest

from gateway import config
from gateway.audit import Record
from gateway.counts import SERVICES_MAX, Requests
from gateway.durations import Durations
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.store import Serving
from gateway.metrics import Metrics, _few


def ended(service: str | None = "crm", **fields: object) -> Record:
    told = {"operation": "end", "decision": "allowed", "result": "answered", "status": 200, "duration_ms": 3.0, **fields}
    return Record(stage="outcome", at="2030-01-01T00:00:00.000Z", account="main", service=service, **told)  # type: ignore[arg-type]


def test_services_beyond_the_first_are_one() -> None:
    """However many services there come to be, labels do not."""
    requests = Requests()
    for _ in range(2):
        for number in range(3 * SERVICES_MAX):
            requests.count(ended(f"s{number}"))

    found = {labels[1]: count for labels, count in requests.ended()}
    assert len(found) == SERVICES_MAX + 1
    assert (found["s0"], found[f"s{SERVICES_MAX - 1}"], found["other"]) == (2, 2, 2 * 2 * SERVICES_MAX)
    assert sum(sum(durations.told()[:-1]) for durations in requests.durations.values()) == 6 * SERVICES_MAX


def test_what_is_not_known_is_none() -> None:
    """Who did not prove itself has no service; an operation that is none of ours is not told."""
    requests = Requests()
    requests.count(
        ended(None, operation="9876543210", decision="denied", result="refused", status=401, problem="credential_unknown")
    )

    assert requests.ended() == [(("main", "none", "none", "denied", "refused", "401", "credential_unknown"), 1)]


def test_durations_fall_under_their_bounds() -> None:
    """One that is just a bound is not above it, as Prometheus has it."""
    durations = Durations((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.2, 1.0, 7.0):
        durations.add(seconds)

    assert durations.told() == [2, 2, 1, 8.35]


def test_policies_beyond_the_first_are_one() -> None:
    """Live changes may bring any number of them; what they counted is not lost."""
    found = dict(_few((f"p{number}", 1.0) for number in range(250)))

    assert len(found) == 101
    assert (found["p99"], found["other"]) == (1, 150)
    assert dict(_few([("a", 0.2), ("a", 0.7), ("a", 0.1)], max)) == {"a": 0.7}


def test_of_many_keys_those_that_end_first_are_told() -> None:
    """And of the rest only when the first of them ends; one that was rotated is told apart."""

    def version(number: int, ends: float | None) -> KeyVersion:
        return KeyVersion(number, 0.0, "0" * 64, expires_at=ends)

    entries = {f"k{n}": KeyEntry(f"k{n}", "crm", (version(1, 1000.0 + n),)) for n in range(150)}
    entries["old"] = KeyEntry("old", "crm", (version(1, 500.0), version(2, None)))
    registry = SimpleNamespace(current=SimpleNamespace(entries=entries), unreadable=())
    identities = SimpleNamespace(registry=registry, jwks=SimpleNamespace(names=(), problems=dict))
    metrics = Metrics(
        identities, {}, {}, {}, {}, Requests(), MappingProxyType({}), Serving("1", "c"), (), lambda: 100.0  # type: ignore[arg-type]
    )  # fmt: skip

    rows = [(row.labels, row.values) for row in metrics._of_identities() if row.name == "gateway_key_ends_in_seconds"]
    assert len(rows) == 101
    assert rows[0] == (("crm", "old", "1", "yes"), [400.0])
    assert rows[1] == (("crm", "k0", "1", "no"), [900.0])
    assert rows[-1] == (("other", "other", "none", "none"), [1000.0 - 100 + 99])


def test_one_port_is_not_both() -> None:
    """Said with the settings; 0 may stand for both, since it is none for operators."""
    accounts = {"accounts": {"main": {"brand": "https://v.example", "primary": {"ssid": {"env": "A"}}}}}
    with pytest.raises(config.ConfigError, match=r"^server.ops_port: must not be server.port$"):
        config.parse({"server": {"port": 9000, "ops_port": 9000}, **accounts}, {})

    assert config.parse({"server": {"port": 0, "ops_port": 0}, **accounts}, {}).server.ops_port == 0
