"""OpenTelemetry: one span of each request and one of each step, put around the stages from outside, and sent in the background.

Nothing of it is loaded unless `tracing.endpoint` is set, and no stage knows of it. What a span tells is written down here, and
nothing else of a call is: no number, body, header or secret, and of an error its name alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import __version__
from gateway.audit import Record
from gateway.calling import Account
from gateway.config import Settings
from gateway.errors import Refusal
from gateway.model import UNSET_PATH, Admission, Outcome, UpstreamAnswer, Verdict
from gateway.pipeline import Pipeline
from gateway.tracecontext import SCOPE_KEY, Parent, Running, read_parent

_METHODS: Final = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_TOLD: Final = ("request_id", "account", "service", "operation", "decision", "result", "problem", "attempt", "intent")
"""Fields of a call's records that its span tells too."""
_QUEUE_MAX: Final = 4096
_BATCH_MAX: Final = 512
_EVERY_MS: Final = 1000
_ANSWER_SECONDS: Final = 2.0
_LAST_SECONDS: Final = 2.0
"""How long the end waits for spans that are not sent yet, beside the batch that is on its way."""
_REDIS: Final = {"db.system.name": "redis", "db.operation.name": "EVALSHA"}

_T = TypeVar("_T")
Attributes = Mapping[str, str | int | bool]


class Tracing:
    """The spans of one process."""

    def __init__(self, settings: Settings, headers: Mapping[str, str], told: Callable[[bool], None]) -> None:
        """Sends nothing before `open`. `headers` go to the collector; `told(sent)` hears when sending fails, and works again."""
        self._brands = {name: account.brand for name, account in settings.accounts.items()}
        self._settings = settings.tracing
        self._headers = headers
        self._told = told
        self._exporter: _Exporter | None = None
        resource = Resource({"service.name": settings.tracing.service_name, "service.version": __version__})
        sampler = ParentBased(TraceIdRatioBased(settings.tracing.sample_ratio))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("masking-gateway", __version__)

    def open(self) -> None:
        """Begin to send."""
        session = requests.Session()
        session.trust_env = False
        inner = OTLPSpanExporter(self._settings.endpoint, headers=self._headers, timeout=_ANSWER_SECONDS, session=session)
        self._exporter = _Exporter(inner, self._told)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter, max_queue_size=_QUEUE_MAX, schedule_delay_millis=_EVERY_MS, max_export_batch_size=_BATCH_MAX
            )
        )

    async def aclose(self) -> None:
        """Send what is still to be sent, as far as it can be sent now."""
        if self._exporter is not None:
            self._exporter.until = time.monotonic() + _LAST_SECONDS
        await asyncio.to_thread(self._provider.shutdown)

    def traceparent(self) -> str:
        """Return the `traceparent` that names the span under way."""
        context = trace.get_current_span().get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"

    def served(self, app: ASGIApp) -> ASGIApp:
        """Return an application of which each request is a span, in the caller's trace or in one of its own."""

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
            attributes = {
                "http.request.method": method,
                "http.route": UNSET_PATH,
                "url.path": UNSET_PATH,
                "url.scheme": scope["scheme"],
                "network.protocol.version": scope["http_version"],
            }
            # Never the context that this task was begun in: it may be that of the request before on this connection.
            with self._span(f"{method} {UNSET_PATH}", SpanKind.SERVER, attributes, _context(scope["headers"])) as span:

                async def noted(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        _note_status(span, message["status"])
                    await send(message)

                ids = span.get_span_context()
                scope[SCOPE_KEY] = Running(f"{ids.trace_id:032x}", f"{ids.span_id:016x}")
                await app(scope, receive, noted)

        return served

    def stepped(self, pipeline: Pipeline) -> Pipeline:
        """Return a pipeline of which each step is a span."""
        calling = replace(
            pipeline.calling,
            exchange=self._steps(pipeline.calling.exchange, exchange=self._step("exchange")),
            normalise=self._step("normalise", told=_outcome)(pipeline.calling.normalise),
            observer=self._steps(pipeline.calling.observer, recorded=_noted, ended=_noted),
        )
        return replace(
            pipeline,
            authenticator=self._steps(pipeline.authenticator, authenticate=self._step("authenticate")),
            validator=self._steps(pipeline.validator, validate=self._step("validate")),
            accounts={name: self._account(account, self._brands[name]) for name, account in pipeline.accounts.items()},
            calling=calling,
        )

    def _account(self, account: Account, brand: str) -> Account:
        parts = urlsplit(brand)
        vendor: Attributes = {
            "http.request.method": "POST",
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            "url.full": brand + UNSET_PATH,
        }
        ledger = self._steps(
            account.ledger, admit=self._awaited("admit", SpanKind.CLIENT, _REDIS, _admission), settle=self._step("settle")
        )
        upstream = self._steps(account.upstream, forward=self._awaited("forward", SpanKind.CLIENT, vendor, _answer))
        return replace(account, ledger=ledger, upstream=upstream)

    def _steps(self, stage: _T, **steps: Callable[[Any], Any]) -> _T:
        """Return a stage of which these methods are put into something else; whoever calls it sees no difference."""
        return cast("_T", _Stage(stage, {name: step(getattr(stage, name)) for name, step in steps.items()}))

    def _step(self, name: str, *, told: Callable[[Any], Attributes] = lambda _: {}) -> Callable[[Any], Any]:
        def around(work: Callable[..., Any]) -> Callable[..., Any]:
            def step(*given: Any, **named: Any) -> Any:
                with self._span(name) as span:
                    answer = work(*given, **named)
                    span.set_attributes(told(answer))
                    return answer

            return step

        return around

    def _awaited(
        self, name: str, kind: SpanKind, attributes: Attributes, told: Callable[[Any], Attributes]
    ) -> Callable[[Any], Any]:
        def around(work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def step(*given: Any, **named: Any) -> Any:
                with self._span(name, kind, attributes) as span:
                    answer = await work(*given, **named)
                    span.set_attributes(told(answer))
                    return answer

            return step

        return around

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        context: Context | None = None,
    ) -> Iterator[trace.Span]:
        """Run a block as a span. Of what it raises the name is told: the text may hold what somebody sent."""
        with self._tracer.start_as_current_span(
            name, context, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", error.problem.slug if isinstance(error, Refusal) else type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise


class _Stage:
    """A stage of which some methods are others, and all else its own."""

    def __init__(self, inner: object, steps: Mapping[str, Callable[..., Any]]) -> None:
        self._inner = inner
        self.__dict__.update(steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Exporter(SpanExporter):
    """Sends batches, tells when that fails and when it works again, and gives up at the end of its time."""

    def __init__(self, inner: SpanExporter, told: Callable[[bool], None]) -> None:
        self.until = math.inf
        """Seconds of the monotonic clock after which nothing more is sent."""
        self._inner = inner
        self._told = told
        self._sent = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if time.monotonic() > self.until:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        sent = result is SpanExportResult.SUCCESS
        if sent is not self._sent:
            self._sent = sent
            self._told(sent)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def _context(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """Return the context of a request: its caller's, or an empty one, in which a trace begins."""
    parents = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
    states = [value.decode("latin-1") for name, value in headers if name == b"tracestate"]
    parent = read_parent(parents, states)
    return Context() if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(_remote(parent)), Context())


def _remote(parent: Parent) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    state = trace.TraceState(list(parent.state))
    return trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)


def _note_status(span: trace.Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


def _noted(recorded: Callable[[Record], None]) -> Callable[[Record], None]:
    """Let a request's span tell what its records tell."""

    def noted(record: Record) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            found = {f"gateway.{name}": value for name in _TOLD if (value := getattr(record, name)) is not None}
            span.set_attributes(found | ({"gateway.record": record.id} if record.seq >= 0 else {}))
        recorded(record)

    return noted


def _admission(answer: object) -> Attributes:
    verdict = answer.verdict if isinstance(answer, Admission) else answer
    return {"gateway.admission": type(answer).__name__.lower()} | (
        {"gateway.degraded": verdict.degraded} if isinstance(verdict, Verdict) else {}
    )


def _answer(answer: UpstreamAnswer) -> Attributes:
    return {"http.response.status_code": answer.status}


def _outcome(outcome: Outcome) -> Attributes:
    return {"gateway.outcome": outcome.slug}
