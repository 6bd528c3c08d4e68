"""What is counted of requests stays bounded, and adds up."""

from __future__ import annotations

from gateway.audit import Record
from gateway.counts import SERVICES_MAX, Requests
from gateway.durations import Durations


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
    assert sum(durations.told()[-1] for durations in requests.durations.values()) == 6 * SERVICES_MAX * 0.003


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
