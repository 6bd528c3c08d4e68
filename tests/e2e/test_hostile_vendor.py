"""A vendor, or what stands in its place, that breaks HTTP itself: one defined answer each, and never the answer to another call."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gateway.transport import PooledTransport
from tests.e2e.scripted import SUCCESS, Line, ScriptedVendor, answered
from tests.running import Stack, until

NOT_FOUND = answered(b'{"status":"error","message":"No data found","code":1012}', b"Connection: close")
GOOD = answered()
CHUNKED = answered(
    b"1a\r\n%s\r\n19\r\n%s\r\n0\r\n\r\n" % (SUCCESS[:26], SUCCESS[26:]), b"Transfer-Encoding: chunked", length=False
)
UNTIL_CLOSED = answered(SUCCESS, b"Connection: close", length=False)
ACCOUNT = "scripted"


def serve(line: Line) -> None:
    """Answer one request well, and leave no connection to the next test."""
    line.request()
    line.send(answered(SUCCESS, b"Connection: close"))


@pytest.fixture(scope="module")
def vendor() -> Iterator[ScriptedVendor]:
    with ScriptedVendor(serve) as serving:
        yield serving


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, vendor: ScriptedVendor) -> Iterator[Stack]:
    """A gateway with two connections to the vendor, so that one that does not come back is missed soon; no breaker, no retries."""
    account = f'[accounts.{ACCOUNT}]\nbrand = "http://127.0.0.1:{vendor.port}"\n[accounts.{ACCOUNT}.primary]\nssid = {{ env = "VENDOR_SSID" }}'
    with Stack(
        tmp_path_factory.mktemp("hostile"), upstream="connections_max = 2\nbreaker_calls = 0\nretries = 0", more=account
    ) as running:
        yield running
        running.assert_alive()


def call(stack: Stack) -> httpx.Response:
    return stack.unset(m1="9876543210", headers={"X-Gateway-Account": ACCOUNT})


def assert_unknown(stack: Stack, answers: list[httpx.Response], *slugs: str) -> None:
    """Each is one of the problems that say that nobody knows, to the caller and in the trail."""
    told = {answer.json()["request_id"]: answer for answer in answers}
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} <= {
        (504 if slug == "upstream_timeout" else 502, slug) for slug in slugs
    }

    def ends() -> dict[str, dict] | None:
        found = {
            row["request_id"]: row for row in stack.stream(ACCOUNT) if row["stage"] == "outcome" and row["request_id"] in told
        }
        return found if len(found) == len(told) else None

    for request_id, end in until(ends, what="an outcome for each").items():
        assert (end["result"], end["problem"]) == ("unknown", told[request_id].json()["error"])


def assert_served(stack: Stack, vendor: ScriptedVendor) -> None:
    """The next call is sent on a connection of its own, and answered well."""
    before = vendor.connections
    vendor.script = serve
    assert call(stack).json()["status"] == "success"
    assert vendor.connections == before + 1


@pytest.mark.parametrize("end", [Line.reset, Line.half_close], ids=["reset", "half closed"])
@pytest.mark.parametrize("whole", [GOOD, CHUNKED, UNTIL_CLOSED], ids=["length", "chunked", "until closed"])
def test_an_answer_that_ends_at_any_byte(stack: Stack, vendor: ScriptedVendor, whole: bytes, end: Callable[[Line], None]) -> None:
    """Cut after each of its bytes it is never a success, nor an error of the gateway's, and nothing is asked there again."""
    again: list[bytes] = []
    size = 0

    def cut(line: Line) -> None:
        line.request()
        line.send(whole[:size])
        end(line)
        again.append(line.request() if end is Line.half_close else b"")

    before, answers = vendor.connections, []
    vendor.script = cut
    for size in range(len(whole)):
        answers.append(call(stack))
    size = len(whole)
    last = call(stack)

    assert vendor.connections == before + len(whole) + 1
    until(lambda: len(again) == len(whole) + 1, what="the gateway closing")
    assert not any(again)
    assert_unknown(stack, answers, "upstream_broken", *(["upstream_unreadable"] if whole is UNTIL_CLOSED else []))
    if last.status_code != 200:
        assert end is Line.reset
        assert_unknown(stack, [last], "upstream_broken")
    assert_served(stack, vendor)


def two_in_one(line: Line, _: threading.Event) -> None:
    line.send(GOOD + GOOD)


def half_of_a_second(line: Line, _: threading.Event) -> None:
    line.send(GOOD + GOOD[:30])


def one_that_comes_later(line: Line, answered_: threading.Event) -> None:
    line.send(GOOD)
    answered_.wait(10)
    line.send(GOOD)


def half_that_comes_later(line: Line, answered_: threading.Event) -> None:
    line.send(GOOD)
    answered_.wait(10)
    line.send(GOOD[:30])


def the_end_that_comes_later(line: Line, answered_: threading.Event) -> None:
    line.send(GOOD)
    answered_.wait(10)
    line.half_close()


SURPLUS = [two_in_one, half_of_a_second, one_that_comes_later, half_that_comes_later, the_end_that_comes_later]


@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda script: script.__name__)
def test_what_nobody_asked_for_is_nobodys_answer(
    stack: Stack, vendor: ScriptedVendor, surplus: Callable[[Line, threading.Event], None]
) -> None:
    """A second answer to one request does not become the answer to the next, however soon that comes."""
    told, sent = threading.Event(), threading.Event()

    def script(line: Line) -> None:
        if line.request():
            surplus(line, told)
            sent.set()
            while line.request():
                line.send(NOT_FOUND)

    def honest(line: Line) -> None:
        line.request()
        line.send(NOT_FOUND)

    vendor.script = script
    first = call(stack)
    vendor.script = honest
    told.set()
    sent.wait(10)
    second = call(stack)

    assert first.status_code in (200, 502), first.text
    if first.status_code == 502:
        assert_unknown(stack, [first], "upstream_broken")
    assert (second.status_code, second.json()["error"]) == (404, "masking_not_found")


@pytest.mark.parametrize("surplus", [one_that_comes_later, the_end_that_comes_later], ids=lambda script: script.__name__)
def test_what_came_is_seen_before_the_loop_has_read_it(surplus: Callable[[Line, threading.Event], None]) -> None:
    """A loop that was busy gives no connection out again on which something waits to be read."""
    told, sent = threading.Event(), threading.Event()

    def script(line: Line) -> None:
        line.request()
        if line.number == 1:
            surplus(line, told)
            sent.set()
        else:
            line.send(NOT_FOUND)

    async def asked(transport: PooledTransport, port: int) -> bytes:
        seconds = {"timeout": {"connect": 5, "read": 5, "write": 5, "pool": 5}}
        request = httpx.Request("POST", f"http://127.0.0.1:{port}/", content=b"{}", extensions=seconds)
        answer = await transport.handle_async_request(request)
        body = await answer.aread()
        await answer.aclose()
        return body

    async def twice(port: int) -> list[bytes]:
        transport = PooledTransport(idle_seconds=4)
        first = await asked(transport, port)
        told.set()
        sent.wait(10)  # And the loop does nothing.
        second = await asked(transport, port)
        await transport.aclose()
        return [first, second]

    with ScriptedVendor(script) as vendor:
        assert asyncio.run(twice(vendor.port)) == [SUCCESS, NOT_FOUND.partition(b"\r\n\r\n")[2]]


HEAD = b"HTTP/1.1 200 OK\r\n"
SPLIT = b"Transfer-Encoding: chunked\r\n\r\n"
GARBLED = {
    "chunk size of letters": HEAD + SPLIT + b"zz\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk size below zero": HEAD + SPLIT + b"-33\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk size that overflows": HEAD + SPLIT + b"f" * 17 + b"\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk size missing": HEAD + SPLIT + b"\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk too short": HEAD + SPLIT + b"32\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk too long": HEAD + SPLIT + b"40\r\n" + SUCCESS + b"\r\n0\r\n\r\n",
    "chunk without its end": HEAD + SPLIT + b"33\r\n" + SUCCESS + b"0\r\n\r\n",
    "length too long": HEAD + b"Content-Length: 52\r\n\r\n" + SUCCESS,
    "length too short": HEAD + b"Content-Length: 50\r\n\r\n" + SUCCESS,
    "length below zero": HEAD + b"Content-Length: -51\r\n\r\n" + SUCCESS,
    "length of letters": HEAD + b"Content-Length: fifty\r\n\r\n" + SUCCESS,
    "length that overflows": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + SUCCESS,
    "two lengths": HEAD + b"Content-Length: 51\r\nContent-Length: 5\r\n\r\n" + SUCCESS,
    "length of zero": HEAD + b"Content-Length: 0\r\n\r\n" + SUCCESS,
    "no HTTP": SUCCESS,
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "another version": b"HTTP/9.9 200 OK\r\nContent-Length: 51\r\n\r\n" + SUCCESS,
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 51\r\n\r\n" + SUCCESS,
    "status of letters": b"HTTP/1.1 OK\r\nContent-Length: 51\r\n\r\n" + SUCCESS,
    "header without a colon": HEAD + b"Content-Length 51\r\n\r\n" + SUCCESS,
    "zero byte in a header": HEAD + b"X: a\x00b\r\nContent-Length: 51\r\n\r\n" + SUCCESS,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "switched protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + SUCCESS,
    "compressed": answered(b"\x1f\x8b\x08\x00" + SUCCESS, b"Content-Encoding: gzip"),
    "only 100": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("case", GARBLED)
def test_a_garbled_answer(stack: Stack, vendor: ScriptedVendor, case: str) -> None:
    """What is no answer by the rules is none: nobody knows what became of the call."""

    def script(line: Line) -> None:
        line.request()
        line.send(GARBLED[case])
        line.half_close()
        assert not line.request()

    vendor.script = script

    assert_unknown(stack, [call(stack)], "upstream_broken", "upstream_unreadable")
    assert_served(stack, vendor)


@pytest.mark.parametrize(
    "before", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3], ids=["100", "103"]
)
def test_an_answer_before_the_answer(stack: Stack, vendor: ScriptedVendor, before: bytes) -> None:
    """What is only to come is not taken for it."""

    def script(line: Line) -> None:
        line.request()
        line.send(before)
        line.send(GOOD)
        line.request()
        line.send(before + NOT_FOUND)

    connections, vendor.script = vendor.connections, script

    assert call(stack).json()["status"] == "success"
    assert call(stack).json()["error"] == "masking_not_found"
    assert vendor.connections == connections + 1


def test_an_answer_before_the_request_was_read(stack: Stack, vendor: ScriptedVendor) -> None:
    """A vendor that says no to whoever comes, and hangs up: told as that, or as a connection that broke."""

    def script(line: Line) -> None:
        line.send(answered(b"too many connections", b"Connection: close", status=b"503 Service Unavailable"))

    vendor.script = script
    answers = [call(stack) for _ in range(20)]

    assert_unknown(stack, answers, "vendor_failed", "upstream_broken")
    assert_served(stack, vendor)


ENDLESS = {
    "body": (HEAD + b"\r\n", b"y" * 65_536),
    "promised body": (HEAD + b"Content-Length: 9999999999\r\n\r\n", b"y" * 65_536),
    "chunks": (HEAD + SPLIT, b"8000\r\n" + b"y" * 32_768 + b"\r\n"),
    "small chunks": (HEAD + SPLIT, b"1\r\ny\r\n" * 10_000),
    "status": (b"HTTP/1.1 200 ", b"y" * 65_536),
    "header name": (HEAD, b"y" * 65_536),
    "header value": (HEAD + b"X: ", b"y" * 65_536),
    "headers": (HEAD, b"X-Y: z\r\n" * 8_192),
    "1xx": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 2_048),
    "chunk extension": (HEAD + SPLIT + b"1;a=", b"y" * 65_536),
    "trailers": (HEAD + SPLIT + b"0\r\n", b"X-Y: z\r\n" * 8_192),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_no_part_of_an_answer_is_endless(stack: Stack, vendor: ScriptedVendor, part: str) -> None:
    """It is cut off, in bytes or in time, does not gather in memory, and the next call is served.

    What is only to come, 1xx, ends with the call's time, and aiohttp keeps some of it for so long.
    """
    begin, more = ENDLESS[part]
    sent = 0

    def script(line: Line) -> None:
        nonlocal sent
        line.request()
        line.socket.sendall(begin)
        while True:  # Ends with the error of a connection that was closed.
            line.socket.sendall(more)
            sent += len(more)

    peak = Path(f"/proc/{stack.pid}/clear_refs")
    if not peak.exists():
        pytest.skip("needs /proc")
    peak.write_text("5")  # The peak of resident memory counts from now.
    before = resident_kb(stack.pid)
    vendor.script = script

    assert_unknown(stack, [call(stack)], "upstream_broken", "upstream_unreadable", "upstream_timeout")
    assert part == "1xx" or resident_kb(stack.pid) - before < 16_000, sent
    assert_served(stack, vendor)


def test_connections_come_back(stack: Stack, vendor: ScriptedVendor) -> None:
    """After every way of breaking one, as many files are open as before."""

    def files() -> int:
        return sum(1 for _ in Path(f"/proc/{stack.pid}/fd").iterdir())

    if not Path(f"/proc/{stack.pid}/fd").exists():
        pytest.skip("needs /proc")
    vendor.script = serve
    assert call(stack).status_code == 200
    before = files()
    for garbled in GARBLED.values():

        def script(line: Line, garbled: bytes = garbled) -> None:
            line.request()
            line.send(garbled)
            line.reset()

        vendor.script = script
        call(stack)

    vendor.script = serve
    assert call(stack).status_code == 200
    until(lambda: files() <= before, what="the files being closed")


def resident_kb(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
