"""A workload's token, taken and refused: every fault, every confusion, and anything at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tokens import IssuerRules, TokenFault, looks_like_token, read_key_set, unverified_issuer, verify

NOW = 1_800_000_000
ISSUER = "https://kubernetes.default.svc.cluster.local"
RULES = IssuerRules("cluster", ISSUER, "masking-gateway", ("RS256", "ES256", "EdDSA"), 30, 86_400)
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
CLAIMS = {
    "iss": ISSUER,
    "aud": ["masking-gateway", "another"],
    "sub": "system:serviceaccount:crm:masking",
    "iat": NOW - 60,
    "nbf": NOW - 60,
    "exp": NOW + 3540,
    "kubernetes.io": {"namespace": "crm", "serviceaccount": {"name": "masking"}},
}


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    kind = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((name for base, name in kind.items() if isinstance(key, base)), "EdDSA")
    algorithm = jwt.get_algorithm_by_name(name)
    made = json.loads(algorithm.to_jwk(key.public_key())) | more
    return made if kid is None else made | {"kid": kid}


KEYS = read_key_set({"keys": [jwk(RSA, "r", use="sig", alg="RS256"), jwk(EC, "e"), jwk(ED, "o")]})


def token(
    key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    merged = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(merged, key, algorithm, headers={**({"kid": kid} if kid else {}), **(headers or {})})


def raw(header: dict[str, Any], claims: Any, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "o")])
def test_a_good_token_proves_its_subject(key: Any, algorithm: str, kid: str) -> None:
    """A Kubernetes service account, by each kind of key."""
    made = token(key, algorithm, kid)

    assert looks_like_token(made)
    assert unverified_issuer(made) == ISSUER
    assert verify(made, RULES, KEYS, NOW).subject == "system:serviceaccount:crm:masking"


PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def with_hmac(secret: bytes) -> str:
    """Return an HS256 token signed with what everybody knows: the classic confusion."""
    unsigned = raw({"alg": "HS256", "typ": "JWT", "kid": "r"}, CLAIMS).rstrip(".")
    signature = base64.urlsafe_b64encode(hmac.digest(secret, unsigned.encode(), hashlib.sha256)).rstrip(b"=").decode()
    return f"{unsigned}.{signature}"


FAULTS = {
    "none": (raw({"alg": "none", "kid": "r"}, CLAIMS), "algorithm"),
    "None": (raw({"alg": "None", "kid": "r"}, CLAIMS), "algorithm"),
    "no alg": (raw({"kid": "r"}, CLAIMS), "algorithm"),
    "hmac with the public key": (with_hmac(PUBLIC_PEM), "algorithm"),
    "hmac with nothing": (with_hmac(b""), "algorithm"),
    "a key of another kind": (token(EC, "ES256", "r"), "algorithm"),
    "not in the list": (token(RSA, "RS512"), "algorithm"),
    "not the key's own": (token(RSA, "PS256"), "algorithm"),
    "unknown key": (token(kid="gone"), "key_unknown"),
    "kid of another type": (raw({"alg": "RS256", "kid": ["r"]}, CLAIMS, b"x"), "malformed"),
    "no kid among several": (token(kid=None), "key_unknown"),
    "crit": (token(headers={"crit": ["b64"], "b64": False}), "malformed"),
    "a stranger's key": (token(OTHER), "signature"),
    "a key it brings along": (token(OTHER, headers={"jwk": jwk(OTHER, "r"), "jku": "https://evil.example/keys"}), "signature"),
    "altered": (token()[:-60] + "A" * 40 + token()[-20:], "signature"),
    "expired": (token(exp=NOW - 31), "expired"),
    "issued in the future": (token(iat=NOW + 31, nbf=None), "not_yet"),
    "not before later": (token(nbf=NOW + 31), "not_yet"),
    "no end": (token(exp=None), "claims"),
    "no begin": (token(iat=None), "claims"),
    "endless": (token(exp=NOW + 10**9), "claims"),
    "another audience": (token(aud=["another"]), "audience"),
    "no audience": (token(aud=None), "audience"),
    "audience of parts": (token(aud="masking-gateway-2"), "audience"),
    "another issuer": (token(iss="https://evil.example"), "claims"),
    "no subject": (token(sub=None), "claims"),
    "empty subject": (token(sub=""), "claims"),
    "a subject with a line end": (token(sub="a\nb"), "claims"),
    "claims that are no object": (raw({"alg": "RS256", "kid": "r"}, [1]), "malformed"),
    "time as text": (token(exp=str(NOW + 60)), "claims"),
    "not a token": ("eyJ.eyJ.x", "malformed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_refused_by_its_name(case: str) -> None:
    """And the sentence for the caller repeats nothing of the token."""
    text, kind = FAULTS[case]
    with pytest.raises(TokenFault) as caught:
        verify(text, RULES, KEYS, NOW)

    assert caught.value.kind == kind, caught.value
    assert "crm" not in str(caught.value)
    assert "evil" not in str(caught.value)


def test_clocks_may_be_a_little_apart() -> None:
    """Within the leeway, at both ends."""
    assert verify(token(exp=NOW - 29), RULES, KEYS, NOW)
    assert verify(token(iat=NOW + 29, nbf=NOW + 29), RULES, KEYS, NOW)


def test_one_nameless_key_serves_nameless_tokens() -> None:
    """A published set of one key needs no names."""
    alone = read_key_set({"keys": [jwk(RSA, None)]})

    assert verify(token(kid=None), RULES, alone, NOW)
    assert verify(token(kid=None), RULES, read_key_set({"keys": [jwk(RSA, "r")]}), NOW)


def test_only_fit_keys_are_read() -> None:
    """No shared secret, no private key, nothing small, nothing for encryption, and no two of one name."""
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    private = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(EC)) | {"kid": "private"}
    unfit = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        jwk(small, "small"),
        jwk(RSA, "enc", use="enc"),
        jwk(RSA, "twice"),
        jwk(OTHER, "twice"),
        {"kty": "RSA", "kid": "broken"},
        {"kty": 7},
        "text",
        private,
    ]

    assert set(read_key_set({"keys": [*unfit, jwk(RSA, "good")]}).keys) == {"good"}
    for nothing in ({"keys": unfit}, {"keys": []}, {}, [], None, {"keys": {}}):
        with pytest.raises(ValueError, match="key"):
            read_key_set(nothing)


good = token()
mangled = st.builds(
    lambda at, letter, cut: good[:at] + letter + good[at + 1 : len(good) - cut],
    st.integers(0, len(good) - 1),
    st.sampled_from("aZ09_-.=+ é\x00"),
    st.integers(0, 5),
)
jsons = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.one_of(st.sampled_from(["RS256", "ES256", "none", "HS256"]), jsons),
        "kid": jsons,
        "crit": jsons,
        "typ": jsons,
        "b64": jsons,
    },
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(mangled, st.text(max_size=60), st.builds(lambda h, c, s: raw(h, c, s), headers, jsons, st.binary(max_size=40))))
def test_nothing_but_a_fault_comes_of_anything(text: str) -> None:
    """Whatever is sent, it is a good token or a TokenFault; a changed one is never good."""
    try:
        verify(text, RULES, KEYS, NOW)
    except TokenFault:
        return
    # Base64 without padding has spare bits in its last letter: another text of the very same bytes.
    spare = text.split(".")[2]
    assert base64.urlsafe_b64decode(spare + "==") == base64.urlsafe_b64decode(good.split(".")[2] + "==")
    assert text.split(".")[:2] == good.split(".")[:2]
