"""One unset call, the whole way, and every way of saying who calls."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

from tests.running import VENDOR_SSID, Stack, until

SHAPE = {"status", "code", "error", "message", "retryable", "origin", "request_id"}


def assert_refused(answer: httpx.Response, status: int, slug: str, *, origin: str = "gateway") -> dict:
    """Check the one error shape, and return the body."""
    body = answer.json()
    assert (answer.status_code, body["error"], body["origin"]) == (status, slug, origin), answer.text
    assert set(body) >= SHAPE
    assert body["status"] == "error"
    assert answer.headers["x-request-id"] == body["request_id"]
    return body


def test_a_call_goes_the_whole_way(stack: Stack) -> None:
    """The vendor gets the vendor's credential, the caller one clear answer, the trail an intent and an outcome."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()

    answer = stack.unset(m1=m1, m2=m2, expiry_duration=-1)

    assert answer.status_code == 200
    body = answer.json()
    assert body == {
        "status": "success",
        "message": "Your masking unset",
        "request_id": answer.headers["x-request-id"],
        "operation": "end",
    }
    (call,) = stack.vendor_calls()
    assert json.loads(call["body"]) == {"ssid": VENDOR_SSID, "m1": m1, "m2": m2, "expiry_duration": -1}
    assert call["acted"]
    intent, outcome = stack.records(body["request_id"])
    assert (intent["stage"], outcome["stage"]) == ("intent", "outcome")
    assert outcome["intent"] == f"{intent['writer']}-{intent['seq']}"
    assert (outcome["result"], outcome["status"], outcome["service"]) == ("answered", 200, "crm")


def test_the_intent_is_recorded_before_the_vendor_is_called(stack: Stack) -> None:
    """While the vendor thinks, the intent is in Redis and the outcome is not."""
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=600)
    key = {"Authorization": f"Bearer {stack.key}", "X-Request-Id": "slow-call-0001"}
    with httpx.Client(trust_env=False) as client:
        import threading

        caller = threading.Thread(target=lambda: client.post(f"{stack.url}/api/v2/Masking/unset", json={"m1": m1}, headers=key))
        caller.start()
        until(lambda: any(call["body"].find(m1) > 0 for call in stack.vendor_calls()), what="the vendor being called")
        seen = [record["stage"] for record in stack.stream() if record["request_id"] == "slow-call-0001"]
        caller.join()

    assert seen == ["intent"]
    assert [record["stage"] for record in stack.records("slow-call-0001")] == ["intent", "outcome"]


def test_nothing_of_the_caller_but_the_call_reaches_the_vendor(stack: Stack) -> None:
    """No header, cookie or credential of the caller goes on."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    own = {
        "Cookie": "session=abc",
        "X-Secret": "hush",
        "Forwarded": "for=10.1.2.3",
        "User-Agent": "crm/1",
        "Origin": "https://a.example",
    }

    assert stack.unset(m1=m1, m2=m2, headers=own).status_code == 200

    (call,) = stack.vendor_calls()
    names = {name.lower() for name, _ in call["headers"]}
    assert names == {"host", "content-type", "accept", "accept-encoding", "user-agent", "content-length"}
    text = json.dumps(call)
    for value in (*own.values(), stack.key, stack.key_secret):
        assert value not in text


@pytest.mark.parametrize("where", ["bearer", "x-api-key", "ssid", "userId"])
def test_a_key_is_taken_in_four_places(stack: Stack, where: str) -> None:
    """Existing clients change only the credential's value."""
    m1, _ = stack.masked()
    headers = {"bearer": {"Authorization": f"Bearer {stack.key}"}, "x-api-key": {"X-API-Key": stack.key}}.get(where, {})
    fields = {"ssid": {"ssid": stack.key}, "userId": {"userId": stack.key_id, "token": stack.key_secret}}.get(where, {})

    answer = stack.unset({**fields, "m1": m1}, key=None, headers=headers)

    assert answer.status_code == 200, answer.text
    assert stack.records(answer.json()["request_id"])[0]["key_id"] == stack.key_id


def test_who_calls_is_refused_by_cause(stack: Stack) -> None:
    """Each fault of a credential has its own slug and its own record."""
    other, other_id, _ = stack.issue("billing")
    _, revoked_id, _ = revoked = stack.issue("old")
    stack.cli("keys", "revoke", revoked_id)
    expired = stack.issue("late", "--expires", "0s")
    ender = stack.issue("ender", "--scope", "end")
    unknown = stack.key[:8] + _respelled(stack.key)
    m1, _ = stack.fresh_numbers()
    stack.clear_vendor_calls()
    cases = [
        ({}, {}, 401, "credential_missing", 1020),
        ({"Authorization": f"Bearer {unknown}"}, {}, 401, "credential_unknown", 1014),
        ({"Authorization": f"Bearer {revoked[0]}"}, {}, 401, "credential_revoked", 1014),
        ({"Authorization": f"Bearer {expired[0]}"}, {}, 401, "credential_expired", 1014),
        ({"Authorization": f"Bearer {stack.key}", "X-API-Key": other}, {}, 401, "credential_conflict", 1014),
        ({"Authorization": f"Bearer {stack.key}"}, {"ssid": other}, 401, "credential_conflict", 1014),
        (
            {"Authorization": f"Bearer {stack.key[:-1]}{'1' if stack.key[-1] == '0' else '0'}"},
            {},
            401,
            "credential_malformed",
            1014,
        ),
        ({"Authorization": "Basic abc"}, {}, 401, "credential_malformed", 1014),
        ({}, {"ssid": "0a1b2c3d4e5f"}, 401, "vendor_credential_sent", 1014),
        ({}, {"userId": "4711", "token": "abcdef"}, 401, "vendor_credential_sent", 1014),
        ({}, {"userId": stack.key_id}, 401, "credential_malformed", 1014),
        ({"Authorization": f"Bearer {ender[0]}"}, {"expiry_duration": 5}, 403, "scope_missing", 1015),
    ]

    for headers, fields, status, slug, code in cases:
        answer = stack.unset({**fields, "m1": m1}, key=None, headers=headers)

        body = assert_refused(answer, status, slug)
        assert body["code"] == code
        (record,) = stack.records(body["request_id"])
        assert (record["stage"], record["decision"], record["problem"]) == ("refusal", "denied", slug)
    assert stack.vendor_calls() == []


def _respelled(key: str) -> str:
    """Return the end of a well-formed key that nobody was given."""
    from gateway import keys

    minted, _ = keys.mint(lambda letters: letters[3], keys.mint_id(lambda letters: letters[3]))
    return minted[8:]


def test_a_revoked_key_is_refused_at_the_next_call(stack: Stack) -> None:
    """Revoking is over when the command returns, although the process holds a copy of the keys."""
    key, key_id, _ = stack.issue("brief")
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, key=key).status_code == 200

    stack.cli("keys", "revoke", key_id)

    assert_refused(stack.unset(m1=m2, key=key), 401, "credential_revoked")


def test_a_quota_refuses_with_the_time_to_wait(start) -> None:
    """The third call of a burst of two is refused, and the vendor is not called."""
    stack = start(quotas='[policies.caller]\nrate = "1/m"\nburst = 2')
    pairs = [stack.masked() for _ in range(3)]
    answers = [stack.unset(m1=m1, m2=m2) for m1, m2 in pairs]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    body = assert_refused(answers[2], 429, "quota_exceeded")
    assert body["policy"] == "caller"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    assert body["retry_after"] == int(answers[2].headers["retry-after"])
    assert '"caller";q=1;w=60' in answers[2].headers["ratelimit-policy"]
    assert '"caller";r=0' in answers[2].headers["ratelimit"]
    assert len(stack.vendor_calls()) == 2
    intent, record = stack.records(body["request_id"])
    assert (record["policy"], record["problem"]) == ("caller", "quota_exceeded")
    assert record["intent"] == f"{intent['writer']}-{intent['seq']}"


def test_a_refused_call_spends_no_quota(start) -> None:
    """All quotas are charged, or none: a call the number's quota refuses leaves the caller's as it was."""
    stack = start(quotas='[policies.number]\nrate = "1/m"\nburst = 1\n[policies.caller]\nrate = "1/m"\nburst = 5')
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2).status_code == 200
    before = stack.unset(m1=m1).headers["ratelimit"]
    after = stack.unset(m1=m1).headers["ratelimit"]

    assert '"caller";r=4' in before
    assert '"caller";r=4' in after


def test_a_contract_fault_spends_nothing(stack: Stack) -> None:
    """What the vendor would refuse anyway carries its code and costs no quota and no vendor call."""
    stack.clear_vendor_calls()
    cases = [
        ({"m1": "9876543210", "m2": "+91 98765 43210"}, "numbers_equal", 1501, "m2"),
        ({"m1": "9876543210", "expiry_duration": "soon"}, "expiry_duration_invalid", 1502, "expiry_duration"),
        ({"m1": "9876543210", "expiry_duration": 1.5}, "expiry_duration_invalid", 1502, "expiry_duration"),
        ({"m1": "9876543210", "expiry_duration": True}, "expiry_duration_invalid", 1502, "expiry_duration"),
        ({"m1": "9876543210", "expiry_time": "2030-01-01T00:00:00"}, "expiry_time_invalid", 1000, "expiry_time"),
        ({"m1": "9876543210", "expiry_time": 1893456000000}, "expiry_time_invalid", 1000, "expiry_time"),
        ({"m1": "12"}, "number_invalid", 1005, "m1"),
        ({"m1": "9876543210", "mask": ""}, "number_invalid", 1005, "mask"),
        ({"m1": "9876543210", "m2": None}, "number_invalid", 1005, "m2"),
        ({"m1": "9876543210", "expiry_duration": None}, "expiry_duration_invalid", 1502, "expiry_duration"),
        ({"m1": "9876543210", "expiry_time": ""}, "expiry_time_invalid", 1000, "expiry_time"),
        ({"mask": 91.5}, "field_type", 1000, "mask"),
        ({"mask": True}, "field_type", 1000, "mask"),
        ({}, "number_missing", 1000, "m1"),
        ({"m1": "9876543210", "colour": "red"}, "field_unknown", 1000, "colour"),
        (b'{"m1":"9876543210","m1":"9876543211"}', "field_duplicate", 1047, "m1"),
        (b'{"m1":"9876543210","expiry_duration":NaN}', "body_malformed", 1047, None),
        (b'{"mask":+919876543210}', "body_malformed", 1047, None),
        (b"", "body_malformed", 1047, None),
        (b"[]", "body_malformed", 1047, None),
        (b'{"m1":"9876543210', "body_malformed", 1047, None),
    ]
    for body, slug, code, field in cases:
        answer = stack.unset(body)

        refused = assert_refused(answer, 400, slug)
        assert refused["code"] == code
        assert refused.get("field") == field
        assert "ratelimit" not in answer.headers
    assert stack.vendor_calls() == []


def test_an_expiry_is_forwarded_as_it_was_asked(stack: Stack) -> None:
    """Minutes stay minutes, an ISO time becomes Unix seconds, both at once are marked in the record."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()

    one = stack.unset(m1=m1, expiry_time="2030-01-31T18:00:00+05:30")
    two = stack.unset(m1=m1, m2=m2, expiry_duration="60")
    three = stack.unset(m1=m1, expiry_time=1895915400, expiry_duration=60)

    assert [answer.json()["operation"] for answer in (one, two, three)] == ["reschedule"] * 3
    bodies = [json.loads(call["body"]) for call in stack.vendor_calls()]
    assert bodies[0]["expiry_time"] == 1896093000
    assert bodies[1]["expiry_duration"] == 60
    assert stack.records(three.json()["request_id"])[0]["both_expiry_fields"] is True


def test_problem_json_on_request(stack: Stack) -> None:
    """A caller that accepts RFC 9457 gets it, with the same facts."""
    answer = stack.unset(m1="12", headers={"Accept": "application/problem+json"})

    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["error"], body["field"]) == (400, "number_invalid", "m1")
    assert body["type"].endswith(":number_invalid")


def test_the_callers_request_id_and_trace_are_kept(stack: Stack) -> None:
    """One id from the caller's log to the audit trail, and the trace beside it."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": "order-17.abc", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}

    answer = stack.unset(m1="12", headers=headers)

    assert answer.json()["request_id"] == "order-17.abc"
    (record,) = stack.records("order-17.abc")
    assert record["trace_id"] == trace
    lines = [json.loads(line) for line in stack.gateway_log().splitlines() if "order-17.abc" in line]
    assert [line["event"] for line in lines] == ["call.refused"]


def test_health_and_description(stack: Stack) -> None:
    """Alive, ready by name, and a description that lists every error."""
    assert stack.http.get(stack.url + "/livez").json() == {"status": "ok"}
    ready = stack.http.get(stack.url + "/readyz").json()
    assert ready["checks"] == {
        "process": "ok",
        "keys": "ok",
        "account.test.ledger": "ok",
        "account.test.redis": "ok",
        "account.test.upstream": "ok",
        "account.test.upkeep": "ok",
        "keys.redis": "ok",
        "account.test.credential": "ok",
        "account.test.journal": "ok",
        "account.test.secrets": "ok",
    }
    document = stack.http.get(stack.url + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    from gateway.errors import Problem

    assert set(document["components"]["schemas"]["Error"]["properties"]["error"]["enum"]) == {problem.slug for problem in Problem}
    assert_refused(stack.http.get(stack.url + "/nothing"), 404, "not_found")
    assert_refused(stack.http.get(stack.url + "/api/v2/Masking/unset"), 405, "method_not_allowed")


def test_a_stopping_gateway_finishes_what_is_in_flight(start) -> None:
    """SIGTERM: the caller gets its answer, the trail its outcome, and the process ends by itself with 0."""
    import threading

    stack = start(read_ms=2900)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=800)
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(stack.unset(m1=m1, m2=m2)))
    caller.start()
    until(lambda: stack.vendor_calls(), what="the vendor being called")

    stack.gateway.signal(signal.SIGTERM)
    caller.join()

    assert answers[0].status_code == 200
    assert until(lambda: not stack.gateway.alive(), what="the gateway ending")
    assert stack.gateway.popen.returncode == 0
    assert [record["stage"] for record in stack.stream()] == ["intent", "outcome"]


def test_several_workers_share_one_port_and_one_quota(start) -> None:
    """Two processes admit exactly what one quota allows."""
    stack = start(workers=2, quotas='[policies.caller]\nrate = "1/h"\nburst = 7')
    pairs = [stack.masked() for _ in range(12)]
    answers = []
    for m1, m2 in pairs:  # A connection each, so that both processes get some.
        with httpx.Client(trust_env=False, timeout=10) as client:
            headers = {"Authorization": f"Bearer {stack.key}"}
            answers.append(client.post(stack.url + "/api/v2/Masking/unset", json={"m1": m1, "m2": m2}, headers=headers))

    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 5


def test_a_changed_credential_file_is_taken_up(start, tmp_path) -> None:
    """Operators replace the vendor's credential without a restart."""
    path = tmp_path / "ssid"
    path.write_text("wrong-session\n")
    path.chmod(0o600)
    stack = start(credential=f'ssid = {{ file = "{path}" }}')
    m1, m2 = stack.masked()
    assert_refused(stack.unset(m1=m1), 502, "upstream_credential_rejected", origin="vendor")

    path.write_text(VENDOR_SSID + "\n")

    def accepted() -> bool:
        return stack.unset(m1=m1, m2=m2).status_code == 200

    until(accepted, what="the new credential being used")

    def versions() -> set[str]:
        return {record.get("credential") for record in stack.stream() if record["stage"] == "outcome"}

    until(lambda: len(versions()) == 2, what="outcomes with both versions")
