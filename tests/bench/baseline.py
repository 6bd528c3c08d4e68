"""The named baseline: the same job the obvious way. Starlette's Request, httpx.AsyncClient, redis-py, structlog.

Competent and idiomatic, with nothing done about cost: one client each for the life of the process, the limiter's script
registered once and run once per limit, records written with XADD, the usual structlog processors.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import phonenumbers
import redis.asyncio as redis
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

KEY_DIGESTS = {hashlib.sha256(os.environ.get("BENCH_KEY", "").encode()).hexdigest(): "bench"}
SSID = os.environ.get("BENCH_SSID", "")
PSEUDONYM_KEY = os.environ.get("BENCH_PSEUDONYM_KEY", "").encode()

GCRA = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
if at - now > tolerance then return {0, at - now - tolerance} end
redis.call('SET', KEYS[1], string.format('%.0f', at + interval), 'PX', math.ceil((at + interval - now) / 1000))
return {1, math.floor((now + tolerance - at) / interval)}
"""

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
)
log = structlog.get_logger()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.redis = redis.Redis.from_url(os.environ["BENCH_REDIS"])
    app.state.gcra = app.state.redis.register_script(GCRA)
    limits = httpx.Limits(max_connections=512, max_keepalive_connections=512)
    app.state.vendor = httpx.AsyncClient(base_url=os.environ["BENCH_VENDOR"], limits=limits, timeout=10)
    yield
    await app.state.vendor.aclose()
    await app.state.redis.aclose()


def error(status: int, slug: str, message: str, request_id: str) -> JSONResponse:
    body = {"status": "error", "code": None, "error": slug, "message": message, "retryable": False, "request_id": request_id}
    return JSONResponse(body, status)


async def unset(request: Request) -> JSONResponse:
    request_id = uuid.uuid4().hex
    begun = time.time()
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    service = KEY_DIGESTS.get(hashlib.sha256(key.encode()).hexdigest())
    if scheme.lower() != "bearer" or service is None:
        return error(401, "credential_unknown", "This key is not known here.", request_id)
    try:
        body: dict[str, Any] = json.loads(await request.body())
    except ValueError:
        return error(400, "body_malformed", "The body is not JSON.", request_id)
    numbers: dict[str, str] = {}
    for field in ("m1", "m2", "mask"):
        if field in body:
            number = phonenumbers.parse(str(body[field]), "IN")
            if not phonenumbers.is_possible_number(number):
                return error(400, "number_invalid", f"{field} is not a number.", request_id)
            numbers[field] = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if not numbers or ("m1" in numbers and numbers["m1"] == numbers.get("m2")):
        return error(400, "number_missing", "Send a number.", request_id)
    if not isinstance(body.get("expiry_duration", 0), int):
        return error(400, "expiry_duration_invalid", "Expiry must be an integer value", request_id)

    pseudonyms = {
        field: hmac.new(PSEUDONYM_KEY, number.encode(), hashlib.sha256).hexdigest() for field, number in numbers.items()
    }
    state = request.app.state
    keys = ["q:caller:bench", *(f"q:number:{pseudonym}" for pseudonym in pseudonyms.values()), "q:account"]
    remaining = []
    for quota in keys:
        admitted, left = await state.gcra(keys=[quota], args=[1, 999_999])
        if not admitted:
            return error(429, "quota_exceeded", "Try again later.", request_id)
        remaining.append(left)
    record = {"stage": "intent", "request_id": request_id, "service": service, "at": begun, **pseudonyms}
    await state.redis.xadd("audit", {"r": json.dumps(record)})
    log.info("call.admitted", **record)
    fields = {name: value for name, value in body.items() if name not in ("ssid", "userId", "token")}
    answer = await state.vendor.post("/api/v2/Masking/unset", json={"ssid": SSID, **fields})
    said = answer.json()
    record = {
        "stage": "outcome",
        "request_id": request_id,
        "service": service,
        "status": said["status"],
        "ms": time.time() - begun,
        **pseudonyms,
    }
    await state.redis.xadd("audit", {"r": json.dumps(record)})
    log.info("call.answered", **record)
    if said["status"] != "success":
        return error(502, "vendor_failed", said.get("message", ""), request_id)
    headers = {"X-Request-Id": request_id, "RateLimit": ", ".join(f'"{n}";r={left}' for n, left in enumerate(remaining))}
    return JSONResponse({**said, "request_id": request_id, "operation": "end"}, headers=headers)


app = Starlette(routes=[Route("/api/v2/Masking/unset", unset, methods=["POST"])], lifespan=lifespan)
