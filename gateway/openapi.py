"""The API's own description, OpenAPI 3.1, made from the problem table so that no error is missing from it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gateway.deadline import TIMEOUT_MS_MAX
from gateway.errors import Problem
from gateway.model import OPERATIONS, UNSET_PATH
from gateway.validation import MINUTES_MAX


def describe_api(version: str) -> dict[str, Any]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Masking Gateway",
            "version": version,
            "description": "Ends a number masking or changes when it ends, with an internal key.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            UNSET_PATH: {"post": _unset()},
            "/livez": {"get": _health("live", "The process answers.", {})},
            "/readyz": {
                "get": _health(
                    "ready",
                    "A call could be served now.",
                    {
                        "503": {
                            "description": "Something a call needs is missing; `checks` says what.",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}},
                        }
                    },
                )
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document.",
                    "security": [],
                    "responses": {
                        "200": {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}
                    },
                }
            },
        },
        "components": {"securitySchemes": _SECURITY, "schemas": _schemas(), "headers": _HEADERS},
    }


_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "`Authorization: Bearer gk_…`, or the JWT of a workload's platform",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "RFC 9421, with `Signature-Input` and `Content-Digest`; covers `@method`, `@target-uri`, `content-digest`",
    },
}

_HEADERS = {
    "X-Request-Id": {"description": "Under this id the call stands in log and audit trail.", "schema": {"type": "string"}},
    "RateLimit": {
        "description": "What the quotas have left (draft-ietf-httpapi-ratelimit-headers-10).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {"description": "The quotas.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true`: it is the answer to an earlier request with the same `Idempotency-Key`, whose id is in the body.",
        "schema": {"const": "true"},
    },
    "Retry-After": {"description": "Seconds to wait, at least 1.", "schema": {"type": "integer", "minimum": 1}},
}


def _unset() -> dict[str, Any]:
    shared = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", "RateLimit", "RateLimit-Policy")}
    again = {"Idempotency-Replayed": {"$ref": "#/components/headers/Idempotency-Replayed"}}
    responses: dict[str, Any] = {
        "200": {
            "description": "The vendor carried it out.",
            "headers": {**shared, **again},
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Success"}}},
        },
    }
    by_status: dict[int, list[Problem]] = defaultdict(list)
    for problem in Problem:
        by_status[problem.value.status].append(problem)
    for status, problems in sorted(by_status.items()):
        lines = [f"`{problem.slug}` ({problem.value.origin}): {problem.value.message}" for problem in problems]
        waits = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}} if status in (409, 429, 503) else {}
        kept = status < 500 and any(problem.value.origin == "vendor" for problem in problems)
        responses[str(status)] = {
            "description": "\n\n".join(lines),
            "headers": {"X-Request-Id": shared["X-Request-Id"], **waits, **(again if kept else {})},
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Error"}},
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
            },
        }
    return {
        "operationId": "unset",
        "summary": "End a masking, or change when it ends.",
        "description": "No expiry field, or a negative duration, ends the masking at once. The body is read as JSON whatever "
        "its content type. The key may also come in the body: as `ssid`, or its id as `userId` and its secret as `token`.",
        "security": [{"bearer": []}, {"apiKey": []}, {"signature": []}, {}],
        "parameters": [
            {
                "name": "X-Gateway-Account",
                "in": "header",
                "description": "The vendor account, where the service may use several; the first of them if not given.",
                "schema": {"type": "string"},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Names the call, so that it is made once: asked for again under the same key, it gets the same "
                "answer, with `Idempotency-Replayed: true`. 1 to 255 visible ASCII characters, quoted or not; a UUID, say. It is "
                "the service's own on one account (draft-ietf-httpapi-idempotency-key-header).",
                "schema": {"type": "string"},
            },
            {
                "name": "X-Request-Timeout-Ms",
                "in": "header",
                "description": "How long the caller waits, from the request's arrival; the vendor is waited for no longer.",
                "schema": {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX},
            },
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Unset"}}}},
        "responses": responses,
    }


def _health(name: str, meaning: str, more: dict[str, Any]) -> dict[str, Any]:
    good = {"200": {"description": meaning, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}}}
    return {"operationId": name, "summary": meaning, "security": [], "responses": {**good, **more}}


def _schemas() -> dict[str, Any]:
    number = {
        "description": "A telephone number: with + and country code, with country code, with a leading 0, or in the home format.",
        "anyOf": [
            {"type": "string", "pattern": r"^\+?[0-9 ().-]{3,32}$"},
            {"type": "integer", "minimum": 100, "maximum": 999_999_999_999_999},
        ],
        "examples": ["919876543210", "+91 98765 43210"],
    }
    error: dict[str, Any] = {
        "code": {"type": ["integer", "null"], "description": "The vendor's code for this fault; null where it has none."},
        "error": {"type": "string", "enum": [problem.slug for problem in Problem]},
        "retryable": {"type": "boolean", "description": "Whether the same call may succeed later."},
        "origin": {"enum": ["gateway", "vendor"], "description": "Who refused."},
        "request_id": {"type": "string"},
        "field": {"type": "string", "description": "The body's field at fault."},
        "policy": {"type": "string", "description": "The policy that refused; of several the one that takes longest."},
        "violated-policies": {"type": "array", "items": {"type": "string"}, "description": "All the policies that refused."},
        "retry_after": {"type": "integer", "minimum": 1, "description": "Seconds."},
        "upstream_status": {"type": "integer", "description": "HTTP status of the vendor's answer."},
    }
    required = ["code", "error", "retryable", "origin", "request_id"]
    return {
        "Unset": {
            "type": "object",
            "additionalProperties": False,
            "description": "At least one of m1, m2 and mask.",
            "properties": {
                "m1": number,
                "m2": number,
                "mask": number,
                "expiry_time": {
                    "description": "Unix seconds, or ISO 8601 with its zone.",
                    "anyOf": [
                        {"type": "integer", "minimum": 1, "maximum": 99_999_999_999},
                        {"type": "string", "format": "date-time"},
                        {"type": "string", "pattern": "^[1-9][0-9]{0,10}$"},
                    ],
                },
                "expiry_duration": {
                    "description": "Minutes; negative ends the masking at once.",
                    "anyOf": [
                        {"type": "integer", "minimum": -MINUTES_MAX, "maximum": MINUTES_MAX},
                        {"type": "string", "pattern": "^[+-]?[0-9]{1,6}$"},
                    ],
                },
                "ssid": {"type": "string", "description": "An internal key."},
                "userId": {"type": "string", "description": "An internal key's id; with token."},
                "token": {"type": "string", "description": "An internal key's secret; with userId."},
            },
            "anyOf": [{"required": ["m1"]}, {"required": ["m2"]}, {"required": ["mask"]}],
        },
        "Success": {
            "type": "object",
            "properties": {
                "status": {"const": "success"},
                "message": {"type": "string"},
                "request_id": {"type": "string"},
                "operation": {"enum": list(OPERATIONS)},
            },
            "required": ["status", "message", "request_id", "operation"],
        },
        "Error": {
            "type": "object",
            "properties": {"status": {"const": "error"}, "message": {"type": "string"}, **error},
            "required": ["status", "message", *required],
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457.",
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                **error,
            },
            "required": ["type", "title", "status", "detail", *required],
        },
        "Health": {
            "type": "object",
            "properties": {
                "status": {"enum": ["ok", "degraded", "unready"]},
                "checks": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["status"],
        },
    }
