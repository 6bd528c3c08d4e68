"""Services that hold no secret: tokens of their platform and signed requests, over real sockets."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, algorithms

from tests.e2e.test_main_job import assert_refused
from tests.running import UNSET, Stack, until

ISSUER = "https://kubernetes.default.svc.cluster.local"
SUBJECT = "system:serviceaccount:crm:masking"


def jwks(**keys: Any) -> bytes:
    listed = []
    for kid, key in keys.items():
        name = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        listed.append(json.loads(jwt.get_algorithm_by_name(name).to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    return json.dumps({"keys": listed}).encode()


def token(key: Any, kid: str, **claims: Any) -> str:
    now = int(time.time())
    body = {"iss": ISSUER, "aud": ["masking-gateway"], "sub": SUBJECT, "iat": now, "exp": now + 600, **claims}
    name = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    return jwt.encode(body, key, name, headers={"kid": kid})


class Issuer:
    """An address that publishes keys, as long as it is up."""

    def __init__(self) -> None:
        self.document = b"{}"
        self.status = 200
        self.asked: list[dict[str, str]] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(dict(self.headers))
                self.send_response(issuer.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(issuer.document)))
                self.end_headers()
                self.wfile.write(issuer.document)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    yield running
    running.stop()


def settings(source: str, *, more: str = "", workload: str = "") -> str:
    return f"""
[issuers.cluster]
issuer = "{ISSUER}"
audience = "masking-gateway"
{source}
{more}
[workloads.crm-pods]
issuer = "cluster"
subject = "{SUBJECT}"
service = "crm"
{workload}
"""


def call(stack: Stack, made: str, pair: tuple[str, str], **headers: str) -> httpx.Response:
    return stack.unset(m1=pair[0], m2=pair[1], expiry_duration=60, key=made, headers=headers)


def test_a_service_account_calls_with_its_token(start: Callable[..., Stack], tmp_path: Path) -> None:
    """By a file of keys; the record names service, workload and proof; what is not mapped or not bound is refused."""
    key = rsa.generate_private_key(65537, 2048)
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(one=key))
    stack = start(more=settings(f'jwks_file = "{path}"', workload='scopes = ["reschedule"]\nprefixes = ["+9198", "+9199"]'))
    pair = stack.masked()

    answer = call(stack, token(key, "one"), pair)

    assert answer.status_code == 200, answer.text
    intent, _ = stack.records(answer.json()["request_id"])
    assert (intent["service"], intent["key_id"], intent["proof"]) == ("crm", "crm-pods", "token")
    assert "key_version" not in intent
    made = token(key, "one")
    assert_refused(stack.unset(m1=pair[0], key=made), 403, "scope_missing")
    assert_refused(stack.unset(mask="911234567890", key=made, expiry_duration=5), 403, "number_not_permitted")
    assert_refused(call(stack, token(key, "one", sub="system:serviceaccount:crm:other"), pair), 401, "token_refused")
    assert_refused(call(stack, token(key, "one", aud="vault"), pair), 401, "token_refused")
    assert_refused(call(stack, token(key, "one", iss="https://evil.example"), pair), 401, "token_refused")
    assert_refused(call(stack, token(key, "one", exp=int(time.time()) - 60), pair), 401, "token_refused")
    assert_refused(call(stack, jwt.encode({"iss": ISSUER}, "", "none"), pair), 401, "token_refused")
    assert_refused(call(stack, made, pair, **{"X-API-Key": stack.key}), 401, "credential_conflict")
    # The proof goes no further: neither the vendor nor a log sees it.
    assert made not in json.dumps(stack.vendor_calls())
    assert made.split(".")[2] not in stack.gateway_log()
    assert SUBJECT not in stack.gateway_log()


def test_an_issuers_keys_rotate(start: Callable[..., Stack], issuer: Issuer) -> None:
    """A new key is found with the first token signed by it; the old one ends when it is published no more."""
    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer.document = jwks(old=old)
    stack = start(more=settings(f'jwks_url = "{issuer.url}"', more="max_age_seconds = 3600"))
    pair = stack.masked()
    assert call(stack, token(old, "old"), pair).status_code == 200

    issuer.document = jwks(new=new)
    assert call(stack, token(new, "new"), pair).status_code == 200
    assert_refused(call(stack, token(old, "old"), pair), 401, "token_refused")
    # Made-up keys do not make the gateway ask on and on.
    asked = len(issuer.asked)
    for number in range(30):
        assert_refused(call(stack, token(old, f"made-up-{number}"), pair), 401, "token_refused")
    assert len(issuer.asked) <= asked + 1


def test_an_outage_of_the_issuer_is_bridged_for_a_while(start: Callable[..., Stack], issuer: Issuer) -> None:
    """The last keys serve until `stale_seconds_max`; then its tokens get 503, and keys go on working."""
    key = rsa.generate_private_key(65537, 2048)
    issuer.document = jwks(one=key)
    stack = start(more=settings(f'jwks_url = "{issuer.url}"', more="max_age_seconds = 1\nstale_seconds_max = 10"))
    pair = stack.masked()
    assert call(stack, token(key, "one"), pair).status_code == 200

    issuer.status = 302  # never followed
    until(lambda: "issuer.unreadable" in stack.gateway_log(), what="the outage being told")
    assert call(stack, token(key, "one"), pair).status_code == 200
    until(lambda: call(stack, token(key, "one"), pair).status_code == 503, what="the bound being reached")
    assert_refused(call(stack, token(key, "one"), pair), 503, "identity_unavailable")
    ready = stack.http.get(stack.url + "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["issuer.cluster"] == "JwksUnavailable"
    assert 'gateway_issuer_available{issuer="cluster"} 0.0' in stack.metrics()
    assert call(stack, stack.key, pair).status_code == 200

    issuer.status = 200
    until(lambda: call(stack, token(key, "one"), pair).status_code == 200, what="the issuer being back")


def test_a_bad_answer_of_the_issuer_changes_nothing(start: Callable[..., Stack], issuer: Issuer, tmp_path: Path) -> None:
    """Not JSON, no keys, shared secrets, too long: the last good set stays. Its own token is sent where one is wanted."""
    key = rsa.generate_private_key(65537, 2048)
    issuer.document = jwks(one=key)
    bearer = tmp_path / "bearer"
    bearer.write_text("platform-token\n")
    source = f'jwks_url = "{issuer.url}"\njwks_bearer_file = "{bearer}"'
    stack = start(more=settings(source, more="max_age_seconds = 1"))
    pair = stack.masked()
    assert issuer.asked[0]["Authorization"] == "Bearer platform-token"
    for bad in (b"<html>", b"[]", b'{"keys": {}}', b" " * 2_000_000):
        issuer.document = bad
        asked = len(issuer.asked)
        until(lambda asked=asked: len(issuer.asked) > asked + 1, what="two more readings")
        assert call(stack, token(key, "one"), pair).status_code == 200
    # An issuer that publishes no key any more says that none is good: no shared secret is taken for one.
    for none in (b'{"keys": []}', b'{"keys": [{"kty": "oct", "kid": "one", "k": "AAAA"}]}'):
        issuer.document = none
        until(lambda: call(stack, token(key, "one"), pair).status_code == 503, what="the keys being dropped")
        issuer.document = jwks(one=key)
        until(lambda: call(stack, token(key, "one"), pair).status_code == 200, what="the keys being back")
    assert "platform-token" not in stack.gateway_log()


def test_an_exchanged_file_of_keys_is_taken_up(start: Callable[..., Stack], tmp_path: Path) -> None:
    """By a swapped link, as platforms do it; a broken one leaves the last good keys."""
    old, new = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
    gone = tmp_path / "gone"
    first, second, broken = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    first.write_bytes(jwks(k=old))
    second.write_bytes(jwks(k=new))
    broken.write_bytes(b"{")
    link = tmp_path / "link"
    link.symlink_to(first)
    stack = start(more=settings(f'jwks_file = "{link}"'))
    pair = stack.masked()
    for target in (broken, second):
        fresh = tmp_path / "fresh"
        fresh.symlink_to(target)
        os.replace(fresh, link)
        if target is broken:
            until(lambda: "issuer.unreadable" in stack.gateway_log(), what="the fault being told")
            assert call(stack, token(old, "k"), pair).status_code == 200

    until(lambda: call(stack, token(new, "k"), pair).status_code == 200, what="the new keys being used")
    assert_refused(call(stack, token(old, "k"), pair), 401, "token_refused")
    # `check` reads them as the gateway does.
    assert stack.cli("check").returncode == 0
    for source, told in (
        (f'jwks_file = "{broken}"', "is not JSON"),
        (f'jwks_file = "{gone}"', "FileNotFoundError"),
        ('jwks_url = "http://127.0.0.1:1/keys"', "ConnectError"),
    ):
        stack.config.write_text(stack.config.read_text().replace(f'jwks_file = "{link}"', source))
        done = stack.cli("check", check=False)
        assert done.returncode == 1
        assert "issuers.cluster.jwks" in done.stdout
        assert told in done.stdout
        stack.config.write_text(stack.config.read_text().replace(source, f'jwks_file = "{link}"'))


class Signer:
    """A service with a private key."""

    def __init__(self, stack: Stack, folder: Path, *words: str) -> None:
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.pem = folder / f"{time.monotonic_ns()}.pem"
        self.pem.write_bytes(self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        command = ("keys", *(words or ("issue", "signing")), "--public-key", str(self.pem), "--json")
        self.key_id = json.loads(stack.cli(*command).stdout)["id"]

    def sign(self, url: str, body: bytes, nonce: str, *, age: int = 0) -> dict[str, str]:
        headers: dict[str, str] = {}
        request = SimpleNamespace(method="POST", url=url + UNSET, headers=headers)
        resolver = SimpleNamespace(resolve_private_key=lambda _: self.key)
        HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=resolver).sign(
            request, key_id=self.key_id, nonce=nonce, body=body, created=datetime.fromtimestamp(time.time() - age, UTC),
            covered_component_ids=("@method", "@target-uri"),
        )  # fmt: skip
        return headers


def test_a_signed_request_is_good_for_one_call(start: Callable[..., Stack], tmp_path: Path) -> None:
    """Refused the second time, by another gateway too; also when it was only slowed down on its way."""
    stack = start()
    other = stack.spawn_gateway(name="other")
    signer = Signer(stack, tmp_path)
    pair = stack.masked()
    body = json.dumps({"m1": pair[0], "m2": pair[1], "expiry_duration": 60}).encode()
    # Both gateways answer under one name, as behind a load balancer.
    name = "http://masking.internal"
    headers = {**signer.sign(name, body, "a-random-nonce-1"), "Host": "masking.internal"}

    first = stack.http.post(stack.url + UNSET, content=body, headers=headers)
    again = stack.http.post(stack.url + UNSET, content=body, headers=headers)
    elsewhere = stack.http.post(other.address() + UNSET, content=body, headers=headers)

    assert first.status_code == 200, first.text
    intent, _ = stack.records(first.json()["request_id"])
    assert (intent["proof"], intent["key_id"], intent["service"]) == ("signature", signer.key_id, "signing")
    assert_refused(again, 401, "signature_replayed")
    assert_refused(elsewhere, 401, "signature_replayed")
    assert len(stack.vendor_calls()) == 1
    # All at once, against both: one is carried out.
    headers = {**signer.sign(name, body, "a-random-nonce-2"), "Host": "masking.internal"}
    statuses: list[int] = []
    workers = [
        threading.Thread(
            target=lambda url=url: statuses.append(
                httpx.post(url + UNSET, content=body, headers=headers, trust_env=False, timeout=30).status_code
            )
        )
        for url in (stack.url, other.address()) * 10
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(statuses) == [200] + [401] * 19
    other.stop()


def test_a_request_signed_for_a_sister_is_not_taken(start: Callable[..., Stack], tmp_path: Path) -> None:
    """A key that is good at two gateways does not make one gateway's requests good at the other."""
    stack = start(more='[keys]\nsignature_hosts = ["Masking.internal"]')
    signer = Signer(stack, tmp_path)
    pair = stack.masked()
    body = json.dumps({"m1": pair[0], "m2": pair[1], "expiry_duration": 60}).encode()

    def post(name: str) -> httpx.Response:
        headers = {**signer.sign(f"http://{name}", body, f"nonce-for-{name}"), "Host": name}
        return stack.http.post(stack.url + UNSET, content=body, headers=headers)

    assert post("masking.internal").status_code == 200
    assert_refused(post("masking.staging"), 401, "signature_refused")
    assert len(stack.vendor_calls()) == 1


def test_a_signature_is_refused_by_cause(start: Callable[..., Stack], tmp_path: Path) -> None:
    """Changed, old, of nobody, of a revoked key, beside a key: no call is made, and each is recorded."""
    stack = start()
    signer = Signer(stack, tmp_path)
    pair = stack.masked()
    body = json.dumps({"m1": pair[0], "m2": pair[1], "expiry_duration": 60}).encode()

    def post(headers: dict[str, str], content: bytes = body) -> httpx.Response:
        return stack.http.post(stack.url + UNSET, content=content, headers=headers)

    good = signer.sign(stack.url, body, "nonce-for-this-1")
    assert_refused(post(good, body.replace(b"60", b"61")), 401, "signature_refused")
    assert_refused(post(signer.sign(stack.url, body, "nonce-for-this-2", age=301)), 401, "signature_refused")
    assert_refused(post({**good, "X-API-Key": stack.key}), 401, "credential_conflict")
    assert_refused(post({**good, "X-Gateway-Account": "test"}), 401, "signature_refused")
    assert_refused(post({"Signature": good["Signature"]}), 401, "signature_refused")
    stranger = Signer(stack, tmp_path)
    stranger.key_id = signer.key_id
    refused = assert_refused(post(stranger.sign(stack.url, body, "nonce-for-this-3")), 401, "signature_refused")
    (record,) = stack.records(refused["request_id"])
    assert record["key_id"] == signer.key_id
    stranger.key_id = "0000000000"
    assert_refused(post(stranger.sign(stack.url, body, "nonce-for-this-4")), 401, "signature_refused")
    assert stack.vendor_calls() == []
    # None of that spent the nonce.
    assert post(good).status_code == 200
    assert "--public-key" in stack.cli("keys", "rotate", signer.key_id, check=False).stderr
    # A new public key under the same id, both good for a while; then the old one is revoked.
    fresh = Signer(stack, tmp_path, "rotate", signer.key_id)
    for number, who in enumerate((signer, fresh)):
        assert post(who.sign(stack.url, body, f"after-rotation-{number}")).status_code == 200
    stack.cli("keys", "revoke", f"{signer.key_id}.1")
    assert_refused(post(signer.sign(stack.url, body, "nonce-for-this-5")), 401, "credential_revoked")
    assert post(fresh.sign(stack.url, body, "nonce-for-this-6")).status_code == 200


def test_a_private_key_is_not_taken(start: Callable[..., Stack], tmp_path: Path) -> None:
    """The command says what is wrong, without showing it, and nothing is stored."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    stack = start()
    secret = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "private.pem"
    path.write_bytes(secret)

    done = stack.cli("keys", "issue", "careless", "--public-key", str(path), check=False)

    assert done.returncode == 2
    assert "is a private key" in done.stderr
    assert secret.decode().splitlines()[1] not in done.stderr
    assert "careless" not in stack.cli("keys", "list").stdout
