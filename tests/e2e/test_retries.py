"""The gateway tries again by itself: what did nothing, or does no more when it is done twice; few times, and in the caller's time."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.e2e.test_main_job import assert_refused
from tests.e2e.wire import Wire, post
from tests.integration.test_outage import each_once
from tests.running import UNSET, VENDOR_SSID, Process, Stack, until

MINUTES = {"expiry_duration": 60}
TWICE_IS_ONCE = [{}, {"expiry_duration": -1}, {"expiry_time": 1_900_000_000}]


def waiting(ms: object) -> dict[str, str]:
    return {"X-Request-Timeout-Ms": str(ms)}


def restart_vendor(stack: Stack) -> None:
    """Start the sandbox again where it was."""
    port = stack.sandbox_url.rpartition(":")[2]
    words = [sys.executable, "-m", "gateway.sandbox", "--port", port, "--ssid", VENDOR_SSID]
    stack.sandbox = Process(stack.folder, f"sandbox-{time.monotonic_ns()}", words)
    stack.sandbox.address()


def whole(stack: Stack, answer: httpx.Response) -> list[dict[str, Any]]:
    """Return a request's records once each intent has its end."""

    def found() -> list[dict[str, Any]] | None:
        records = [record for record in stack.stream() if record["request_id"] == answer.headers["x-request-id"]]
        return records if records and 2 * sum(record["stage"] == "intent" for record in records) == len(records) else None

    records = list(until(found, what="the records of a call"))
    each_once(records)
    return records


def tries(records: list[dict[str, Any]]) -> list[tuple[int, str | None, str]]:
    """Return how each try ended: its number, problem and class."""
    ends = sorted((record for record in records if record["stage"] == "outcome"), key=lambda record: record.get("attempt", 1))
    return [(record.get("attempt", 1), record.get("problem"), record["result"]) for record in ends]


def test_what_was_not_reached_is_tried_again(start: Callable[..., Stack]) -> None:
    """The vendor comes up while the gateway tries: one answer, each try recorded, and of a key the last one's answer is kept."""
    stack = start(upstream="retries = 10\npool_timeout_ms = 10_000")
    for _ in range(60):  # Retries are a share of what was called lately.
        stack.unset(m1=stack.fresh_numbers()[0])
    stack.clear_vendor_calls()
    stack.sandbox.stop()
    answers: list[httpx.Response] = []
    fields, key = {"m1": stack.fresh_numbers()[0], **MINUTES}, {"Idempotency-Key": "restarted"}
    caller = threading.Thread(target=lambda: answers.append(stack.unset(fields, headers=key)))
    caller.start()
    until(lambda: any(record.get("attempt") == 2 for record in stack.stream()), what="the second try")
    restart_vendor(stack)
    caller.join()

    (answer,) = answers
    assert_refused(answer, 404, "masking_not_found", origin="vendor")
    *failed, (_, problem, _) = tries(whole(stack, answer))
    assert problem == "masking_not_found"
    assert failed == [(number, "upstream_unreachable", "refused") for number in range(1, len(failed) + 1)]
    assert len(failed) >= 2
    assert len(stack.vendor_calls()) == 1
    again = stack.unset(fields, headers=key)
    assert (again.content, again.headers["idempotency-replayed"]) == (answer.content, "true")
    metrics = stack.metrics()
    assert f'gateway_retries_total{{account="test"}} {len(failed)}.0' in metrics
    assert 'gateway_idempotency_repeats_total{account="test",standing="answered"} 1.0' in metrics


@pytest.mark.parametrize("fields", TWICE_IS_ONCE)
@pytest.mark.parametrize(("switch", "problem"), [("stall_before", "upstream_timeout"), ("close", "upstream_broken")])
def test_what_does_no_more_twice_is_tried_again(stack: Stack, switch: str, problem: str, fields: dict[str, int]) -> None:
    """Of a time-out or a broken connection nobody knows whether the vendor acted; made again it does what it would have done."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    stack.fault(answer=switch, times=1)

    answer = stack.unset(m1=m1, m2=m2, **fields)

    assert answer.status_code == 200, answer.text
    assert tries(whole(stack, answer)) == [(1, problem, "unknown"), (2, None, "answered")]
    assert len(stack.vendor_calls()) == 2


@pytest.mark.parametrize("minutes", [0, 60])
@pytest.mark.parametrize(("switch", "problem"), [("stall_before", "upstream_timeout"), ("close", "upstream_broken")])
def test_minutes_from_now_are_not_tried_again(stack: Stack, switch: str, problem: str, minutes: int) -> None:
    """They would be counted anew; whether alone or with an instant."""
    m1, m2 = stack.masked()
    for more in ({}, {"expiry_time": 1_900_000_000}):
        stack.clear_vendor_calls()
        stack.fault(answer=switch, times=1)

        answer = stack.unset(m1=m1, m2=m2, expiry_duration=minutes, **more)

        assert answer.json()["error"] == problem
        assert tries(whole(stack, answer)) == [(1, problem, "unknown")]
        assert len(stack.vendor_calls()) == 1


@pytest.mark.parametrize(("switch", "status"), [("status_429", 503), ("html_502", 502), ("html_200", 502)])
def test_an_answer_is_not_tried_again(stack: Stack, switch: str, status: int) -> None:
    """The vendor was there and said something: a retry is the caller's."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    stack.fault(answer=switch, times=1)

    assert stack.unset(m1=m1, m2=m2).status_code == status

    assert len(stack.vendor_calls()) == 1


def test_no_retries_where_none_are_set(start: Callable[..., Stack]) -> None:
    """`upstream.retries = 0`."""
    stack = start(upstream="retries = 0")
    stack.sandbox.stop()

    answer = stack.unset(m1="9876543210")

    assert_refused(answer, 502, "upstream_unreachable")
    assert tries(whole(stack, answer)) == [(1, "upstream_unreachable", "refused")]


def test_what_may_have_been_done_is_not_said_to_be_undone(start: Callable[..., Stack]) -> None:
    """The first try broke off, the second did not reach anybody: "it was not made" would be true of the second alone."""
    stack = start()
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    stack.fault(answer="slow", delay_ms=1000)
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(stack.unset(m1=m1, m2=m2)))
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.sandbox.popen.kill()
    stack.sandbox.popen.wait()
    caller.join()

    assert_refused(answers[0], 502, "upstream_broken")
    assert tries(whole(stack, answers[0])) == [(1, "upstream_broken", "unknown"), (2, "upstream_broken", "unknown")]
    restart_vendor(stack)


def test_an_outage_is_not_multiplied(start: Callable[..., Stack]) -> None:
    """Of forty calls that reach nobody five and a tenth are tried again, and one in five seconds."""
    stack = start(upstream="breaker_calls = 0")
    stack.sandbox.stop()
    begun = time.monotonic()
    for _ in range(40):
        assert stack.unset(m1=stack.fresh_numbers()[0]).json()["error"] == "upstream_unreachable"
    took = time.monotonic() - begun

    retried = sum(record["stage"] == "intent" and record.get("attempt") == 2 for record in stack.stream())
    assert 8 <= retried <= 9 + took / 5
    restart_vendor(stack)


def test_no_retries_while_calls_are_paused(start: Callable[..., Stack]) -> None:
    """The vendor fails, and is looked at by single calls: none of these is made twice."""
    stack = start(upstream="breaker_calls = 3\nbreaker_seconds = 1")
    stack.sandbox.stop()
    until(lambda: stack.unset(m1="9876543210").json()["error"] == "upstream_paused", what="the pause")
    before = len(stack.stream())

    until(lambda: stack.unset(m1="9876543210").json()["error"] == "upstream_unreachable", what="the look")

    tried = [record for record in stack.stream()[before:] if record["stage"] == "intent" and record.get("operation")]
    assert [record.get("attempt", 1) for record in tried] == [1]
    restart_vendor(stack)


def test_callers_in_a_hurry_pause_nobody(start: Callable[..., Stack]) -> None:
    """A vendor that is slower than a caller waits is not one that fails: the other callers' calls go on."""
    stack = start(upstream="breaker_calls = 3", read_ms=2900)
    m1, m2 = stack.masked()
    # Of a gateway that has not called yet the first call takes longer.
    assert stack.unset(m1=m1, m2=m2, expiry_time=1_900_000_000).status_code == 200
    stack.fault(answer="slow", delay_ms=2500)
    for _ in range(6):
        answer = stack.unset(m1=m1, m2=m2, expiry_time=1_900_000_000, headers=waiting(1200))
        assert_refused(answer, 504, "upstream_timeout")

    assert stack.unset(m1=m1, m2=m2, expiry_time=1_900_000_000).status_code == 200


def test_a_retry_is_charged_to_the_account(start: Callable[..., Stack]) -> None:
    """Where the account's quota has nothing left for a retry, none is made, and the caller hears of the first try."""
    wide = '[policies.number]\nrate = "1000000/s"\nburst = 1000000\n'
    stack = start(quotas=f'{wide}[policies.account]\nrate = "1/h"\nburst = 1\n')
    stack.sandbox.stop()

    answer = stack.unset(m1="9876543210")

    assert_refused(answer, 502, "upstream_unreachable")
    records = [record for record in whole(stack, answer) if record["stage"] != "intent"]
    assert sorted((record["stage"], record["problem"]) for record in records) == [
        ("abort", "quota_exceeded"),
        ("outcome", "upstream_unreachable"),
    ]
    restart_vendor(stack)


def test_a_key_that_was_revoked_is_not_retried_with(start: Callable[..., Stack]) -> None:
    """When `revoke` has returned, no further try is made of a call that was begun before."""
    # A long wait for a place, since all tries of a call together get time by it.
    stack = start(upstream="retries = 10\npool_timeout_ms = 10_000")
    for _ in range(60):  # They save ten retries, so that the last of them is made long after.
        assert stack.unset(m1="9876543210").status_code == 404
    before = len(stack.stream())
    stack.sandbox.stop()
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(stack.unset(m1="9876543210")))
    caller.start()
    until(lambda: any(record.get("attempt") == 2 for record in stack.stream()), what="the second try")
    stack.cli("keys", "revoke", stack.key_id)
    made = sum(record["stage"] == "intent" for record in stack.stream()[before:])
    caller.join()

    assert_refused(answers[0], 502, "upstream_unreachable")
    assert len(tries(whole(stack, answers[0]))) <= made < 11
    restart_vendor(stack)


def test_no_retry_that_cannot_end_in_time(start: Callable[..., Stack]) -> None:
    """The caller waits for less than the pause before a retry."""
    stack = start()
    assert stack.unset(m1="9876543210").status_code == 404
    stack.sandbox.stop()

    answer = stack.unset(m1="9876543210", headers=waiting(45))

    assert_refused(answer, 502, "upstream_unreachable")
    assert tries(whole(stack, answer)) == [(1, "upstream_unreachable", "refused")]
    restart_vendor(stack)


def test_a_slow_vendor_is_waited_for_as_long_as_the_caller_waits(stack: Stack) -> None:
    """Not the time-out of the settings, and no retry after it."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    stack.fault(answer="stall_before")
    begun = time.monotonic()

    answer = stack.unset(m1=m1, m2=m2, headers=waiting(400))

    assert 0.35 < time.monotonic() - begun < 1.4
    assert_refused(answer, 504, "upstream_timeout")
    assert tries(whole(stack, answer)) == [(1, "upstream_timeout", "unknown")]
    assert len(stack.vendor_calls()) == 1


@pytest.mark.parametrize("whose", ["caller", "settings"])
def test_who_was_not_reached_in_time_is_said_so(start: Callable[..., Stack], whose: str) -> None:
    """Nobody takes the connection: the call was not made, and that is known though to connect might have taken longer."""
    hurry = waiting(2900) if whose == "caller" else {}
    with socket.socket() as full, ExitStack() as waiting_to_be_taken:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = waiting_to_be_taken.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        hole = f'[accounts.hole]\nbrand = "http://127.0.0.1:{full.getsockname()[1]}"\n'
        stack = start(more=hole + '[accounts.hole.primary]\nssid = { env = "VENDOR_SSID" }\n')

        answer = stack.unset(m1="9876543210", headers={**hurry, "X-Gateway-Account": "hole"})

        assert_refused(answer, 502, "upstream_unreachable")


def test_a_caller_that_waits_long_waits_no_longer_than_the_settings_say(stack: Stack) -> None:
    """The time it gives is a bound, not a wish."""
    stack.fault(answer="stall_before")
    begun = time.monotonic()

    assert_refused(stack.unset(m1="9876543210", **MINUTES, headers=waiting(600_000)), 504, "upstream_timeout")

    assert time.monotonic() - begun < 25


def test_a_call_nobody_waits_for_is_not_made(stack: Stack) -> None:
    """The body came when the time was over, which counts from the request's arrival."""
    stack.clear_vendor_calls()
    sent = post(
        b'{"m1":"9876543210"}', f"Authorization: Bearer {stack.key}", "X-Request-Timeout-Ms: 100", "X-Request-Id: too-late-1"
    )
    with Wire(stack.host, stack.port) as wire:
        wire.send(sent[:-5])
        time.sleep(0.3)  # That is the fault.
        wire.send(sent[-5:])
        answer = wire.answer()

    assert answer is not None
    assert (answer.status, answer.json()["error"], answer.json()["retryable"]) == (504, "deadline_passed", True)
    (record,) = stack.records("too-late-1")
    assert (record["stage"], record["problem"], record["result"]) == ("refusal", "deadline_passed", "refused")
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("told", ["", "0", "-1", "+5", "1.5", "1e3", "5s", "600001", "9" * 30, "0x10", "１０"])  # noqa: RUF001
def test_a_malformed_time_is_refused(stack: Stack, told: str) -> None:
    """By its name; nothing is guessed."""
    stack.clear_vendor_calls()

    answer = stack.unset(m1="9876543210", headers={"X-Request-Timeout-Ms": told.encode()})  # type: ignore[dict-item]  # taken too

    assert "X-Request-Timeout-Ms" in assert_refused(answer, 400, "request_timeout_malformed")["message"]
    assert stack.vendor_calls() == []


def test_two_times_are_none(stack: Stack) -> None:
    """Sent twice it is two wishes."""
    headers = [("Authorization", f"Bearer {stack.key}"), ("X-Request-Timeout-Ms", "500"), ("X-Request-Timeout-Ms", "500")]

    answer = stack.http.post(stack.url + UNSET, json={"m1": "9876543210"}, headers=headers)

    assert_refused(answer, 400, "request_timeout_malformed")
