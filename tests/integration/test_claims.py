"""The claim on an idempotency key in a real Redis, step by step: whose it is, and who may settle it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import config
from gateway.admission import Policies
from gateway.audit import Record, abort
from gateway.calling import Claimed
from gateway.errors import Problem, Refusal
from gateway.ledger.chain import Chain, Claim
from gateway.ledger.heir import _retold
from gateway.ledger.store import RedisLedger
from gateway.ledger.writer import FIRST, append_command
from gateway.model import Admission, Arrival, Attempt, Call, Once, Repeated, Verdict
from gateway.normalisation import carried_out, outcome_of
from tests.integration.test_ledger import AUDITOR, CALL, NAMES, PSEUDONYMS, intent, with_ledger
from tests.running import Redis

ONCE = Once("5" * 32, "f" * 32)
KEYED = replace(CALL, once=ONCE)
MINUTES = replace(KEYED, operation="reschedule", expiry_duration=60)
POLICIES = Policies(config.read_policies(config.BUILT_IN), "a", PSEUDONYMS, 1000)
KEY = NAMES.once(ONCE.name)


async def ask(ledger: RedisLedger, call: Call, owner: str = "") -> Any:
    assert call.once is not None
    call = replace(call, once=replace(call.once, owner=owner))
    return await ledger.admit(call, POLICIES.charges(call), intent(), 0, None, POLICIES.live)


def ended(admission: Admission) -> Record:
    record = msgspec.structs.replace(intent(), stage="outcome", intent=admission.record_id, result="answered")
    return msgspec.structs.replace(record, writer="", seq=-1, prev="")


def settle(ledger: RedisLedger, closed: Admission, owner: str, answer: bytes) -> None:
    ledger.settle(ended(closed), None, Claimed(replace(ONCE, owner=owner), answer))


def standing(answer: object) -> str:
    return "admitted" if isinstance(answer, Admission) else answer.standing if isinstance(answer, Repeated) else repr(answer)


@pytest.mark.parametrize(("call", "then"), [(KEYED, "admitted"), (MINUTES, "unknown")])
def test_closed_without_an_answer_is_unknown(redis: Redis, tmp_path: Path, call: Call, then: str) -> None:
    """While its intent is open it runs; then nobody knows, and it is made again where twice is once."""

    async def steps(ledger: RedisLedger) -> None:
        first = await ask(ledger, call)
        assert standing(await ask(ledger, call)) == "running"
        seq = int(first.record_id.rpartition("-")[2])
        ledger.settle(abort(msgspec.structs.replace(intent(), writer="w", seq=seq), "unknown_outcome", 0.0))
        assert standing(await ask(ledger, call)) == then

    with_ledger(redis, tmp_path, steps)


def test_a_try_takes_the_claim_from_the_one_before(redis: Redis, tmp_path: Path) -> None:
    """Between two tries it runs all the time; the first one's end settles nothing, the last one's does."""

    async def steps(ledger: RedisLedger) -> None:
        first = await ask(ledger, MINUTES)
        second = await ask(ledger, MINUTES, owner=first.record_id)
        assert standing(second) == "admitted"
        ledger.settle(ended(first))
        found = await ask(ledger, MINUTES)
        assert (standing(found), found.intent) == ("running", second.record_id)
        settle(ledger, second, first.record_id, b'{"a":1}')
        found = await ask(ledger, MINUTES)
        assert (standing(found), found.intent, found.answer) == ("answered", second.record_id, b'{"a":1}')

    with_ledger(redis, tmp_path, steps)


def test_nobody_settles_or_takes_anothers_claim(redis: Redis, tmp_path: Path) -> None:
    """A call whose claim ended, and whose key is another call's by now, leaves that one alone."""

    async def steps(ledger: RedisLedger) -> None:
        first = await ask(ledger, MINUTES)
        with redis.client() as client:
            client.delete(KEY)
        second = await ask(ledger, MINUTES)
        assert standing(second) == "admitted"
        settle(ledger, first, first.record_id, b"")
        assert standing(await ask(ledger, MINUTES)) == "running"
        assert standing(await ask(ledger, MINUTES, owner=first.record_id)) == "running"
        settle(ledger, second, second.record_id, b"")
        assert standing(await ask(ledger, MINUTES)) == "admitted"

    with_ledger(redis, tmp_path, steps)


def test_an_heir_settles_by_the_last_try(redis: Redis, tmp_path: Path) -> None:
    """It does not know who laid the claim: of two tries' ends, sent one after the other, the first changes nothing."""

    async def steps(ledger: RedisLedger) -> None:
        first = await ask(ledger, MINUTES)
        second = await ask(ledger, MINUTES, owner=first.record_id)
        chain = Chain("dead")
        with redis.client() as client:
            for closed, answer in ((first, b""), (second, b'{"b":2}')):
                link = chain.link(ended(closed))._replace(claim=Claim(KEY, "", answer, 60_000))
                client.execute_command(*append_command(NAMES, "dead", link, FIRST, known=False))
                assert client.exists(KEY)
        found = await ask(ledger, MINUTES)
        assert (standing(found), found.answer) == ("answered", b'{"b":2}')

    with_ledger(redis, tmp_path, steps)


def test_a_refused_call_claims_nothing(redis: Redis, tmp_path: Path) -> None:
    """All or none: where a limit refuses, the key is free."""
    narrow = {"caller": {"by": ["caller"], "rate": "1/d", "burst": 1}}
    policies = Policies(config.read_policies(narrow), "a", PSEUDONYMS, 1000)

    async def steps(ledger: RedisLedger) -> None:
        for call in (CALL, KEYED):
            await ledger.admit(call, policies.charges(call), intent(), 0, None, policies.live)
        with redis.client() as client:
            assert not client.exists(KEY)

    with_ledger(redis, tmp_path, steps)


def test_a_call_without_a_key_costs_no_word(redis: Redis, tmp_path: Path) -> None:
    """The script is called with what it was called with before there were keys; with one, one key and five words more."""
    found: list[tuple[int, int]] = []

    async def steps(ledger: RedisLedger) -> None:
        for call in (CALL, KEYED):
            keys, words = ledger._operands(call, (), (0, "", "", 0))
            found.append((len(keys), len(words)))

    with_ledger(redis, tmp_path, steps)

    assert found == [(5, 7), (6, 12)]


def test_an_outcome_made_of_its_record_is_the_one_it_was_made_of() -> None:
    """An heir tells what a dead gateway would have told, but for the vendor's own words."""
    arrival = Arrival("r" * 32, 0.0, b"")
    outcomes = [carried_out(None, "end", "r" * 32, 200)]
    outcomes += [
        outcome_of(Refusal(problem, vendor_code=problem.value.code, upstream_status=200), "r" * 32)
        for problem in Problem
        if problem.value.origin == "vendor"
    ]
    for outcome in outcomes:
        admission = Admission(KEYED, "w-1", Verdict(()))
        record = AUDITOR.outcome(arrival, admission, outcome, 1.0, Attempt(1, "primary", "v"))
        assert _retold(record) == outcome
