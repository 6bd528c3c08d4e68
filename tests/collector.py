"""An OpenTelemetry collector for tests: takes OTLP over HTTP, keeps the spans, and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from tests.running import until

_KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT"}


@dataclass(frozen=True)
class Span:
    """One span, ids in hexadecimal."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: dict[str, Any]
    failed: bool
    began: int
    ended: int
    events: int


class Collector:
    """Listens on loopback."""

    def __init__(self, port: int = 0) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []
        self.status = 200
        self.hold = threading.Event()
        """Answers wait for it."""
        self.hold.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.hold.wait(30)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
                if collector.status == 200:
                    collector._take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                try:
                    self.send_response(collector.status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    pass  # Who asked waits no longer.

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1/traces"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def of(
        self, trace_id: str, done: Callable[[list[Span]], bool] = lambda spans: any(s.kind == "SERVER" for s in spans)
    ) -> list[Span]:
        """Return a trace's spans in the order in which they began, once that of the request is there."""

        def whole() -> list[Span] | None:
            found = [span for span in self.spans if span.trace_id == trace_id]
            return found if done(found) else None

        return sorted(until(whole, what=f"the spans of {trace_id}"), key=lambda span: span.began)

    def _take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(_values(resource.resource.attributes))
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            span.name, _KINDS[span.kind], span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                            span.trace_state, _values(span.attributes), span.status.code == 2, span.start_time_unix_nano,
                            span.end_time_unix_nano, len(span.events) + len(span.links) + len(span.status.message),
                        )
                    )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
