"""A gateway leaves: under load, with a call that takes long, behind a balancer. No call is lost, and none is untold."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest

from tests.chaos.balancer import Balancer
from tests.chaos.processes import descendants
from tests.chaos.promise import FIRST_EXPIRY, M1, M2, Answer, assert_kept, body_of
from tests.chaos.threads import guarded
from tests.e2e.wire import Wire, post
from tests.running import UNSET, Process, Stack, free_port, until

CALLERS = 8
VENDOR_MS = 30
"""A vendor that answers at once would leave hardly a call under way."""
DRAIN = 21
"""Longer than the longest call, with a vendor that a busy machine makes slow."""


@dataclass
class Load:
    """Callers that call one after the other, on connections that are kept, and what came of it."""

    url: str
    key: str
    answers: list[Answer] = field(default_factory=list)
    failures: list[tuple[Answer, Exception]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    numbers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call_for_ever(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self.over.is_set():
                with self.lock:
                    self.numbers += 1
                    number = self.numbers
                headers = {"Authorization": f"Bearer {self.key}", "X-Request-Id": Answer(number, 0).request_id}
                try:
                    answer = client.post(self.url + UNSET, json=body_of(number), headers=headers)
                except httpx.TransportError as error:
                    self.failures.append((Answer(number, 0), error))
                    time.sleep(0.05)
                else:
                    self.answers.append(Answer(number, answer.status_code))

    @contextmanager
    def running(self) -> Iterator[None]:
        callers = [guarded(self.broken, self.call_for_ever) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            self.until_more(3 * CALLERS)
            yield
        finally:
            self.over.set()
            for caller in callers:
                caller.join()
        assert self.broken == []

    def until_more(self, count: int) -> None:
        """Wait until so many calls more were answered."""
        enough = len(self.answers) + count
        until(lambda: len(self.answers) >= enough or self.broken, what=f"{count} answers")

    def is_told_by(self, stack: Stack) -> None:
        """Assert that trail, vendor and callers tell one story, and that no call that failed was begun."""
        records, calls = stack.whole_stream(), stack.vendor_calls()
        assert {answer.status for answer in self.answers} == {200}
        seen = assert_kept(records, calls, self.answers)
        assert seen["intent"] == seen["outcome"] == seen["calls"] == len(self.answers)
        assert {json.loads(call["body"])["expiry_time"] - FIRST_EXPIRY for call in calls} == {
            answer.number for answer in self.answers
        }


def ended(process: Process) -> int:
    """Return the status with which a process ends by itself in time."""
    return process.popen.wait(timeout=DRAIN + 9)


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def busy(start: Callable[..., Stack], lame_duck: int, workers: int = 1, delay_ms: int = VENDOR_MS) -> Stack:
    arrival = "header_timeout_ms = 10_000\nbody_timeout_ms = 10_000"
    server = f"lame_duck_seconds = {lame_duck}\ndrain_seconds = {DRAIN + lame_duck}\n{arrival}"
    stack = start(server=server, workers=workers, read_ms=5000, total_ms=9000)
    stack.set_masking(M1, M2)
    stack.fault(answer="slow", delay_ms=delay_ms)
    return stack


def authorised(stack: Stack, number: int) -> bytes:
    body = json.dumps(body_of(number)).encode()
    return post(body, f"Authorization: Bearer {stack.key}", f"X-Request-Id: {Answer(number, 0).request_id}")


@pytest.mark.parametrize(("lame_duck", "workers"), [(0, 1), (1, 2)])
def test_sigterm_under_load_loses_nothing(start: Callable[..., Stack], lame_duck: int, workers: int) -> None:
    """Calls take longer than a moment. Who was answered was answered whole, each call is told to its end, and what failed was never begun."""
    stack = busy(start, lame_duck, workers, delay_ms=300)
    load = Load(stack.url, stack.key)
    with load.running():
        stack.gateway.signal(signal.SIGTERM)
        status = ended(stack.gateway)

    assert status == 0
    load.is_told_by(stack)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rolling_restart_behind_a_balancer_fails_no_call(start: Callable[..., Stack], workers: int) -> None:
    """Two replicas are restarted one after the other under load: every call is answered, made once, and recorded."""
    stack = busy(start, 4)
    ports = [free_port(), free_port()]

    def replica(number: int) -> Process:
        return stack.spawn_gateway("--port", str(ports[number]), "--workers", str(workers), name=f"replica-{number}")

    serving = [replica(0), replica(1)]
    try:
        with Balancer(ports) as balancer:
            until(lambda: all(one.ready for one in balancer.replicas), 60, what="both replicas being ready")
            load = Load(balancer.url, stack.key)
            with load.running():
                for number, one in enumerate(balancer.replicas):
                    serving[number].signal(signal.SIGTERM)
                    assert ended(serving[number]) == 0
                    serving[number] = replica(number)
                    until(lambda one=one: one.ready, 60, what="the replica being ready again")
                    load.until_more(2 * CALLERS)
        for process in serving:
            process.signal(signal.SIGTERM)
        assert [ended(process) for process in serving] == [0, 0]
    finally:
        for process in serving:
            process.stop()

    assert balancer.failed == []
    assert load.failures == []
    load.is_told_by(stack)
    # And both had work, over connections that were kept.
    assert all(balancer.kept[port] for port in ports)
    assert balancer.sent.total() == len(load.answers)


def test_a_leaving_gateway_says_so_and_serves(start: Callable[..., Stack]) -> None:
    """Not ready any more, it takes new connections and those it has, answers each once, and goes at a second signal."""
    server = f"lame_duck_seconds = 60\ndrain_seconds = {DRAIN + 60}"
    stack = start(server=server)
    stack.set_masking(M1, M2)
    with Wire(stack.host, stack.port) as kept, Wire(stack.host, stack.port) as fresh:
        kept.send(authorised(stack, 1))
        before = kept.answer()
        stack.gateway.signal(signal.SIGTERM)
        until(lambda: not stack._ready(), what="readiness failing")
        ready, alive = stack.http.get(stack.url + "/readyz"), stack.http.get(stack.url + "/livez")
        answers = []
        for number, wire in enumerate((kept, fresh, Wire(stack.host, stack.port)), 2):
            wire.send(authorised(stack, number))
            answers.append(wire.answer())
            assert wire.closed()
            wire.socket.close()
        stack.gateway.signal(signal.SIGTERM)

        assert ended(stack.gateway) == 0
    assert before is not None
    assert (before.status, "connection" in before.headers) == (200, False)
    assert (ready.status_code, ready.json()["status"], ready.json()["checks"]["process"]) == (503, "unready", "Leaving")
    assert alive.status_code == 200
    assert [(answer.status, answer.headers["connection"]) for answer in answers if answer] == [(200, "close")] * 3
    assert_kept(stack.whole_stream(), stack.vendor_calls(), [Answer(number, 200) for number in range(1, 5)])


def test_nobody_is_left_standing_at_a_closed_door(start: Callable[..., Stack]) -> None:
    """While the last call takes its time new connections are refused, not taken by nobody; the call gets its answer."""
    stack = busy(start, 0, workers=2, delay_ms=1400)
    answers: list[Answer] = []

    def call() -> None:
        answer = stack.unset(body_of(1), headers={"X-Request-Id": Answer(1, 0).request_id})
        answers.append(Answer(1, answer.status_code))

    caller = threading.Thread(target=call)
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.gateway.signal(signal.SIGTERM)
    until(lambda: refuses(stack.port), what="the gateway refusing connections")
    under_way = not answers
    caller.join()

    assert under_way
    assert ended(stack.gateway) == 0
    assert_kept(stack.whole_stream(), stack.vendor_calls(), answers)
    assert [answer.status for answer in answers] == [200]


def test_what_is_on_its_way_is_taken(start: Callable[..., Stack]) -> None:
    """Half a head, half a body, and a connection on which nothing was said yet: each is answered, and then closed."""
    stack = busy(start, 0)
    whole = [authorised(stack, number) for number in range(3)]
    cuts = (0, 20, whole[2].index(b"\r\n\r\n") + 10)
    wires = [Wire(stack.host, stack.port) for _ in cuts]
    for wire, request, cut in zip(wires, whole, cuts, strict=True):
        wire.send(request[:cut])
    with Wire(stack.host, stack.port) as last:
        last.send(b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert last.answer() is not None  # So those before it are connected.
        stack.gateway.signal(signal.SIGTERM)
        until(lambda: refuses(stack.port), what="the gateway refusing connections")
        for wire, request, cut in zip(wires, whole, cuts, strict=True):
            wire.send(request[cut:])
        answers = [wire.answer() for wire in wires]

        assert last.closed()
    assert [(answer.status, answer.headers["connection"]) if answer else None for answer in answers] == [(200, "close")] * 3
    assert all(wire.closed() for wire in wires)
    for wire in wires:
        wire.socket.close()
    assert ended(stack.gateway) == 0
    assert_kept(stack.whole_stream(), stack.vendor_calls(), [Answer(number, 200) for number in range(3)])


def workers_of(stack: Stack) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return descendants(stack.gateway.pid, "spawn_main")
    return []


def test_a_killed_worker_is_replaced_and_takes_no_answer_with_it(start: Callable[..., Stack]) -> None:
    """SIGKILL under load: another worker comes, every answered call is told, and what was cut off is told as unknown."""
    stack = busy(start, 0, workers=2)
    load = Load(stack.url, stack.key)
    with load.running():
        doomed, other = sorted(workers_of(stack))
        os.kill(doomed, signal.SIGKILL)
        until(lambda: len(set(workers_of(stack)) - {doomed, other}) == 1, 30, what="a worker in its place")
        load.until_more(3 * CALLERS)

    def whole() -> bool:
        records = stack.whole_stream()
        closed = {record.get("intent") for record in records if record["stage"] != "intent"}
        return all(f"{record['writer']}-{record['seq']}" in closed for record in records if record["stage"] == "intent")

    until(whole, 60, what="an end for each intent")
    seen = assert_kept(stack.whole_stream(), stack.vendor_calls(), load.answers)

    assert {answer.status for answer in load.answers} == {200}
    assert seen["intent"] == seen["outcome"] + seen["abort"]
    assert seen["abort"] <= len(load.failures) <= CALLERS


def test_a_worker_that_dies_as_it_is_asked_for_a_sign_of_life_is_replaced(start: Callable[..., Stack]) -> None:
    """The supervisor does not wait out the minute that it gives to one that is loading."""
    stack = start(workers=2)
    doomed, other = sorted(workers_of(stack))
    os.kill(doomed, signal.SIGSTOP)
    time.sleep(2)  # It is asked each half second.

    os.kill(doomed, signal.SIGKILL)

    until(lambda: len(set(workers_of(stack)) - {doomed, other}) == 1, 30, what="a worker in its place")
