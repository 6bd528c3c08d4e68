"""A workload's token: a JWT of its platform, such as a Kubernetes service-account token, proved by the issuer's public keys.

PyJWT checks the signature; the times are checked here, because the clock is an argument. A key is only ever used with
the algorithms of its own kind, and no algorithm has a shared secret, so that a public key cannot be taken for one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

LENGTH_MAX: Final = 8192
_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_RSA_BITS_MIN: Final = 2048
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_SUBJECT: Final = re.compile(r"[ -~]{1,256}")

Kind = Literal["malformed", "key_unknown", "algorithm", "signature", "expired", "not_yet", "audience", "claims"]


class TokenFault(ValueError):
    """A token is not taken. The message says what is wrong and the fix, and repeats nothing of the token."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class IssuerRules:
    """What the tokens of one issuer must be like."""

    name: str
    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    leeway_seconds: int
    lifetime_seconds_max: int


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key of an issuer, and the algorithms it may be used with."""

    key: Any = field(repr=False)
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeySet:
    """The public keys of one issuer."""

    keys: Mapping[str, VerifyingKey]
    """By `kid`; a key without one stands under the empty text."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a good token proves."""

    issuer: str
    """Name of the issuer in the settings."""
    subject: str


def looks_like_token(text: str) -> bool:
    """Say whether a text has the form of a JWT."""
    return len(text) <= LENGTH_MAX and _TOKEN.fullmatch(text) is not None


def read_key_set(document: Any) -> KeySet:
    """Return the keys of a parsed JWKS (RFC 7517) that can verify; the others are left out.

    Raises: ValueError when none remains.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is not a JSON Web Key Set: it has no list 'keys'")  # noqa: TRY004 - one kind for every fault
    candidates = [jwk for jwk in listed if isinstance(jwk, dict) and jwk.get("use", "sig") == "sig"]
    names = Counter(_kid(jwk) for jwk in candidates)
    # Two keys of one name: it is not known which one is meant, so neither is.
    keys = {_kid(jwk): key for jwk in candidates if names[_kid(jwk)] == 1 and (key := _verifying(jwk)) is not None}
    if not keys:
        raise ValueError("has no public key that could verify a token")
    return KeySet(keys)


def unverified_issuer(token: str) -> str | None:
    """Return the issuer a token claims, to know whose keys to try; None where it claims none."""
    claims = _decoded(token)[1]
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


def verify(token: str, rules: IssuerRules, keys: KeySet, now: float) -> Identity:
    """Return whom a token proves. `now`: Unix seconds. Raises: TokenFault."""
    header, _ = _decoded(token)
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if algorithm not in rules.algorithms:
        raise TokenFault("algorithm", "The token's algorithm is not taken here.")
    if "crit" in header:
        raise TokenFault("malformed", "The token's header has 'crit', which is not taken here.")
    key = keys.keys.get(kid) if isinstance(kid, str) else None
    if key is None and not kid and len(keys.keys) == 1:
        key = next(iter(keys.keys.values()))
    if key is None:
        raise TokenFault("key_unknown", "The token was signed with a key its issuer does not publish. Send a fresh token.")
    if algorithm not in key.algorithms:
        raise TokenFault("algorithm", "The token's algorithm does not fit its issuer's key.")
    claims = _verified(token, algorithm, key)
    _check_claims(claims, rules)
    _check_times(claims, rules, now)
    return Identity(rules.name, claims["sub"])


def _verified(token: str, algorithm: str, key: VerifyingKey) -> dict[str, Any]:
    # Signature alone: PyJWT would read the clock for the rest, and the rest is checked with ours.
    options: Any = {"verify_signature": True} | dict.fromkeys(
        ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub", "verify_jti"), False
    )
    try:
        claims: dict[str, Any] = jwt.decode(token, key.key, algorithms=[algorithm], options=options)
    except jwt.InvalidSignatureError:
        raise TokenFault("signature", "The token's signature is not its issuer's. Send a fresh token.") from None
    except (jwt.PyJWTError, ValueError, TypeError):
        raise _malformed() from None
    return claims


def _check_claims(claims: Mapping[str, Any], rules: IssuerRules) -> None:
    if claims.get("iss") != rules.issuer:
        raise TokenFault("claims", "The token's issuer is not the one that its key belongs to.")
    audience = claims.get("aud")
    if rules.audience not in (audience if isinstance(audience, list) else [audience]):
        raise TokenFault(
            "audience", f"The token was not made for this gateway. Ask for one with the audience '{rules.audience}'."
        )
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise TokenFault("claims", "The token has no plain subject.")


def _check_times(claims: Mapping[str, Any], rules: IssuerRules, now: float) -> None:
    times = {name: claims.get(name) for name in ("exp", "iat", "nbf")}
    if any(
        isinstance(at, bool) or not isinstance(at, int | float | None) or (at is not None and abs(at) > 1e12)
        for at in times.values()
    ):
        raise TokenFault("claims", "A time in the token is not a number of seconds.")
    expires, issued, begins = times["exp"], times["iat"], times["nbf"]
    if expires is None or issued is None:
        raise TokenFault("claims", "The token does not say when it was issued and when it expires.")
    if expires + rules.leeway_seconds <= now:
        raise TokenFault("expired", "The token has expired. Send a fresh one.")
    if max(issued, begins or issued) - rules.leeway_seconds > now:
        raise TokenFault("not_yet", "The token is not valid yet. Check the clocks.")
    if expires - issued > rules.lifetime_seconds_max:
        raise TokenFault(
            "claims", f"The token lives longer than {rules.lifetime_seconds_max} s. Ask for one with a shorter life."
        )


def _decoded(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, nothing of them proved."""
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise _malformed() from None
    return read["header"], read["payload"]


def _verifying(jwk: Mapping[str, Any]) -> VerifyingKey | None:
    # Read by its kind, never by what a token says; a symmetric key ("oct") has no place in a published set.
    if jwk.get("kty") not in ("RSA", "EC", "OKP") or "d" in jwk:
        return None
    try:
        key = jwt.PyJWK.from_dict(dict(jwk), algorithm=_algorithm_to_read(jwk)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS_MIN:
        fitting = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        fitting = {_CURVES[key.curve.name]}
    elif isinstance(key, ed25519.Ed25519PublicKey):
        fitting = {"EdDSA"}
    else:
        return None
    if "alg" in jwk:
        fitting &= {jwk["alg"]} if isinstance(jwk["alg"], str) else set()
    return VerifyingKey(key, frozenset(fitting))


def _algorithm_to_read(jwk: Mapping[str, Any]) -> str:
    curves = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
    return "RS256" if jwk["kty"] == "RSA" else curves.get(str(jwk.get("crv")), "ES256")


def _kid(jwk: Mapping[str, Any]) -> str:
    kid = jwk.get("kid", "")
    return kid if isinstance(kid, str) else ""


def _malformed() -> TokenFault:
    return TokenFault("malformed", "The token is not a JWT that can be read. Send the platform's token as it is.")
