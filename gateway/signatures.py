"""Signed requests (RFC 9421, with RFC 9530 content digests): the caller keeps a private key, the gateway a public one.

The library builds the signature base and checks signature and digest; it passes the RFC's own vectors. What a signature
must cover, how old it may be and that it is good for one call are decided here, where the clock is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import http_sf
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    algorithms,
)

from gateway.model import SignedMessage

AHEAD_SECONDS: Final = 5
"""How far a caller's clock may be ahead."""
_FIELDS: Final = ("signature-input", "signature", "content-digest")
_FIELD_MAX: Final = 4096
_NONCE: Final = re.compile(r"[!-~]{8,128}")
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9._~\[\]:-]{1,255}")
_RSA_BITS_MIN: Final = 2048


class SignatureFault(ValueError):
    """A signature is not taken. The message says what is wrong and the fix, and repeats nothing of the request."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A caller's public key, and the algorithms that fit it; the first where a signature names none."""

    key: Any = field(repr=False)
    algorithms: tuple[type[algorithms.HTTPSignatureAlgorithm], ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request's signature says of itself; nothing of it is proved yet."""

    key_id: str
    nonce: str
    created: int
    """Unix seconds."""
    expires: int | None
    algorithm: str | None


def read_public_key(pem: str) -> PublicKey:
    """Return a key in PEM (SubjectPublicKeyInfo): Ed25519, ECDSA on P-256 or P-384, RSA of 2048 bits or more.

    Raises: ValueError that says what would be right.
    """
    if "PRIVATE KEY" in pem:
        raise ValueError("is a private key; it stays with the service. Make the public one with `openssl pkey -pubout`")
    try:
        key = load_pem_public_key(pem.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("is not a public key in PEM that can be read") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(key, (algorithms.ED25519,))
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return PublicKey(key, (algorithms.ECDSA_P256_SHA256,))
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return PublicKey(key, (algorithms.ECDSA_P384_SHA384,))
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS_MIN:
        return PublicKey(key, (algorithms.RSA_PSS_SHA512, algorithms.RSA_V1_5_SHA256))
    raise ValueError("is of a kind that is not taken: use Ed25519, ECDSA on P-256 or P-384, or RSA of 2048 bits or more")


def read_signature(message: SignedMessage) -> Signature:
    """Return what the one signature of a request says of itself. Raises: SignatureFault."""
    components, parameters = _signature_input(message)
    plain = {name for name, more in components if not more}
    if not isinstance(parameters.get("keyid"), str):
        raise SignatureFault("The signature has no 'keyid'. Set it to the key's id.")
    if not isinstance(parameters.get("nonce"), str) or not _NONCE.fullmatch(parameters["nonce"]):
        raise SignatureFault("The signature has no 'nonce' of 8 to 128 plain characters. Make a new random one for each request.")
    created, expires = parameters.get("created"), parameters.get("expires")
    if type(created) is not int or type(expires) not in (int, type(None)):
        raise SignatureFault("The signature has no 'created' in whole Unix seconds.")
    if "@method" not in plain or "content-digest" not in plain:
        raise SignatureFault("The signature must cover '@method' and 'content-digest'.")
    if "@target-uri" not in plain and not {"@authority", "@path"} <= plain:
        raise SignatureFault("The signature must cover '@target-uri', or '@authority' and '@path'.")
    if message.query and not plain & {"@target-uri", "@query", "@request-target"}:
        raise SignatureFault("The signature must cover the query: '@query' or '@target-uri'.")
    if any(name == "x-gateway-account" for name, _ in message.headers) and "x-gateway-account" not in plain:
        raise SignatureFault("The signature must cover 'x-gateway-account', since the request has it.")
    algorithm = parameters.get("alg")
    return Signature(
        parameters["keyid"], parameters["nonce"], created, expires, algorithm if isinstance(algorithm, str) else None
    )


def verify(
    signature: Signature, body: bytes, message: SignedMessage, public_key: PublicKey, now: float, window_seconds: int
) -> None:
    """Check signature, content digest and age. `now`: Unix seconds. Raises: SignatureFault."""
    if signature.created > now + AHEAD_SECONDS:
        raise SignatureFault("The signature was made in the future. Check the clocks.")
    if signature.created + window_seconds < now or (signature.expires is not None and signature.expires < now):
        raise SignatureFault("The signature is too old. Sign each request when it is sent.")
    fitting = [kind for kind in public_key.algorithms if signature.algorithm in (None, kind.algorithm_id)]
    if not fitting:
        raise SignatureFault("The signature's 'alg' does not fit the registered key.")
    verifier = _Verifier(signature_algorithm=fitting[0], key_resolver=_OneKey(public_key.key))
    try:
        verifier.verify(_Message(message), max_age=None)
    except (HTTPMessageSignaturesException, ValueError, TypeError):
        raise SignatureFault("The signature does not fit the request. Sign what is sent, with the registered key.") from None
    try:
        verifier.content_digest_class.verify(_field(message, "content-digest"), body)
    except (InvalidSignature, ValueError):
        raise SignatureFault("The content digest does not fit the body. Make it of the bytes that are sent.") from None


class _Verifier(HTTPMessageVerifier):
    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        """Do nothing: the library would read the clock, which is an argument here and was looked at before."""


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, key: Any) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> Any:  # noqa: ARG002 - looked up by this id before
        """Return the key."""
        return self._key


class _Message:
    """A request as the library reads it."""

    def __init__(self, message: SignedMessage) -> None:
        if not _AUTHORITY.fullmatch(message.authority):
            raise ValueError("the Host header is not a plain authority")
        # The library takes what follows it for a fragment, which nobody signs.
        if "#" in message.path + message.query:
            raise ValueError("the address has a '#'")
        query = f"?{message.query}" if message.query else ""
        self.method = message.method
        self.url = f"{message.scheme}://{message.authority}{message.path}{query}"
        self.headers = _Headers(message.headers)


class _Headers:
    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)

    def items(self) -> tuple[tuple[str, str], ...]:
        """Return every field line, in order."""
        return self._pairs


def _signature_input(message: SignedMessage) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
    """Return the covered components and the parameters of the one signature."""
    fields = {name: _field(message, name) for name in _FIELDS}
    signatures = _dictionary(fields["signature-input"])
    if len(signatures) != 1 or signatures.keys() != _dictionary(fields["signature"]).keys():
        raise SignatureFault("Send exactly one signature, under one label in 'Signature-Input' and 'Signature'.")
    components, parameters = next(iter(signatures.values()))
    if not isinstance(components, list) or not all(isinstance(name, str) for name, _ in components):
        raise SignatureFault("'Signature-Input' is not a list of components; see RFC 9421, section 4.1.")
    return components, parameters


def _field(message: SignedMessage, wanted: str) -> str:
    values = [value for name, value in message.headers if name == wanted]
    if len(values) != 1 or len(values[0]) > _FIELD_MAX:
        raise SignatureFault(f"Send the header '{wanted}' once, of at most {_FIELD_MAX} characters.")
    return values[0]


def _dictionary(text: str) -> dict[str, Any]:
    def refuse(_key: str, _context: str) -> None:
        raise ValueError("a label stands twice")

    try:
        parsed = http_sf.parse(text.encode("ascii"), tltype="dictionary", on_duplicate_key=refuse)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise SignatureFault("'Signature-Input' or 'Signature' cannot be read; see RFC 9421, section 4.") from None
    return parsed if isinstance(parsed, dict) else {}
