"""The same `Idempotency-Key` again: one vendor call, one answer, and the truth where nobody knows."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_main_job import assert_refused
from tests.e2e.test_slots import end_session, two_slots
from tests.e2e.test_workloads import Signer
from tests.integration.test_outage import each_once, freeze, thaw, warm
from tests.integration.test_scale_out import gateways
from tests.running import PLAIN, UNSET, VENDOR_SSID, Stack, until

ONCE = {"Idempotency-Key": "5f1c7f2e-0000-4000-8000-abcdefabcdef"}
CLAIMS = "gw:{*}:once:*"


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def claims(stack: Stack) -> list[bytes]:
    with stack.redis.client() as client:
        return list(client.scan_iter(CLAIMS))


def last(stack: Stack, answer: httpx.Response) -> dict[str, Any]:
    """Return the record that closes a request."""
    return stack.records(answer.headers["x-request-id"])[-1]


def test_the_answer_is_given_again(stack: Stack) -> None:
    """Same status and body, a request id of its own in the header; no vendor call, no quota, and the trail tells of both."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    first = stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=keyed("replay-1"))
    assert (first.status_code, first.headers.get("idempotency-replayed")) == (200, None)

    again = stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=keyed("replay-1"))

    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"] == again.json()["request_id"]
    assert "ratelimit" not in again.headers
    assert len(stack.vendor_calls()) == 1
    intent, outcome = stack.records(first.headers["x-request-id"])
    asked, told = stack.records(again.headers["x-request-id"])
    assert (asked["stage"], told["stage"], told["intent"]) == ("intent", "refusal", f"{asked['writer']}-{asked['seq']}")
    assert (told["decision"], told["problem"], told["result"], told["status"]) == ("allowed", "answer_replayed", "refused", 200)
    assert told["repeats"] == f"{intent['writer']}-{intent['seq']}" == outcome["intent"]
    assert "limits" not in told


def test_what_the_vendor_said_of_the_call_is_final(stack: Stack) -> None:
    """A 404 of the vendor's is the answer, also in RFC 9457's form, and however the same call is written."""
    m1, _ = stack.fresh_numbers()
    stack.clear_vendor_calls()
    first = stack.unset(m1=m1, headers=keyed("final-1"))
    assert_refused(first, 404, "masking_not_found", origin="vendor")

    quoted = stack.unset(m1=f"+91 {m1}", headers=keyed('"final-1"'))
    problem = stack.unset(m1=m1, headers={**keyed("final-1"), "Accept": "application/problem+json"})

    assert (quoted.status_code, quoted.content) == (404, first.content)
    assert (problem.status_code, problem.json()["type"]) == (404, "urn:masking-gateway:problem:masking_not_found")
    assert len(stack.vendor_calls()) == 1


def test_another_call_under_the_key_is_refused(stack: Stack) -> None:
    """Every field counts: what is asked, of whom, until when."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    assert stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=keyed("mismatch-1")).status_code == 200

    for other in (
        {"m1": m1, "m2": m2, "expiry_duration": 61},
        {"m1": m1, "m2": m2},
        {"m1": m2, "m2": m1, "expiry_duration": 60},
        {"m1": m1, "expiry_duration": 60},
        {"m1": m1, "m2": m2, "expiry_duration": 60, "expiry_time": 1_900_000_000},
    ):
        answer = stack.unset(other, headers=keyed("mismatch-1"))
        body = assert_refused(answer, 422, "idempotency_mismatch")
        assert body["retryable"] is False
        assert last(stack, answer)["repeats"]

    assert len(stack.vendor_calls()) == 1


@pytest.mark.parametrize("key", ["", '"', '""', "a b", '"a b"', "a,b", 'a"b', '"a\\b"', "x" * 256, '"a";q=1', "naïve".encode()])
def test_a_malformed_key_is_refused(stack: Stack, key: str | bytes) -> None:
    """Nothing is guessed from what could be two keys, or half of one."""
    stack.clear_vendor_calls()

    answer = stack.unset(m1="9876543210", headers={"Idempotency-Key": key})  # type: ignore[dict-item]  # bytes are taken too

    assert "Idempotency-Key" in assert_refused(answer, 400, "idempotency_key_malformed")["message"]
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("key", ["x" * 255, "~!#$%&'()*+-./:<=>?@[]^_`{|}", '"a,b;c"', '"say:\\"hi\\""'])
def test_a_key_may_hold_whatever_is_visible(stack: Stack, key: str) -> None:
    """Bare or quoted, up to 255 characters."""
    answer = stack.unset(m1=stack.fresh_numbers()[0], headers=keyed(key))

    assert answer.status_code == 404


def test_two_keys_are_none(stack: Stack) -> None:
    """Sent twice it is two wishes."""
    headers = [("Authorization", f"Bearer {stack.key}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]

    answer = stack.http.post(stack.url + UNSET, json={"m1": "9876543210"}, headers=headers)

    assert_refused(answer, 400, "idempotency_key_malformed")


def test_many_at_once_are_one_vendor_call(start: Callable[..., Stack]) -> None:
    """Fifty at once over four processes: one call; who comes while it is made is told so, who comes later gets its answer."""
    stack = start(workers=2, read_ms=2900)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=1000)
    with gateways(stack, 2) as urls, ThreadPoolExecutor(50) as pool:

        def call(number: int) -> tuple[int, str, str | None]:
            headers = {"Authorization": f"Bearer {stack.key}", **ONCE}
            fields = {"m1": m1, "m2": m2, "expiry_duration": 60}
            answer = httpx.post(urls[number % 2] + UNSET, json=fields, headers=headers, timeout=30, trust_env=False, verify=PLAIN)
            if answer.status_code == 409:
                assert answer.headers["retry-after"] == "1"
            return answer.status_code, answer.json().get("error", "success"), answer.headers.get("idempotency-replayed")

        found = Counter(pool.map(call, range(50)))
        later = Counter(pool.map(call, range(10)))

    assert found[200, "success", None] == 1
    assert found.total() == found[200, "success", None] + found[409, "idempotency_running", None] + found[200, "success", "true"]
    assert found[409, "idempotency_running", None] > 0
    assert later == {(200, "success", "true"): 10}
    assert len(stack.vendor_calls()) == 1
    each_once([record for record in stack.whole_stream() if record["stage"] in ("intent", "outcome", "refusal", "abort")])


def test_what_did_nothing_frees_the_key(start: Callable[..., Stack]) -> None:
    """Throttled, not reached, refused by a quota: the retry is made."""
    quotas = '[policies.number]\nrate = "20/m"\nburst = 1'
    stack = start(upstream="retries = 0", quotas=quotas)
    m1, _ = stack.masked()
    stack.fault(answer="status_429", times=1)
    throttled = stack.unset(m1=m1, headers=ONCE)
    assert_refused(throttled, 503, "vendor_throttled", origin="vendor")
    until(lambda: claims(stack) == [], what="the key being free")

    limited = stack.unset(m1=m1, headers=ONCE)
    assert_refused(limited, 429, "quota_exceeded")
    until(lambda: claims(stack) == [], what="the key being free")
    until(lambda: stack.unset(m1=m1, headers=ONCE).status_code == 200, what="the retry being made")
    assert stack.unset(m1=m1, headers=ONCE).headers["idempotency-replayed"] == "true"

    stack.sandbox.stop()
    assert_refused(stack.unset(m1=stack.fresh_numbers()[0], headers=keyed("unreached")), 502, "upstream_unreachable")
    until(lambda: len(claims(stack)) == 1, what="the key being free")


def test_operators_first_then_the_retry(stack: Stack) -> None:
    """A credential the vendor rejects is no answer to keep: after it is mended, the retry is made."""
    m1, m2 = stack.masked()
    stack.fault(force_code=1014)
    assert_refused(stack.unset(m1=m1, m2=m2, headers=keyed("mended-1")), 502, "upstream_credential_rejected", origin="vendor")
    stack.no_faults()

    assert stack.unset(m1=m1, m2=m2, headers=keyed("mended-1")).status_code == 200


@pytest.mark.parametrize(
    "fields", [{}, {"expiry_duration": -1}, {"expiry_time": 1_900_000_000}, {"expiry_duration": -1, "expiry_time": 1_900_000_000}]
)
def test_an_unknown_outcome_is_tried_again_where_twice_is_once(stack: Stack, fields: dict[str, int]) -> None:
    """Ending, and an instant: made again it does no more, so the retry is made, and its answer is kept."""
    m1, m2 = stack.masked()
    key = keyed(f"again-{m1}")
    stack.fault(force_code=1032)
    body = assert_refused(stack.unset(m1=m1, m2=m2, **fields, headers=key), 502, "vendor_internal", origin="vendor")
    assert body["retryable"] is True
    stack.no_faults()
    stack.clear_vendor_calls()

    answers = [stack.unset(m1=m1, m2=m2, **fields, headers=key) for _ in range(2)]

    assert [(answer.status_code, answer.headers.get("idempotency-replayed")) for answer in answers] == [
        (200, None),
        (200, "true"),
    ]
    assert len(stack.vendor_calls()) == 1


@pytest.mark.parametrize("minutes", [0, 60])
@pytest.mark.parametrize("answer", ["stalled", "cut", "success_500", "html_200"])
def test_an_unknown_outcome_stays_unknown_where_it_is_not(stack: Stack, answer: str, minutes: int) -> None:
    """Minutes from now would be counted anew: the retry is told that nobody knows, and to look."""
    m1, m2 = stack.masked()
    key = keyed(f"unknown-{m1}")
    stack.fault(answer=answer, times=1)
    first = stack.unset(m1=m1, m2=m2, expiry_duration=minutes, headers=key)
    assert first.status_code in (502, 504)
    assert last(stack, first)["result"] == "unknown"
    stack.clear_vendor_calls()

    again = stack.unset(m1=m1, m2=m2, expiry_duration=minutes, headers=key)

    body = assert_refused(again, 409, "idempotency_unknown")
    assert (body["retryable"], "retry-after" in again.headers) == (False, False)
    assert "nobody knows whether the vendor acted" in body["message"]
    assert last(stack, again)["repeats"] == last(stack, first)["intent"]
    assert stack.vendor_calls() == []


def test_a_second_try_takes_the_key_along(start: Callable[..., Stack]) -> None:
    """The vendor rejects the first credential: the answer of the call with the second is kept, and one comes while it is made."""
    stack = two_slots(start, read_ms=2900)
    m1, m2 = stack.masked()
    end_session(stack, VENDOR_SSID, 1014)
    stack.fault(answer="slow", delay_ms=1200)
    stack.clear_vendor_calls()
    headers = {"Authorization": f"Bearer {stack.key}", **ONCE}
    answers: list[httpx.Response] = []

    def call() -> None:
        fields = {"m1": m1, "m2": m2, "expiry_duration": 60}
        answers.append(httpx.post(stack.url + UNSET, json=fields, headers=headers, timeout=30, trust_env=False))

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: len(stack.vendor_calls()) == 2, what="the second try")
    during = stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE)
    caller.join()
    after = stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE)

    body = assert_refused(during, 409, "idempotency_running")
    assert last(stack, during)["repeats"] == next(
        f"{record['writer']}-{record['seq']}" for record in stack.stream() if record.get("attempt") == 2
    )
    assert (answers[0].status_code, after.content, after.headers["idempotency-replayed"]) == (200, answers[0].content, "true")
    assert body["retryable"] is True
    assert [call["answered_code"] for call in stack.vendor_calls()] == [1014, None]


def test_a_signed_request_is_answered_again_once(start: Callable[..., Stack], tmp_path: Path) -> None:
    """The retry is signed anew; what signs it is spent by the answer, as it is by a call."""
    stack = start()
    signer = Signer(stack, tmp_path)
    m1, _ = stack.fresh_numbers()
    body = json.dumps({"m1": m1}).encode()

    def ask(nonce: str) -> httpx.Response:
        headers = {**signer.sign("http://masking.internal", body, nonce), "Host": "masking.internal", **ONCE}
        return stack.http.post(stack.url + UNSET, content=body, headers=headers)

    first, again, copied = ask("a-random-nonce-1"), ask("a-random-nonce-2"), ask("a-random-nonce-2")

    assert (first.status_code, again.content, again.headers["idempotency-replayed"]) == (404, first.content, "true")
    assert_refused(copied, 401, "signature_replayed")
    assert len(stack.vendor_calls()) == 1


def test_a_key_is_told_nowhere(stack: Stack) -> None:
    """It may be an order's number, or a telephone's: neither Redis nor records nor log hold it."""
    m1, _ = stack.fresh_numbers()
    key = f"order-{m1}"
    answers = [stack.unset(m1=m1, headers=keyed(key)) for _ in range(2)]
    records = [record for answer in answers for record in stack.records(answer.headers["x-request-id"])]

    assert m1 not in str(records) + stack.gateway_log() + answers[1].text
    with stack.redis.client() as client:
        assert not list(client.scan_iter(f"*{m1}*"))
        kept = b"".join(claim + client.get(claim) for claim in client.scan_iter(CLAIMS))
    assert m1.encode() not in kept
    for path in (stack.folder / "state" / "journal").rglob("*.jsonl"):
        assert m1.encode() not in path.read_bytes()


def test_a_key_is_one_services_own_on_one_account(start: Callable[..., Stack]) -> None:
    """Two services, or two accounts, do not meet in one key; two keys of one service do."""
    second = '[accounts.other]\nbrand = "SANDBOX"\n[accounts.other.primary]\nssid = { env = "VENDOR_SSID" }\n'
    stack = start(more=second)
    sales, _, _ = stack.issue("sales")
    rotated, _, _ = stack.issue("crm")
    m1, _ = stack.fresh_numbers()

    def ask(key: str, more: dict[str, str]) -> str | None:
        answer = stack.unset(m1=m1, key=key, headers={**ONCE, **more})
        assert answer.status_code == 404, answer.text
        return answer.headers.get("idempotency-replayed")

    found = [ask(key, more) for more in ({}, {"X-Gateway-Account": "other"}) for key in (stack.key, sales, rotated)]

    assert found == [None, None, "true"] * 2
    assert len(stack.vendor_calls()) == 4
    # What is refused for its form stands with the account it was for.
    refused = stack.unset(m1=m1, headers={"Idempotency-Key": "a b", "X-Gateway-Account": "other"})
    assert_refused(refused, 400, "idempotency_key_malformed")
    with stack.redis.client() as client:
        until(
            lambda: refused.headers["x-request-id"].encode() in str(client.xrange("gw:{other}:audit")).encode(),
            what="the refusal in the account's trail",
        )


def test_a_claim_ends(start: Callable[..., Stack]) -> None:
    """It is kept for the hours that are set, counted from the answer; after them the same key is another call."""
    stack = start(more="[idempotency]\nkeep_hours = 2")
    m1, _ = stack.fresh_numbers()
    answer = stack.unset(m1=m1, headers=ONCE)
    assert answer.status_code == 404
    stack.records(answer.headers["x-request-id"])  # With the outcome the answer is kept.

    (claim,) = claims(stack)
    with stack.redis.client() as client:
        assert 7_190_000 < client.pttl(claim) <= 7_200_000
        assert m1.encode() not in claim + client.get(claim)
        client.pexpire(claim, 1)
    until(lambda: not claims(stack), what="the claim's end")

    assert "idempotency-replayed" not in stack.unset(m1=m1, headers=ONCE).headers
    assert len(stack.vendor_calls()) == 2


def test_without_redis_a_call_with_a_key_is_not_made(start: Callable[..., Stack]) -> None:
    """Nobody can say whether it was made before: refused, recorded, and free when Redis is back; others go on."""
    stack = start(redis_ms=1000)
    warm(stack)
    m1, m2 = stack.masked()
    freeze(stack)
    stack.clear_vendor_calls()

    refused = [stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE) for _ in range(2)]
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404

    for answer in refused:
        assert_refused(answer, 503, "ledger_unavailable")
    assert len(stack.vendor_calls()) == 1
    thaw(stack)
    # The first was sent to a Redis that may have taken it all the same: it was not made, and holds the key no longer.
    until(lambda: stack.http.get(stack.url + "/readyz").json()["status"] == "ok", what="Redis being back")
    until(lambda: stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE).status_code == 200, what="the retry being made")


def test_an_answer_given_while_redis_is_away_is_kept_later(start: Callable[..., Stack]) -> None:
    """Redis goes away while the vendor acts: the answer is kept with the outcome, when Redis is back."""
    stack = start(read_ms=2900)
    warm(stack)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=1000)
    stack.clear_vendor_calls()
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE)))
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.redis.kill()
    caller.join()
    assert answers[0].status_code == 200
    stack.redis.start()
    until(lambda: stack.http.get(stack.url + "/readyz").json()["status"] == "ok", what="Redis being back")

    def replayed() -> bool:
        answer = stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE)
        assert answer.status_code in (200, 409, 503), answer.text
        return answer.content == answers[0].content and answer.headers["idempotency-replayed"] == "true"

    until(replayed, what="the answer being kept")
    assert len(stack.vendor_calls()) == 1


def test_a_claim_that_nobody_ends_runs_no_longer_than_a_call(start: Callable[..., Stack]) -> None:
    """Its gateway's machine is gone for good, and no heir comes: after the longest a call takes, it is not running."""
    stack = start(upstream="pool_timeout_ms = 100")
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=1000)
    stack.clear_vendor_calls()
    headers = {"Authorization": f"Bearer {stack.key}", **ONCE}

    def call() -> None:
        with pytest.raises(httpx.TransportError):
            httpx.post(stack.url + UNSET, json={"m1": m1, "m2": m2, "expiry_duration": 60}, headers=headers, trust_env=False)

    caller, begun = threading.Thread(target=call), time.monotonic()
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.gateway.popen.kill()
    stack.gateway.popen.wait()
    caller.join()
    (stack.folder / "state" / "journal").rename(stack.folder / "state" / "lost")
    stack.start_gateway()

    found = until(
        lambda: answer if (answer := stack.unset(m1=m1, m2=m2, expiry_duration=60, headers=ONCE)).json()["error"] != "idempotency_running" else None,
        seconds=30,
        what="the end of running",
    )  # fmt: skip
    assert_refused(found, 409, "idempotency_unknown")
    # Twice the total time-out and the pool's, and five seconds for what is beside.
    assert time.monotonic() - begun > 2 * (3.0 + 0.1) + 5
    assert len(stack.vendor_calls()) == 1
