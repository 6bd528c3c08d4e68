"""A workload's token, taken and refused: every fault, every confusion, and anything at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tokens import (
    ALGORITHMS,
    IssuerRules,
    KeySet,
    NoUsableKey,
    TokenFault,
    looks_like_token,
    read_key_set,
    unverified_issuer,
    verify,
)

NOW = 1_800_000_000
ISSUER = "https://kubernetes.default.svc.cluster.local"
RULES = IssuerRules("cluster", ISSUER, "masking-gateway", tuple(sorted(ALGORITHMS)), 30, 86_400)
RSA = rsa.generate_private_key(65537, 2048)
PSS = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
EC521 = ec.generate_private_key(ec.SECP521R1())
ED = ed25519.Ed25519PrivateKey.generate()
# As a projected service-account token has them.
CLAIMS = {
    "aud": ["masking-gateway", "another"],
    "exp": NOW + 3540,
    "iat": NOW - 60,
    "iss": ISSUER,
    "jti": "2f1c7a8e-1111-4222-8333-944445555666",
    "kubernetes.io": {
        "namespace": "crm",
        "node": {"name": "n1", "uid": "a0"},
        "pod": {"name": "dialer-0", "uid": "b1"},
        "serviceaccount": {"name": "dialer", "uid": "c2"},
    },
    "nbf": NOW - 60,
    "sub": "system:serviceaccount:crm:dialer",
}


def jwk(key: Any, kid: Any = None, **more: Any) -> dict[str, Any]:
    kinds = ((rsa.RSAPrivateKey, "RS256"), (ec.EllipticCurvePrivateKey, "ES256"))
    name = next((name for kind, name in kinds if isinstance(key, kind)), "EdDSA")
    made = json.loads(jwt.get_algorithm_by_name(name).to_jwk(key.public_key())) | more
    return made if kid is None else made | {"kid": kid}


KEYS = read_key_set(
    {
        "keys": [
            jwk(RSA, "r", use="sig", alg="RS256"),
            jwk(OTHER, "any-rsa"),
            jwk(PSS, "p", alg="PS256"),
            jwk(EC, "e"),
            jwk(EC384, "e384"),
            jwk(EC521, "e521"),
            jwk(ED, "o"),
        ]
    }
)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(key: Any, header: dict[str, Any], payload: bytes) -> str:
    """Sign anything at all, which PyJWT's encoder would refuse to."""
    unsigned = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    algorithm = jwt.get_algorithm_by_name(header["alg"])
    return f"{unsigned}.{b64(algorithm.sign(unsigned.encode(), algorithm.prepare_key(key)))}"


def token(key: Any = RSA, algorithm: str = "RS256", kid: Any = "r", header: dict[str, Any] | None = None, **claims: Any) -> str:
    merged = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    named = {} if kid is None else {"kid": kid}
    return sign(key, {"alg": algorithm, **named, **(header or {})}, json.dumps(merged).encode())


def unsigned(header: dict[str, Any], claims: Any, signature: bytes = b"") -> str:
    return ".".join(b64(part) for part in (json.dumps(header).encode(), json.dumps(claims).encode(), signature))


def with_hmac(secret: bytes, algorithm: str = "HS256", kid: str = "r") -> str:
    """Sign with what everybody knows: the classic confusion. By hand, because PyJWT would not."""
    head = unsigned({"alg": algorithm, "kid": kid}, CLAIMS).rstrip(".")
    return f"{head}.{b64(hmac.digest(secret, head.encode(), hashlib.sha256))}"


PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PUBLIC_DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
GOOD = token()


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA, "RS256", "r"),
        *((OTHER, name, "any-rsa") for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (PSS, "PS256", "p"),
        (EC, "ES256", "e"),
        (EC384, "ES384", "e384"),
        (EC521, "ES512", "e521"),
        (ED, "EdDSA", "o"),
    ],
)
def test_a_good_token_proves_its_subject(key: Any, algorithm: str, kid: str) -> None:
    """A Kubernetes service account, by each algorithm."""
    made = token(key, algorithm, kid)
    identity = verify(made, RULES, KEYS, NOW)

    assert looks_like_token(made)
    assert unverified_issuer(made) == ISSUER
    assert (identity.issuer, identity.subject) == ("cluster", "system:serviceaccount:crm:dialer")
    assert (identity.token_id, identity.expires_at) == (CLAIMS["jti"], NOW + 3540)


def test_what_is_optional_may_be_missing() -> None:
    """A single audience as text, no `nbf`, no `jti`; times with a fraction."""
    identity = verify(token(aud="masking-gateway", nbf=None, jti=None, exp=NOW + 60.5), RULES, KEYS, NOW)

    assert identity.token_id is None
    assert identity.expires_at == NOW + 60.5


def nan(name: str) -> str:
    claims = json.dumps({**CLAIMS, name: float("nan")}).encode()
    return sign(RSA, {"alg": "RS256", "kid": "r"}, claims)


STRANGER = ec.generate_private_key(ec.SECP256R1())
FAULTS = {
    "none": (unsigned({"alg": "none", "kid": "r"}, CLAIMS), "algorithm"),
    "None": (unsigned({"alg": "None", "kid": "r"}, CLAIMS), "algorithm"),
    "none with a signature": (unsigned({"alg": "none", "kid": "r"}, CLAIMS, b"x" * 32), "algorithm"),
    "no alg": (unsigned({"kid": "r"}, CLAIMS), "algorithm"),
    "alg of another type": (unsigned({"alg": ["RS256"], "kid": "r"}, CLAIMS, b"x"), "algorithm"),
    "hmac with the public key's PEM": (with_hmac(PUBLIC_PEM), "algorithm"),
    "hmac with the public key's DER": (with_hmac(PUBLIC_DER), "algorithm"),
    "hmac with nothing": (with_hmac(b""), "algorithm"),
    "hmac that calls itself RS256": (with_hmac(PUBLIC_PEM, "RS256"), "signature"),
    "secp256k1": (unsigned({"alg": "ES256K", "kid": "e"}, CLAIMS, b"x" * 64), "algorithm"),
    "an elliptic key where RSA is": (token(EC, "ES256", "r"), "algorithm"),
    "RSA where an elliptic key is": (token(RSA, "RS256", "e"), "algorithm"),
    "ES256 with P-384": (unsigned({"alg": "ES256", "kid": "e384"}, CLAIMS, b"x" * 64), "algorithm"),
    "ES384 with P-256": (unsigned({"alg": "ES384", "kid": "e"}, CLAIMS, b"x" * 96), "algorithm"),
    "RS256 with a key for PS256": (token(PSS, "RS256", "p"), "algorithm"),
    "PS256 with a key for RS256": (token(RSA, "PS256", "r"), "algorithm"),
    "unknown key": (token(kid="gone"), "key_unknown"),
    "no kid among named keys": (token(kid=None), "key_unknown"),
    "kid of another type": (unsigned({"alg": "RS256", "kid": ["r"]}, CLAIMS, b"x"), "malformed"),
    "kid of no type": (unsigned({"alg": "RS256", "kid": None}, CLAIMS, b"x"), "malformed"),
    "crit": (token(header={"crit": ["exp"]}), "malformed"),
    "crit that PyJWT knows": (token(header={"crit": ["b64"], "b64": True}), "malformed"),
    "crit of no type": (token(header={"crit": None}), "malformed"),
    "payload apart": (token(header={"b64": False}), "malformed"),
    "a stranger's key": (token(OTHER), "signature"),
    "a stranger's elliptic key": (token(STRANGER, "ES256", "e"), "signature"),
    "a key it brings along": (
        token(OTHER, header={"jwk": jwk(OTHER, "r"), "jku": "https://evil.example/k", "x5u": "https://evil.example/c"}),
        "signature",
    ),
    "no signature": (GOOD.rsplit(".", 1)[0] + ".", "signature"),
    "cut": (GOOD.rsplit(".", 1)[0] + "." + b64(base64.urlsafe_b64decode(GOOD.rsplit(".", 1)[1] + "==")[:-8]), "signature"),
    "an elliptic signature of zeros": (unsigned({"alg": "ES256", "kid": "e"}, CLAIMS, bytes(64)), "signature"),
    "another's claims": (".".join([GOOD.split(".")[0], token(sub="root").split(".")[1], GOOD.split(".")[2]]), "signature"),
    "expired": (token(exp=NOW - 30), "expired"),
    "issued in the future": (token(iat=NOW + 31, nbf=None), "not_yet"),
    "not before later": (token(nbf=NOW + 31), "not_yet"),
    "no end": (token(exp=None), "claims"),
    "no issue": (token(iat=None), "claims"),
    "lives too long": (token(exp=NOW - 60 + 86_401), "claims"),
    "ends before it begins": (token(iat=NOW + 20, exp=NOW + 10), "claims"),
    "an end that is no number": (nan("exp"), "malformed"),
    "an issue that is no number": (nan("iat"), "malformed"),
    "an endless end": (
        sign(RSA, {"alg": "RS256", "kid": "r"}, json.dumps(CLAIMS | {"exp": 0}).replace('"exp": 0', '"exp": 1e999').encode()),
        "claims",
    ),
    "an enormous end": (token(exp=10**400), "claims"),
    "a time before all": (token(iat=-1), "claims"),
    "time as text": (token(exp=str(NOW + 60)), "claims"),
    "time as truth": (token(nbf=True), "claims"),
    "nbf of no type": (sign(RSA, {"alg": "RS256", "kid": "r"}, json.dumps(CLAIMS | {"nbf": None}).encode()), "claims"),
    "another audience": (token(aud=["another"]), "audience"),
    "no audience": (token(aud=None), "audience"),
    "audience by prefix": (token(aud="masking-gateway-2"), "audience"),
    "audience in an object": (token(aud={"masking-gateway": 1}), "audience"),
    "audience among others of no type": (token(aud=["masking-gateway", 7]), "audience"),
    "another issuer": (token(iss="https://evil.example"), "issuer_unknown"),
    "issuer with a slash more": (token(iss=ISSUER + "/"), "issuer_unknown"),
    "no issuer": (token(iss=None), "claims"),
    "issuer in a list": (token(iss=[ISSUER]), "claims"),
    "no subject": (token(sub=None), "claims"),
    "empty subject": (token(sub=""), "claims"),
    "long subject": (token(sub="a" * 257), "claims"),
    "a subject with a line end": (token(sub="a\n"), "claims"),
    "a subject written backwards": (token(sub="a\u202eb"), "claims"),
    "a subject of another type": (token(sub=7), "claims"),
    "a token id of another type": (token(jti=7), "claims"),
    "claims that are no object": (sign(RSA, {"alg": "RS256", "kid": "r"}, b"[1]"), "malformed"),
    "claims that are not JSON": (sign(RSA, {"alg": "RS256", "kid": "r"}, b"{"), "malformed"),
    "claims in UTF-16": (sign(RSA, {"alg": "RS256", "kid": "r"}, json.dumps(CLAIMS).encode("utf-16")), "malformed"),
    "claims without bottom": (sign(RSA, {"alg": "RS256", "kid": "r"}, b'{"a":' * 1000), "malformed"),
    "header without bottom": (f"{b64(b'[' * 3000)}.{b64(b'{}')}.x", "malformed"),
    "a number without end": (sign(RSA, {"alg": "RS256", "kid": "r"}, b'{"exp":' + b"9" * 5000 + b"}"), "malformed"),
    "header that is no object": (f"{b64(b'[]')}.{b64(b'{}')}.", "malformed"),
    "padded": (GOOD + "==", "malformed"),
    "five parts": ("a.b.c.d.e", "malformed"),
    "a letter of no alphabet": (GOOD[:-1] + "\ud800", "malformed"),
    "a line end": (GOOD + "\n", "malformed"),
    "too long": (token(pad="x" * 8192), "malformed"),
    "nothing": ("", "malformed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_refused_by_its_name(case: str) -> None:
    """And the sentence for the caller repeats nothing of the token."""
    text, kind = FAULTS[case]
    with pytest.raises(TokenFault) as caught:
        verify(text, RULES, KEYS, NOW)

    said = str(caught.value)
    assert caught.value.kind == kind, said
    assert caught.value.args == (said,)
    assert said.endswith(".")
    for secret in ("crm", "evil", "another-", "gone", "root"):
        assert secret not in said


def test_every_kind_is_reached() -> None:
    """The table above leaves no kind of fault out."""
    assert {kind for _, kind in FAULTS.values()} == {
        "malformed", "issuer_unknown", "key_unknown", "algorithm", "signature", "expired", "not_yet", "audience", "claims",
    }  # fmt: skip


def test_rules_decide_among_algorithms() -> None:
    """What the key could do is not taken unless the rules name it; and the rules cannot name what is never taken."""
    only = IssuerRules("cluster", ISSUER, "masking-gateway", ("ES256", "HS256", "none"), 30, 86_400)
    assert verify(token(EC, "ES256", "e"), only, KEYS, NOW)

    for text in (GOOD, with_hmac(PUBLIC_PEM), with_hmac(b""), unsigned({"alg": "none", "kid": "r"}, CLAIMS)):
        with pytest.raises(TokenFault) as caught:
            verify(text, only, KEYS, NOW)
        assert caught.value.kind == "algorithm"


def test_clocks_may_be_a_little_apart() -> None:
    """Within the leeway, at both ends; the longest life is allowed to the second."""
    assert verify(token(exp=NOW - 29), RULES, KEYS, NOW)
    assert verify(token(iat=NOW + 30, nbf=NOW + 30), RULES, KEYS, NOW)
    assert verify(token(exp=NOW - 60 + 86_400), RULES, KEYS, NOW)


def test_the_clock_is_the_argument() -> None:
    """The same token, at other instants, whatever the machine's clock says."""
    for now, kind in ((NOW - 1000, "not_yet"), (NOW + 4000, "expired"), (time.time(), None)):
        if kind is None:
            made = token(iat=now - 10, nbf=None, exp=now + 10)
            assert verify(made, RULES, KEYS, now)
            continue
        with pytest.raises(TokenFault) as caught:
            verify(GOOD, RULES, KEYS, now)
        assert caught.value.kind == kind


def test_a_nameless_key_serves_nameless_tokens() -> None:
    """And only those."""
    alone = read_key_set({"keys": [jwk(RSA)]})
    assert set(alone.keys) == {""}
    assert verify(token(kid=None), RULES, alone, NOW)

    with pytest.raises(TokenFault) as caught:
        verify(token(kid="r"), RULES, alone, NOW)
    assert caught.value.kind == "key_unknown"


SMALL = rsa.generate_private_key(65537, 1024)
UNFIT = [
    {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
    {"kty": "oct", "k": "c2VjcmV0", "kid": "secret-hs", "alg": "HS256"},
    jwk(SMALL, "small"),
    jwk(RSA, "enc", use="enc"),
    jwk(RSA, "strange-use", use=["sig"]),
    jwk(RSA, "wrap", key_ops=["wrapKey"]),
    jwk(RSA, "oaep", alg="RSA-OAEP"),
    jwk(RSA, "hs", alg="HS256"),
    jwk(RSA, "alg-type", alg=["RS256"]),
    jwk(RSA, 7),
    jwk(EC384, "curve", alg="ES256"),
    jwk(EC, "curve-mix", crv="P-384"),
    jwk(ec.generate_private_key(ec.SECP256K1()), "k1"),
    jwk(ed448.Ed448PrivateKey.generate(), "ed448"),
    jwk(EC, "off-curve", y=b64(bytes(32))),
    json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(EC)) | {"kid": "private"},
    json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA)) | {"kid": "private-rsa", "key_ops": ["verify"]},
    json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(ED)) | {"kid": "private-ed"},
    jwk(RSA, "huge", n=b64(b"\xff" * 200_000)),
    jwk(RSA, "n-type", n=7),
    jwk(ED, "short", x="AAAA"),
    {"kty": "RSA", "kid": "empty"},
    {"kty": "RSA", "kid": "surrogate", "n": "\ud800", "e": "AQAB"},
    {"kty": "OKP", "crv": "X25519", "x": b64(bytes(32)), "kid": "agree"},
    {"kty": 7},
    {},
    "text",
    None,
    jwk(RSA, "twice"),
    jwk(EC, "twice"),
    jwk(RSA),
    jwk(EC),
]


def test_only_fit_keys_are_read() -> None:
    """No shared secret, no private key, nothing small, nothing for encryption, and no two of one name."""
    assert set(read_key_set({"keys": [*UNFIT, jwk(RSA, "good", key_ops=["verify"])]}).keys) == {"good"}
    assert set(read_key_set({"keys": [jwk(RSA, "same", use="enc"), jwk(EC, "same", use="sig")]}).keys) == {"same"}

    for nothing in ({"keys": UNFIT}, {"keys": []}):
        with pytest.raises(NoUsableKey, match="no public key"):
            read_key_set(nothing)
    for broken in ({}, [], None, {"keys": {}}, "keys", 7):
        with pytest.raises(ValueError, match="not a JSON Web Key Set") as caught:
            read_key_set(broken)
        assert not isinstance(caught.value, NoUsableKey)


def test_key_sets_are_equal_by_their_keys() -> None:
    """Order and ornament do not make another set; another key does."""
    one = read_key_set({"keys": [jwk(RSA, "r"), jwk(EC, "e")]})

    assert one == read_key_set({"keys": [jwk(EC, "e", use="sig"), jwk(RSA, "r")], "more": 1})
    assert one != read_key_set({"keys": [jwk(OTHER, "r"), jwk(EC, "e")]})


def test_form() -> None:
    """Three parts of base64url, of a bounded length."""
    assert looks_like_token("a.b.c")
    assert looks_like_token("a.b.")
    for text in ("", "a.b", "a..c", ".b.c", "a.b.c.d", "a.b.c=", "a.b.c\n", "a.b.ä", "gk_live_x", "a" * 8192 + ".b.c"):
        assert not looks_like_token(text)


def test_the_unproved_issuer_of_anything() -> None:
    """None wherever there is no text."""
    assert unverified_issuer(unsigned({}, {"iss": "https://evil.example"})) == "https://evil.example"
    for text in ("", "a.b.c", unsigned({}, {"iss": 7}), unsigned({}, {}), unsigned({}, []), GOOD + "="):
        assert unverified_issuer(text) is None


mangled = st.builds(
    lambda at, letter, cut: GOOD[:at] + letter + GOOD[at + 1 : len(GOOD) - cut],
    st.integers(0, len(GOOD) - 1),
    st.sampled_from("aZ09_-.=+ é\x00\ud800"),
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
        "alg": st.one_of(st.sampled_from([*sorted(ALGORITHMS), "none", "HS256"]), jsons),
        "kid": st.one_of(st.sampled_from(sorted(KEYS.keys)), jsons),
        "crit": jsons,
        "typ": jsons,
        "b64": jsons,
        "jwk": jsons,
    },
)
anything = st.one_of(mangled, st.text(max_size=60), st.builds(unsigned, headers, jsons, st.binary(max_size=520)))


@settings(max_examples=600, deadline=None)
@given(anything)
def test_nothing_but_a_fault_comes_of_anything(text: str) -> None:
    """Whatever is sent, it is the good token or a TokenFault."""
    looks_like_token(text)
    unverified_issuer(text)
    try:
        verify(text, RULES, KEYS, NOW)
    except TokenFault:
        return
    # Before 2.15 PyJWT overlooked the spare bits of a last letter: another text of the very same bytes.
    *rest, signature = text.split(".")
    assert rest == GOOD.split(".")[:2]
    assert base64.urlsafe_b64decode(signature + "==") == base64.urlsafe_b64decode(GOOD.split(".")[2] + "==")


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*CLAIMS, "azp"]), jsons, max_size=4))
def test_an_issuer_may_sign_anything(claims: dict[str, Any]) -> None:
    """A well signed token with any claims is an identity within its bounds, or a TokenFault."""
    text = sign(ED, {"alg": "EdDSA", "kid": "o"}, json.dumps(CLAIMS | claims).encode())
    try:
        identity = verify(text, RULES, KEYS, NOW)
    except TokenFault:
        return
    assert NOW - 30 < identity.expires_at <= NOW + 30 + 86_400
    assert 0 < len(identity.subject) <= 256
    assert identity.subject.isprintable()


members = st.dictionaries(st.sampled_from(["kty", "kid", "n", "e", "x", "y", "crv", "alg", "use", "key_ops"]), jsons, max_size=4)
key_sets = st.lists(st.builds(lambda key, more: jwk(key) | more, st.sampled_from([RSA, EC, ED]), members), max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.one_of(jsons, st.builds(lambda keys: {"keys": keys}, st.one_of(jsons, key_sets))))
def test_any_document_is_a_key_set_or_a_value_error(document: Any) -> None:
    """And what is read holds public keys with algorithms."""
    try:
        keys = read_key_set(document)
    except ValueError:
        return
    assert isinstance(keys, KeySet)
    for key in keys.keys.values():
        assert key.algorithms
        assert key.algorithms <= set(ALGORITHMS)
        assert isinstance(key.key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
