"""History put to a limit says what the limit would have said, finds the smallest that refuses nothing, and keeps nothing else."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import Policies
from gateway.audit import rfc3339
from gateway.config import Rate, read_policies
from gateway.limiter import Limiter
from gateway.model import Charge, Limit, Secret
from gateway.numbers import Pseudonyms
from gateway.trail.replay import Replay, Smallest, in_order, over_time, smallest_rate

START = 1_700_000_000_000_000
MS = 1000
patient = settings(max_examples=200, deadline=None)


def refused(interval: int, burst: int, times: list[int]) -> int:
    limiter = Limiter()
    charge = Charge(Limit("x", False, "local", burst, interval), "k")
    return sum(bool(limiter.decide((charge,), now, "").refused) for now in times)


def instants(steps: list[int]) -> list[int]:
    now, found = START, []
    for step in steps:
        now += step * MS
        found.append(now)
    return found


@patient
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=80), st.sampled_from([1, 7, 30, 250]), st.integers(1, 12))
def test_the_smallest_burst(steps: list[int], per_second: int, burst: int) -> None:
    """It refuses nothing, and one less does."""
    times, interval = instants(steps), 1_000_000 // per_second
    smallest = Smallest(interval, burst, rates=False)
    for now in times:
        smallest.add(now, 1)

    assert refused(interval, smallest.burst, times) == 0
    assert smallest.burst == 1 or refused(interval, smallest.burst - 1, times) > 0


@patient
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=80), st.integers(1, 12), st.sampled_from([1, 60, 3600]))
def test_the_smallest_rate(steps: list[int], burst: int, window: int) -> None:
    """At that burst it refuses nothing, and one less a window does; none is found where no rate is enough."""
    times = instants(steps)
    smallest = Smallest(1000, burst, rates=True)
    for now in times:
        smallest.add(now, 1)
    rate = smallest_rate(smallest.interval_us, window)

    def refuses(count: int) -> bool:
        return refused(Rate(count, window).interval_us, burst, times) > 0

    if rate is None:
        assert max(Counter(times).values()) > burst
        return
    assert not refuses(rate)
    assert rate == 1 or refuses(rate - 1)


@patient
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 3)), min_size=1, max_size=60), st.integers(3, 9))
def test_several_units_at_once(steps: list[tuple[int, int]], burst: int) -> None:
    """New numbers draw up to three units a call; the bounds hold for those too."""
    smallest = Smallest(200_000, burst, rates=True)
    now, drawn = START, []
    for step, units in steps:
        now += step * MS
        smallest.add(now, units)
        drawn += [now] * units

    assert refused(200_000, smallest.burst, drawn) == 0
    if smallest.interval_us:
        assert refused(smallest.interval_us, burst, drawn) == 0
        assert refused(smallest.interval_us + 1, burst, drawn) > 0


def record(number: int, at: int, **fields: object) -> bytes:
    made = {
        "stage": "intent", "writer": "w", "seq": number, "at": rfc3339(at / 1_000_000), "request_id": f"r{number}", "account": "a",
        "service": "crm", "operation": "end", "m1": f"{number % 50:032x}", "pseudonym_key": "k1", "decision": "allowed",
    }  # fmt: skip
    return json.dumps({**made, **fields}).encode()


async def pages(records: Iterator[bytes], size: int = 100) -> AsyncIterator[list[bytes]]:
    page = []
    for one in records:
        page.append(one)
        if len(page) == size:
            yield page
            page = []
    yield page


def replay(records: Iterator[bytes], tables: dict, unknown: Counter[str] | None = None, service: str | None = None) -> Replay:
    put = Replay(Policies(read_policies(tables), "a", Pseudonyms(Secret("x" * 32), "k1"), 1), service)
    lost = Counter() if unknown is None else unknown

    async def run() -> None:
        async for now, demand in in_order(pages(records), lost):
            put.put(now, demand)

    asyncio.run(run())
    return put


CALLER = {"candidate": {"by": ["caller"], "rate": "2/s", "burst": 3}}


@patient
@given(
    st.lists(st.tuples(st.integers(0, 900), st.sampled_from(["crm", "erp"]), st.booleans()), min_size=1, max_size=60),
    st.randoms(),
)
def test_history_is_put_in_order_and_each_call_once(calls: list, chance: object) -> None:
    """Whatever the order of writing within some seconds, whatever was written twice, and whether admitted or refused then."""
    now, rows, by_service = START, [], {}
    for number, (step, service, admitted) in enumerate(calls):
        now += step * MS
        stage = {} if admitted else {"stage": "refusal", "problem": "quota_exceeded"}
        rows.append((number, now, {"service": service, **stage}))
        by_service.setdefault(service, []).append(now)
    written = [record(number, at, **fields) for number, at, fields in rows]
    # Outcomes and what never reached the limits stand between.
    written += [record(1000, now, stage="outcome", intent="w-0"), record(1001, now, stage="refusal", pseudonym_key=None)]
    written += [record(1002, now, stage="refusal", problem="ledger_unavailable", intent="w-0")] if calls[0][2] else []
    shuffled = [*written, written[0]]
    if now - START < 9_000_000:
        chance.shuffle(shuffled)
        shuffled = sorted(shuffled, key=lambda one: b'"ledger_unavailable"' in one)

    put = replay(iter(shuffled), CALLER)

    told = {service: sum(tally.refused for (of, _), tally in put.tallies.items() if of == service) for service in by_service}
    assert told == {service: refused(500_000, 3, times) for service, times in by_service.items()}
    assert sum(tally.calls for tally in put.tallies.values()) == len(calls)
    assert sum(tally.calls for _, tally in over_time(put.tallies)) == len(calls)


def test_what_comes_late_is_counted_apart() -> None:
    """A record that an outage's journal brought after the horizon is left out and told."""
    unknown: Counter[str] = Counter()
    rows = [record(number, START + number * 1_000_000) for number in range(300)]

    put = replay(iter([*rows, *rows[:2], record(999, START + 5_000_000)]), CALLER, unknown)

    assert unknown["late"] == 1
    assert sum(tally.calls for tally in put.tallies.values()) == 300


def test_a_second_try_is_charged_to_the_account_alone() -> None:
    """As it was; so is a credential's proof."""
    tables = {**CALLER, "account": {"by": ["account"], "rate": "1/d", "burst": 2}}
    rows = [record(1, START), record(2, START, attempt=2), record(3, START, key_id="proving", service="operator:x")]

    put = replay(iter(rows), tables)

    assert put.by_policy == {("account", False): 1}


def test_an_account_is_charged_for_whom_its_policy_is() -> None:
    """Also for a second try: a policy for some operations, or for some services, leaves the others alone."""
    narrow = {"by": ["account"], "rate": "1/d", "burst": 1}
    tables = {"ends": {**narrow, "operations": ["end"]}, "of_erp": {**narrow, "services": ["erp"]}}
    rows = [record(number, START + number, attempt=2, operation="end", service="crm") for number in range(3)]

    assert replay(iter(rows), tables).by_policy == {("ends", False): 2}


NO_LIMIT = ("signature_replayed", "deadline_passed", "answer_replayed", "idempotency_running", "idempotency_mismatch")


@pytest.mark.parametrize("problem", NO_LIMIT)
def test_what_never_came_to_the_limits_is_no_demand(problem: str) -> None:
    """A signature that was used before, a call that was made before: answered before anything is charged, then as now."""
    alone = [record(number, START + number, stage="refusal", problem=problem) for number in range(9)]
    intents = [record(number, START + number) for number in range(9)]
    ends = [record(10 + number, START + number, stage="refusal", problem=problem, intent=f"w-{number}") for number in range(9)]

    assert replay(iter(alone), CALLER).tallies == {}
    assert replay(iter([*intents, *ends]), CALLER).tallies == {}


def test_memory_does_not_grow_with_history() -> None:
    """New numbers all the time: what is kept of them is what still matters, not what ever was."""
    tables = {**CALLER, "number": {"by": ["number"], "rate": "5/s", "burst": 2}}

    put = replay((record(number, START + number * 20_000, m1=f"{number:032x}") for number in range(60_000)), tables)

    assert sum(tally.calls for tally in put.tallies.values()) == 60_000
    assert len(put.smallest) < 25_000
    assert len(put.limiter._times) < 15_000
    assert max(len(one._hull) for one in put.smallest.values()) < 50
