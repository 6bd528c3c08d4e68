"""Who is calling: finds the one credential of a request and looks it up.

A key may come as `Authorization: Bearer`, as `X-API-Key`, or in the vendor's own body fields, so that the vendor's
samples work with only host and credential replaced. Knows nothing of where keys are kept: it is handed a `Registry`.
"""

from __future__ import annotations

from typing import Any, Final

from gateway import keys
from gateway.document import Document
from gateway.errors import Problem, Refusal
from gateway.keys import KeyEntry, Presented, Registry
from gateway.model import Arrival, Caller

BODY_CREDENTIALS: Final = ("ssid", "userId", "token")
"""The body's fields that hold a credential and are never forwarded."""

# Compared when the key id is unknown, so that known and unknown ids take the same time.
_NOBODY: Final = KeyEntry(key_id="", service="", digest=keys.digest(""), scopes=frozenset(), created_at=0.0)


def authenticate(arrival: Arrival, document: Document, registry: Registry) -> Caller:
    """Return the caller whose key the request shows.

    Raises: Refusal `credential_missing`, `credential_malformed`, `credential_conflict`, `vendor_credential_sent`,
    `credential_unknown`, `credential_revoked`, `credential_expired`; or the document's own fault when no header has
    a key and the body, which might have one, cannot be read.
    """
    presented = _presented(arrival, document)
    entry = registry.entries.get(presented.key_id, _NOBODY)
    if not entry.matches(presented) or entry is _NOBODY:
        raise Refusal(Problem.credential_unknown, key_id=presented.key_id)
    if entry.revoked_at is not None:
        raise Refusal(Problem.credential_revoked, key_id=entry.key_id, service=entry.service)
    if entry.expires_at is not None and entry.expires_at <= arrival.received_at:
        raise Refusal(Problem.credential_expired, key_id=entry.key_id, service=entry.service)
    return Caller(entry.service, entry.key_id, entry.scopes)


def _presented(arrival: Arrival, document: Document) -> Presented:
    """Return the one key shown, in however many places."""
    shown = {_of_header(_bearer(value)) for value in arrival.authorization}
    shown |= {_of_header(value) for value in arrival.api_keys}
    shown |= _of_body(document.fields)
    if len(shown) > 1:
        raise Refusal(Problem.credential_conflict)
    if not shown:
        raise document.fault or Refusal(Problem.credential_missing)
    return shown.pop()


def _bearer(value: str) -> str:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Refusal(
            Problem.credential_malformed,
            detail="The Authorization header is not of the form 'Bearer gk_…'. Send the internal key that way.",
        )
    return token


def _of_header(value: str) -> Presented:
    presented = keys.parse(value.strip())
    if presented is None:
        raise Refusal(Problem.credential_malformed)
    return presented


def _of_body(fields: Any) -> set[Presented]:
    """Return the keys in the vendor's fields; an empty or null field counts as absent, as in the vendor's forms."""
    ssid, user_id, token = (fields.get(name) for name in BODY_CREDENTIALS)
    found = set()
    if ssid not in (None, ""):
        found.add(_of_ssid(ssid))
    if user_id not in (None, "") or token not in (None, ""):
        found.add(_of_pair(user_id, token))
    return found


def _of_ssid(ssid: Any) -> Presented:
    presented = keys.parse(ssid) if isinstance(ssid, str) else None
    if presented is not None:
        return presented
    ours = isinstance(ssid, str) and ssid.startswith(keys.PREFIX)
    raise Refusal(Problem.credential_malformed if ours else Problem.vendor_credential_sent, field="ssid")


def _of_pair(user_id: Any, token: Any) -> Presented:
    if user_id in (None, "") or token in (None, ""):
        missing = "userId" if user_id in (None, "") else "token"
        raise Refusal(
            Problem.credential_malformed,
            field=missing,
            detail="'userId' and 'token' go together: send the key's id and its secret.",
        )
    presented = keys.pair(user_id, token) if isinstance(user_id, str) and isinstance(token, str) else None
    if presented is not None:
        return presented
    if isinstance(token, str) and keys.parse(token) is not None:
        raise Refusal(
            Problem.credential_malformed,
            field="token",
            detail="'token' holds a whole key. Send it as 'ssid', or its id as 'userId' and its secret as 'token'.",
        )
    ours = isinstance(user_id, str) and keys.is_id(user_id)
    raise Refusal(Problem.credential_malformed if ours else Problem.vendor_credential_sent, field="token")
