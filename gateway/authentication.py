"""Who is calling: finds the one proof of a request, and who it proves.

A key may come as `Authorization: Bearer`, as `X-API-Key`, or in the vendor's own body fields, so that the vendor's
samples work with only host and credential replaced. A workload may send its platform's token as `Authorization:
Bearer`, or sign the request. Knows nothing of where keys are kept: it is handed what is `Known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from gateway import keys, signatures, tokens
from gateway.addresses import is_within
from gateway.config import Workload
from gateway.document import Document
from gateway.errors import Problem, Refusal
from gateway.keys import KeyEntry, KeyVersion, Presented, Registry
from gateway.model import Arrival, Caller, Nonce, SignedMessage
from gateway.tokens import IssuerRules, KeySet

BODY_CREDENTIALS: Final = ("ssid", "userId", "token")
"""The body's fields that hold a credential and are never forwarded."""

KEYS: Final = "keys"
"""In a refusal's fact `stale`: another look at the keys may help. Any other word there is the name of an issuer."""

# Compared when the key id is unknown, so that known and unknown ids take the same time. Two versions, as a key has that was
# rotated once; a comparison is a tenth of a microsecond of the ten that the whole takes.
_NOBODY: Final = KeyEntry("", "", (KeyVersion(1, 0.0, keys.digest("")), KeyVersion(2, 0.0, keys.digest(""))))


@dataclass(frozen=True, slots=True)
class Known:
    """What a process knows of callers at one moment."""

    registry: Registry
    key_sets: Mapping[str, KeySet]
    """By issuer name; an issuer whose keys were not to be had for too long is not there."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Tells who is calling, by the settings that name issuers and workloads."""

    issuers: Mapping[str, IssuerRules]
    """By the `iss` of their tokens."""
    workloads: Mapping[tuple[str, str], tuple[str, Workload]]
    """By issuer name and subject: name of the entry, and the entry."""
    window_seconds: int
    """How old a signature may be."""
    hosts: tuple[str, ...] = ()
    """That signed requests must be made for, lower-case; none: any."""

    def authenticate(self, arrival: Arrival, document: Document, known: Known) -> Caller:
        """Return the caller whose proof the request shows.

        Raises: Refusal `credential_missing`, `credential_malformed`, `credential_conflict`, `vendor_credential_sent`,
        `credential_unknown`, `credential_revoked`, `credential_expired`, `token_refused`, `signature_refused`,
        `identity_unavailable`, `source_not_permitted`; or the document's own fault when no header has a proof and the
        body, which might have one, cannot be read. The fact `stale` says what may be newer elsewhere.
        """
        proof = _proof(arrival, document)
        if isinstance(proof, Presented):
            caller = _by_key(proof, known.registry, arrival.received_at)
        elif isinstance(proof, _Token):
            caller = self._by_token(proof, known.key_sets, arrival.received_at)
        else:
            caller = self._by_signature(proof, arrival, known.registry)
        networks = caller.bindings.networks
        if networks and not is_within(arrival.source, networks):
            raise Refusal(Problem.source_not_permitted, key_id=caller.key_id, service=caller.principal)
        return caller

    def _by_token(self, token: _Token, key_sets: Mapping[str, KeySet], now: float) -> Caller:
        rules = self.issuers.get(tokens.unverified_issuer(token.text) or "")
        if rules is None:
            raise Refusal(Problem.token_refused, detail="The token's issuer is not one whose tokens are taken here.")
        key_set = key_sets.get(rules.name)
        if key_set is None:
            raise Refusal(Problem.identity_unavailable, stale=rules.name)
        try:
            identity = tokens.verify(token.text, rules, key_set, now)
        except tokens.TokenFault as fault:
            stale = rules.name if fault.kind == "key_unknown" else ""
            raise Refusal(Problem.token_refused, detail=str(fault), stale=stale) from None
        name, workload = self.workloads.get((identity.issuer, identity.subject), ("", None))
        if workload is None:
            raise Refusal(
                Problem.token_refused,
                detail="The token is good, but its subject is not mapped to a service here. Ask the gateway's operators for it.",
            )
        return Caller(workload.service or name, name, workload.bindings(), "token")

    def _by_signature(self, message: SignedMessage, arrival: Arrival, registry: Registry) -> Caller:
        if self.hosts and message.authority.lower() not in self.hosts:
            # Signed for a sister of this gateway, it would be good here too, where its nonce was never seen.
            raise Refusal(Problem.signature_refused, detail="The request is made for another host than this gateway's.")
        try:
            signature = signatures.read_signature(message)
        except signatures.SignatureFault as fault:
            raise Refusal(Problem.signature_refused, detail=str(fault)) from None
        entry = registry.entries.get(signature.key_id)
        version = None
        fault_told = "The signature's keyid is not known here. Ask the gateway's operators to register the public key."
        for candidate in entry.versions if entry else ():
            if not candidate.public_key:
                continue
            try:
                public_key = _public_key(candidate.public_key)
                signatures.verify(signature, arrival.body, message, public_key, arrival.received_at, self.window_seconds)
            except signatures.SignatureFault as fault:
                fault_told = str(fault)
                continue
            version = candidate
        if entry is None or version is None:
            key_id = signature.key_id if keys.is_id(signature.key_id) else ""
            raise Refusal(Problem.signature_refused, detail=fault_told, stale=KEYS, key_id=key_id)
        return _caller(
            entry,
            version,
            arrival.received_at,
            Nonce(signature.nonce, signature.created + self.window_seconds + signatures.AHEAD_SECONDS),
        )


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)


def _by_key(presented: Presented, registry: Registry, now: float) -> Caller:
    entry = registry.entries.get(presented.key_id, _NOBODY)
    version = entry.version_of(presented)
    if version is None or entry is _NOBODY:
        raise Refusal(Problem.credential_unknown, key_id=presented.key_id, stale=KEYS)
    return _caller(entry, version, now)


def _caller(entry: KeyEntry, version: KeyVersion, now: float, nonce: Nonce | None = None) -> Caller:
    state = version.state(now)
    if state != "live":
        problem = Problem.credential_revoked if state == "revoked" else Problem.credential_expired
        raise Refusal(problem, key_id=entry.key_id, service=entry.service)
    return Caller(entry.service, entry.key_id, entry.bindings, "signature" if nonce else "key", version.number, nonce)


@lru_cache(maxsize=1024)
def _public_key(pem: str) -> signatures.PublicKey:
    return signatures.read_public_key(pem)


def _proof(arrival: Arrival, document: Document) -> Presented | _Token | SignedMessage:
    """Return the one proof shown, in however many places."""
    shown: set[Presented | _Token] = {_of_bearer(value) for value in arrival.authorization}
    shown |= {_of_header(value) for value in arrival.api_keys}
    shown |= _of_body(document.fields)
    if len(shown) > 1 or (shown and arrival.message is not None):
        raise Refusal(Problem.credential_conflict)
    if arrival.message is not None:
        return arrival.message
    if not shown:
        raise document.fault or Refusal(Problem.credential_missing)
    return shown.pop()


def _of_bearer(value: str) -> Presented | _Token:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Refusal(
            Problem.credential_malformed,
            detail="The Authorization header is not of the form 'Bearer gk_…'. Send the internal key that way.",
        )
    token = token.strip()
    return _Token(token) if tokens.looks_like_token(token) else _of_header(token)


def _of_header(value: str) -> Presented:
    presented = keys.parse(value.strip())
    if presented is None:
        raise Refusal(Problem.credential_malformed)
    return presented


def _of_body(fields: Any) -> set[Presented | _Token]:
    """Return the keys in the vendor's fields; an empty or null field counts as absent, as in the vendor's forms."""
    ssid, user_id, token = (fields.get(name) for name in BODY_CREDENTIALS)
    found: set[Presented | _Token] = set()
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
