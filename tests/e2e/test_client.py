"""The Python client against the real gateway, for threads and for asyncio alike."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.client import (
    AsyncClient,
    Client,
    Done,
    GatewayError,
    RateLimited,
    Refused,
    Unavailable,
    Unknown,
)
from gateway.client.call import UNKNOWN
from gateway.errors import Problem
from tests.e2e.scripted import Line, ScriptedVendor, answered
from tests.integration.test_outage import freeze, thaw, warm
from tests.running import Stack, until

KEY = "gk_live_7f3k9q2mab_neververyreal"
Ask = Callable[..., Done]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Return a function that makes a client, one call with it, and closes it: `ask(url, key, m1=…)`."""

    def threads(url: str, key: Any, settings: dict[str, Any] | None = None, **fields: Any) -> Done:
        with Client(url, key=key, **(settings or {})) as gateway:
            return gateway.unset(**fields)

    def loop(url: str, key: Any, settings: dict[str, Any] | None = None, **fields: Any) -> Done:
        async def main() -> Done:
            async with AsyncClient(url, key=key, **(settings or {})) as gateway:
                return await gateway.unset(**fields)

        return asyncio.run(main())

    return threads if request.param == "sync" else loop


@pytest.fixture
def parties(stack: Stack) -> tuple[str, str]:
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    return m1, m2


def refused(kind: type[GatewayError], call: Callable[[], object]) -> Any:
    """Return the error a call ends with, after looking for what it must not hold."""
    with pytest.raises(GatewayError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, error
    assert (error.__cause__, error.__context__) == (None, None)
    return error


def script(*answers: bytes | Callable[[Line], None]) -> Callable[[Line], None]:
    """Answer one request after the other, on whichever connection it comes; the last one for ever."""
    left = list(answers)
    lock = threading.Lock()

    def serve(line: Line) -> None:
        while line.request():
            with lock:
                answer = left.pop(0) if len(left) > 1 else left[0]
            if callable(answer):
                answer(line)
                return
            line.send(answer)

    return serve


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def envelope(error: str, *, status: str, retryable: bool, origin: str = "gateway", **more: object) -> bytes:
    body = {
        "status": "error",
        "code": None,
        "error": error,
        "message": "m",
        "retryable": retryable,
        "origin": origin,
        "request_id": "r" * 8,
    }
    return answered(json.dumps({**body, **more}).encode(), b"Content-Type: application/json", status=status.encode())


SUCCESS = answered(b'{"status":"success","message":"Your masking unset","request_id":"abcdefgh","operation":"end"}')


def test_a_masking_is_ended(stack: Stack, ask: Ask, parties: tuple[str, str]) -> None:
    """What the README shows."""
    done = ask(stack.url, stack.key, m1=parties[0], m2=parties[1])

    assert (done.operation, done.message, done.replayed) == ("end", "Your masking unset", False)
    (call,) = stack.vendor_calls()
    assert {name: json.loads(call["body"]).get(name) for name in ("m1", "m2", "mask")} == {
        "m1": parties[0],
        "m2": parties[1],
        "mask": None,
    }
    assert [record["stage"] for record in stack.records(done.request_id)] == ["intent", "outcome"]


@pytest.mark.parametrize("expiry", [{"expires_in_minutes": 30}, {"expires_at": datetime(2031, 1, 1, tzinfo=UTC)}])
def test_a_masking_is_rescheduled(stack: Stack, ask: Ask, expiry: dict[str, Any]) -> None:
    """By minutes from now, and by an instant."""
    mask = stack.set_masking(*stack.fresh_numbers())
    stack.clear_vendor_calls()

    done = ask(stack.url, stack.key, mask=mask, **expiry)

    assert done.operation == "reschedule"
    sent = json.loads(stack.vendor_calls()[0]["body"])
    wanted = {"expiry_duration": 30} if "expires_in_minutes" in expiry else {"expiry_time": 1_924_992_000}
    assert {name: value for name, value in sent.items() if name.startswith("expiry")} == wanted


def test_a_refusal(stack: Stack, ask: Ask) -> None:
    """The gateway's and the vendor's, each with what the answer says; neither is asked for again."""
    stack.clear_vendor_calls()

    mine = refused(Refused, lambda: ask(stack.url, stack.key, m1="12"))
    theirs = refused(Refused, lambda: ask(stack.url, stack.key, m1=stack.fresh_numbers()[0]))

    assert (mine.status, mine.error, mine.code, mine.field, mine.origin, mine.retryable, mine.tries) == (
        400, "number_invalid", 1005, "m1", "gateway", False, 1,
    )  # fmt: skip
    assert (theirs.status, theirs.error, theirs.code, theirs.origin, theirs.tries) == (
        404,
        "masking_not_found",
        1012,
        "vendor",
        1,
    )
    assert len(stack.vendor_calls()) == 1
    assert stack.records(mine.request_id)[-1]["problem"] == "number_invalid"
    assert "number_invalid" in str(mine)
    assert mine.request_id in str(mine)


def test_a_wrong_key(stack: Stack, ask: Ask) -> None:
    """Refused, and told nowhere: not in the error, nor in what a report of it would show of the frames."""
    key = stack.issue("other")[0]
    stack.cli("keys", "revoke", key.split("_")[2])

    error = refused(Refused, lambda: ask(stack.url, key, m1="9876543210"))

    assert (error.status, error.error) == (401, "credential_revoked")
    report = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    shown = "\n".join(line for line in report.splitlines() if "key = " not in line)  # The test's own frames hold it.
    assert "gateway/client/clients.py" in shown
    assert key not in shown + repr(error) + str(error) + repr(vars(error))


def test_a_limit(start: Callable[..., Stack], ask: Ask) -> None:
    """Waited for where there is time, told where there is not."""
    stack = start(quotas='[policies.caller]\nrate = "1/s"\nburst = 1\n[policies.number]\nrate = "1/h"\nburst = 1')
    first, second = stack.masked(), stack.masked()
    ask(stack.url, stack.key, m1=first[0])
    began = time.monotonic()
    ask(stack.url, stack.key, m1=second[0])
    waited = time.monotonic() - began

    error = refused(RateLimited, lambda: ask(stack.url, stack.key, m1=first[0]))

    assert waited >= 0.5
    assert (error.status, error.error, error.policy, error.tries, error.retryable) == (429, "quota_exceeded", "number", 1, True)
    assert 1000 < error.retry_after <= 3600


def test_an_answer_that_is_lost(stack: Stack, ask: Ask, parties: tuple[str, str]) -> None:
    """The connection dies amid the answer: asked for again under the same key, the vendor is called once."""
    lost: list[int] = []

    def lossy(line: Line) -> None:
        """A proxy that passes requests on, and breaks off its first answer in the middle."""
        while request := line.request():
            with socket.create_connection((stack.host, stack.port)) as there:
                there.sendall(request)
                head = b""
                while b"\r\n\r\n" not in head or len(head.partition(b"\r\n\r\n")[2]) < int(headers_of(head)["content-length"]):
                    head += there.recv(65_536)
            if not lost:
                lost.append(1)
                line.send(head[:-20])
                line.reset()
                return
            line.send(head)

    with ScriptedVendor(lossy) as proxy:
        done = ask(f"http://127.0.0.1:{proxy.port}", stack.key, m1=parties[0], m2=parties[1], expires_in_minutes=60)

    sent = [headers_of(request) for request in proxy.requests]
    assert len(sent) == 2
    assert sent[0]["idempotency-key"] == sent[1]["idempotency-key"]
    assert sent[0]["x-request-id"] != sent[1]["x-request-id"]
    assert (done.replayed, done.request_id) == (True, sent[0]["x-request-id"])
    assert len(stack.vendor_calls()) == 1


def test_nobody_knows(stack: Stack, ask: Ask, parties: tuple[str, str]) -> None:
    """The vendor's answer is lost. What ends a masking is made again; minutes would be counted anew, and are not."""
    stack.fault(answer="html_200", times=1)
    assert (
        ask(stack.url, stack.key, m1=parties[0], m2=parties[1], expires_at=datetime.now(UTC) + timedelta(hours=1)).replayed
        is False
    )
    assert len(stack.vendor_calls()) == 2

    stack.clear_vendor_calls()
    stack.fault(answer="html_200", times=1)
    error = refused(Unknown, lambda: ask(stack.url, stack.key, m1=parties[0], m2=parties[1], expires_in_minutes=5))

    assert (error.status, error.error, error.tries) == (409, "idempotency_unknown", 2)
    assert (
        stack.unset(m1=parties[0], headers={"Idempotency-Key": error.idempotency_key}).json()["error"] == "idempotency_mismatch"
    )
    assert len(stack.vendor_calls()) == 1


def test_it_cannot_be_made_now(start: Callable[..., Stack], ask: Ask) -> None:
    """The vendor is away: tried again, then told as not carried out."""
    stack = start(upstream="retries = 0")
    stack.sandbox.stop()

    error = refused(Unavailable, lambda: ask(stack.url, stack.key, {"tries": 3}, m1="9876543210"))

    assert (error.status, error.error, error.tries, error.retryable) == (502, "upstream_unreachable", 3, True)


def test_redis_is_away(start: Callable[..., Stack], ask: Ask) -> None:
    """A call goes on without its key, if twice does no more and the key is nobody else's; others can be made later."""
    stack = start(redis_ms=1000)
    warm(stack)
    ends, moves = stack.masked(), [stack.masked(), stack.masked()]
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    freeze(stack)
    stack.clear_vendor_calls()

    done = [
        ask(stack.url, stack.key, m1=ends[0], m2=ends[1]),
        ask(stack.url, stack.key, m1=moves[0][0], m2=moves[0][1], expires_at=at),
    ]
    for fields in ({"expires_in_minutes": 30}, {"idempotency_key": f"job-{moves[1][0]}"}):
        error = refused(Unavailable, lambda: ask(stack.url, stack.key, {"tries": 2}, m1=moves[1][0], m2=moves[1][1], **fields))
        assert (error.status, error.error, error.tries) == (503, "ledger_unavailable", 2)

    assert [each.operation for each in done] == ["end", "reschedule"]
    assert len(stack.vendor_calls()) == 2
    thaw(stack)


def test_doubt_keeps_the_key(ask: Ask) -> None:
    """Once a try may have been made, the next ones tell the key, whatever became of Redis."""
    away = envelope("ledger_unavailable", status="503 Service Unavailable", retryable=True)
    with ScriptedVendor(script(Line.reset, away, away, away)) as scripted:
        error = refused(Unknown, lambda: ask(f"http://127.0.0.1:{scripted.port}", KEY, m1="9876543210"))
    with ScriptedVendor(script(away)) as sure:
        refused(Unavailable, lambda: ask(f"http://127.0.0.1:{sure.port}", KEY, {"tries": 3}, m1="9876543210"))

    assert [headers_of(one).get("idempotency-key") for one in scripted.requests] == [error.idempotency_key] * 4
    assert [headers_of(one).get("idempotency-key") is None for one in sure.requests] == [False, True, True]


def test_nobody_is_there(ask: Ask) -> None:
    """Nothing was sent, and that is known."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        error = refused(Unavailable, lambda: ask(url, KEY, {"tries": 2}, m1="9876543210"))

    assert (error.status, error.error, error.origin, error.tries) == (None, "unreachable", "client", 2)
    assert "refused" in error.message or "failed" in error.message
    assert KEY not in repr(error)


def test_the_time_is_one_for_all_tries(ask: Ask) -> None:
    """A gateway that says nothing is waited for no longer; it is told how long, with less left for its answer than we wait."""
    with ScriptedVendor(lambda line: (line.request(), line.wait_until_closed())) as silent:
        began = time.monotonic()
        error = refused(Unknown, lambda: ask(f"http://127.0.0.1:{silent.port}", KEY, {"timeout": 0.5}, m1="9876543210"))
        took = time.monotonic() - began

    assert 0.4 < took < 5
    assert (error.error, error.status) == ("no_answer", None)
    (request,) = silent.requests
    assert 300 < int(headers_of(request)["x-request-timeout-ms"]) <= 450


def test_an_answer_that_trickles_is_cut(ask: Ask) -> None:
    """Each byte comes soon enough; all of them do not."""

    def trickle(line: Line) -> None:
        line.request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            line.socket.sendall(b" ")
            time.sleep(0.02)

    with ScriptedVendor(trickle) as slow:
        began = time.monotonic()
        error = refused(Unknown, lambda: ask(f"http://127.0.0.1:{slow.port}", KEY, {"timeout": 0.5}, m1="9876543210"))

    assert error.error == "no_answer"
    assert time.monotonic() - began < 10  # Of the twenty seconds that it would take.


def test_a_pause_is_as_long_as_it_is_told(ask: Ask) -> None:
    """By seconds and by date, of the gateway and of a proxy."""
    dated = (b"Date: Fri, 27 Nov 2026 07:00:00 GMT", b"Retry-After: Fri, 27 Nov 2026 07:00:01 GMT")
    for first in (
        envelope("upstream_busy", status="503 Busy", retryable=True, retry_after=1),
        answered(b"busy", b"Retry-After: 1", status=b"429 Busy"),
        answered(b"busy", *dated, status=b"429 Busy"),
    ):
        with ScriptedVendor(script(first, SUCCESS)) as gateway:
            began = time.monotonic()
            ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210")
        assert 1.0 <= time.monotonic() - began < 10

    with ScriptedVendor(script(answered(b"busy", b"Retry-After: 60", status=b"429 Busy"))) as gateway:
        error = refused(RateLimited, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210"))
    assert (error.retry_after, error.tries, len(gateway.requests)) == (60.0, 1, 1)


def test_a_proxy_that_fails(ask: Ask) -> None:
    """Its page is no answer of the gateway; the call may have passed it, so it is asked for again, and if in vain nobody knows."""
    page = answered(b"<html>502 Bad Gateway</html>", b"Content-Type: text/html", status=b"502 Bad Gateway")
    with ScriptedVendor(script(page, SUCCESS)) as gateway:
        assert ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210").operation == "end"
    with ScriptedVendor(script(page)) as gateway:
        error = refused(Unknown, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, {"tries": 2}, m1="9876543210"))

    assert (error.status, error.error, error.tries) == (502, "not_the_gateway", 2)
    assert "text/html" in error.message


@pytest.mark.parametrize(("answer", "kind"), [
    (answered(b"<html>", b"Content-Type: text/html", status=b"404 Not Found"), Refused),
    (answered(b"<html>", b"Content-Type: text/html"), Unknown),
    (answered(b"[" * 60_000), Unknown),
    (answered(b'{"status":"success"}'), Unknown),
    (answered(b"{}", status=b"204 No Content", length=False), Unknown),
])  # fmt: skip
def test_something_else_at_the_address(ask: Ask, answer: bytes, kind: type[GatewayError]) -> None:
    """Said so, and not asked again."""
    with ScriptedVendor(script(answer)) as gateway:
        error = refused(kind, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210"))

    assert (error.error, error.tries, error.retryable) == ("not_the_gateway", 1, False)
    assert "base_url" in error.message


def test_an_endless_answer_is_not_read(ask: Ask) -> None:
    """64 kB are enough for any answer of the gateway."""

    def endless(line: Line) -> None:
        line.request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        line.send(b"x" * 1_000_000)
        line.wait_until_closed()

    with ScriptedVendor(endless) as gateway:
        began = time.monotonic()
        refused(Unknown, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, {"tries": 1}, m1="9876543210"))

    assert time.monotonic() - began < 20


def test_a_redirect_is_not_followed(ask: Ask) -> None:
    """It would be given the key and the numbers."""
    with ScriptedVendor(script(SUCCESS)) as elsewhere:
        there = f"Location: http://127.0.0.1:{elsewhere.port}/x?token=1".encode()
        with ScriptedVendor(script(answered(b"", there, status=b"308 Permanent Redirect"))) as gateway:
            error = refused(Refused, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210"))

    assert (error.error, error.status, elsewhere.requests) == ("redirected", 308, [])
    assert f"http://127.0.0.1:{elsewhere.port}/x'" in error.message


def test_doubt_stays(ask: Ask) -> None:
    """A try whose answer was lost, then one that was not made: together nobody knows, whatever the second says."""
    for last, kind in (
        (envelope("quota_exceeded", status="429 Slow", retryable=True, retry_after=1000), Unknown),
        (envelope("credential_revoked", status="401 No", retryable=False), Unknown),
        (envelope("vendor_account_suspended", status="502 No", retryable=False, origin="vendor"), Unknown),
        (envelope("masking_not_found", status="404 No", retryable=False, origin="vendor"), Refused),
    ):
        with ScriptedVendor(script(lambda line: line.reset(), last)) as gateway:
            error = refused(kind, lambda: ask(f"http://127.0.0.1:{gateway.port}", KEY, m1="9876543210"))
        assert error.tries == 2


def test_what_is_unknown_is_what_the_gateway_calls_so() -> None:
    """The client's list is the problem table's, and what is said of a key whose call is not over."""
    named = {problem.slug for problem in Problem if problem.value.result == "unknown"}

    assert named | {"idempotency_running", "idempotency_unknown"} == UNKNOWN


def test_a_key_of_ones_own(stack: Stack, ask: Ask, parties: tuple[str, str]) -> None:
    """A job that is started again makes its call once; `traceparent` is recorded."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    fields = {"m1": parties[0], "m2": parties[1], "idempotency_key": f"job-{parties[0]}", "traceparent": trace}

    first, second = ask(stack.url, stack.key, **fields), ask(stack.url, stack.key, **fields)

    assert (first.replayed, second.replayed, second.request_id) == (False, True, first.request_id)
    assert len(stack.vendor_calls()) == 1
    assert stack.records(first.request_id)[0]["trace_id"] == trace.split("-")[1]
    mismatch = refused(Refused, lambda: ask(stack.url, stack.key, **{**fields, "m2": "9876543210"}))
    assert mismatch.error == "idempotency_mismatch"


def test_a_key_in_a_file_is_read_each_time(stack: Stack, tmp_path: Path) -> None:
    """Whoever rotates it writes it anew."""
    path = tmp_path / "key"
    path.write_text(stack.key + "\n")
    with Client(stack.url, key=path) as gateway:
        gateway.unset(m1=stack.masked()[0])
        path.write_text("gk_live_wrong")
        assert refused(Refused, lambda: gateway.unset(m1="9876543210")).status == 401
        path.write_text("gk_live_wrong\nother")
        with pytest.raises(ValueError, match="visible ASCII") as caught:
            gateway.unset(m1="9876543210")
    assert "wrong" not in str(caught.value)


def test_the_environment(stack: Stack, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given is found there."""
    monkeypatch.setenv("GATEWAY_URL", stack.url + "/")
    monkeypatch.setenv("GATEWAY_KEY", stack.key)
    assert ask(None, None, m1=stack.masked()[0]).operation == "end"
    monkeypatch.delenv("GATEWAY_KEY")
    (tmp_path / "key").write_text(stack.key)
    monkeypatch.setenv("GATEWAY_KEY_FILE", str(tmp_path / "key"))
    assert ask(None, None, m1=stack.masked()[0]).operation == "end"
    monkeypatch.delenv("GATEWAY_KEY_FILE")
    with pytest.raises(ValueError, match="GATEWAY_KEY"):
        ask(None, None, m1="9876543210")


@pytest.mark.parametrize(("settings", "said"), [
    ({"base_url": ""}, "GATEWAY_URL"), ({"base_url": "gateway.internal"}, "https://"), ({"base_url": "https://u:hunter2@g"}, "https://"),
    ({"key": ""}, "GATEWAY_KEY"), ({"key": "gk_hunter2\n"}, "visible ASCII"), ({"timeout": 0}, "seconds"), ({"timeout": 601}, "600"),
    ({"tries": 0}, "1 or more"), ({"account": "a b"}, "account"),
])  # fmt: skip
def test_a_client_that_cannot_work_is_not_made(settings: dict[str, Any], said: str) -> None:
    """What is missing or wrong is named, and no secret with it."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=said) as caught:
            kind(**{"base_url": "http://127.0.0.1:1", "key": KEY, **settings})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("fields", "said"), [
    ({"m1": "9876543210", "m2": None}, "m2 is None"), ({"m3": "1"}, "takes no 'm3'"), ({"m1": "1", "expires_in_minutes": -1}, "1 or more"),
    ({"m1": "1", "expires_in_minutes": True}, "1 or more"), ({"m1": "1", "expires_at": datetime(2031, 1, 1)}, "zone"),
    ({"m1": "1", "expires_at": 1_900_000_000}, "datetime"),
    ({"m1": "1", "expires_in_minutes": 1, "expires_at": datetime(2031, 1, 1, tzinfo=UTC)}, "not both"),
    ({"m1": "1", "idempotency_key": "a\nb"}, "idempotency_key"), ({"m1": "1", "traceparent": ""}, "traceparent"),
])  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_not_sent(ask: Ask, fields: dict[str, Any], said: str) -> None:
    """None left out would end more than was asked."""
    with ScriptedVendor(script(SUCCESS)) as gateway, pytest.raises((TypeError, ValueError), match=said):
        ask(f"http://127.0.0.1:{gateway.port}", KEY, **fields)

    assert gateway.requests == []


def test_many_threads(stack: Stack) -> None:
    """One client, each caller its own answer."""
    stack.clear_vendor_calls()
    pairs = [stack.masked() for _ in range(40)]
    stack.clear_vendor_calls()
    with Client(stack.url, key=stack.key) as gateway, ThreadPoolExecutor(16) as threads:
        done = list(threads.map(lambda pair: gateway.unset(m1=pair[0], m2=pair[1]), pairs))

    assert len({answer.request_id for answer in done}) == 40
    assert sorted(json.loads(call["body"])["m1"] for call in stack.vendor_calls()) == sorted(pair[0] for pair in pairs)


def test_many_tasks_of_which_some_are_cancelled(start: Callable[..., Stack]) -> None:
    """A cancelled call ends at once and asks no more; the others, and the client, go on."""
    stack = start(read_ms=2900)
    pairs = [stack.masked() for _ in range(10)]
    stack.clear_vendor_calls()
    stack.fault(answer="slow", delay_ms=2000)

    async def main() -> list[Any]:
        async with AsyncClient(stack.url, key=stack.key) as gateway:
            tasks = [asyncio.create_task(gateway.unset(m1=m1, m2=m2)) for m1, m2 in pairs]
            await asyncio.to_thread(until, lambda: len(stack.vendor_calls()) == 10, what="all being at the vendor")
            for task in tasks[::2]:
                task.cancel()
            came = await asyncio.gather(*tasks, return_exceptions=True)
            stack.no_faults()
            return [*came, await gateway.unset(m1=stack.masked()[0])]

    came = asyncio.run(main())

    assert [type(answer) for answer in came] == [asyncio.CancelledError, Done] * 5 + [Done]
    assert len(stack.vendor_calls()) == 11


def test_cancelled_while_it_waits(stack: Stack) -> None:
    """No further try is made."""
    busy = envelope("upstream_busy", status="503 Busy", retryable=True, retry_after=2)
    with ScriptedVendor(script(busy)) as scripted:

        async def main() -> None:
            async with AsyncClient(f"http://127.0.0.1:{scripted.port}", key=KEY) as gateway:
                await asyncio.wait_for(gateway.unset(m1="9876543210"), 1.5)

        with pytest.raises(TimeoutError):
            asyncio.run(main())

    assert len(scripted.requests) == 1


def test_nothing_shows_the_key() -> None:
    """Clients say where they point; errors can be sent to another process."""
    client = Client("https://gateway.internal/", key=KEY)
    assert repr(client) == "Client('https://gateway.internal', key=…)"
    assert KEY not in repr(AsyncClient("https://gateway.internal", key=KEY)) + repr(vars(client)) + str(client._settings)
    client.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Client(f"http://127.0.0.1:{taken.getsockname()[1]}", key=KEY, tries=1) as gateway:
            error = refused(Unavailable, lambda: gateway.unset(m1="9876543210"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (Unavailable, vars(error), str(error))
    assert KEY.encode() not in pickle.dumps(error)


def test_importing_it_is_cheap() -> None:
    """A service that calls the gateway does not load it."""
    program = "import sys, gateway.client; print(sorted(name for name in sys.modules if name.startswith('gateway'))); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours, everything = done.stdout.splitlines()

    assert ours == "['gateway', 'gateway.client', 'gateway.client.call', 'gateway.client.clients', 'gateway.client.errors']"
    assert not {"redis", "starlette", "uvicorn", "phonenumbers", "structlog", "aiohttp", "cryptography", "msgspec"} & set(
        everything.split()
    )
