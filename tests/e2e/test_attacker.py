"""Someone who wants in, wants others out, or wants to be believed."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.wire import RawAnswer, Wire, post
from tests.running import Stack, until

SHAPE = {"status", "code", "error", "message", "retryable", "origin", "request_id"}


def sent(stack: Stack, *parts: bytes) -> RawAnswer | None:
    """Send bytes on a connection of their own and return the first answer."""
    with Wire(stack.host, stack.port) as wire:
        for part in parts:
            wire.send(part)
        return wire.answer()


def assert_shape(answer: RawAnswer | None, *statuses: int) -> dict:
    assert answer is not None
    assert answer.status in statuses, answer
    body = answer.json()
    assert set(body) >= SHAPE
    assert body["status"] == "error"
    assert body["code"] is None or type(body["code"]) is int
    assert re.fullmatch(r"[a-z][a-z_]+", body["error"])
    assert body["message"]
    assert type(body["retryable"]) is bool
    assert body["origin"] == "gateway"
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert not re.search(rb'Traceback|File "|\.py\b', answer.body)
    return body


def authorised(stack: Stack) -> str:
    return f"Authorization: Bearer {stack.key}"


SMUGGLED = [
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length: 5, 6",),
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ("Content-Length: 5", "Content-Length: 5"),
    ("Content-Length:", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked, chunked",),
    ("Transfer-Encoding:\r\n chunked",),
    ("Content-Length:\r\n 5",),
    ("X: a\rContent-Length: 5",),
    ("X: a\nContent-Length: 5",),
    ("X: a\x00b", "Content-Length: 5"),
    ("Content-Length:",),
    ("Content-Length: ",),
    ("Content-Length: -5",),
    ("Content-Length: +5",),
    ("Content-Length: 0x5",),
    ("Content-Length: 5 5",),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding: xchunked",),
    ("Content-Length : 5",),
    ("X: a\r\n folded: b", "Content-Length: 5"),
    ("Content-Length: 99999999999999999999999",),
]


@pytest.mark.parametrize("headers", SMUGGLED, ids=lambda headers: "|".join(headers)[:50])
def test_a_smuggled_request_is_not_run(stack: Stack, headers: tuple[str, ...]) -> None:
    """Whatever the lengths claim, the request hidden in the body is never run."""
    m1, _ = stack.masked()
    hidden = post(json.dumps({"ssid": stack.key, "m1": m1}).encode())
    stack.clear_vendor_calls()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"0\r\n\r\n" + hidden, *headers, length=False))
        answer = wire.answer()
        assert_shape(answer, 400, 408, 411, 413)
        second = wire.answer()

    assert second is None
    assert stack.vendor_calls() == []


GOOD = b'{"m1":"9876543210"}'
CHUNKS = {
    "plus": b"+13\r\n%s\r\n0\r\n\r\n",
    "minus": b"-13\r\n%s\r\n0\r\n\r\n",
    "0x": b"0x13\r\n%s\r\n0\r\n\r\n",
    "space": b"13 \r\n%s\r\n0\r\n\r\n",
    "empty size": b"\r\n%s\r\n0\r\n\r\n",
    "bare LF": b"13\n%s\n0\n\n",
    "LF in extension": b"13;a\n0\r\n%s\r\n0\r\n\r\n",
    "overflow": b"10000000000000013\r\n%s\r\n0\r\n\r\n",
    "no end of chunk": b"13\r\n%s0\r\n\r\n",
    "too short": b"12\r\n%s\r\n0\r\n\r\n",
    "length in trailer": b"13\r\n%s\r\n0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_chunk_that_two_parsers_read_differently(stack: Stack, case: str) -> None:
    """It is refused, the connection closed, and neither it nor what follows is run."""
    assert len(GOOD) == 0x13
    m1, _ = stack.masked()
    hidden = post(json.dumps({"ssid": stack.key, "m1": m1}).encode())
    stack.clear_vendor_calls()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(CHUNKS[case] % GOOD, authorised(stack), "Transfer-Encoding: chunked") + hidden)
        body = assert_shape(wire.answer(), 400)
        second = wire.answer()

    assert body["error"] == "http_malformed"
    assert second is None
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("end", [b"\n", b"\r"], ids=["LF", "CR"])
def test_lines_end_in_crlf(stack: Stack, end: bytes) -> None:
    """Another line end is refused, since a proxy in front may see other lines."""
    stack.clear_vendor_calls()

    assert_shape(sent(stack, post(GOOD, authorised(stack)).replace(b"\r\n", end)), 400, 408)
    assert stack.vendor_calls() == []


def test_a_request_within_a_body_stays_a_body(stack: Stack) -> None:
    """A body that looks like a request is a bad body; the connection's next request is its own."""
    m1, m2 = stack.masked()
    hidden = post(json.dumps({"ssid": stack.key, "m1": m1}).encode())
    stack.clear_vendor_calls()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(hidden, authorised(stack)))
        assert assert_shape(wire.answer(), 400)["error"] == "body_malformed"
        wire.send(post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), "X-Request-Id: the-honest-one"))
        answer = wire.answer()

    assert answer is not None
    assert (answer.status, answer.json()["request_id"]) == (200, "the-honest-one")
    (call,) = stack.vendor_calls()
    assert m2 in call["body"]


def test_bad_bytes_behind_a_good_request_do_not_take_its_answer(stack: Stack) -> None:
    """A refusal of the second request is never read as the answer to the first, which was carried out."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    stack.fault(answer="slow", delay_ms=300)
    one = post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), "X-Request-Id: the-first-of-two")
    with Wire(stack.host, stack.port) as wire:
        wire.send(one + post(b"zz\r\n", "Transfer-Encoding: chunked"))
        first = wire.answer()
    story = [record["stage"] for record in stack.records("the-first-of-two")]

    assert story == ["intent", "outcome"]
    assert len(stack.vendor_calls()) == 1
    assert first is None or first.json()["request_id"] == "the-first-of-two", first


def test_a_trailer_is_not_a_header(stack: Stack) -> None:
    """What follows a chunked body neither authenticates nor names the request: a proxy in front never saw it."""
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    body = json.dumps({"m1": m1, "m2": m2}).encode()
    trailers = f"{authorised(stack)}\r\nX-API-Key: {stack.key}\r\nX-Request-Id: from-the-trailer\r\n".encode()
    answer = sent(stack, post(b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers), "Transfer-Encoding: chunked"))

    assert assert_shape(answer, 400, 401)["request_id"] != "from-the-trailer"
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("where", ["bearer", "authorization", "api key", "ssid", "token", "query", "field name", "path"])
def test_a_foreign_secret_is_repeated_nowhere(stack: Stack, where: str) -> None:
    """Wherever a caller puts the vendor's credential by mistake, no answer, log line or record repeats it."""
    secret, body, headers, query = f"v3nd0r-{where[:3]}-s3cr3t", {"m1": "9876543210"}, {}, ""
    match where:
        case "bearer":
            headers = {"Authorization": f"Bearer {secret}"}
        case "authorization":
            headers = {"Authorization": secret}
        case "api key":
            headers = {"X-API-Key": secret}
        case "ssid":
            body["ssid"] = secret
        case "token":
            body |= {"userId": "100234", "token": secret}
        case "query":
            query = f"?ssid={secret}"
        case "field name":
            body |= {"ssid": stack.key, secret: "1"}
        case "path":
            query = f"/{secret}"
    raw = post(
        json.dumps(body).encode(), *(f"{name}: {value}" for name, value in headers.items()), path=f"/api/v2/Masking/unset{query}"
    )
    answer = sent(stack, raw)

    error = assert_shape(answer, 400, 401, 404)
    if where != "path":
        stack.records(error["request_id"])
    assert answer is not None
    assert secret not in answer.body.decode() + repr(answer.headers)
    assert secret not in stack.gateway_log()
    assert secret not in json.dumps(stack.stream())


def test_a_number_as_a_field_name_is_repeated_nowhere(stack: Stack) -> None:
    """A caller that swaps names and values is told so without its numbers."""
    m1, _ = stack.fresh_numbers()
    answer = sent(stack, post(json.dumps({m1: "m1"}).encode(), authorised(stack)))

    error = assert_shape(answer, 400)
    assert error["error"] == "field_unknown"
    stack.records(error["request_id"])
    assert m1 not in json.dumps(error) + stack.gateway_log() + json.dumps(stack.stream())


def test_two_requests_on_one_connection_stay_two(stack: Stack) -> None:
    """Pipelined requests are answered in order, each for its own key."""
    m1, m2 = stack.masked()
    one = post(json.dumps({"m1": m1}).encode(), authorised(stack))
    two = post(json.dumps({"m1": m2}).encode(), "Authorization: Bearer nonsense")
    with Wire(stack.host, stack.port) as wire:
        wire.send(one + two)
        first, second = wire.answer(), wire.answer()

    assert first is not None
    assert first.status == 200
    assert_shape(second, 401)


def test_a_vendor_credential_is_refused_and_not_kept(stack: Stack) -> None:
    """A caller that sends the vendor's own credential is told, and it stands nowhere."""
    secret = "v3nd0r-s3ss10n-0f-s0m30n3"
    answer = stack.unset({"ssid": secret, "m1": "9876543210"}, key=None)

    assert answer.json()["error"] == "vendor_credential_sent"
    stack.records(answer.json()["request_id"])
    assert secret not in answer.text + stack.gateway_log() + json.dumps(stack.stream())


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nX-Injected: 1",
        "a\nX-Injected: 1",
        "\x00",
        "\ud800",
        "٠١٢٣٤٥٦٧٨٩",
        "9876543210;ext=1",
        "tel:+919876543210",
        " " * 40,
        "9" * 5000,
    ],
)
@pytest.mark.parametrize("field", ["m1", "m2", "mask", "expiry_time", "expiry_duration", "ssid", "userId", "token", "x"])
def test_no_field_reaches_a_header_or_the_vendor(stack: Stack, field: str, value: str) -> None:
    """Control characters, lone surrogates, other scripts and sizes end at validation."""
    stack.clear_vendor_calls()
    answer = stack.unset({"m1": "9876543210", field: value})

    assert answer.status_code in (400, 401), answer.text
    assert "x-injected" not in answer.headers
    assert answer.json()["error"] in (
        "number_invalid",
        "expiry_time_invalid",
        "expiry_duration_invalid",
        "credential_malformed",
        "vendor_credential_sent",
        "field_unknown",
        "credential_conflict",
    )
    assert stack.vendor_calls() == []


@pytest.mark.parametrize(
    "given",
    [
        "919876543210",
        "call-9876543210",
        "98765-43210",
        "call.9876.543.210",
        "gk_live_abc",
        "x" * 65,
        "short",
        "a b c d e f g",
        "äöüäöüäöü",
    ],
)
def test_a_request_id_that_could_leak_is_replaced(stack: Stack, given: str) -> None:
    """A phone number, a key or rubbish as X-Request-Id goes into no log."""
    answer = sent(stack, post(b"{}", f"X-Request-Id: {given}"))

    body = assert_shape(answer, 401)
    assert body["request_id"] != given
    assert len(body["request_id"]) == 32


@pytest.mark.parametrize("given", ["a\x00b-request", "a\x01b-request", "a\x7fb-request", "request\rX-Injected: 1", "x" * 5000])
def test_a_request_id_of_control_characters_is_not_repeated(stack: Stack, given: str) -> None:
    """It can put nothing into an answer's head or a log line."""
    answer = sent(stack, post(b"{}", f"X-Request-Id: {given}"))

    body = assert_shape(answer, 400, 401)
    assert re.fullmatch(r"[0-9a-f]{32}", body["request_id"])
    assert answer is not None
    assert "x-injected" not in answer.headers
    assert given not in stack.gateway_log()


@pytest.mark.parametrize(
    "given",
    [
        "",
        "garbage",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "ff-" + "a" * 32 + "-" + "1" * 16 + "-01",
        "00-9876543210-1-01",
        "z" * 5000,
    ],
)
def test_a_traceparent_of_rubbish_is_dropped(stack: Stack, given: str) -> None:
    """The call is served and the rubbish goes into no record."""
    m1, m2 = stack.masked()
    answer = sent(stack, post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), f"traceparent: {given}"))

    assert answer is not None
    assert answer.status == 200
    records = json.dumps(stack.records(answer.json()["request_id"]))
    assert not given or given not in records + stack.gateway_log()


ENDLESS = {
    "header": b"POST /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nX: ",
    "header name": b"POST /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nX",
    "address": b"POST /",
    "chunk extension": post(b"2;a=", "Transfer-Encoding: chunked"),
    "trailer": post(b"2\r\n{}\r\n0\r\nX: ", "Transfer-Encoding: chunked"),
    "body": post(b"", "Content-Length: 100000000"),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_no_part_of_a_request_grows_in_memory(stack: Stack, part: str) -> None:
    """64 MB of any one part are not gathered, not even until a timer ends them."""
    peak = Path(f"/proc/{stack.pid}/clear_refs")
    if not peak.exists():
        pytest.skip("needs /proc")
    peak.write_text("5")  # The peak of resident memory counts from now.
    before = _resident_kb(stack.pid, "VmHWM")
    with Wire(stack.host, stack.port) as wire:
        wire.send(ENDLESS[part])
        try:
            for _ in range(1024):
                wire.socket.sendall(b"y" * 65_536)
        except (BrokenPipeError, ConnectionResetError):
            pass  # Refused: what is wanted.
        wire.answer()

    assert _resident_kb(stack.pid, "VmHWM") - before < 16_000


def test_a_body_of_ten_megabytes(stack: Stack) -> None:
    """It is refused at the bound, closed, and does not stay in memory."""
    before = _resident_kb(stack.pid)
    for _ in range(5):
        with Wire(stack.host, stack.port) as wire:
            wire.send(post(b"", authorised(stack), f"Content-Length: {10 * 1024 * 1024}"))
            for _ in range(40):
                wire.send(b"x" * 262_144)
            assert_shape(wire.answer(), 413)

    assert _resident_kb(stack.pid) - before < 20_000


def test_a_chunked_body_without_end(stack: Stack) -> None:
    """A body that never says how long it is is cut at the bound."""
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"", authorised(stack), "Transfer-Encoding: chunked", length=False))
        for _ in range(40):
            wire.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        body = assert_shape(wire.answer(), 413)

    assert body["error"] == "body_too_large"


def test_a_slow_body_and_a_slow_head(stack: Stack) -> None:
    """Both have a time to arrive in; then the connection is closed."""
    with Wire(stack.host, stack.port) as body, Wire(stack.host, stack.port) as head, Wire(stack.host, stack.port) as silent:
        body.send(post(b"{", authorised(stack), "Content-Length: 100"))
        head.send(b"POST /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nX-A: ")
        assert assert_shape(body.answer(), 408)["error"] == "body_timeout"
        assert body.closed()
        assert assert_shape(head.answer(), 408)["error"] == "header_timeout"
        assert head.closed()
        assert silent.closed()


@pytest.mark.parametrize("part", ["body", "head"])
def test_dripping_does_not_stretch_the_time(stack: Stack, part: str) -> None:
    """A byte now and then does not restart the clock."""
    begun = time.monotonic()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"", authorised(stack), "Content-Length: 16000") if part == "body" else b"POST / HTTP/1.1\r\nX: ")
        wire.socket.settimeout(0.05)

        def ended() -> bool:
            wire.send(b"x")
            try:
                return wire.answer() is not None or wire.closed()
            except TimeoutError:
                return False

        until(ended, seconds=10, what="the end of a dripping request")

    assert time.monotonic() - begun > 1.0


def test_two_hundred_idle_connections(stack: Stack) -> None:
    """They hold nobody up, and are closed."""
    wires = [Wire(stack.host, stack.port) for _ in range(200)]
    try:
        m1, m2 = stack.masked()

        assert stack.unset(m1=m1, m2=m2).status_code == 200
        assert all(wire.closed() for wire in wires)
    finally:
        for wire in wires:
            wire.socket.close()


def test_others_are_served_while_fifty_dawdle(stack: Stack) -> None:
    """Slow connections take nothing from the others."""
    wires = [Wire(stack.host, stack.port) for _ in range(50)]
    try:
        for number, wire in enumerate(wires):
            wire.send(post(b"{", authorised(stack), "Content-Length: 100") if number % 2 else b"POST / HTTP/1.1\r\nX")
        m1, m2 = stack.masked()

        assert stack.unset(m1=m1, m2=m2).status_code == 200
    finally:
        for wire in wires:
            wire.socket.close()


@pytest.mark.parametrize(
    "headers",
    [
        [f"X-{number}: 1" for number in range(10_000)],
        ["X-Long: " + "y" * 1_000_000],
        [f"X-{number}: {'z' * 500}" for number in range(90)],
    ],
)
def test_too_many_or_too_long_headers(stack: Stack, headers: list[str]) -> None:
    """The head of a request is bounded in number and in size."""
    assert assert_shape(sent(stack, post(b"{}", *headers)), 431)["error"] == "headers_too_large"


def test_a_long_address(stack: Stack) -> None:
    """It counts as part of the head."""
    assert assert_shape(sent(stack, post(b"{}", path="/" + "a" * 100_000)), 431)["error"] == "headers_too_large"


BODIES = [
    b"[" * 8000,
    b'{"m1":' * 2000,
    b'{"m1":"\x00"}',
    b"\x00",
    b'{"m1":"\xff\xfe"}',
    '{"m1":"9876543210"}'.encode("utf-16"),
    b'{"m1":' + b"9" * 6000 + b"}",
    b'{"expiry_duration":' + b"1" * 5000 + b',"m1":"9876543210"}',
    b'{"m1":1e400}',
    b'{"m1":-0}',
    b'{"__proto__":{"m1":"9876543210"}}',
    b'{"m1":{"a":[1]}}',
    b'{"m1":null}',
    b'"x"',
    b"1",
    b"null",
    b'{"m1":"9876543210",}',
    b"{'m1':'9876543210'}",
    b'{"m1":Infinity}',
    b'{"m1":NaN}',
    b'{"m1":"9876543210","expiry_duration":NaN}',
    b'{"m1":"9876543210","expiry_duration":-1.5}',
    b'{"m1":"9876543210","m1":"9876543211"}',
    b'{"m1":"9876543210","x":{"a":1,"a":2}}',
    b'{"m1":"9876543210","__proto__":{"expiry_duration":1}}',
    b'{"m1":"9876543210","x":' + b"[" * 8000 + b"]" * 8000 + b"}",
    b'{"x":' * 2500 + b"1" + b"}" * 2500,
    '{"m1":"9876543210"}'.encode("utf-32"),
    b'{"m1":"\\udc00\\ud800"}',
    b'{"m1":true}',
    b'{"m1":"9876543210"} {"m1":"9876543211"}',
    b"\xef\xbb\xbf",
    b" " * 100,
    b'{"' + b"k" * 5000 + b'":1}',
    b'{"\\u0000":1}',
    b'{"\\ud800":1}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_hostile_json(stack: Stack, body: bytes) -> None:
    """Each is refused with a reason, and the gateway goes on."""
    stack.clear_vendor_calls()

    assert_shape(sent(stack, post(body, authorised(stack))), 400)
    assert stack.vendor_calls() == []


def test_depth_beyond_the_bound(stack: Stack) -> None:
    """Brackets are counted as bytes before they are nested."""
    assert assert_shape(sent(stack, post(b"[" * 20_000, authorised(stack))), 413)["error"] == "body_too_large"


def test_a_byte_order_mark_is_no_fault(stack: Stack) -> None:
    """Windows editors write one."""
    m1, m2 = stack.masked()

    assert stack.unset(b"\xef\xbb\xbf" + json.dumps({"m1": m1, "m2": m2}).encode()).status_code == 200


@pytest.mark.parametrize("request_bytes", [
    b"GET /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\n\r\n", b"DELETE /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\n\r\n",
    b"POST /api/v2/Masking/unset/ HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: g\r\n\r\n",
    b"POST /livez HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n", b"GET /%2e%2e/etc/passwd HTTP/1.1\r\nHost: g\r\n\r\n",
    b"GET //evil.example/%0d%0aX:1 HTTP/1.1\r\nHost: g\r\n\r\n", b"\x16\x03\x01\x02\x00", b"HELO you\r\n\r\n", b"GET /\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G" * 9000,
])  # fmt: skip
def test_odd_requests(stack: Stack, request_bytes: bytes) -> None:
    """Wrong methods, paths, protocols and versions get the one shape."""
    body = assert_shape(sent(stack, request_bytes), 400, 404, 405)
    assert body["error"] in ("http_malformed", "not_found", "method_not_allowed")


def test_http_1_0_and_upgrades_are_plain_calls(stack: Stack) -> None:
    """An old client is served and closed; an upgrade is not taken up."""
    for headers, version in (
        ((), "1.0"),
        (("Upgrade: websocket", "Connection: Upgrade"), "1.1"),
        (("Upgrade: h2c", "Connection: Upgrade"), "1.1"),
    ):
        m1, m2 = stack.masked()
        answer = sent(stack, post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), *headers, version=version))
        assert answer is not None
        assert answer.status in (200, 400), answer
        assert answer.status == 200 or "Upgrade" in headers[0]


@pytest.mark.parametrize(
    "headers",
    [
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
    ],
    ids=["websocket", "h2c"],
)
def test_an_offer_to_upgrade_is_not_taken_and_the_call_made(stack: Stack, headers: tuple[str, ...]) -> None:
    """Java's own client offers h2c with its first call; its body counts, and so does the next call on the connection."""
    with Wire(stack.host, stack.port) as wire:
        for more in (headers, ()):
            m1, m2 = stack.masked()
            wire.send(post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), *more))
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 200, answer


def test_head_has_no_body(stack: Stack) -> None:
    """The answer to HEAD ends with its head, or the next answer on the connection would be misread."""
    with Wire(stack.host, stack.port) as wire:
        wire.send(b"HEAD /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        raw = b""
        while more := wire._receive():
            raw += more

    assert raw.startswith(b"HTTP/1.1 405 ")
    assert raw.endswith(b"\r\n\r\n")


def test_expect_100_continue(stack: Stack) -> None:
    """Curl asks first with large bodies; it is told to go on."""
    m1, m2 = stack.masked()
    body = json.dumps({"m1": m1, "m2": m2}).encode()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"", authorised(stack), "Expect: 100-continue", f"Content-Length: {len(body)}"))
        go_on = wire.answer()
        assert go_on is not None
        assert go_on.status == 100
        wire.send(body)
        answer = wire.answer()

    assert answer is not None
    assert answer.status == 200


def test_a_caller_that_hangs_up_leaves_a_whole_story(stack: Stack) -> None:
    """From the intent on, the call runs to its outcome, with or without its caller."""
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=300)
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), "X-Request-Id: hung-up-caller"))
        until(lambda: any(record["request_id"] == "hung-up-caller" for record in stack.stream()), what="the intent")

    assert [record["stage"] for record in stack.records("hung-up-caller")] == ["intent", "outcome"]


def test_callers_that_hang_up_at_once_leave_whole_stories(stack: Stack) -> None:
    """Nobody waits for the answers: each call was made and told to its end, or not begun."""
    stack.clear_vendor_calls()
    for number in range(30):
        m1, m2 = stack.masked()
        with Wire(stack.host, stack.port) as wire:
            wire.send(post(json.dumps({"m1": m1, "m2": m2}).encode(), authorised(stack), f"X-Request-Id: gone-at-once-{number}"))
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2).status_code == 200

    def whole() -> list[str] | None:
        told: dict[str, list[str]] = {"intent": [], "outcome": []}
        for record in stack.stream():
            if record["request_id"].startswith("gone-at-once-"):
                told[record["stage"]].append(record["request_id"])
        return told["intent"] if sorted(told["intent"]) == sorted(told["outcome"]) else None

    begun = until(whole, what="an outcome for each intent")
    assert len(set(begun)) == len(begun)
    assert len([call for call in stack.vendor_calls() if m1 not in call["body"]]) == len(begun)


def test_guessing_keys_takes_the_same_time(stack: Stack) -> None:
    """Known and unknown key ids with a wrong secret: medians within noise of each other."""
    from statistics import median

    from gateway import keys

    def wrong(key_id: str) -> str:
        secret = "A" * 27
        return f"gk_live_{key_id}_{secret}{keys._checksum(key_id, secret)}"

    def timed(key: str) -> float:
        begun = time.perf_counter()
        assert stack.unset(m1="9876543210", key=key).status_code == 401
        return time.perf_counter() - begun

    known, unknown = wrong(stack.key_id), wrong("0000000000")
    times = [(timed(known), timed(unknown)) for _ in range(150)]
    ratio = median(pair[0] for pair in times) / median(pair[1] for pair in times)

    assert 0.6 < ratio < 1.6


def test_many_at_once(stack: Stack) -> None:
    """Forty callers at once, good and bad mixed: every one gets its own answer."""
    results: list[tuple[int, int]] = []

    def call(number: int) -> None:
        m1, m2 = stack.masked()
        body: dict = {"m1": m1, "m2": m2} if number % 2 else {"m1": m1, "m2": m1}
        with Wire(stack.host, stack.port) as wire:
            wire.send(post(json.dumps(body).encode(), authorised(stack)))
            answer = wire.answer()
            results.append((number % 2, answer.status if answer else 0))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert sorted(results) == [(0, 400)] * 20 + [(1, 200)] * 20


def _resident_kb(pid: int, which: str = "VmRSS") -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(next(line for line in status.read_text().splitlines() if line.startswith(which)).split()[1])
