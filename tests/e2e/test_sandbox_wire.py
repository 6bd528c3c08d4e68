"""The stand-in, on the wire: the documented bytes, and each code by its real cause."""

from __future__ import annotations

import json
import select
import signal
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.wire import Wire, post
from tests.running import SET, UNSET, Process, until

DOCUMENTED = {
    "content-type": "application/json; charset=utf-8",
    "connection": "keep-alive",
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET, OPTIONS, PATCH, DELETE",
    "access-control-allow-headers": "X-Requested-With,content-type",
    "access-control-allow-credentials": "true",
    "vary": "Origin",
    "etag": 'W/"33-iVSeHn74crq18BBrCjWlZ6Ed1xo"',
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "content-length": "51",
}


class Vendor:
    """The sandbox as a vendor's client sees it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url = process.address()
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=10)

    def call(self, path: str, **fields: object) -> dict:
        return self.http.post(path, json={"ssid": "s", **fields}).json()

    def wire(self) -> Wire:
        host, port = self.url.removeprefix("http://").split(":")
        return Wire(host, int(port))

    def fault(self, **switches: object) -> None:
        assert self.http.post("/_sandbox/faults", json=switches).status_code == 204

    def code(self, path: str, **fields: object) -> int | None:
        return self.call(path, **fields).get("code")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    words = ["--ssid", "s", "--read-only-ssid", "ro", "--suspended-ssid", "off", "--pool", "3"]
    process = Process(
        tmp_path_factory.mktemp("vendor"), "sandbox", [sys.executable, "-m", "gateway", "sandbox", "--port", "0", *words]
    )
    vendor = Vendor(process)
    yield vendor
    vendor.http.close()
    assert process.stop() == 0


@pytest.fixture(autouse=True)
def _fresh(vendor: Vendor) -> None:
    vendor.http.delete("/_sandbox/faults")
    vendor.http.post("/_sandbox/clock", json={"advance_seconds": 10**7})


def test_success_is_the_documented_bytes(vendor: Vendor) -> None:
    """51 bytes, and every documented header with its documented value."""
    vendor.call(SET, m1="9000000001", m2="9000000002")
    host, port = vendor.url.removeprefix("http://").split(":")
    with Wire(host, int(port)) as wire:
        wire.send(post(b'{"ssid":"s","m1":"9000000001","m2":"9000000002"}'))
        answer = wire.answer()

    assert answer is not None
    assert answer.body == b'{"status":"success","message":"Your masking unset"}'
    assert answer.headers == DOCUMENTED


def test_each_code_has_its_real_cause(vendor: Vendor) -> None:
    """No switch is needed for what the documentation explains."""
    vendor.call(SET, m1="9000000001", m2="9000000002")

    assert vendor.code(UNSET, m1="9000000001", m2="+91 90000 00001") == 1501
    assert vendor.code(UNSET, m1="9000000001", expiry_duration="soon") == 1502
    assert vendor.code(UNSET, m1="9000000001", expiry_duration=1.5) == 1502
    assert vendor.code(SET, m1="9000000002", m2="09000000001") == 1503
    assert vendor.code(UNSET) == 1000
    assert vendor.code(UNSET, m1="abc") == 1005
    assert vendor.code(UNSET, m1="9111111111") == 1012
    assert vendor.code(UNSET, ssid="wrong", m1="9000000001") == 1014
    assert vendor.code(UNSET, ssid="ro", m1="9000000001") == 1015
    assert vendor.code(UNSET, ssid="off", m1="9000000001") == 1039
    assert vendor.code(UNSET, userId="u", token="t", m1="9000000001") == 1000
    for body in (b"", b"{", b"[]"):
        assert vendor.http.post(UNSET, content=body).json()["code"] == 1047
    assert vendor.code(SET, m1="9000000003", m2="9000000004") is None
    assert vendor.code(SET, m1="9000000005", m2="9000000006") is None
    assert vendor.code(SET, m1="9000000007", m2="9000000008") == 1505


@pytest.mark.parametrize("code", [1504, 1009, 1010, 1032, 1020])
def test_the_other_codes_have_a_switch(vendor: Vendor, code: int) -> None:
    """What has no cause a client could bring about is forced."""
    vendor.http.post("/_sandbox/faults", json={"force_code": code, "times": 1})

    assert vendor.code(UNSET, m1="9000000001") == code
    assert vendor.code(UNSET, m1="9000000001") == 1012


def test_an_expiry_really_comes(vendor: Vendor) -> None:
    """A masking set for a minute is gone after it; one that was given longer is not."""
    vendor.call(SET, m1="9000000001", m2="9000000002", expiry_duration=1)
    vendor.call(SET, m1="9000000003", m2="9000000004", expiry_duration=1)
    assert vendor.call(UNSET, m1="9000000003", expiry_duration=60)["status"] == "success"

    vendor.http.post("/_sandbox/clock", json={"advance_seconds": 61})

    assert vendor.code(UNSET, m1="9000000001") == 1012
    assert vendor.call(UNSET, m1="9000000003", expiry_duration=-1)["status"] == "success"
    assert vendor.code(UNSET, m1="9000000003") == 1012


def test_it_records_what_it_received(vendor: Vendor) -> None:
    """Headers as written, body as sent, and what was answered."""
    vendor.http.delete("/_sandbox/calls")
    vendor.http.post(UNSET, content=b'{"ssid":"wrong","m1":"9000000001"}', headers={"X-Odd": "1"})

    (call,) = vendor.http.get("/_sandbox/calls").json()
    assert json.loads(call["body"]) == {"ssid": "wrong", "m1": "9000000001"}
    assert ["X-Odd", "1"] in call["headers"]
    assert (call["answered_code"], call["acted"]) == (1014, False)


def test_a_wrong_switch_is_named(vendor: Vendor) -> None:
    """The answer lists the switches there are."""
    answer = vendor.http.post("/_sandbox/faults", json={"colour": 1})

    assert answer.status_code == 400
    assert "colour: is not a switch" in answer.json()["error"]


def test_a_port_in_use_is_said_in_one_line(vendor: Vendor, tmp_path) -> None:
    """The reason and the fix, and a status other than 0."""
    port = vendor.url.rpartition(":")[2]
    second = Process(tmp_path, "second", [sys.executable, "-m", "gateway", "sandbox", "--port", port])

    assert second.popen.wait(timeout=20) == 1
    assert second.err.read_text().count("\n") == 1
    assert "pass --port N" in second.err.read_text()


CALL = post(b'{"ssid":"s","m1":"9000000001","m2":"9000000002"}')
SUCCESS = b'{"status":"success","message":"Your masking unset"}'


def _all(wire: Wire) -> tuple[bytes, bool]:
    """Read to the end: what came, and whether a reset ended it."""
    got = b""
    while True:
        try:
            more = wire.socket.recv(65_536)
        except ConnectionResetError:
            return got, True
        if not more:
            return got, False
        got += more


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("html_502", 502, b"<html>"),
        ("html_200", 200, b"<html>"),
        ("empty", 200, b""),
        ("truncated", 200, SUCCESS[:25]),
        ("wrong_charset", 200, b'{"status":"error","message":"\xe9","code":1012}'),
        ("redirect", 302, b""),
        ("status_429", 429, b"slow down"),
        ("success_with_code", 200, b'{"status":"success","code":200,'),
        ("success_500", 500, SUCCESS),
        ("code_text", 200, b'{"status":"error","message":"No data found","code":"1012"}'),
        ("no_code", 200, b'{"status":"error","message":"No"}'),
        ("array", 200, b"[]"),
        ("slow", 200, SUCCESS),
        ("one_byte", 200, SUCCESS),
    ],
)
def test_a_whole_faulty_answer(vendor: Vendor, name: str, status: int, body: bytes) -> None:
    """Each is complete by its length, and the connection goes on."""
    vendor.call(SET, m1="9000000001", m2="9000000002")
    vendor.fault(answer=name, delay_ms=1, times=1)
    with vendor.wire() as wire:
        wire.send(CALL)
        answer = wire.answer()
        wire.send(CALL)
        after = wire.answer()

    assert answer is not None
    assert answer.status == status
    assert answer.body.startswith(body)
    assert bool(answer.body) == bool(body)
    assert answer.headers.get("retry-after") == ("7" if name == "status_429" else None)
    assert answer.headers.get("location") == ("/_sandbox/elsewhere" if name == "redirect" else None)
    assert after is not None
    assert after.json()["status"] in ("success", "error")


def test_a_huge_body_is_as_long_as_it_says(vendor: Vendor) -> None:
    """More than 10 MB, and not a byte that would begin the next answer."""
    vendor.fault(answer="huge", act=False, times=1)
    with vendor.wire() as wire:
        wire.send(CALL)
        answer = wire.answer()
        wire.send(CALL)
        after = wire.answer()

    assert answer is not None
    assert len(answer.body) == int(answer.headers["content-length"]) > 10_000_000
    assert answer.json()["status"] == "success"
    assert after is not None
    assert after.json()["code"] == 1012


def test_an_echo_gives_the_whole_request_back(vendor: Vendor) -> None:
    """Credential and all."""
    vendor.fault(answer="echo")

    assert json.loads(vendor.call(UNSET, m1="9000000001")["message"]) == {"ssid": "s", "m1": "9000000001"}


def test_a_slow_answer_waits_and_single_bytes_come_singly(vendor: Vendor) -> None:
    """The delay is real, both as one and as many."""
    for name, delay_ms, least in (("slow", 150, 0.15), ("one_byte", 1, 0.3)):
        vendor.fault(answer=name, delay_ms=delay_ms, act=False, times=1)
        begun = time.monotonic()
        assert vendor.call(UNSET, m1="9000000001")["status"] == "success"
        assert time.monotonic() - begun >= least, name


@pytest.mark.parametrize(("name", "says"), [("stalled", True), ("stall_before", False)])
def test_a_stall_keeps_the_connection_and_says_no_more(vendor: Vendor, name: str, says: bool) -> None:
    """Headers and nothing, or nothing at all; the call was received, and others are served meanwhile."""
    vendor.http.delete("/_sandbox/calls")
    vendor.fault(answer=name, act=False, times=1)
    with vendor.wire() as wire:
        wire.send(CALL)
        head = b""
        while says and b"\r\n\r\n" not in head:
            head += wire.socket.recv(65_536)
        (call,) = _received(vendor)
        silent = not select.select([wire.socket], [], [], 0.1)[0]

    assert (b"Content-Length: 51" in head, head.endswith(b"\r\n\r\n")) == (says, says)
    assert silent
    assert call["answered_status"] == (200 if says else None)


def _received(vendor: Vendor) -> list[dict]:
    return until(lambda: vendor.http.get("/_sandbox/calls").json(), what="the call being received")


@pytest.mark.parametrize(
    ("name", "part", "reset"), [("cut", SUCCESS[:25], False), ("reset", SUCCESS[:25], True), ("close", b"", False)]
)
def test_a_connection_that_ends_early(vendor: Vendor, name: str, part: bytes, reset: bool) -> None:
    """Half a body and an end, half a body and a TCP reset, or an end without a byte."""
    vendor.fault(answer=name, act=False, times=1)
    with vendor.wire() as wire:
        wire.send(CALL)
        got, was_reset = _all(wire)

    assert got.partition(b"\r\n\r\n")[2] == part
    assert bool(got) == bool(part)
    assert was_reset == reset


@pytest.mark.parametrize(("name", "acted"), [("reset", True), ("stalled", True), ("close", False), ("stall_before", False)])
def test_a_lost_answer_may_have_taken_effect(vendor: Vendor, name: str, acted: bool) -> None:
    """Unless told otherwise, what fails after the headers was done and what fails before them was not."""
    vendor.http.delete("/_sandbox/calls")
    vendor.call(SET, m1="9000000001", m2="9000000002")
    vendor.fault(answer=name, times=1)
    with vendor.wire() as wire:
        wire.send(CALL)
        until(lambda: len(_received(vendor)) == 2, what="the call being received")
        assert len(vendor.http.get("/_sandbox/maskings").json()) == (0 if acted else 1)


def test_requests_in_a_row_are_answered_in_order(vendor: Vendor) -> None:
    """Each keeps its own method and body, also behind a slow one and when the last comes in two parts."""
    vendor.http.delete("/_sandbox/calls")
    vendor.fault(answer="slow", delay_ms=100, act=False, times=1)
    last = post(b'{"ssid":"wrong","m1":"9000000001"}')
    with vendor.wire() as wire:
        wire.send(CALL + b"GET /other HTTP/1.1\r\nHost: v\r\n\r\n" + post(b"{") + last[:-10])
        answers = [wire.answer() for _ in range(3)]
        wire.send(last[-10:])
        answers.append(wire.answer())

    told = [(answer.status, answer.json().get("code")) for answer in answers if answer is not None]
    assert told == [(200, None), (404, None), (200, 1047), (200, 1014)]


@pytest.mark.parametrize("how", ["Connection: close", "HTTP/1.0"])
def test_a_caller_who_wants_the_end_gets_it(vendor: Vendor, how: str) -> None:
    """The answer says so, and the connection is closed."""
    body = b'{"ssid":"s","m1":"9000000001"}'
    with vendor.wire() as wire:
        wire.send(post(body, version="1.0") if how == "HTTP/1.0" else post(body, how))
        answer = wire.answer()
        assert answer is not None
        assert answer.headers["connection"] == "close"
        assert wire.closed()


def test_head_and_options_have_no_body(vendor: Vendor) -> None:
    """A body there would be read as the next answer."""
    with vendor.wire() as wire:
        wire.send(b"HEAD /other HTTP/1.1\r\nHost: v\r\n\r\n")
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            got += wire.socket.recv(65_536)
        wire.send(b"OPTIONS /api/v2/Masking/unset HTTP/1.1\r\nHost: v\r\n\r\n")
        answer = wire.answer()
        wire.send(CALL)
        after = wire.answer()

    assert got.startswith(b"HTTP/1.1 404 ")
    assert answer is not None
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
    assert after is not None
    assert after.json()["code"] == 1012


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_whatever_is_stalled(tmp_path, number: int) -> None:
    """One line on stdout, none on stderr, and a stalled connection holds nothing up."""
    words = [sys.executable, "-m", "gateway.sandbox", "--port", "0", "--fault", "stalled", "--fault", "error_status=422"]
    process = Process(tmp_path, "alone", words)
    host, port = process.address().removeprefix("http://").split(":")
    with Wire(host, int(port)) as wire:
        wire.send(CALL.replace(b'"s"', b'"x"'))
        assert wire.socket.recv(65_536).startswith(b"HTTP/1.1 422 ")
        process.signal(number)
        assert process.popen.wait(timeout=20) == 0

    assert process.out.read_text() == f"sandbox listening on http://{host}:{port}\n"
    assert process.err.read_text() == ""


def test_credentials_come_from_the_environment(tmp_path) -> None:
    """As they do in a container."""
    environ = {"SANDBOX_SSID": "e", "SANDBOX_USER_ID": "u", "SANDBOX_TOKEN": "t"}
    process = Process(tmp_path, "alone", [sys.executable, "-m", "gateway.sandbox", "--port", "0"], environ)
    with httpx.Client(base_url=process.address(), trust_env=False) as http:
        codes = [
            http.post(UNSET, json={"m1": "9000000001", **credential}).json()["code"]
            for credential in ({"ssid": "e"}, {"userId": "u", "token": "t"}, {"ssid": "sandbox-ssid"})
        ]

    assert process.stop() == 0
    assert codes == [1012, 1012, 1014]


def test_a_wrong_fault_on_the_command_line_is_named(tmp_path) -> None:
    """Before anything listens."""
    process = Process(tmp_path, "alone", [sys.executable, "-m", "gateway.sandbox", "--port", "0", "--fault", "nonsense"])

    assert process.popen.wait(timeout=20) == 2
    assert "answer: must be one of" in process.err.read_text()
