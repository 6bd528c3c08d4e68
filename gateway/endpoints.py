"""HTTP in and out: a request becomes an `Arrival`, a `Reply` becomes a response; health and the API's description."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.addresses import source
from gateway.config import Server
from gateway.document import shown
from gateway.errors import Problem, Refusal
from gateway.model import Arrival, Limit, Meter, Outcome, Reply, SignedMessage
from gateway.normalisation import outcome_of, problem_form
from gateway.pipeline import Pipeline
from gateway.tracecontext import RUNNING, SCOPE_KEY, Running, read_trace_id

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{8,64}")
# A UUID or as many hex digits hold runs of digits by chance.
_RANDOM_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}")
_LEAKING_ID: Final = re.compile(r"(?:[0-9][_.-]*){9}|gk_")
_CORS_METHODS: Final = b"POST, OPTIONS"
_CORS_HEADERS: Final = (
    b"Authorization, X-API-Key, X-Gateway-Account, X-Request-Id, Content-Type, traceparent, tracestate, "
    b"Content-Digest, Signature, Signature-Input, Idempotency-Key, X-Request-Timeout-Ms"
)
_SIGNED: Final = frozenset((b"signature", b"signature-input"))
_CORS_EXPOSED: Final = b"X-Request-Id, RateLimit, RateLimit-Policy, Retry-After, Idempotency-Replayed"

Pairs = list[tuple[bytes, bytes]]


Check = Callable[[], Awaitable[None]]


class BodyTimeout(Exception):
    """The body did not arrive in time."""


class Gone(Exception):
    """The caller hung up before its request was whole."""


@dataclass(frozen=True, slots=True)
class Unset:
    """The one call: an ASGI application, since Starlette's request and response objects would cost a third more."""

    pipeline: Pipeline
    server: Server
    clock: Callable[[], float]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            await self._serve(scope, receive, send)
        finally:
            if (running := RUNNING.get()) is not None:
                running.over = True

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Pairs = scope["headers"]
        if scope["method"] == "OPTIONS":
            await _send(
                send,
                204,
                [
                    *cors_headers(headers, self.server.cors_origins),
                    (b"access-control-allow-methods", _CORS_METHODS),
                    (b"access-control-allow-headers", _CORS_HEADERS),
                    (b"access-control-max-age", b"600"),
                ],
                b"",
            )
            return
        if scope["method"] != "POST":
            refused = outcome_of(Refusal(Problem.method_not_allowed), request_id(headers))
            await self._answer(send, headers, Reply(refused.body["request_id"], refused), [(b"allow", b"POST, OPTIONS")])
            return
        received_at = self.clock()
        try:
            body = await self._body(receive)
        except Gone:
            return  # Nothing was asked yet: there is nobody to answer and nothing to record.
        except BodyTimeout:
            reply = self.pipeline.refuse(self._arrival(scope, b"", received_at), Problem.body_timeout)
            await self._answer(send, headers, reply, [(b"connection", b"close")])
            return
        arrival = self._arrival(scope, body, received_at)
        try:
            reply = await self.pipeline.handle(arrival)
        except asyncio.CancelledError:
            # The drain ran out of time. The trail was told; the server's own answer would have another shape.
            reply = Reply(arrival.request_id, outcome_of(Refusal(Problem.internal), arrival.request_id))
        # The rest of a body that was cut short must not be read as a second request.
        cut = [(b"connection", b"close")] if len(body) > self.server.body_bytes_max else []
        await self._answer(send, headers, reply, cut)

    async def _body(self, receive: Receive) -> bytes:
        """Return the body, at most one byte longer than the bound."""
        body = b""
        try:
            async with asyncio.timeout(self.server.body_timeout_ms / 1000):
                while len(body) <= self.server.body_bytes_max:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    body += bytes(message.get("body", b""))
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            raise BodyTimeout from None
        return body[: self.server.body_bytes_max + 1]

    def _arrival(self, scope: Scope, body: bytes, received_at: float) -> Arrival:
        headers: Pairs = scope["headers"]
        authorization: list[str] = []
        api_keys: list[str] = []
        parents: list[str] = []
        account = idempotency_key = timeout_ms = None
        signed = False
        for name, value in headers:
            if name == b"authorization":
                authorization.append(value.decode("latin-1"))
            elif name == b"x-api-key":
                api_keys.append(value.decode("latin-1"))
            elif name == b"traceparent":
                parents.append(value.decode("latin-1"))
            elif name == b"x-gateway-account":
                # Sent twice it is two wishes, and names no account.
                account = value.decode("latin-1") if account is None else ""
            elif name in _SIGNED:
                signed = True
            elif name == b"idempotency-key":
                idempotency_key = value.decode("latin-1") if idempotency_key is None else ""
            elif name == b"x-request-timeout-ms":
                timeout_ms = value.decode("latin-1") if timeout_ms is None else ""
        running: Running | None = scope.get(SCOPE_KEY)
        if running is None and parents and (trace_id := read_trace_id(parents)):
            running = Running(trace_id)
        # Set where there is none too: this task may have been begun by the request before on this connection.
        RUNNING.set(running)
        return Arrival(
            request_id(headers),
            received_at,
            body,
            tuple(authorization),
            tuple(api_keys),
            running.trace_id if running else None,
            self._source(scope),
            account,
            self._message(scope) if signed else None,
            idempotency_key,
            timeout_ms,
        )

    def _source(self, scope: Scope) -> str:
        """Return the caller's address: the connection's, or what the last trusted proxy saw."""
        address: str = scope["client"][0] if scope["client"] else ""
        proxies = self.server.trusted_proxies
        if not proxies:
            return address
        told = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
        return source(address, told, proxies)

    def _message(self, scope: Scope) -> SignedMessage:
        headers: Pairs = scope["headers"]
        path: bytes = scope["raw_path"]
        return SignedMessage(
            method=scope["method"],
            scheme=self.server.public_scheme,
            authority=_one(headers, b"host") or "",
            path=path.decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers),
        )

    async def _answer(self, send: Send, headers: Pairs, reply: Reply, more: Iterable[tuple[bytes, bytes]]) -> None:
        outcome = reply.outcome
        media, body = _rendered(outcome, accepts_problem(headers))
        answer: Pairs = [
            (b"content-type", media),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", reply.request_id.encode()),
            (b"cache-control", b"no-store"),
            *cors_headers(headers, self.server.cors_origins),
            *more,
        ]
        if reply.verdict is not None:
            answer.extend(_rate_limit(reply.verdict.meters))
        if outcome.retry_after_seconds is not None:
            answer.append((b"retry-after", b"%d" % outcome.retry_after_seconds))
        if reply.replayed:
            answer.append((b"idempotency-replayed", b"true"))
        if outcome.status == 401:
            answer.append((b"www-authenticate", b'Bearer realm="masking-gateway"'))
        await _send(send, outcome.status, answer, body)


@dataclass(frozen=True, slots=True)
class Health:
    """Alive, and ready: two different questions."""

    checks: Mapping[str, Check]
    """By name; one that raises is not ready."""
    accounts: Mapping[str, Mapping[str, Check]]
    """By name and part; one that is ready is enough, since what befalls an account must not stop the others."""
    noted: Mapping[str, Check]
    """By name; told, and not needed: calls are served without them, or some of them are."""

    async def live(self, _: Request) -> Response:
        """Say that the loop answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say for each edge whether a call could be served now: 200, or 503 with the kind of fault.

        `?account=NAME` asks for one account alone.
        """
        asked = request.query_params.get("account")
        if asked is not None and asked not in self.accounts:
            return JSONResponse({"status": "unready", "checks": {f"account.{shown(asked)}": "unknown"}}, 503)
        needed = await _asked_all(self.checks)
        accounts = [
            await _asked_all({f"account.{name}.{part}": check for part, check in parts.items()})
            for name, parts in self.accounts.items()
            if asked in (None, name)
        ]
        noted = await _asked_all(self.noted)
        good = _all_well(needed) and any(map(_all_well, accounts))
        whole = good and all(map(_all_well, accounts)) and _all_well(noted)
        answers = {name: answer for told in (needed, *accounts, noted) for name, answer in told.items()}
        return JSONResponse(
            {"status": "ok" if whole else "degraded" if good else "unready", "checks": answers}, 200 if good else 503
        )


@dataclass(frozen=True, slots=True)
class Fallback:
    """Answers for what is not there, in the one shape."""

    cors_origins: tuple[str, ...]

    async def not_found(self, request: Request, _: Exception) -> Response:
        """Answer for an address there is not."""
        return self._answer(request, Problem.not_found, {})

    async def method_not_allowed(self, request: Request, error: Exception) -> Response:
        """Answer for a method an address does not take, with those it takes."""
        allowed = error.headers if isinstance(error, HTTPException) else None
        return self._answer(request, Problem.method_not_allowed, allowed or {})

    def _answer(self, request: Request, problem: Problem, more: Mapping[str, str]) -> Response:
        headers = request.headers.raw
        outcome = outcome_of(Refusal(problem), request_id(headers))
        media, body = _rendered(outcome, accepts_problem(headers))
        own = {"X-Request-Id": outcome.body["request_id"], "Cache-Control": "no-store", **more}
        response = Response(body, outcome.status, own, media.decode())
        response.raw_headers.extend(cors_headers(headers, self.cors_origins))
        return response


def parser_answer(problem: Problem, headers: Pairs, cors_origins: tuple[str, ...]) -> bytes:
    """Return the whole HTTP answer to a request that is not HTTP enough to become an arrival."""
    outcome = outcome_of(Refusal(problem), secrets.token_hex(16))
    media, body = _rendered(outcome, problem_json=False)
    answer = [
        (b"content-type", media),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", outcome.body["request_id"].encode()),
        *cors_headers(headers, cors_origins),
        (b"connection", b"close"),
    ]
    status = b"HTTP/1.1 %d %s" % (outcome.status, HTTPStatus(outcome.status).phrase.encode())
    return b"\r\n".join([status, *(name + b": " + value for name, value in answer), b"", body])


def cors_headers(headers: Pairs, origins: tuple[str, ...]) -> Pairs:
    """Return what a browser needs on every answer, errors too; nothing where CORS is off."""
    if not origins:
        return []
    origin = _one(headers, b"origin")
    if origin is None or origin not in origins:
        return [(b"vary", b"Origin")]
    return [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", origin.encode()),
        (b"access-control-expose-headers", _CORS_EXPOSED),
    ]


def request_id(headers: Pairs) -> str:
    """Return the caller's `X-Request-Id` when it is well-formed, else a new one.

    It is logged as it is, so one that could hold a telephone number or a key is not taken.
    """
    given = _one(headers, b"x-request-id")
    if given is None or not _REQUEST_ID.fullmatch(given) or (_LEAKING_ID.search(given) and not _RANDOM_ID.fullmatch(given)):
        return secrets.token_hex(16)
    return given


def accepts_problem(headers: Pairs) -> bool:
    """Say whether the caller asked for RFC 9457's form."""
    return any(name == b"accept" and b"application/problem+json" in value.lower() for name, value in headers)


def _rendered(outcome: Outcome, problem_json: bool) -> tuple[bytes, bytes]:
    if not problem_json or outcome.slug == "success":
        return b"application/json; charset=utf-8", msgspec.json.encode(outcome.body)
    return b"application/problem+json", msgspec.json.encode(problem_form(outcome))


def _rate_limit(meters: tuple[Meter, ...]) -> Pairs:
    """Return `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10).

    Of several draws on one policy, the one with least left. What is in shadow is not told: nobody has to heed it.
    """
    least: dict[str, Meter] = {}
    for meter in meters:
        policy = meter.limit.policy
        if not meter.limit.shadow and (policy not in least or meter.remaining < least[policy].remaining):
            least[policy] = meter
    if not least:
        return []
    left = ", ".join([f'"{name}";r={meter.remaining};t={meter.reset_after_seconds}' for name, meter in least.items()])
    return [
        (b"ratelimit-policy", ", ".join([_policy(meter.limit) for meter in least.values()]).encode()),
        (b"ratelimit", left.encode()),
    ]


def _policy(limit: Limit) -> str:
    if not limit.interval_us:
        return f'"{limit.policy}";q={limit.burst};qu="concurrent-requests"'
    return f'"{limit.policy}";q={limit.units};w={limit.window_seconds}'


async def _send(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _asked_all(checks: Mapping[str, Check]) -> dict[str, str]:
    return {name: await _asked(check) for name, check in checks.items()}


def _all_well(answers: Mapping[str, str]) -> bool:
    return all(answer == "ok" for answer in answers.values())


async def _asked(check: Check) -> str:
    try:
        await check()
    except Exception as error:
        return type(error).__name__
    return "ok"


def _one(headers: Pairs, wanted: bytes) -> str | None:
    """Return a header's value when it was sent exactly once."""
    found = [value for name, value in headers if name == wanted]
    return found[0].decode("latin-1") if len(found) == 1 else None


def publish(content: bytes, media: str, headers: Mapping[str, str] | None = None) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that serves what was made when the process started, and is the same for everybody."""
    whole = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **(headers or {})}

    async def published(_: Request) -> Response:
        return Response(content, headers=whole, media_type=media)

    return published
