"""The problem table: everything that can go wrong, once, and the one exception that names a row.

A row exists only if a caller would act differently on it. Messages say what is wrong and what to do about it;
they never hold a fact of the request. Vendor codes and texts: the vendor's Masking API v2 and sibling pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Origin = Literal["gateway", "vendor"]
Result = Literal["refused", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Row:
    """What is decided about one problem."""

    status: int
    """HTTP status of the answer."""
    code: int | None
    """The vendor's code for the same fault; None where the vendor has none."""
    origin: Origin
    """Who refused."""
    retryable: bool
    """Whether the same call may succeed later."""
    result: Result
    """How the audit trail classes it. `unknown`: the vendor may have acted."""
    message: str
    """For the caller: what is wrong, and the fix."""


def _mine(status: int, message: str, code: int | None = None, *, retry: bool = False, result: Result = "refused") -> Row:
    return Row(status, code, "gateway", retry, result, message)


def _vendor(status: int, message: str, code: int | None, *, retry: bool = False, result: Result = "failed") -> Row:
    return Row(status, code, "vendor", retry, result, message)


_SEND_KEY = "Send the internal key as 'Authorization: Bearer gk_…', as 'X-API-Key', or as 'ssid' in the body."


class Problem(Enum):
    """Every refusal and failure, by its stable code."""

    # Who is calling
    credential_missing = _mine(401, f"No credential was sent. {_SEND_KEY}", 1020)
    credential_malformed = _mine(401, f"The credential is not an internal key, or has a typing error. {_SEND_KEY}", 1014)
    credential_unknown = _mine(401, "This key is not known here. Ask the gateway's operators for a key.", 1014)
    credential_expired = _mine(401, "This key has expired. Ask the gateway's operators for a new one.", 1014)
    credential_revoked = _mine(401, "This key was revoked. Ask the gateway's operators for a new one.", 1014)
    credential_conflict = _mine(401, "Two different credentials were sent. Send exactly one.", 1014)
    vendor_credential_sent = _mine(
        401, f"The body holds a credential that is not an internal key; the vendor's is never sent here. {_SEND_KEY}", 1014
    )
    token_refused = _mine(401, "The workload's token was not accepted. Send a fresh one made for this gateway.", 1014)
    signature_refused = _mine(401, "The request's signature was not accepted.", 1014)
    signature_replayed = _mine(401, "This signed request was made before. Sign each request with a new nonce.", 1014)
    identity_unavailable = _mine(
        503, "The keys that prove workloads cannot be had now, so the call was not made. Try again shortly.", retry=True
    )
    scope_missing = _mine(403, "This key has no scope for the operation. Ask the gateway's operators for it.", 1015)
    account_not_permitted = _mine(
        403,
        "This service and its key may not use that vendor account. Name another as 'X-Gateway-Account', "
        "or ask the gateway's operators for it.",
        1015,
    )
    source_not_permitted = _mine(
        403, "This key is not bound to the network the request came from. Ask the gateway's operators for it.", 1015
    )
    number_not_permitted = _mine(
        403, "This key is not bound to numbers that begin like this one. Ask the gateway's operators for it.", 1015
    )

    # Is it a call we serve
    body_too_large = _mine(413, "The body is too large. Send only the fields of one unset call.", 1047)
    body_timeout = _mine(408, "The body did not arrive in time. Send it whole, at once.", 1047)
    body_malformed = _mine(400, "The body is not one JSON object.", 1047)
    field_duplicate = _mine(400, "A field stands twice in the body. Send each field once.", 1047)
    field_unknown = _mine(400, "The body has a field this call does not take.", 1000)
    field_type = _mine(400, "A field has the wrong type.", 1000)
    number_missing = _mine(400, "Send at least one of 'm1', 'm2' and 'mask'.", 1000)
    number_invalid = _mine(400, "This is not a telephone number. Send digits, with a leading '+' or the home format.", 1005)
    numbers_equal = _mine(400, "m1 and m2 cannot be the same", 1501)
    expiry_duration_invalid = _mine(400, "Expiry must be an integer value", 1502)
    expiry_time_invalid = _mine(
        400, "expiry_time must be Unix seconds or an ISO 8601 time with its zone, e.g. 2030-01-31T18:00:00+05:30.", 1000
    )
    expiry_conflict = _mine(400, "Send 'expiry_time' or 'expiry_duration', not both.", 1000)
    idempotency_key_malformed = _mine(
        400, "Idempotency-Key must be 1 to 255 visible ASCII characters, in double quotes or as they are, and be sent once."
    )
    request_timeout_malformed = _mine(
        400, "X-Request-Timeout-Ms must be a whole number of milliseconds from 1 to 600000, and be sent once."
    )

    # HTTP itself
    http_malformed = _mine(400, "This is not a well-formed HTTP/1.1 request.")
    length_empty = _mine(
        400, "The Content-Length header is empty. Set it to the number of body bytes; send the body as bytes, not as text."
    )
    length_required = _mine(
        411, "The request has a method with a body but no length. Send Content-Length, or Transfer-Encoding: chunked."
    )
    header_timeout = _mine(408, "The head of the request did not arrive in time. Send it whole, at once.", retry=True)
    headers_too_large = _mine(431, "The request has too many headers, or too long ones. Send fewer.")
    not_found = _mine(404, "There is nothing here. The call is POST /api/v2/Masking/unset.")
    method_not_allowed = _mine(405, "This address does not take that method. The call is POST /api/v2/Masking/unset.")

    # May it be made now
    deadline_passed = _mine(
        504, "The time you were going to wait was over before the call was made, so it was not made.", retry=True
    )
    idempotency_running = _mine(409, "The call with this Idempotency-Key is still being made. Ask again shortly.", retry=True)
    idempotency_unknown = _mine(
        409,
        "The call with this Idempotency-Key was made before, and nobody knows whether the vendor acted. It is not made again, "
        "since minutes from now would be counted anew. Look at the masking, then send what is still wanted under a new key.",
    )
    idempotency_mismatch = _mine(
        422, "This Idempotency-Key was used for another call. Send a new key with each call, and the same one with its retries."
    )
    quota_exceeded = _mine(429, "A quota is used up. Try again after the time in 'retry_after'.", retry=True)
    ledger_unavailable = _mine(503, "The call could not be recorded, so it was not made. Try again shortly.", retry=True)
    internal = _mine(500, "The gateway failed. Tell its operators the request id.", retry=True, result="unknown")

    # Talking to the vendor
    upstream_unreachable = _mine(502, "The vendor could not be reached; the call was not made.", retry=True)
    upstream_tls_expired = _mine(
        502,
        "The vendor's TLS certificate has expired or is not valid yet; the call was not made. The vendor has to renew it, "
        "or the gateway's operators to set its clock.",
    )
    upstream_tls_wrong_host = _mine(
        502,
        "The vendor's TLS certificate is for another host; the call was not made. The gateway's operators have to correct "
        "the account's 'brand', or the vendor its certificate.",
    )
    upstream_tls_untrusted = _mine(
        502,
        "The vendor's TLS certificate is from an issuer the gateway does not trust; the call was not made. "
        "The gateway's operators have to find out who answers there, and set 'upstream.ca_file' if it is the vendor.",
    )
    upstream_tls_failed = _mine(
        502,
        "No TLS connection to the vendor came about; the call was not made. The gateway's operators have to find out "
        "what answers at its address.",
    )
    upstream_credentials_rejected = _mine(
        503,
        "The vendor rejects every credential of the account, so the call was not carried out; yours is fine. "
        "The gateway's operators have to act.",
        retry=True,
    )
    upstream_timeout = _mine(
        504, "The vendor did not answer in time; whether it acted is not known.", retry=True, result="unknown"
    )
    upstream_busy = _mine(503, "Too many calls of this account are under way; this one was not made.", retry=True)
    upstream_paused = _mine(
        503, "The vendor fails most calls, so none is made for a moment; this one was not made either.", retry=True
    )
    upstream_broken = _mine(
        502,
        "The connection broke before the vendor's answer was complete; whether it acted is not known.",
        retry=True,
        result="unknown",
    )
    upstream_unreadable = _mine(
        502, "The vendor's answer could not be read; whether it acted is not known.", retry=True, result="unknown"
    )
    upstream_redirected = _vendor(502, "The vendor answered with a redirect, which is never followed.", None)

    # What the vendor said
    vendor_throttled = _vendor(503, "The vendor refuses more calls for now.", None, retry=True)
    vendor_numbers_equal = _vendor(400, "m1 and m2 cannot be the same", 1501)
    vendor_expiry_not_integer = _vendor(400, "Expiry must be an integer value", 1502)
    masking_not_expired = _vendor(
        409, "Your masking request could not be expired until now. So you cannot make another request", 1503
    )
    masking_not_inserted = _vendor(502, "Masking could not be inserted", 1504, retry=True)
    masking_number_unavailable = _vendor(503, "Masking number not available", 1505, retry=True)
    vendor_parameters_invalid = _vendor(400, "Invalid parameter(s)", 1000)
    vendor_number_invalid = _vendor(400, "Invalid contact number", 1005)
    vendor_something_wrong = _vendor(502, "Something went wrong", 1009, retry=True, result="unknown")
    vendor_database_down = _vendor(502, "Error in DB connect", 1010, retry=True, result="unknown")
    masking_not_found = _vendor(404, "No data found", 1012)
    upstream_credential_rejected = _vendor(
        502, "The vendor rejected the gateway's own credential; yours is fine. The gateway's operators have to act.", 1014
    )
    upstream_token_unknown = _vendor(
        502, "The vendor does not know the gateway's own credential; yours is fine. The gateway's operators have to act.", 1020
    )
    vendor_permission_denied = _vendor(502, "Permission denied", 1015)
    vendor_internal = _vendor(502, "Internal server error", 1032, retry=True, result="unknown")
    vendor_account_suspended = _vendor(502, "User account suspended", 1039)
    vendor_body_refused = _vendor(502, "Invalid Request Data", 1047)
    vendor_code_unknown = _vendor(502, "The vendor refused the call with a code that is not in its documentation.", None)
    vendor_failed = _vendor(502, "The vendor failed.", None, retry=True, result="unknown")

    @property
    def slug(self) -> str:
        """The stable code callers program against."""
        return self.name

    @classmethod
    def of_vendor_code(cls, code: int) -> Problem:
        """Return the row for a code the vendor answered; `vendor_code_unknown` where there is none."""
        return _BY_VENDOR_CODE.get(code, cls.vendor_code_unknown)


_BY_VENDOR_CODE = {
    problem.value.code: problem for problem in Problem if problem.value.origin == "vendor" and problem.value.code is not None
}

Fact = str | int | bool


class Complaint(Exception):
    """What whoever runs a command has to mend. The message is one line: the reason and the fix."""


class Refusal(Exception):
    """A stage says no. The only exception that stages raise, caught once, in the pipeline."""

    def __init__(
        self,
        problem: Problem,
        *,
        field: str | None = None,
        detail: str | None = None,
        retry_after_seconds: int | None = None,
        policy: str | None = None,
        violated: tuple[str, ...] = (),
        vendor_code: int | None = None,
        upstream_status: int | None = None,
        **facts: Fact,
    ) -> None:
        super().__init__(problem.slug)
        self.problem = problem
        self.field = field
        """The body's field at fault, or None."""
        self.detail = detail
        """A sentence for the caller in place of the row's; holds no secret and no number. None: the row's."""
        self.retry_after_seconds = retry_after_seconds
        self.policy = policy
        """The policy that refused, or None; of several the one that takes longest."""
        self.violated = violated
        """All the policies that refused."""
        self.vendor_code = vendor_code
        """The code the vendor really sent, where it is not the row's."""
        self.upstream_status = upstream_status
        self.facts = facts
        """For the record and the log, not for the caller."""
