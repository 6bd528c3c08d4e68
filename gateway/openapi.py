"""The API's own description, OpenAPI 3.1, made from the problem table so that no error is missing from it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from gateway import idempotency, keys
from gateway.deadline import TIMEOUT_MS_MAX
from gateway.errors import Problem, Refusal
from gateway.model import OPERATIONS, UNSET_PATH, Outcome
from gateway.normalisation import carried_out, outcome_of, problem_form
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
        "tags": [
            {"name": "call", "description": "What services ask for."},
            {"name": "service", "description": "What operators, balancers and readers ask for; no key is wanted."},
        ],
        "paths": {
            UNSET_PATH: {"post": _unset(), "options": _preflight()},
            "/livez": {
                "get": _read("live", "Whether the process answers.", "It does.", "application/json", _ref("schemas", "Health"))
            },
            "/readyz": {"get": _ready()},
            "/openapi.json": {"get": _read("openapi", "This document.", "OpenAPI 3.1.", "application/json", {"type": "object"})},
            "/docs": {"get": _read("docs", "This document as a page.", "The page.", "text/html", {"type": "string"})},
        },
        "components": {
            "securitySchemes": _SECURITY,
            "schemas": _schemas(),
            "headers": _HEADERS,
            "responses": {str(status): _refused(status, problems) for status, problems in _by_status(_OF_HTTP).items()},
        },
    }


_REQUEST_ID: Final = "4d738815093a2230f709fc6631270db5"
_KEY: Final = f"gk_live_7f3k9q2mab_{'yoursecret' * 3}000"
"""Of a key's form, and nobody's."""

_SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The internal key, `gk_…`, or the JWT of a workload's platform.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The internal key, `gk_…`."},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "RFC 9421, by the private key whose public key the gateway has.",
    },
    "signatureInput": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature-Input",
        "description": "What is signed: `@method`, `@target-uri` and `content-digest`, with `created`, `nonce` and `keyid`.",
    },
    "contentDigest": {
        "type": "apiKey",
        "in": "header",
        "name": "Content-Digest",
        "description": "RFC 9530: `sha-256` or `sha-512` of the body.",
    },
}

_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "Under this id the call stands in log and audit trail.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{8,64}$"},
        "example": _REQUEST_ID,
    },
    "RateLimit": {
        "description": "What the policies have left: `r` units, and `t` seconds until that is whole again "
        "(draft-ietf-httpapi-ratelimit-headers-10). There where limits were looked at.",
        "schema": {"type": "string"},
        "example": '"caller";r=99;t=1, "number";r=9;t=2',
    },
    "RateLimit-Policy": {
        "description": "The policies: `q` units in `w` seconds. There with `RateLimit`.",
        "schema": {"type": "string"},
        "example": '"caller";q=50;w=1, "number";q=30;w=60',
    },
    "Idempotency-Replayed": {
        "description": "`true`: it is the answer to an earlier request with the same `Idempotency-Key`, whose id is in the body.",
        "schema": {"const": "true"},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}, "example": 1},
    "WWW-Authenticate": {
        "description": "How to say who is calling.",
        "required": True,
        "schema": {"const": 'Bearer realm="masking-gateway"'},
    },
    "Allow": {
        "description": "The methods that are taken.",
        "required": True,
        "schema": {"type": "string"},
        "example": "POST, OPTIONS",
    },
}

_OF_HTTP: Final = (
    Problem.http_malformed,
    Problem.length_empty,
    Problem.length_required,
    Problem.header_timeout,
    Problem.headers_too_large,
    Problem.not_found,
    Problem.method_not_allowed,
)
"""What may be answered at any address."""

_FIELDS: Final = {
    Problem.field_duplicate: "m1",
    Problem.field_type: "m1",
    Problem.field_unknown: "colour",
    Problem.number_missing: "m1",
    Problem.number_invalid: "m1",
    Problem.number_not_permitted: "m1",
    Problem.numbers_equal: "m2",
    Problem.expiry_duration_invalid: "expiry_duration",
    Problem.expiry_time_invalid: "expiry_time",
    Problem.expiry_conflict: "expiry_time",
    Problem.vendor_credential_sent: "ssid",
}
"""The field that each is shown with."""

_BEFORE_LIMITS: Final = frozenset((401, 403, 405, 408, 411, 413, 422, 431))
"""Statuses of what is refused before any limit is looked at."""


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> dict[str, Any]:
    return {name: _ref("headers", name) for name in names}


def _by_status(problems: Iterable[Problem]) -> dict[int, list[Problem]]:
    found: dict[int, list[Problem]] = defaultdict(list)
    for problem in problems:
        found[problem.value.status].append(problem)
    return dict(sorted(found.items()))


def _example(problem: Problem) -> Outcome:
    """Return what a caller gets, with the facts that such an answer has."""
    if problem is Problem.quota_exceeded:
        refusal = Refusal(problem, policy="number", violated=("caller", "number"), retry_after_seconds=2)
    elif problem is Problem.idempotency_running:
        refusal = Refusal(problem, retry_after_seconds=1)
    else:
        refusal = Refusal(problem, field=_FIELDS.get(problem), upstream_status=200 if problem.value.origin == "vendor" else None)
    return outcome_of(refusal, _REQUEST_ID)


def _refused(status: int, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the answers of one status, in both forms, each problem with an example."""
    names = ["X-Request-Id"]
    names += [] if status in _BEFORE_LIMITS else ["RateLimit", "RateLimit-Policy"]
    names += ["Retry-After"] if status in (409, 429, 503) else []
    names += ["Idempotency-Replayed"] if status < 500 and any(problem.value.origin == "vendor" for problem in problems) else []
    names += {401: ["WWW-Authenticate"], 405: ["Allow"]}.get(status, [])
    outcomes = {problem.slug: (problem.value.message, _example(problem)) for problem in problems}
    forms: dict[str, tuple[str, Callable[[Outcome], dict[str, Any]]]] = {
        "application/json": ("Error", lambda outcome: outcome.body),
        "application/problem+json": ("Problem", problem_form),
    }
    return {
        "description": "\n\n".join(f"`{problem.slug}` ({problem.value.origin}): {problem.value.message}" for problem in problems),
        "headers": _headers(*names),
        "content": {
            media: {
                "schema": _ref("schemas", schema),
                "examples": {slug: {"summary": message, "value": form(outcome)} for slug, (message, outcome) in outcomes.items()},
            }
            for media, (schema, form) in forms.items()
        },
    }


_CALLS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "end": ("End a masking at once", {"m1": "9876543210", "m2": "9876543211", "expiry_duration": -1}),
    "minutes": ("Let it end in a day", {"m1": "+91 98765 43210", "m2": "+91 98765 43211", "expiry_duration": 1440}),
    "instant": ("Let it end at an instant", {"mask": "919876543212", "expiry_time": "2030-01-31T18:00:00+05:30"}),
    "vendor": ("The vendor's own form, with the key as ssid", {"ssid": _KEY, "m1": "9876543210", "m2": "9876543211"}),
}
"""By name: what it does, and the body."""


def _curl(body: dict[str, Any]) -> str:
    proof = [] if "ssid" in body else ['-H "Authorization: Bearer $KEY"']
    more = ["-H 'Content-Type: application/json'", "-H 'Idempotency-Key: 7d1f0a52-7c3b-4f0e-9d55-3f6b1f0c2a90'"]
    return " \\\n  ".join([f'curl "$GATEWAY{UNSET_PATH}"', *proof, *more, f"-d '{json.dumps(body, indent=4)[:-1]}  }}'"])


def _unset() -> dict[str, Any]:
    done = carried_out(None, "end", _REQUEST_ID, 200).body
    moved = carried_out(None, "reschedule", _REQUEST_ID, 200).body
    return {
        "operationId": "unset",
        "tags": ["call"],
        "summary": "End a masking, or change when it ends.",
        "description": "Without an expiry field, or with a negative duration, the masking ends at once. The body is read as JSON "
        "whatever its content type.\n\n"
        "Show one proof of who is calling: a key or a token as `Authorization`, a key as `X-API-Key`, a signed request, or a key "
        "where the vendor's own clients have a credential: the whole key as `ssid` in the body, or its id as `userId` and its "
        "secret as `token`. OpenAPI has no name for a proof in the body, and so calls one in a header optional.\n\n"
        "Refusals come as `application/problem+json` (RFC 9457) where `Accept` names it.",
        "security": [
            {"bearer": []},
            {"apiKey": []},
            {"signature": [], "signatureInput": [], "contentDigest": []},
            {},
        ],
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref("schemas", "Unset"),
                    "examples": {name: {"summary": summary, "value": body} for name, (summary, body) in _CALLS.items()},
                }
            },
        },
        "responses": {
            "200": {
                "description": "The vendor carried it out.",
                "headers": _headers("X-Request-Id", "RateLimit", "RateLimit-Policy", "Idempotency-Replayed"),
                "content": {
                    "application/json": {
                        "schema": _ref("schemas", "Success"),
                        "examples": {
                            "end": {"summary": "The masking has ended", "value": done},
                            "reschedule": {"summary": "It ends at another time", "value": moved},
                        },
                    }
                },
            },
            **{str(status): _refused(status, problems) for status, problems in _by_status(Problem).items()},
        },
        "x-codeSamples": [{"lang": "curl", "label": summary, "source": _curl(body)} for summary, body in _CALLS.values()],
    }


def _parameters() -> list[dict[str, Any]]:
    return [
        _header(
            "Idempotency-Key",
            "Names the call, so that it is made once: asked for again under the same key, it gets the same answer, with "
            "`Idempotency-Replayed: true`. 1 to 255 visible ASCII characters, quoted or not. It is the service's own on one "
            "account (draft-ietf-httpapi-idempotency-key-header).",
            {"type": "string", "pattern": f"^(?:{idempotency.FORM})$"},
            "7d1f0a52-7c3b-4f0e-9d55-3f6b1f0c2a90",
        ),
        _header(
            "X-Request-Timeout-Ms",
            "How long the caller waits, from the request's arrival; the vendor is waited for no longer.",
            {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX},
            20_000,
        ),
        _header(
            "X-Gateway-Account",
            "The vendor account, where the service may use several; the first of them if not given.",
            {"type": "string"},
        ),
        _header(
            "X-Request-Id",
            "The caller's own name for the request: 8 to 64 letters, digits, `_`, `.` and `-`, without a key or a telephone "
            "number. Any other is not taken, and a new one is made.",
            {"type": "string"},
            _REQUEST_ID,
        ),
        _header(
            "traceparent",
            "W3C Trace Context; the trace is continued, and its id recorded. What has another form is not.",
            {"type": "string"},
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        _header(
            "tracestate",
            "Goes with `traceparent`; passed to where spans are gathered.",
            {"type": "string"},
            "vendor=00f067aa0ba902b7",
        ),
    ]


def _header(name: str, description: str, schema: dict[str, Any], example: str | int | None = None) -> dict[str, Any]:
    shown = {} if example is None else {"example": example}
    return {"name": name, "in": "header", "description": description, "schema": schema, **shown}


def _preflight() -> dict[str, Any]:
    allow = {"schema": {"type": "string"}}
    return {
        "operationId": "preflight",
        "tags": ["service"],
        "summary": "A browser's question whether it may call.",
        "description": "Only the origins in `server.cors_origins` may.",
        "security": [],
        "responses": {
            "204": {
                "description": "The answer is in its headers.",
                "headers": {
                    "Access-Control-Allow-Origin": {"description": "There where the origin may call.", **allow},
                    "Access-Control-Allow-Methods": {"description": "The methods it may use.", "required": True, **allow},
                    "Access-Control-Allow-Headers": {"description": "The headers it may send.", "required": True, **allow},
                    "Access-Control-Max-Age": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}},
                },
            },
            **_anywhere(),
        },
    }


def _ready() -> dict[str, Any]:
    """Return the question of balancers; see `endpoints.Health`."""
    health = _ref("schemas", "Health")
    asked = _read("ready", "Whether a call could be served now.", "It could.", "application/json", health)
    asked["parameters"] = [
        {"name": "account", "in": "query", "description": "Asks for one vendor account alone.", "schema": {"type": "string"}}
    ]
    asked["responses"]["503"] = {
        "description": "Something a call needs is missing; `checks` says what.",
        "content": {"application/json": {"schema": health}},
    }
    return asked


def _read(name: str, summary: str, answer: str, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return an address that is only read, by whoever reaches it."""
    good = {"200": {"description": answer, "content": {media: {"schema": schema}}}}
    return {"operationId": name, "tags": ["service"], "summary": summary, "security": [], "responses": {**good, **_anywhere()}}


def _anywhere() -> dict[str, Any]:
    """Return what may be answered at any address there is."""
    return {str(status): _ref("responses", str(status)) for status in _by_status(_OF_HTTP) if status != 404}


def _number(description: str) -> dict[str, Any]:
    """Return the schema of a telephone number. Which lengths are possible in which country no schema can say."""
    return {
        "description": description,
        "anyOf": [
            {"type": "string", "pattern": r"^\+?[0-9 ().-]{3,32}$"},
            {"type": "integer", "minimum": 100, "maximum": 999_999_999_999_999},
        ],
        "examples": ["919876543210", "+91 98765 43210"],
    }


def _absent_or(form: str, description: str) -> dict[str, Any]:
    """Return the schema of a field in which the vendor's clients send nothing as an empty text or null."""
    return {"type": ["string", "null"], "pattern": f"^(?:{form})?$", "description": description}


def _schemas() -> dict[str, Any]:
    error: dict[str, Any] = {
        "code": {"type": ["integer", "null"], "description": "The vendor's code for this fault; null where it has none."},
        "error": {"type": "string", "enum": [problem.slug for problem in Problem], "description": "Which error it is; stable."},
        "retryable": {"type": "boolean", "description": "Whether the same call may succeed later."},
        "origin": {"enum": ["gateway", "vendor"], "description": "Who refused."},
        "request_id": {"type": "string", "description": "Under this id the call stands in log and audit trail."},
        "field": {"type": "string", "description": "The body's field at fault."},
        "policy": {"type": "string", "description": "The policy that refused; of several the one that takes longest."},
        "violated-policies": {"type": "array", "items": {"type": "string"}, "description": "All the policies that refused."},
        "retry_after": {"type": "integer", "minimum": 1, "description": "Seconds after which to try again."},
        "upstream_status": {"type": "integer", "description": "HTTP status of the vendor's answer."},
    }
    required = ["code", "error", "retryable", "origin", "request_id"]
    return {
        "Unset": {
            "type": "object",
            "additionalProperties": False,
            "description": "At least one of `m1`, `m2` and `mask`, and when the masking is to end.",
            "properties": {
                "m1": _number(
                    "The one party's telephone number: with `+` and country code, with country code, with a leading 0, "
                    "or in the home format."
                ),
                "m2": _number("The other party's, written in any of these ways."),
                "mask": _number("The virtual number between them, likewise."),
                "expiry_time": {
                    "description": "Unix seconds, or ISO 8601 with its zone, like `2030-01-31T18:00:00+05:30`.",
                    "anyOf": [
                        {"type": "integer", "minimum": 1, "maximum": 99_999_999_999},
                        {"type": "string", "format": "date-time", "pattern": "^(197[1-9]|19[89][0-9]|[2-4][0-9]{3})-"},
                        {"type": "string", "pattern": "^[1-9][0-9]{0,10}$"},
                    ],
                },
                "expiry_duration": {
                    "description": "Minutes from now; negative ends the masking at once. "
                    f"From -{MINUTES_MAX} to {MINUTES_MAX}, which is ten years.",
                    "anyOf": [
                        {"type": "integer", "minimum": -MINUTES_MAX, "maximum": MINUTES_MAX},
                        {"type": "string", "pattern": "^[+-]?[0-9]{1,6}$"},
                    ],
                },
                "ssid": _absent_or(keys.PREFIX + keys.FORM, "An internal key."),
                "userId": _absent_or(keys.ID_FORM, "An internal key's id; with `token`."),
                "token": _absent_or(keys.SECRET_FORM, "An internal key's secret; with `userId`."),
            },
            "dependentRequired": {"userId": ["token"], "token": ["userId"]},
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
            "properties": {
                "status": {"const": "error", "description": "In every error; the vendor's word."},
                "message": {"type": "string", "description": "What is wrong, and what to do about it."},
                **error,
            },
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
