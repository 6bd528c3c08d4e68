"""Callers that are slow, that say everything at once, that fall silent, and that are gone: on bare sockets."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.promise import FIRST_EXPIRY, M1, M2, Answer, assert_kept, body_of
from tests.e2e.test_hostile_vendor import resident_kb
from tests.e2e.wire import RawAnswer, Wire, post
from tests.running import Stack, until

CROWD = 300
_LATER = itertools.count(900_000)
"""Numbers of calls that tell when those before them were taken."""
VENDOR_MS = 100


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway whose sandbox knows the numbers of all these calls."""
    with Stack(tmp_path_factory.mktemp("callers"), server="header_timeout_ms = 5000\nbody_timeout_ms = 5000") as running:
        running.set_masking(M1, M2)
        yield running
        running.assert_alive()


def request(stack: Stack, number: int) -> bytes:
    body = json.dumps(body_of(number)).encode()
    return post(body, f"Authorization: Bearer {stack.key}", f"X-Request-Id: {Answer(number, 0).request_id}")


def reset(wire: Wire) -> None:
    """Hang up with a TCP reset."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


def assert_whole(stack: Stack, numbers: range, answers: list[Answer] | None = None) -> int:
    """Assert that of these calls each intent has its outcome and each outcome its call; return how many were made."""
    with Wire(stack.host, stack.port) as last:
        last.send(request(stack, next(_LATER)))
        assert last.answer().status == 200
    ids = {Answer(number, 0).request_id for number in numbers}
    expiries = {FIRST_EXPIRY + number for number in numbers}

    def whole() -> tuple[list[dict]] | None:
        found = [record for record in stack.stream() if record["request_id"] in ids]
        begun, ended = (sum(record["stage"] == stage for record in found) for stage in ("intent", "outcome"))
        return (found,) if begun == ended else None

    (records,) = until(whole, what="an outcome for each intent")
    calls = [call for call in stack.vendor_calls() if json.loads(call["body"]).get("expiry_time") in expiries]
    seen = assert_kept(records, calls, answers or [])
    assert seen["intent"] == seen["outcome"] == seen["calls"]
    assert {record["result"] for record in records if record["stage"] == "outcome"} <= {"answered"}
    return seen["calls"]


def files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_a_crowd_of_slow_callers_takes_nothing_from_others(stack: Stack) -> None:
    """Hundreds drip their heads and bodies: others are served all along, and files and memory come back."""
    if not Path(f"/proc/{stack.pid}/fd").exists():
        pytest.skip("needs /proc")
    Path(f"/proc/{stack.pid}/clear_refs").write_text("5")  # The peak of resident memory counts from now.
    before, memory = files(stack.pid), resident_kb(stack.pid)
    head = b"POST /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nX-A: "
    body = post(b"{", f"Authorization: Bearer {stack.key}", "Content-Length: 16000")
    crowd = [Wire(stack.host, stack.port) for _ in range(CROWD)]
    served = []
    try:
        for number, wire in enumerate(crowd):
            wire.send(head if number % 2 else body)
        until(lambda: files(stack.pid) >= before + CROWD, what="all being connected")
        for _ in range(15):
            for wire in crowd:
                wire.send(b"x")
            m1, m2 = stack.masked()
            served.append(stack.unset(m1=m1, m2=m2).status_code)
        ends = [wire.answer() for wire in crowd]
    finally:
        for wire in crowd:
            wire.socket.close()

    assert served == [200] * 15
    assert {(end.status, end.json()["error"]) for end in ends if end} <= {(408, "header_timeout"), (408, "body_timeout")}
    assert resident_kb(stack.pid) - memory < 40_000
    # What the calls themselves opened stays open for a while.
    until(lambda: files(stack.pid) <= before + 5, what="the files being closed")


@pytest.mark.parametrize("half_closed", [False, True])
def test_requests_sent_at_once_are_answered_in_order(stack: Stack, half_closed: bool) -> None:
    """Twenty behind one another in one piece, also where nothing more can come: each gets its own answer."""
    numbers = range(1000, 1020) if half_closed else range(1020, 1040)
    stack.fault(answer="slow", delay_ms=10)
    with Wire(stack.host, stack.port) as wire:
        wire.send(b"".join(request(stack, number) for number in numbers))
        if half_closed:
            wire.socket.shutdown(socket.SHUT_WR)
        answers = [wire.answer() for _ in numbers]
        ended = not half_closed or wire.closed()

    assert ended
    assert [answer.json()["request_id"] if answer else None for answer in answers] == [Answer(n, 0).request_id for n in numbers]
    assert {answer.status for answer in answers if answer} == {200}
    assert assert_whole(stack, numbers, [Answer(number, 200) for number in numbers]) == len(numbers)


@pytest.mark.parametrize("asked", [b"", b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n"], ids=["alone", "after another"])
def test_who_has_said_all_is_answered(stack: Stack, asked: bytes) -> None:
    """A caller that closes its half behind the request gets its answer, however long the vendor takes, and then the end."""
    number = 1100 + len(asked)
    stack.fault(answer="slow", delay_ms=VENDOR_MS)
    with Wire(stack.host, stack.port) as wire:
        if asked:
            wire.send(asked)
            assert wire.answer()
        wire.send(request(stack, number))
        wire.socket.shutdown(socket.SHUT_WR)
        answer = wire.answer()
        ended = wire.closed()

    assert answer is not None
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert ended
    assert assert_whole(stack, range(number, number + 1), [Answer(number, 200)]) == 1


@pytest.mark.parametrize("cut", [0, 1, 30, -40, -1])
def test_who_falls_silent_amid_a_request_is_let_go(stack: Stack, cut: int) -> None:
    """Nothing was asked, so nothing is done, and the connection ends at once."""
    number = 1200 + cut % 97
    with Wire(stack.host, stack.port, timeout=4.0) as wire:  # Less than any time-out of the gateway's.
        wire.send(request(stack, number)[:cut])
        wire.socket.shutdown(socket.SHUT_WR)
        answer = wire.answer()

    assert answer is None
    assert assert_whole(stack, range(number, number + 1)) == 0


def test_a_reset_after_any_byte_leaves_a_whole_story(stack: Stack) -> None:
    """A call was asked for, made, and told to its end; or nothing was asked for and nothing was done."""
    size = len(request(stack, 2000))
    numbers = range(2000, 2000 + size + 1)
    for sent, number in enumerate(numbers):
        wire = Wire(stack.host, stack.port)
        wire.send(request(stack, number)[:sent])
        reset(wire)

    assert assert_whole(stack, numbers) <= 1
    stack.assert_alive()


def vendor_is_called(stack: Stack, number: int) -> bool:
    return any(json.loads(call["body"]).get("expiry_time") == FIRST_EXPIRY + number for call in stack.vendor_calls())


def outcome_is_told(stack: Stack, number: int) -> bool:
    return any(r["request_id"] == Answer(number, 0).request_id and r["stage"] == "outcome" for r in stack.stream())


@pytest.mark.parametrize("reached", [vendor_is_called, outcome_is_told], ids=lambda reached: reached.__name__)
@pytest.mark.parametrize("leave", [reset, lambda wire: wire.socket.close()], ids=["reset", "close"])
def test_a_caller_gone_while_the_vendor_acts(
    stack: Stack, leave: Callable[[Wire], None], reached: Callable[[Stack, int], bool]
) -> None:
    """However it leaves, and when: the vendor's answer is recorded."""
    number = 3000 + 2 * (leave is reset) + (reached is vendor_is_called)
    stack.fault(answer="slow", delay_ms=VENDOR_MS)
    wire = Wire(stack.host, stack.port)
    wire.send(request(stack, number))
    until(lambda: reached(stack, number), what=reached.__name__)
    leave(wire)

    assert assert_whole(stack, range(number, number + 1)) == 1


def test_many_that_leave_at_any_time(stack: Stack) -> None:
    """Twenty callers at once, each gone a little later than the one before; those that stay are answered."""
    numbers, stayed = range(4000, 4060), []
    stack.fault(answer="slow", delay_ms=20)

    def come_and_go(first: int) -> None:
        for number in numbers[first::20]:
            wire = Wire(stack.host, stack.port)
            wire.send(request(stack, number))
            if number % 3:
                wire.socket.settimeout(0.002 * (1 + number % 20))
                try:
                    wire.socket.recv(1)
                except TimeoutError:
                    pass  # It has waited long enough.
                reset(wire)
            else:
                stayed.append(wire.answer())
                wire.socket.close()

    callers = [threading.Thread(target=come_and_go, args=(first,)) for first in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    told: list[RawAnswer] = [answer for answer in stayed if answer]
    answers = [Answer(int(answer.json()["request_id"].removeprefix("chaos-")), answer.status) for answer in told]
    assert [answer.status for answer in answers] == [200] * 20
    assert_whole(stack, numbers, answers)
