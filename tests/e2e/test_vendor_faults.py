"""Whatever the vendor does: one clear answer, the right class in the trail, and the gateway lives on."""

from __future__ import annotations

import pytest

from tests.e2e.test_main_job import assert_refused
from tests.running import VENDOR_SSID, Stack

ANSWERS = [
    # switch, status, slug, origin, class in the trail
    ("html_502", 502, "vendor_failed", "vendor", "unknown"),
    ("html_200", 502, "upstream_unreadable", "gateway", "unknown"),
    ("empty", 502, "upstream_unreadable", "gateway", "unknown"),
    ("truncated", 502, "upstream_unreadable", "gateway", "unknown"),
    ("cut", 502, "upstream_broken", "gateway", "unknown"),
    ("wrong_charset", 404, "masking_not_found", "vendor", "failed"),
    ("huge", 502, "upstream_unreadable", "gateway", "unknown"),
    ("stalled", 504, "upstream_timeout", "gateway", "unknown"),
    ("stall_before", 504, "upstream_timeout", "gateway", "unknown"),
    ("reset", 502, "upstream_broken", "gateway", "unknown"),
    ("close", 502, "upstream_broken", "gateway", "unknown"),
    ("redirect", 502, "upstream_redirected", "vendor", "failed"),
    ("status_429", 503, "vendor_throttled", "vendor", "failed"),
    ("success_500", 502, "vendor_failed", "vendor", "unknown"),
    ("code_text", 404, "masking_not_found", "vendor", "failed"),
    ("no_code", 502, "vendor_code_unknown", "vendor", "failed"),
    ("array", 502, "upstream_unreadable", "gateway", "unknown"),
]


@pytest.mark.parametrize(("switch", "status", "slug", "origin", "result"), ANSWERS)
def test_a_faulty_answer(stack: Stack, switch: str, status: int, slug: str, origin: str, result: str) -> None:
    """Each plausible misbehaviour has a row, and the next call works."""
    m1, m2 = stack.masked()
    stack.fault(answer=switch, act=False)

    answer = stack.unset(m1=m1, m2=m2)

    body = assert_refused(answer, status, slug, origin=origin)
    outcome = stack.records(body["request_id"])[-1]
    assert (outcome["stage"], outcome["result"], outcome["problem"]) == ("outcome", result, slug)
    if switch == "status_429":
        assert answer.headers["retry-after"] == "7"
    stack.no_faults()
    assert stack.unset(m1=m1, m2=m2).status_code == 200


@pytest.mark.parametrize("switch", ["slow", "one_byte", "success_with_code"])
def test_an_odd_success_is_a_success(stack: Stack, switch: str) -> None:
    """Slow, in single bytes, or with a code in it: what the vendor did is done."""
    m1, m2 = stack.masked()
    stack.fault(answer=switch, delay_ms=1)

    assert stack.unset(m1=m1, m2=m2).json()["message"] == "Your masking unset"


CODES = [
    (1000, 400, "vendor_parameters_invalid"),
    (1005, 400, "vendor_number_invalid"),
    (1009, 502, "vendor_something_wrong"),
    (1010, 502, "vendor_database_down"),
    (1012, 404, "masking_not_found"),
    (1014, 502, "upstream_credential_rejected"),
    (1015, 502, "vendor_permission_denied"),
    (1020, 502, "upstream_token_unknown"),
    (1032, 502, "vendor_internal"),
    (1039, 502, "vendor_account_suspended"),
    (1047, 502, "vendor_body_refused"),
    (1501, 400, "vendor_numbers_equal"),
    (1502, 400, "vendor_expiry_not_integer"),
    (1503, 409, "masking_not_expired"),
    (1504, 502, "masking_not_inserted"),
    (1505, 503, "masking_number_unavailable"),
    (1999, 502, "vendor_code_unknown"),
]


@pytest.mark.parametrize("error_status", [200, 422, 500])
@pytest.mark.parametrize(("code", "status", "slug"), CODES)
def test_each_vendor_code_has_a_row(stack: Stack, code: int, status: int, slug: str, error_status: int) -> None:
    """The code decides, with whatever HTTP status it comes."""
    stack.fault(force_code=code, error_status=error_status)

    body = assert_refused(stack.unset(m1="9876543210"), status, slug, origin="vendor")

    assert body["code"] == code
    assert body["upstream_status"] == error_status


def test_the_older_hosts_shape_is_understood(stack: Stack) -> None:
    """`msg` and `msg_text` are an error too, with the vendor's words."""
    stack.fault(force_code=1012, error_shape="msg")

    assert assert_refused(stack.unset(m1="9876543210"), 502, "vendor_code_unknown", origin="vendor")["message"] == "No data found"


def test_an_echoed_credential_is_removed(stack: Stack) -> None:
    """A vendor that answers with our own body gives nothing away."""
    stack.fault(answer="echo")

    answer = stack.unset(m1="9876543210")

    assert_refused(answer, 404, "masking_not_found", origin="vendor")
    assert VENDOR_SSID not in answer.text
    assert "[removed]" in answer.text


def test_a_dripping_answer_meets_the_total_time_out(stack: Stack) -> None:
    """A byte now and then keeps the read time-out away; the whole call has one of its own."""
    m1, m2 = stack.masked()
    stack.fault(answer="one_byte", delay_ms=100)

    assert_refused(stack.unset(m1=m1, m2=m2), 504, "upstream_timeout")


def test_an_unreachable_vendor_is_told_from_a_silent_one(start) -> None:
    """Nobody listens: the call was certainly not made."""
    stack = start()
    stack.sandbox.stop()

    body = assert_refused(stack.unset(m1="9876543210"), 502, "upstream_unreachable")

    assert stack.records(body["request_id"])[-1]["result"] == "refused"


def test_a_full_pool_says_that_the_call_was_not_made(start) -> None:
    """With every connection busy a call waits a bounded time, then is told so."""
    import threading

    stack = start(upstream="connections_max = 1\npool_timeout_ms = 100", read_ms=2900)
    stack.fault(answer="slow", delay_ms=1000)
    m1, m2 = stack.masked()
    first = threading.Thread(target=lambda: stack.unset(m1=m1, m2=m2))
    first.start()
    from tests.running import until

    until(stack.vendor_calls, what="the vendor being called")
    body = assert_refused(stack.unset(m1=m1), 503, "upstream_busy")
    first.join()

    assert body["retryable"] is True
    assert len(stack.vendor_calls()) == 1
