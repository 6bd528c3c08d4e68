"""A workload's token: a JWT of its platform, such as a Kubernetes service-account token, proved by the issuer's public keys.

PyJWT proves the signature; the claims are checked here, because PyJWT reads the clock itself and here the instant is an
argument. Each key carries the algorithms of its own kind, none of which has a shared secret, so that what a token's header
says can choose among those and nothing else. Source: RFC 7515, 7517, 7519, and 8725 for what can go wrong with them.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.config import ALGORITHMS

LENGTH_MAX: Final = 8192
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_NAME: Final = re.compile(r"[!-~][ -~]{0,255}")
_RSA_BITS: Final = range(2048, 16384 + 1)
_LATEST: Final = 1e12
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": frozenset({"ES256"}), "secp384r1": frozenset({"ES384"}), "secp521r1": frozenset({"ES512"})}
_ED25519: Final = frozenset({"EdDSA"})
# A verifier that has never heard of "none" and of HMAC cannot be talked into them.
_VERIFIER: Final = jwt.PyJWS(algorithms=sorted(ALGORITHMS))

Kind = Literal["malformed", "issuer_unknown", "key_unknown", "algorithm", "signature", "expired", "not_yet", "audience", "claims"]


class TokenFault(ValueError):
    """A token is not taken. The message says what is wrong and the fix, and repeats nothing of the token."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NoUsableKey(ValueError):
    """A key set is well-formed, and none of its keys can verify a token."""


@dataclass(frozen=True, slots=True)
class IssuerRules:
    """What the tokens of one issuer must be like."""

    name: str
    """The issuer's name in the settings."""
    issuer: str
    """The exact `iss`."""
    audience: str
    """Must be the `aud`, or one of its list."""
    algorithms: tuple[str, ...]
    """Some of `config.ALGORITHMS`; others are never taken, whatever stands here."""
    leeway_seconds: int
    """How far the issuer's clock may be from ours, either way."""
    lifetime_seconds_max: int
    """Longest life, `exp` minus `iat`, of a token that is taken."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key of an issuer, and the algorithms it may be used with."""

    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey = field(repr=False)
    algorithms: frozenset[str]
    """Those of its kind and, for an elliptic curve, its curve; one at most where the key names its own."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The public keys of one issuer. Equal when they are the same keys, in whatever order they were published."""

    keys: Mapping[str, VerifyingKey]
    """By `kid`; a key without one stands under the empty text."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a good token proves."""

    issuer: str
    """The issuer's name in the settings."""
    subject: str
    """1 to 256 printable ASCII characters, such as `system:serviceaccount:<namespace>:<name>`."""
    token_id: str | None
    """The `jti`, with the same bounds; None where the issuer gives none."""
    expires_at: float
    """Unix seconds, without leeway."""


def looks_like_token(text: str, length_max: int = LENGTH_MAX) -> bool:
    """Say whether a text has the form of a JWT: three parts of base64url, no longer than that."""
    return len(text) <= length_max and _TOKEN.fullmatch(text) is not None


def read_key_set(document: Any) -> KeySet:
    """Return the keys of a parsed JWKS that can verify; all others are left out, and keys that share a `kid`.

    Raises: NoUsableKey when none remains; ValueError when the document is no key set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is not a JSON Web Key Set: it has no list 'keys'")  # noqa: TRY004 - one kind for every fault
    usable = [(jwk.get("kid", ""), key) for jwk in listed if (key := _verifying(jwk)) is not None]
    # Of two keys of one name it is not known which one is meant, so neither is taken.
    times = Counter(kid for kid, _ in usable)
    keys = {kid: key for kid, key in usable if times[kid] == 1}
    if not keys:
        raise NoUsableKey("has no public key that could verify a token")
    return KeySet(keys)


def unverified_issuer(token: str) -> str | None:
    """Return the issuer a token claims, to know whose keys to try; None where it claims none or is no token."""
    try:
        issuer = _part(token, 1).get("iss")
    except TokenFault:
        return None
    return issuer if isinstance(issuer, str) else None


def verify(token: str, rules: IssuerRules, keys: KeySet, now: float) -> Identity:
    """Return whom a token proves. `now`: Unix seconds.

    Raises: TokenFault, and nothing else whatever the token is; `key_unknown` may be cured by reading the keys again.
    """
    claims = proved_claims(token, rules, keys, now)
    token_id = claims.get("jti")
    return Identity(
        rules.name,
        _plain(claims.get("sub"), "sub"),
        None if token_id is None else _plain(token_id, "jti"),
        _instant(claims.get("exp"), "exp"),
    )


def proved_claims(token: str, rules: IssuerRules, keys: KeySet, now: float, *, length_max: int = LENGTH_MAX) -> dict[str, Any]:
    """Return what a token says whose signature, issuer, audience and times are good. Raises: as `verify`."""
    header = _part(token, 0, length_max)
    # The rest of the header (jwk, jku, x5c, x5u) would let the token choose its own key: it is never looked at.
    if "crit" in header:
        raise TokenFault("malformed", "The token's header has 'crit', which is not supported. Send a token without it.")
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in rules.algorithms:
        taken = ", ".join(name for name in rules.algorithms if name in ALGORITHMS)
        raise TokenFault("algorithm", f"The token is not signed with an algorithm taken from its issuer. Use one of: {taken}.")
    if not isinstance(kid, str):
        _malformed()
    key = keys.keys.get(kid)
    if key is None:
        raise TokenFault("key_unknown", "The token is signed with a key its issuer does not publish. Send a fresh token.")
    if algorithm not in key.algorithms:
        raise TokenFault("algorithm", "The token's algorithm does not fit the key it names. Send the platform's token as it is.")
    _check_signature(token, algorithm, key)
    claims = _part(token, 1, length_max)
    _check_for_us(claims, rules)
    _check_times(claims, rules, now)
    return claims


def _check_signature(token: str, algorithm: str, key: VerifyingKey) -> None:
    try:
        _VERIFIER.decode_complete(token, key.key, algorithms=[algorithm])
    except jwt.InvalidSignatureError:
        raise TokenFault("signature", "The token's signature is not its issuer's. Send the platform's token as it is.") from None
    except (jwt.PyJWTError, ValueError, TypeError):
        _malformed()


def _check_for_us(claims: Mapping[str, Any], rules: IssuerRules) -> None:
    issuer, audience = claims.get("iss"), claims.get("aud")
    if not isinstance(issuer, str):
        raise TokenFault("claims", "The token has no 'iss'. Ask for a token that names its issuer.")
    if issuer != rules.issuer:
        raise TokenFault("issuer_unknown", "The token's 'iss' is not an issuer taken here. Ask for a token of one that is.")
    audiences = audience if isinstance(audience, list) else [audience]
    if rules.audience not in audiences or not all(isinstance(each, str) for each in audiences):
        raise TokenFault("audience", f"The token is not for this audience. Ask for one with the audience '{rules.audience}'.")


def _check_times(claims: Mapping[str, Any], rules: IssuerRules, now: float) -> None:
    expires_at, issued_at = _instant(claims.get("exp"), "exp"), _instant(claims.get("iat"), "iat")
    begins_at = _instant(claims.get("nbf", issued_at), "nbf")
    if not 0 < expires_at - issued_at <= rules.lifetime_seconds_max:
        raise TokenFault("claims", f"The token must end 1 to {rules.lifetime_seconds_max} s after its issue. Ask for such a one.")
    if expires_at + rules.leeway_seconds <= now:
        raise TokenFault("expired", "The token has expired. Send a fresh one.")
    if max(issued_at, begins_at) - rules.leeway_seconds > now:
        raise TokenFault("not_yet", "The token is not valid yet. Check the clocks, or wait.")


def _instant(claim: Any, name: str) -> float:
    # Within bounds, so that no sum overflows; and neither NaN nor True is an instant.
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not 0 <= claim <= _LATEST:
        raise TokenFault("claims", f"The token's '{name}' is missing or not in Unix seconds. Ask for a token that has it.")
    return float(claim)


def _plain(claim: Any, name: str) -> str:
    if not isinstance(claim, str) or not _NAME.fullmatch(claim):
        raise TokenFault("claims", f"The token's '{name}' is not 1 to 256 printable ASCII characters. Ask for one that is.")
    return claim


def _part(token: str, index: Literal[0, 1], length_max: int = LENGTH_MAX) -> dict[str, Any]:
    """Return the header (0) or the claims (1) as they stand, nothing of them proved. Raises: TokenFault."""
    if not looks_like_token(token, length_max):
        _malformed()
    encoded = token.split(".")[index]
    try:
        # As UTF-8 only: given bytes, json would also take UTF-16 and UTF-32.
        text = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        part = json.loads(text, parse_constant=_malformed)
    except (ValueError, RecursionError):
        _malformed()
    return part if isinstance(part, dict) else _malformed()


def _malformed(_: str = "") -> NoReturn:
    raise TokenFault("malformed", "The token is not a JWT that can be read. Send the platform's token as it is.") from None


def _verifying(jwk: Any) -> VerifyingKey | None:
    # What may not be used is left out before it is read: a private key ("d") in public is nobody's proof any more.
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid", ""), str) or "d" in jwk:
        return None
    if jwk.get("use", "sig") != "sig" or not _may_verify(jwk.get("key_ops")):
        return None
    try:
        fitting: frozenset[str]
        match jwk.get("kty"):
            case "RSA":
                key: Any = RSAAlgorithm.from_jwk(jwk)
                fitting = _RSA if key.key_size in _RSA_BITS else frozenset()
            case "EC":
                key = ECAlgorithm.from_jwk(jwk)
                fitting = _CURVES.get(key.curve.name, frozenset())
            case "OKP" if jwk.get("crv") == "Ed25519":
                key = OKPAlgorithm.from_jwk(jwk)
                fitting = _ED25519
            case _:
                return None
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if "alg" in jwk:
        fitting &= {jwk["alg"]} if isinstance(jwk["alg"], str) else frozenset()
    return VerifyingKey(key, fitting) if fitting else None


def _may_verify(key_ops: Any) -> bool:
    return key_ops is None or (isinstance(key_ops, list) and "verify" in key_ops)
