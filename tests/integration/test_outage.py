"""Without Redis: one bounded wait, then calls go on by local limits, recorded on disk first, marked, and back by itself."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from gateway import keys
from tests.e2e.test_main_job import assert_refused
from tests.e2e.test_workloads import Signer
from tests.integration.test_scale_out import WIDE, answers, gateways
from tests.running import PLAIN, UNSET, Stack, until


def limit(burst: int) -> str:
    return f'{WIDE}[policies.caller]\nrate = "1/d"\nburst = {burst}\n'


def warm(stack: Stack) -> None:
    """Let the process know its caller, and its limits be divided."""
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404


def settled(stack: Stack, count: int) -> list[dict[str, Any]]:
    """Return the records of the trail once so many calls have their outcome."""

    def whole() -> list[dict[str, Any]] | None:
        found = stack.stream()
        return found if sum(record["stage"] == "outcome" for record in found) >= count else None

    return list(until(whole, seconds=30, what=f"{count} outcomes"))


def each_once(records: list[dict[str, Any]]) -> None:
    """Every record is there once, and every intent is closed by one other, and the other way round."""
    assert len({(record["writer"], record["seq"]) for record in records}) == len(records)
    intents = Counter(f"{record['writer']}-{record['seq']}" for record in records if record["stage"] == "intent")
    closed = Counter(record["intent"] for record in records if record["stage"] != "intent" and "intent" in record)
    assert closed == intents


def freeze(stack: Stack) -> None:
    stack.redis.process.signal(signal.SIGSTOP)


def thaw(stack: Stack) -> None:
    stack.redis.process.signal(signal.SIGCONT)


def ask(*words: Any) -> Callable[[Stack], None]:
    def act(stack: Stack) -> None:
        with stack.redis.client() as client:
            client.execute_command(*words)

    return act


FAULTS: dict[str, tuple[Callable[[Stack], None], Callable[[Stack], None]]] = {
    "refused": (lambda stack: stack.redis.kill(), lambda stack: stack.redis.start()),
    "stalled": (freeze, thaw),
    "slow": (ask("CLIENT", "PAUSE", 60_000, "ALL"), lambda stack: (stack.redis.kill(), stack.redis.start())),
    "full": (ask("CONFIG", "SET", "maxmemory", "1"), ask("CONFIG", "SET", "maxmemory", "0")),
    "read-only": (ask("REPLICAOF", "127.0.0.1", 1), ask("REPLICAOF", "NO", "ONE")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_calls_go_on(start: Callable[..., Stack], fault: str) -> None:
    """Whatever Redis suffers: every call reaches the vendor, one waits, all are recorded and marked, and the breaker closes."""
    stack = start(redis_ms=1000)
    warm(stack)
    spoil, mend = FAULTS[fault]
    spoil(stack)

    times = []
    for _ in range(8):
        begun = time.monotonic()
        answer = stack.unset(m1=stack.fresh_numbers()[0])
        times.append(time.monotonic() - begun)
        assert answer.status_code == 404, answer.text
        assert '"caller";r=' in answer.headers["ratelimit"]
    # All but the first are answered by the breaker; the longest wait is the one time-out and what a call takes anyway.
    assert sorted(times)[-2] < max(times) / 2 or max(times) < 10 * median(times)
    ready = stack.http.get(stack.url + "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["account.test.redis"] == "LedgerDown"
    metrics = stack.metrics()
    assert 'gateway_degraded{account="test"} 1.0' in metrics
    assert 'gateway_degraded_calls_total{account="test"} 8.0' in metrics
    mend(stack)

    until(lambda: 'gateway_degraded{account="test"} 0.0' in stack.metrics(), what="the breaker closing")
    warm(stack)
    records = settled(stack, 10)
    each_once(records)
    marked = Counter(record["stage"] for record in records if record.get("degraded"))
    # The intent of the call that waited was made while Redis was there.
    assert marked["outcome"] == 8
    assert marked["intent"] in (7, 8)
    with stack.redis.client() as client:
        until(lambda: client.hlen("gw:{test}:open") == 0, what="no intent being open")
    log = stack.gateway_log()
    assert log.count("ledger.lost") == log.count("ledger.recovered") == 1


def test_each_process_has_its_share(start: Callable[..., Stack]) -> None:
    """Of 40 units three processes have 13 and a fraction each: at most 42 pass, and no fewer than 39."""
    stack = start(quotas=limit(40))
    with gateways(stack, 3) as urls:
        for url in urls:
            stack.url = url
            warm(stack)
        until(lambda: heartbeats(stack) == 3, what="three processes being alive")
        with stack.redis.client() as client:
            client.delete("gw:{test}:limit:caller:crm")
        time.sleep(8)  # Until each has heard of the others; nothing outside tells when.
        stack.clear_vendor_calls()
        stack.redis.kill()
        found = answers(stack, urls, 150)
        stack.redis.start()

    assert 39 <= found["masking_not_found"] <= 42
    assert found["masking_not_found"] + found["caller"] == 150
    assert len(stack.vendor_calls()) == found["masking_not_found"]


def heartbeats(stack: Stack) -> int:
    with stack.redis.client() as client:
        return int(client.zcard("gw:{test}:processes"))


def test_a_whole_outage_admits_at_most_a_burst_more_on_each_side(start: Callable[..., Stack]) -> None:
    """Used up before, in and after the outage: what passes is three bursts and what grows back, and never more."""
    stack = start(quotas=limit(10))
    begun = time.monotonic()
    before = answers(stack, [stack.url], 25)
    stack.redis.kill()
    during = answers(stack, [stack.url], 25)
    stack.redis.start()
    until(lambda: stack.http.get(stack.url + "/readyz").json()["status"] == "ok", what="being well again")
    after = answers(stack, [stack.url], 25)
    took = time.monotonic() - begun

    assert [found["masking_not_found"] for found in (before, during)] == [10, 10]
    # What Redis kept, it still has.
    assert after["masking_not_found"] <= 1 + took / 86_400


def test_deny_and_allow(start: Callable[..., Stack]) -> None:
    """Without Redis a policy that says deny lets nothing pass and is named; one that says allow is not looked at."""
    denying = '[policies.end]\nby = ["operation"]\noperations = ["end"]\nrate = "1/d"\nburst = 2\non_store_error = "deny"\n'
    allowing = '[policies.caller]\nrate = "1/h"\nburst = 1\non_store_error = "allow"\n'
    stack = start(quotas=WIDE + denying + allowing)
    warm(stack)
    stack.redis.kill()

    denied = assert_refused(stack.unset(m1=stack.fresh_numbers()[0]), 503, "ledger_unavailable")
    passed = [stack.unset(m1=stack.fresh_numbers()[0], expiry_duration=5).status_code for _ in range(4)]
    stack.redis.start()

    assert denied["policy"] == "end"
    assert passed == [404] * 4


def test_refuse_has_it_as_strict_as_it_can_be(start: Callable[..., Stack]) -> None:
    """With audit.on_store_error = "refuse" nothing passes that Redis did not record."""
    stack = start(audit='on_store_error = "refuse"')
    warm(stack)
    stack.clear_vendor_calls()
    stack.redis.kill()

    assert_refused(stack.unset(m1=stack.fresh_numbers()[0]), 503, "ledger_unavailable")

    assert stack.vendor_calls() == []
    stack.redis.start()


def test_keys_are_believed_for_a_while(start: Callable[..., Stack]) -> None:
    """A key that Redis cannot confirm for longer than keys.stale_seconds_max is refused, as not to be decided."""
    stack = start(more="[keys]\nstale_seconds_max = 6")
    warm(stack)
    stack.redis.kill()
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404

    refused = until(
        lambda: (answer := stack.unset(m1=stack.fresh_numbers()[0])).status_code == 503 and answer, what="the key being too old"
    )

    assert_refused(refused, 503, "ledger_unavailable")
    assert stack.http.get(stack.url + "/readyz").status_code == 503
    stack.redis.start()


def test_a_revocation_seen_before_holds_in_an_outage(start: Callable[..., Stack]) -> None:
    """Revoked without a call since: the process has heard of it by itself, and in the outage refuses the key as revoked."""
    stack = start()
    other, other_id, _ = stack.issue("other", "--expires", "9d")  # Of one that ends, the metrics tell.
    assert stack.unset(m1=stack.fresh_numbers()[0], key=other).status_code == 404
    assert other_id in stack.metrics()
    stack.cli("keys", "revoke", other_id)
    until(lambda: other_id not in stack.metrics(), what="the process having heard of it")
    stack.redis.kill()

    assert_refused(stack.unset(m1=stack.fresh_numbers()[0], key=other), 401, "credential_revoked")
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404  # Known too, though it never called.
    stack.redis.start()


def test_redis_comes_back_empty(start: Callable[..., Stack]) -> None:
    """Who was known still is; who is not known is told to come again, since nobody can tell; and the gateway stays up."""
    stack = start()
    warm(stack)
    with stack.redis.client() as client:
        client.flushall()

    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    alien = stack.key[:-1] + ("a" if stack.key[-1] != "a" else "b")
    assert stack.unset(m1=stack.fresh_numbers()[0], key=alien).status_code == 401  # Its checksum is wrong: that needs no Redis.
    minted, _ = keys.mint(lambda letters: letters[0], "aaaaaaaaaa")
    assert_refused(stack.unset(m1=stack.fresh_numbers()[0], key=minted), 503, "ledger_unavailable")
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404


def test_a_change_ends_by_itself_without_redis(start: Callable[..., Stack]) -> None:
    """What was raised for some seconds is as it was after them, though nobody can be asked."""
    stack = start(quotas=limit(2), redis_ms=1000)
    warm(stack)
    stack.cli("limits", "set", "crm", "--burst", "1000", "--for", "12s", "--why", "a moment")
    ends = time.monotonic() + 12
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    freeze(stack)

    assert [stack.unset(m1=stack.fresh_numbers()[0]).status_code for _ in range(5)] == [404] * 5
    time.sleep(max(0.0, ends + 0.5 - time.monotonic()))

    assert 429 in [stack.unset(m1=stack.fresh_numbers()[0]).status_code for _ in range(4)]
    thaw(stack)


def test_a_signed_request_waits_for_redis(start: Callable[..., Stack], tmp_path: Path) -> None:
    """Nobody can tell whether its nonce was spent, so it is refused; a key's call beside it is made."""
    stack = start()
    signer = Signer(stack, tmp_path)

    def signed(nonce: str) -> httpx.Response:
        body = json.dumps({"m1": stack.fresh_numbers()[0]}).encode()
        return stack.http.post(stack.url + UNSET, content=body, headers=signer.sign(stack.url, body, nonce))

    assert signed("a-random-nonce-1").status_code == 404
    warm(stack)
    stack.redis.kill()

    assert_refused(signed("a-random-nonce-2"), 503, "ledger_unavailable")
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    stack.redis.start()


def test_a_killed_gateway_leaves_its_intent_on_disk(start: Callable[..., Stack]) -> None:
    """Redis away, the vendor slow, kill -9: the next gateway brings the intent to the trail, and says that nobody knows more."""
    stack = start()
    warm(stack)
    stack.redis.kill()
    stack.unset(m1=stack.fresh_numbers()[0])
    stack.fault(answer="slow", delay_ms=5000)
    before = len(stack.vendor_calls())

    def call() -> None:
        with pytest.raises(httpx.TransportError):
            stack.unset(m1=stack.fresh_numbers()[0], headers={"X-Request-Id": "killed-in-outage"})

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: len(stack.vendor_calls()) > before, what="the vendor being called")
    stack.gateway.popen.kill()
    stack.gateway.popen.wait()
    caller.join()
    stack.redis.start()
    stack.start_gateway()

    intent, abort = stack.records("killed-in-outage")
    assert (intent["stage"], intent["degraded"]) == ("intent", True)
    assert (abort["stage"], abort["problem"]) == ("abort", "unknown_outcome")
    assert abort["intent"] == f"{intent['writer']}-{intent['seq']}"
    with stack.redis.client() as client:
        assert client.hlen("gw:{test}:open") == 0


def test_no_place_is_left_without_redis(start: Callable[..., Stack]) -> None:
    """Calls under way are limited by each process for itself, and places come free with the outcome."""
    stack = start(quotas=WIDE + '[policies.slow]\nby = ["caller"]\nconcurrency = 2', read_ms=2900)
    warm(stack)
    stack.fault(answer="slow", delay_ms=1000)
    stack.redis.kill()
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404

    def call(_: int) -> int:
        with httpx.Client(timeout=30, trust_env=False, verify=PLAIN) as http:
            headers = {"Authorization": f"Bearer {stack.key}"}
            return http.post(stack.url + UNSET, json={"m1": stack.fresh_numbers()[0]}, headers=headers).status_code

    for _ in range(2):
        with ThreadPoolExecutor(6) as pool:
            assert Counter(pool.map(call, range(6))) == {404: 2, 429: 4}
    stack.redis.start()


def test_the_drill_is_an_outage_without_one(start: Callable[..., Stack]) -> None:
    """Calls before, during and after: none beyond the limit but what sharing costs, each recorded, those within it marked."""
    stack = start(workers=2)

    done = stack.cli("drill", "redis-down", "--for", "4s", "--url", stack.url, "--json")
    shown = stack.cli("limits", "history").stdout

    report = json.loads(done.stdout)
    assert report["admitted_without_intent"] == 0
    for phase in report["phases"]:
        assert phase["admitted"] > 0
        assert phase["beyond"] <= 1, phase
    marked = [record for record in stack.stream() if record.get("degraded")]
    assert {record["service"] for record in marked} == {"drill"}
    assert sum(record["stage"] == "intent" for record in marked) > 10
    assert "began" in shown
    stack.records(stack.unset(m1=stack.fresh_numbers()[0]).headers["x-request-id"])
    each_once(stack.stream())
