"""Signed requests: the RFC's own vectors, every fault with its sentence, and anything at all."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from http_message_signatures import HTTPMessageSigner, InvalidSignature, algorithms
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.model import SignedMessage
from gateway.signatures import Signature, SignatureFault, _Message, _OneKey, _Verifier, read_public_key, read_signature, verify
from tests.unit.rfc9421 import RFC_KEYS, RFC_VECTORS


@pytest.mark.parametrize("section", RFC_VECTORS)
def test_the_rfcs_requests(section: str) -> None:
    """Every signed request of RFC 9421 (its B.2.5 with a shared secret apart): its base, good as printed, not a letter changed."""
    request, key_id, algorithm, lines, parameters, value = RFC_VECTORS[section]
    listed = " ".join(line.partition(": ")[0] for line in lines)
    key = read_public_key(RFC_KEYS[key_id])
    kind = next(kind for kind in key.algorithms if kind.algorithm_id == algorithm)
    verifier = _Verifier(signature_algorithm=kind, key_resolver=_OneKey(key.key))

    def verified(signature_input: str) -> Any:
        more = (("signature-input", f"sig1={signature_input}"), ("signature", f"sig1=:{value}:"))
        message = replace(request, headers=(*request.headers, *more))
        return verifier.verify(_Message(message), max_age=None)[0]

    covered = dict(verified(f"({listed}){parameters}").covered_components)
    covered.pop('"@signature-params"')
    assert [f"{name}: {text}" for name, text in covered.items()] == lines
    for altered in (parameters.replace("16188844", "16188845"), parameters.replace("test-key", "test_key")):
        with pytest.raises(InvalidSignature):
            verified(f"({listed}){altered}")


def test_the_rfcs_response() -> None:
    """Appendix B.2.4, the one vector for ECDSA."""
    digest = "sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:"
    headers = {
        "Content-Type": "application/json",
        "Content-Digest": digest,
        "Content-Length": "23",
        "Signature-Input": 'sig-b24=("@status" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-ecc-p256"',
        "Signature": "sig-b24=:wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==:",
    }
    key = read_public_key(RFC_KEYS["test-key-ecc-p256"])
    verifier = _Verifier(signature_algorithm=key.algorithms[0], key_resolver=_OneKey(key.key))

    verifier.verify(SimpleNamespace(status_code=200, headers=headers), max_age=None)
    headers["Content-Length"] = "24"
    with pytest.raises(InvalidSignature):
        verifier.verify(SimpleNamespace(status_code=200, headers=headers), max_age=None)


NOW = 1_800_000_000
BODY = b'{"m1":"9876543210"}'
KEYS = {
    "ed25519": (ed25519.Ed25519PrivateKey.generate(), algorithms.ED25519),
    "p256": (ec.generate_private_key(ec.SECP256R1()), algorithms.ECDSA_P256_SHA256),
    "p384": (ec.generate_private_key(ec.SECP384R1()), algorithms.ECDSA_P384_SHA384),
    "rsa-pss": (rsa.generate_private_key(65537, 2048), algorithms.RSA_PSS_SHA512),
    "rsa": (rsa.generate_private_key(65537, 2048), algorithms.RSA_V1_5_SHA256),
}
COVERED = ("@method", "@target-uri", "content-digest")


def pem_of(name: str) -> str:
    return KEYS[name][0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed(
    name: str = "ed25519",
    *,
    covered: Iterable[str] = COVERED,
    created: int = NOW,
    nonce: str | None = "nonce-0123456789",
    expires: int | None = None,
    alg: bool = True,
    query: str = "",
    more: Iterable[tuple[str, str]] = (),
) -> SignedMessage:
    """Return a request as a caller would sign it."""
    from datetime import UTC, datetime

    key, algorithm = KEYS[name]
    digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    headers = {"host": "gateway.internal", "content-digest": f"sha-256=:{digest}:", **dict(more)}
    request = SimpleNamespace(method="POST", url="http://gateway.internal/api/v2/Masking/unset" + query, headers=headers)
    signer = HTTPMessageSigner(signature_algorithm=algorithm, key_resolver=SimpleNamespace(resolve_private_key=lambda _: key))
    signer.sign(
        request, key_id="abcdefghij", created=datetime.fromtimestamp(created, UTC), nonce=nonce, include_alg=alg,
        use_existing_digest=True, covered_component_ids=tuple(covered), expires=datetime.fromtimestamp(expires, UTC) if expires else None,
    )  # fmt: skip
    pairs = tuple((header.lower(), value) for header, value in headers.items())
    return SignedMessage("POST", "http", "gateway.internal", "/api/v2/Masking/unset", query.removeprefix("?"), pairs)


def check(message: SignedMessage, name: str = "ed25519", body: bytes = BODY, now: float = NOW) -> Signature:
    signature = read_signature(message)
    verify(signature, body, message, read_public_key(pem_of(name)), now, 300)
    return signature


def with_header(message: SignedMessage, name: str, value: str | None, *, add: bool = False) -> SignedMessage:
    kept = tuple(pair for pair in message.headers if add or pair[0] != name)
    headers = kept if value is None else (*kept, (name, value))
    return SignedMessage(message.method, message.scheme, message.authority, message.path, message.query, headers)


def changed(message: SignedMessage, **fields: str) -> SignedMessage:
    values = {name: getattr(message, name) for name in ("method", "scheme", "authority", "path", "query", "headers")}
    return SignedMessage(**{**values, **fields})


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("alg", [True, False])
def test_each_kind_of_key_signs(name: str, alg: bool) -> None:
    """With the algorithm named or not; RSA without a name is PSS."""
    message = signed(name, alg=alg)
    if name == "rsa" and not alg:
        with pytest.raises(SignatureFault):
            check(message, name)
        return

    signature = check(message, name)
    assert (signature.key_id, signature.nonce, signature.created) == ("abcdefghij", "nonce-0123456789", NOW)


def test_other_ways_of_covering() -> None:
    """Authority and path in place of the whole address; further fields; a query."""
    assert check(signed(covered=("@method", "@authority", "@path", "content-digest", "host")))
    assert check(signed(query="?a=b"))
    assert check(signed(covered=("@method", "@authority", "@path", "@query", "content-digest"), query="?a=b"))
    assert check(signed(covered=(*COVERED, "x-gateway-account"), more=[("x-gateway-account", "main")]))


def digest(algorithm: str, body: bytes) -> str:
    return f"{algorithm}=:{base64.b64encode(hashlib.new(algorithm.replace('-', ''), body).digest()).decode()}:"


GOOD = signed()
LABEL = "pyhms"
FAULTS = {
    "method changed": (changed(GOOD, method="PUT"), "does not fit the request"),
    "path changed": (changed(GOOD, path="/api/v2/Masking/set"), "does not fit the request"),
    "host changed": (changed(GOOD, authority="other.internal"), "does not fit the request"),
    "host of a user": (changed(GOOD, authority="gateway.internal@evil"), "does not fit the request"),
    "scheme changed": (changed(GOOD, scheme="https"), "does not fit the request"),
    "query added": (changed(GOOD, query="x=1"), "does not fit the request"),
    "query not covered": (signed(covered=("@method", "@authority", "@path", "content-digest"), query="?x=1"), "cover the query"),
    "digest of another body": (with_header(GOOD, "content-digest", digest("sha-256", b"{}")), "does not fit the request"),
    "no digest": (with_header(GOOD, "content-digest", None), "'content-digest' once"),
    "two digests": (with_header(GOOD, "content-digest", "sha-256=:x:", add=True), "'content-digest' once"),
    "no signature": (with_header(GOOD, "signature", None), "'signature' once"),
    "no input": (with_header(GOOD, "signature-input", None), "'signature-input' once"),
    "two signature lines": (with_header(GOOD, "signature", "b=:AA==:", add=True), "'signature' once"),
    "long": (with_header(GOOD, "signature", f"{LABEL}=:{'A' * 5000}:"), "at most 4096"),
    "not a dictionary": (with_header(GOOD, "signature-input", '("@method"'), "cannot be read"),
    "an item for a list": (with_header(GOOD, "signature-input", f'{LABEL}="@method";created=1;keyid="a"'), "not a list"),
    "a number in the list": (with_header(GOOD, "signature-input", f"{LABEL}=(1);created=1"), "not a list"),
    "another label": (with_header(GOOD, "signature", "other=:AA==:"), "exactly one signature"),
    "not bytes": (with_header(GOOD, "signature", f'{LABEL}="text"'), "does not fit the request"),
    "a twice covered": (
        with_header(GOOD, "signature-input", dict(GOOD.headers)["signature-input"].replace('"@method"', '"@method" "@method"')),
        "does not fit the request",
    ),
    "method not covered": (signed(covered=("@target-uri", "content-digest")), "must cover '@method'"),
    "digest not covered": (signed(covered=("@method", "@target-uri")), "'content-digest'"),
    "host not covered": (signed(covered=("@method", "@path", "content-digest")), "'@target-uri'"),
    "a part of the account covered": (
        with_header(
            signed(covered=(*COVERED, "x-gateway-account"), more=[("x-gateway-account", "a=1")]),
            "signature-input",
            f'{LABEL}=("@method" "@target-uri" "content-digest" "x-gateway-account";key="a");created={NOW};keyid="abcdefghij";nonce="12345678"',
        ),
        "'x-gateway-account'",
    ),
    "account not covered": (signed(more=[("x-gateway-account", "main")]), "'x-gateway-account'"),
    "no nonce": (signed(nonce=None), "'nonce'"),
    "short nonce": (signed(nonce="1234567"), "'nonce'"),
    "too old": (signed(created=NOW - 301), "too old"),
    "of the future": (signed(created=NOW + 6), "in the future"),
    "past its end": (signed(expires=NOW - 1), "too old"),
    "another key": (signed("p256"), "'alg' does not fit"),
    "another key, unnamed": (signed("p256", alg=False), "does not fit the request"),
    "hmac": (
        with_header(GOOD, "signature-input", dict(GOOD.headers)["signature-input"].replace("ed25519", "hmac-sha256")),
        "'alg' does not fit",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_has_its_sentence(case: str) -> None:
    """What is wrong and what to do, and nothing of the request."""
    message, told = FAULTS[case]
    with pytest.raises(SignatureFault) as caught:
        check(message)

    assert told in str(caught.value)
    assert "evil" not in str(caught.value)


def test_the_body_is_what_was_signed() -> None:
    """One byte more and the digest does not fit, whatever the signature says."""
    with pytest.raises(SignatureFault, match="digest does not fit"):
        check(GOOD, body=BODY + b" ")


def test_it_grows_old() -> None:
    """By the clock that is handed in."""
    assert check(GOOD, now=NOW + 300)
    for now in (NOW + 301, NOW - 6):
        with pytest.raises(SignatureFault):
            check(GOOD, now=now)


def test_only_fit_public_keys_are_read() -> None:
    """Each other kind is named, a private key without being repeated."""
    private = KEYS["ed25519"][0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - to be refused
    odd = ec.generate_private_key(ec.SECP521R1()).public_key()
    unknown_curve = """-----BEGIN PUBLIC KEY-----
MFAwEAYHKoZIzj0CAQYFK4EEAAkDPAAEBvZrD0+y7bQvJf0bUCL1Wb6ZgQq8Yq0w
-----END PUBLIC KEY-----"""
    cases = [(private, "private key"), ("", "not a public key"), ("é", "not a public key"), (unknown_curve, "public key")]
    cases += [(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), "kind") for key in (small, odd)]
    for pem, told in cases:
        with pytest.raises(ValueError, match=told) as caught:
            read_public_key(pem)
        assert private.splitlines()[1] not in str(caught.value)


texts = st.one_of(
    st.text(alphabet=st.characters(max_codepoint=255), max_size=80),
    st.sampled_from([value for _, value in GOOD.headers]).flatmap(
        lambda value: st.builds(
            lambda at, letter: value[:at] + letter + value[at + 1 :],
            st.integers(0, len(value)),
            st.sampled_from('";=:()@\\, aA0é\x00'),
        )
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["signature", "signature-input", "content-digest", "host"]), texts, max_size=3),
    st.text(max_size=10),
)
@example({}, "#fragment")
@example({"content-digest": digest("sha-256", BODY) + " "}, "")
def test_nothing_but_a_fault_comes_of_anything(headers: dict[str, str], path: str) -> None:
    """Whatever the headers hold, it is a good signature of this very request or a SignatureFault."""
    message = GOOD
    for name, value in headers.items():
        message = with_header(message, name, value)
    message = changed(message, path=message.path + path)
    try:
        check(message)
    except SignatureFault:
        return
    assert not path
    assert {name: value.strip() for name, value in message.headers if name == "content-digest"} == {
        "content-digest": digest("sha-256", BODY)
    }
