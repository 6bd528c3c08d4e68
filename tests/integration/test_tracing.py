"""Traces: what a caller's context becomes, which spans a collector gets, and that no call depends on one."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.tracing import Tracing
from tests.collector import Collector
from tests.running import VENDOR_SSID, Stack, until

SPAN = "00f067aa0ba902b7"
STEPS = ["authenticate", "validate", "admit", "exchange", "forward", "normalise", "settle"]
ATTRIBUTES = {
    "request": {
        "http.request.method", "http.route", "url.path", "url.scheme", "network.protocol.version", "http.response.status_code",
        "error.type", "gateway.request_id", "gateway.account", "gateway.service", "gateway.operation", "gateway.decision",
        "gateway.result", "gateway.problem", "gateway.attempt", "gateway.intent", "gateway.record",
    },
    "authenticate": {"error.type"},
    "validate": {"error.type"},
    "admit": {"db.system.name", "db.operation.name", "gateway.admission", "gateway.degraded", "error.type"},
    "exchange": set(),
    "forward": {"http.request.method", "server.address", "server.port", "url.full", "http.response.status_code", "error.type"},
    "normalise": {"gateway.outcome", "error.type"},
    "settle": set(),
}  # fmt: skip
"""By a span's name, everything it may tell."""


def settings(collector: Collector, more: str = "") -> str:
    return f'[tracing]\nendpoint = "{collector.url}"\nheaders = {{ X-Collector-Key = {{ env = "COLLECTOR_KEY" }} }}\n{more}'


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    """A gateway that sends its spans to `collector`."""
    with Stack(
        tmp_path_factory.mktemp("traced"),
        upstream="breaker_calls = 0",
        more=settings(collector),
        environ={"COLLECTOR_KEY": "collector-key-81c2"},
    ) as running:
        call(running)  # The first call finds keys that this process has not read, and takes every step twice.
        yield running
        running.assert_alive()


@pytest.fixture(autouse=True)
def _no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "traced" in request.fixturenames:
        request.getfixturevalue("traced").no_faults()


def call(stack: Stack, *headers: tuple[str, str], **fields: Any) -> tuple[int, str]:
    """Make one call with headers, some of them perhaps more than once; return its status and request id."""
    if not fields:
        m1, m2 = stack.masked()
        fields = {"m1": m1, "m2": m2, "expiry_duration": -1}
    answer = stack.http.post(
        stack.url + "/api/v2/Masking/unset",
        content=json.dumps(fields).encode(),
        headers=[("Authorization", f"Bearer {stack.key}"), *headers],
    )
    return answer.status_code, answer.headers["x-request-id"]


def trace_of(stack: Stack, request_id: str) -> str | None:
    (trace,) = {record.get("trace_id") for record in stack.records(request_id)}
    return trace


def lines_of(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.gateway_log().splitlines() if request_id in line]


def test_the_spans_of_a_call(traced: Stack, collector: Collector) -> None:
    """One of the request, in the caller's trace, and under it one of each step, in order, each within it."""
    trace = secrets.token_hex(16)
    status, request_id = call(traced, ("traceparent", f"00-{trace}-{SPAN}-01"), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61"))

    assert status == 200
    server, *steps = collector.of(trace)
    assert (server.name, server.kind, server.parent_id) == ("POST /api/v2/Masking/unset", "SERVER", SPAN)
    assert [step.name for step in steps] == STEPS
    assert {step.parent_id for step in steps} == {server.span_id}
    assert {step.state for step in (server, *steps)} == {"rojo=00f067aa0ba902b7,congo=t61"}
    assert {step.name for step in steps if step.kind == "CLIENT"} == {"admit", "forward"}
    assert all(server.began <= step.began <= step.ended <= server.ended for step in steps)
    assert not any(span.failed for span in (server, *steps))
    told = server.attributes
    intent, outcome = traced.records(request_id)
    assert told["http.response.status_code"] == 200
    assert (told["gateway.request_id"], told["gateway.service"], told["gateway.operation"]) == (request_id, "crm", "end")
    assert (told["gateway.decision"], told["gateway.result"], told["gateway.account"]) == ("allowed", "answered", "test")
    assert told["gateway.intent"] == f"{intent['writer']}-{intent['seq']}"
    assert told["gateway.record"] == f"{outcome['writer']}-{outcome['seq']}"
    by_name = {step.name: step.attributes for step in steps}
    assert by_name["admit"] == {"db.system.name": "redis", "db.operation.name": "EVALSHA", "gateway.admission": "admission",
                                "gateway.degraded": False}  # fmt: skip
    assert by_name["forward"]["server.address"] == "127.0.0.1"
    assert by_name["forward"]["http.response.status_code"] == 200
    assert by_name["normalise"] == {"gateway.outcome": "success"}
    assert collector.resources[-1] == {"service.name": "masking-gateway", "service.version": "0.1.0"}
    assert collector.headers[-1]["x-collector-key"] == "collector-key-81c2"


def test_records_and_lines_of_a_call_name_its_trace(traced: Stack, collector: Collector) -> None:
    """Whoever has one finds the other: every line has the trace's id, once, and that of the request's span."""
    trace = secrets.token_hex(16)
    _, request_id = call(traced, ("traceparent", f"00-{trace}-{SPAN}-01"))

    (server,) = (span for span in collector.of(trace) if span.kind == "SERVER")
    assert trace_of(traced, request_id) == trace
    lines = until(lambda: len(found := lines_of(traced, request_id)) == 2 and found)
    assert [line["event"] for line in lines] == ["call.admitted", "call.answered"]
    for line in lines:
        assert (line["trace_id"], line["span_id"], line["logger"]) == (trace, server.span_id, "gateway.calls")
    raw = [line for line in traced.gateway_log().splitlines() if request_id in line]
    assert all(line.count('"trace_id"') == 1 for line in raw)


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        ["garbage"],
        ["00-" + "0" * 32 + f"-{SPAN}-01"],
        ["00-" + "a" * 32 + "-" + "0" * 16 + "-01"],
        ["ff-" + "a" * 32 + f"-{SPAN}-01"],
        ["00-" + "A" * 32 + f"-{SPAN}-01"],
        ["00-" + "a" * 32 + f"-{SPAN}-01-more"],
        ["00-" + "a" * 32 + f"-{SPAN}-1"],
        ["00-" + "a" * 31 + f"-{SPAN}-01"],
        ["00_" + "a" * 32 + f"-{SPAN}-01"],
        ["00-" + "a" * 32 + f"-{SPAN}-01", "00-" + "b" * 32 + f"-{SPAN}-01"],
    ],
)
def test_a_trace_begins_where_none_came(traced: Stack, collector: Collector, parents: list[str]) -> None:
    """None, one that breaks the rules, or two: the call is served, in a trace of its own, without the caller's state."""
    status, request_id = call(traced, *(("traceparent", parent) for parent in parents), ("tracestate", "congo=t61"))

    trace = trace_of(traced, request_id)
    assert status == 200
    assert trace is not None
    assert trace not in ("a" * 32, "b" * 32, "0" * 32)
    server = collector.of(trace)[0]
    assert (server.parent_id, server.state) == ("", "")


@pytest.mark.parametrize(
    "parent", ["cc-{}-00f067aa0ba902b7-01", "cc-{}-00f067aa0ba902b7-01-more.of_it", "00-{}-00f067aa0ba902b7-ff"]
)
def test_a_later_version_is_read_as_far_as_it_is_known(traced: Stack, collector: Collector, parent: str) -> None:
    """What version 00 has is where it was; flags that nobody knows change nothing."""
    trace = secrets.token_hex(16)
    call(traced, ("traceparent", parent.format(trace)))

    assert collector.of(trace)[0].parent_id == SPAN


def test_what_a_caller_does_not_keep_is_not_sent(traced: Stack, collector: Collector) -> None:
    """Flags 00: the records have the trace's id, and the collector nothing of it; 01 a moment later is sent."""
    unsampled, sampled = secrets.token_hex(16), secrets.token_hex(16)
    _, request_id = call(traced, ("traceparent", f"00-{unsampled}-{SPAN}-00"))
    call(traced, ("traceparent", f"00-{sampled}-{SPAN}-01"))

    collector.of(sampled)
    assert trace_of(traced, request_id) == unsampled
    assert not [span for span in collector.spans if span.trace_id == unsampled]


def test_a_share_of_the_traces_that_begin_here(start: Callable[..., Stack]) -> None:
    """`sample_ratio = 0` keeps none of its own, and what a caller keeps all the same."""
    with Collector() as collector:
        stack = start(more=settings(collector, "sample_ratio = 0"), environ={"COLLECTOR_KEY": "k"})
        _, request_id = call(stack)
        kept = secrets.token_hex(16)
        call(stack, ("traceparent", f"00-{kept}-{SPAN}-01"))
        collector.of(kept)

        assert {span.trace_id for span in collector.spans} == {kept}
        assert trace_of(stack, request_id) not in (None, kept)


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([",".join(f"k{n}=v" for n in range(32))], ",".join(f"k{n}=v" for n in range(32))),
        ([",".join(f"k{n}=v" for n in range(33))], ""),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1,a=2"], ""),
        (["a=1,B=2"], ""),
        (["a=1 ,, b=2"], "a=1,b=2"),
        (
            ["big=" + "x" * 200 + "," + ",".join(f"k{n}=" + "y" * 90 for n in range(5))],
            ",".join(f"k{n}=" + "y" * 90 for n in range(5)),
        ),
        ([",".join(f"k{n}=" + "y" * 100 for n in range(6))], ",".join(f"k{n}=" + "y" * 100 for n in range(4))),
        (["t=9876543210,who=+91 98765 43210,key=gk_live_abc,ok=1"], "ok=1"),
        (["fine=\x7f"], ""),
    ],
)
def test_a_state_is_bounded(traced: Stack, collector: Collector, states: list[str], kept: str) -> None:
    """At most 32 members and 512 characters, the long ones gone first; what breaks the rules or could tell a number is left out."""
    trace = secrets.token_hex(16)
    status, _ = call(traced, ("traceparent", f"00-{trace}-{SPAN}-01"), *(("tracestate", state) for state in states))
    if status == 400:  # A head with control characters is not HTTP.
        return

    assert collector.of(trace)[0].state == kept


def test_steps_that_refuse_are_told_by_name(traced: Stack, collector: Collector) -> None:
    """The step that refused is failed by the problem's name; a caller's fault is no fault of the request's span, ours is."""
    m1, m2 = traced.masked()
    for fields, fault, step, ours in (
        ({"m1": "12", "expiry_duration": -1}, {}, "validate", False),
        ({"m1": "9876500001", "m2": "9876500002", "expiry_duration": -1}, {}, "normalise", False),
        ({"m1": m1, "m2": m2, "expiry_duration": 5}, {"answer": "html_502"}, "normalise", True),
        ({"m1": m1, "m2": m2, "expiry_duration": 5}, {"answer": "close"}, "forward", True),
    ):
        if fault:
            traced.fault(**fault)
        trace = secrets.token_hex(16)
        status, _ = call(traced, ("traceparent", f"00-{trace}-{SPAN}-01"), **fields)
        spans = {span.name: span for span in collector.of(trace)}
        server = spans["POST /api/v2/Masking/unset"]
        assert (spans[step].failed, server.failed, server.attributes["http.response.status_code"]) == (True, ours, status)
        assert spans[step].attributes["error.type"] == server.attributes["gateway.problem"]


def test_no_number_and_no_secret_is_in_any_span(traced: Stack, collector: Collector) -> None:
    """Whatever is planted, on whatever path: the bytes that were sent have none of it, and only attributes that are listed."""
    m1, m2 = traced.masked()
    trace = secrets.token_hex(16)
    given = [("traceparent", f"00-{trace}-{SPAN}-01")]
    hostile = [
        *given,
        ("tracestate", "who=9811122233,b=98-111-222-33,c=gk_planted"),
        ("baggage", "who=planted-7c1d"),
        ("X-Request-Id", "call-9811122233"),
        ("User-Agent", "planted-7c1d"),
        ("X-Gateway-Account", "planted-7c1d"),
        ("Cookie", "planted-7c1d"),
    ]
    url = traced.url + "/api/v2/Masking/unset?m1=9811122233&planted-7c1d"
    good = {"m1": m1, "m2": m2, "expiry_duration": -1}
    for sent, key, body in (
        (given, traced.key, good),
        (hostile, traced.key, good),
        (given, "planted-7c1d", good),
        (given, traced.key, {**good, "planted-7c1d": "9811122233"}),
        (given, traced.key, {"m1": "9811122233x", "ssid": "planted-7c1d"}),
        (hostile[:-2], traced.key, "planted-7c1d 9811122233"),
    ):
        traced.http.post(url, content=json.dumps(body).encode(), headers=[("Authorization", f"Bearer {key}"), *sent])
    traced.http.get(url, headers=hostile)
    traced.http.request("PROPFIND", url, headers=hostile)
    traced.fault(answer="echo")
    traced.http.post(url, content=json.dumps(good).encode(), headers=[("Authorization", f"Bearer {traced.key}"), *given])

    spans = collector.of(trace, lambda found: sum(span.kind == "SERVER" for span in found) == 9)
    assert {span.attributes["http.request.method"] for span in spans if span.kind == "SERVER"} == {"POST", "GET", "_OTHER"}
    for span in spans:
        assert span.attributes.keys() <= ATTRIBUTES["request" if span.kind == "SERVER" else span.name], span
        assert (span.events, span.state) == (0, ""), span
    sent_bytes = b"".join(collector.bodies)
    for planted in (m1, m2, VENDOR_SSID, traced.key, traced.key_secret, "planted", "9811122233", "98-111-222-33"):
        assert planted.encode() not in sent_bytes, planted


def test_the_vendor_gets_no_header_of_a_trace(traced: Stack) -> None:
    """As long as nobody wants it: not ours, and in no case the caller's."""
    traced.clear_vendor_calls()
    call(traced, ("traceparent", f"00-{'a' * 32}-{SPAN}-01"), ("tracestate", "congo=t61"), ("baggage", "a=b"))

    (seen,) = traced.vendor_calls()
    assert not {"traceparent", "tracestate", "baggage"} & {name.lower() for name, _ in seen["headers"]}


def test_the_vendor_may_get_our_own_span(start: Callable[..., Stack]) -> None:
    """`send_traceparent`: the id of each try's own span, never the caller's, and no state."""
    with Collector() as collector:
        stack = start(upstream="send_traceparent = true\nretries = 1", more=settings(collector), environ={"COLLECTOR_KEY": "k"})
        trace, unsampled = secrets.token_hex(16), secrets.token_hex(16)
        stack.fault(answer="close", times=1)
        status, _ = call(stack, ("traceparent", f"00-{trace}-{SPAN}-01"), ("tracestate", "congo=t61"))
        call(stack, ("traceparent", f"00-{unsampled}-{SPAN}-00"))
        tries = [span for span in collector.of(trace) if span.name == "forward"]
        sent = [{name.lower(): value for name, value in seen["headers"]} for seen in stack.vendor_calls()]

    assert status == 200
    assert [span.failed for span in tries] == [True, False]
    *first, last = (headers["traceparent"] for headers in sent)
    assert first == [f"00-{trace}-{span.span_id}-01" for span in tries]
    assert last.startswith(f"00-{unsampled}-")
    assert last.endswith("-00")
    assert SPAN not in last
    assert not any("tracestate" in headers for headers in sent)


def test_a_collector_that_fails_or_is_away_harms_no_call(start: Callable[..., Stack]) -> None:
    """Calls are answered as fast as ever, the log says once that spans are not sent, and once that they are again."""
    with Collector() as collector:
        stack = start(more=settings(collector), environ={"COLLECTOR_KEY": "k"})
        collector.status = 400
        assert call(stack)[0] == 200
        until(lambda: stack.gateway_log().count("spans.not_sent") == 1, what="the log saying so")
        collector.hold.clear()
        began = time.monotonic()
        assert all(call(stack)[0] == 200 for _ in range(20))
        assert time.monotonic() - began < 20  # Each would wait for thirty.
        collector.hold.set()
        collector.status = 200
        kept = secrets.token_hex(16)
        call(stack, ("traceparent", f"00-{kept}-{SPAN}-01"))
        collector.of(kept)
        until(lambda: stack.gateway_log().count("spans.sent_again") == 1, what="the log saying so again")
    assert call(stack)[0] == 200
    until(lambda: stack.gateway_log().count("spans.not_sent") == 2, what="a stopped collector being told")
    assert "127.0.0.1:" + str(collector.port) not in stack.gateway_log()


def test_a_stop_sends_what_is_left(start: Callable[..., Stack]) -> None:
    """The spans of the last calls are sent before the process ends, with exit 0."""
    with Collector() as collector:
        stack = start(more=settings(collector), environ={"COLLECTOR_KEY": "k"})
        kept = secrets.token_hex(16)
        call(stack, ("traceparent", f"00-{kept}-{SPAN}-01"))
        stack.gateway.signal(signal.SIGTERM)
        assert stack.gateway.popen.wait(timeout=20) == 0
        assert {span.name for span in collector.of(kept)} >= {"forward", "settle"}


def test_a_collector_that_hangs_holds_a_stop_up_for_a_moment() -> None:
    """However much is left: what cannot be sent within about two seconds, and the batch on its way, is dropped."""
    with Collector() as collector:
        document = {"accounts": {"a": {"brand": "http://127.0.0.1:1", "primary": {"ssid": {"env": "S"}}}},
                    "tracing": {"endpoint": collector.url}}  # fmt: skip
        tracing = Tracing(config.parse(document, {}), {}, lambda _: None)
        collector.hold.clear()
        tracing.open()
        for _ in range(4000):
            with tracing._span("step"):
                pass
        began = time.monotonic()
        asyncio.run(tracing.aclose())

        assert time.monotonic() - began < 20  # It would be held up for thirty.


@pytest.mark.parametrize("which", ["traced", "stack"])
def test_calls_on_one_connection_do_not_share_a_trace(request: pytest.FixtureRequest, which: str) -> None:
    """Pipelined: the second request's task is begun by the first one's, and has a trace of its own, or none."""
    stack: Stack = request.getfixturevalue(which)
    m1, m2 = stack.masked()
    body = json.dumps({"m1": m1, "m2": m2, "expiry_duration": -1})
    first, second, trace = secrets.token_hex(16), secrets.token_hex(16), secrets.token_hex(16)
    head = (
        f"POST /api/v2/Masking/unset HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {stack.key}\r\nContent-Length: {len(body)}\r\n"
    )
    requests = (
        f"{head}X-Request-Id: {first}\r\ntraceparent: 00-{trace}-{SPAN}-01\r\n\r\n{body}",
        f"{head}X-Request-Id: {second}\r\nConnection: close\r\n\r\n{body}",
    )
    with socket.create_connection((stack.host, stack.port)) as connection:
        connection.sendall("".join(requests).encode())
        while connection.recv(65_536):
            pass

    assert trace_of(stack, first) == trace
    own = trace_of(stack, second)
    assert own != trace
    assert (own is None) == (which == "stack")
    (line, _) = until(lambda: len(found := lines_of(stack, second)) == 2 and found)
    assert line.get("trace_id") == own


def test_what_a_call_began_is_no_longer_its_when_it_is_over(start: Callable[..., Stack]) -> None:
    """The call that meets an outage begins to look whether Redis is back: that it is, is no line of that call."""
    stack = start()
    stack.unset(m1=stack.masked()[0])
    traces = [secrets.token_hex(16) for _ in range(5)]
    for trace in traces:  # A beat may meet it first; a call does, sooner or later.
        m1, m2 = stack.masked()
        stack.redis.kill()
        call(stack, ("traceparent", f"00-{trace}-{SPAN}-01"), m1=m1, m2=m2)
        before = stack.gateway_log().count("ledger.recovered")
        stack.redis.start()
        until(lambda before=before: stack.gateway_log().count("ledger.recovered") > before, what="Redis being back")

    lost, recovered = (
        [json.loads(line) for line in stack.gateway_log().splitlines() if event in line]
        for event in ("ledger.lost", "ledger.recovered")
    )
    assert any(line.get("trace_id") in traces for line in lost)
    assert not any("trace_id" in line for line in recovered)


def test_without_tracing_a_callers_trace_is_recorded_and_none_is_begun(stack: Stack) -> None:
    """Records and lines have the caller's id, and no span's; who sends none has none."""
    trace = secrets.token_hex(16)
    _, with_one = call(stack, ("traceparent", f"00-{trace}-{SPAN}-00"))
    _, without = call(stack)

    assert trace_of(stack, with_one) == trace
    assert trace_of(stack, without) is None
    lines = until(lambda: len(found := lines_of(stack, with_one)) == 2 and found)
    assert [(line["trace_id"], line.get("span_id")) for line in lines] == [(trace, None)] * 2


def test_an_alarm_of_a_call_names_its_trace(start: Callable[..., Stack]) -> None:
    """Also lines that are no records: a credential that is rejected is told with the trace of the call that met it."""
    stack = start(rejections=1)
    stack.fault(force_code=1014)
    trace = secrets.token_hex(16)
    call(stack, ("traceparent", f"00-{trace}-{SPAN}-01"))

    line = until(lambda: [json.loads(line) for line in stack.gateway_log().splitlines() if "credential.rejected" in line])[0]
    assert line["trace_id"] == trace


def test_nothing_of_opentelemetry_is_loaded_unless_it_is_wanted(tmp_path: Path) -> None:
    """Without an endpoint a gateway is made without it; with one and without the extra, start and check say what to install."""
    program = (
        "import sys, os\nfrom gateway import config\nfrom gateway.app import create_app\nimport gateway.server\n"
        "settings = config.parse({'accounts': {'a': {'brand': 'http://127.0.0.1:1', 'primary': {'ssid': {'env': 'S'}}}}, "
        f"'server': {{'state_dir': {str(tmp_path)!r}}}, 'redis': {{'url': 'redis://127.0.0.1:1'}}, "
        "'audit': {'pseudonym_key': {'env': 'P'}}}, os.environ)\ncreate_app(settings, os.environ)\n"
        # redis-py loads the API by itself where it is installed, and uses nothing of it.
        "ours = ('gateway.tracing', 'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'opentelemetry.proto', 'requests')\n"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    environ = {"S": "s", "P": "p" * 32, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environ)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr

    missing = tmp_path / "missing" / "opentelemetry"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError")
    document = tmp_path / "gateway.toml"
    document.write_text(
        f'[server]\nport = 0\nstate_dir = "{tmp_path}"\n[accounts.a]\nbrand = "http://127.0.0.1:1"\n[accounts.a.primary]\nssid = {{ env = "S" }}\n'
        '[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n'
    )
    for words in (["serve"], ["check", "--offline"]):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--config", str(document)],
            capture_output=True, text=True, timeout=60, env={**environ, "PYTHONPATH": str(missing.parent)},
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert "tracing.endpoint" in done.stdout + done.stderr
        assert "masking-gateway[otel]" in done.stdout + done.stderr
