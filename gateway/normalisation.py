"""Whatever was said, one shape: the vendor's answer, or a refusal, becomes an `Outcome`.

The vendor's success is decided by `status`, never by the presence of `code`: its other modules put `code: 200` into
successes. Its errors come with HTTP 200, with 4xx or 5xx, in two shapes, as HTML, or not at all; each has a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import Problem, Refusal
from gateway.model import Call, Outcome, UpstreamAnswer, UpstreamRequest

_MESSAGE_MAX: Final = 300
_RETRY_AFTER_MAX: Final = 3600
# Said in our words: the vendor's ("Invalid token") would make a caller look for the fault in its own key.
_OWN_WORDS: Final = frozenset((Problem.upstream_credential_rejected, Problem.upstream_token_unknown))


def normalise(answer: UpstreamAnswer, request: UpstreamRequest, call: Call, request_id: str) -> Outcome:
    """Return the outcome of a call the vendor carried out.

    Raises: Refusal for everything else the vendor may say.
    """
    said = _read(answer)
    if said is None:
        raise _without_words(answer)
    status = str(said.get("status", said.get("msg", ""))).lower()
    message = _scrubbed(said.get("message", said.get("msg_text")), request.scrub)
    if status == "success" and 200 <= answer.status < 300:
        return carried_out(message, call.operation, request_id, answer.status)
    code = _code(said.get("code"))
    if status != "error" and code is None:
        raise _without_words(answer)
    problem = Problem.of_vendor_code(code) if code is not None else _of_status(answer, Problem.vendor_code_unknown)
    raise Refusal(
        problem,
        detail=None if problem in _OWN_WORDS else message,
        vendor_code=code,
        upstream_status=answer.status,
        retry_after_seconds=_retry_after(answer) if problem.value.retryable else None,
    )


def carried_out(message: str | None, operation: str, request_id: str, upstream_status: int | None) -> Outcome:
    """Return the outcome of a call the vendor carried out. `message`: its words; None: those of its documentation."""
    body = {
        "status": "success",
        "message": message or "Your masking unset",
        "request_id": request_id,
        "operation": operation,
    }
    return Outcome(200, "success", body, "answered", "vendor", upstream_status=upstream_status)


def outcome_of(refusal: Refusal, request_id: str) -> Outcome:
    """Return the outcome of a call that was refused or failed."""
    row = refusal.problem.value
    code = refusal.vendor_code if refusal.vendor_code is not None else row.code
    body: dict[str, Any] = {
        "status": "error",
        "code": code,
        "error": refusal.problem.slug,
        "message": refusal.detail or row.message,
        "retryable": row.retryable,
        "origin": row.origin,
        "request_id": request_id,
    }
    retry_after = refusal.retry_after_seconds
    if retry_after is None and row.status == 503:
        retry_after = 1
    optional = {
        "field": refusal.field,
        "policy": refusal.policy,
        "violated-policies": refusal.violated or None,
        "retry_after": retry_after,
        "upstream_status": refusal.upstream_status,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return Outcome(
        row.status,
        refusal.problem.slug,
        body,
        row.result,
        row.origin,
        vendor_code=code,
        upstream_status=refusal.upstream_status,
        retry_after_seconds=retry_after,
        facts=refusal.facts,
    )


def problem_form(outcome: Outcome) -> dict[str, Any]:
    """Return the body of a refusal in the form of RFC 9457."""
    rest = {name: value for name, value in outcome.body.items() if name not in ("status", "message")}
    return {
        "type": f"urn:masking-gateway:problem:{outcome.slug}",
        "title": outcome.slug.replace("_", " "),
        "status": outcome.status,
        "detail": outcome.body["message"],
        **rest,
    }


def _read(answer: UpstreamAnswer) -> Mapping[str, Any] | None:
    """Return the JSON object of an answer; None when there is none to be read whole."""
    if not answer.complete:
        return None
    try:
        value = json.loads(answer.body.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _without_words(answer: UpstreamAnswer) -> Refusal:
    problem = _of_status(answer, Problem.upstream_unreadable)
    return Refusal(problem, upstream_status=answer.status, retry_after_seconds=_retry_after(answer))


def _of_status(answer: UpstreamAnswer, otherwise: Problem) -> Problem:
    if answer.status == 429:
        return Problem.vendor_throttled
    if 300 <= answer.status < 400:
        return Problem.upstream_redirected
    return Problem.vendor_failed if answer.status >= 500 else otherwise


def _code(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and abs(value) < 10**9 else None


def _retry_after(answer: UpstreamAnswer) -> int | None:
    text = (answer.retry_after or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(max(int(text), 1), _RETRY_AFTER_MAX)
    return None


def _scrubbed(message: Any, secrets: tuple[str, ...]) -> str | None:
    """Return the vendor's sentence without any form of our credential, printable and short; None when it has none."""
    if not isinstance(message, str) or not message.strip():
        return None
    for secret in secrets:
        message = message.replace(secret, "[removed]")
    # Cut after scrubbing: a cut secret would no longer be found.
    text = message.strip()
    printable = text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
    return printable[:_MESSAGE_MAX]
