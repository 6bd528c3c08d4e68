"""A small OpenID provider on a socket of its own: it signs in whom a test says, proves the client, and misbehaves on demand."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

CLIENT, SECRET = "console+1", "s3cret: with/every+thing%"
WELL_KNOWN = "/.well-known/openid-configuration"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())

Answer = Callable[[BaseHTTPRequestHandler], None]


class Provider:
    """An issuer with one person, whose claims a test sets."""

    def __init__(self, host: str = "127.0.0.1", secret: str | None = SECRET, context: ssl.SSLContext | None = None) -> None:
        self._secret = secret
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.issuer = f"{scheme}://{host}:{self._server.server_address[1]}/realms/ops"
        self.behave()

    def behave(self) -> None:
        """Forget what the last test wanted."""
        self.claims: dict[str, Any] = {"email": "ada@example.com", "groups": ["staff", "console-operators"]}
        self.discovery: dict[str, Any] = {}
        self.keys: list[dict[str, Any]] = [jwk(RSA, "k1")]
        self.sign: Callable[[dict[str, Any]], str] = signed
        self.instead: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.sent: list[tuple[dict[str, str], dict[str, str]]] = []
        self._codes: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def consent(self, url: str, **more: str) -> str:
        """Sign the person in who was sent here, and return where they are sent back to."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == ("code", CLIENT, "S256")
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"], **more}
        return f"{asked['redirect_uri']}?{urlencode({name: value for name, value in answer.items() if value})}"

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?tenant=1",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            **self.discovery,
        }

    def _token(self, headers: dict[str, str], form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.sent.append((headers, form))
        asked = self._codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(sha256(form.get("code_verifier", "").encode()).digest()).decode().rstrip("=")
        if not self._proves(headers, form):
            return 401, {"error": "invalid_client"}
        if form.get("grant_type") != "authorization_code" or asked is None or asked["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        if asked["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims = {name: claim for name, claim in {**claims, **self.claims}.items() if claim is not None}
        return 200, {"access_token": "opaque-access", "token_type": "Bearer", "id_token": self.sign(claims)}

    def _proves(self, headers: dict[str, str], form: dict[str, str]) -> bool:
        kind, _, pair = headers.get("authorization", "").partition(" ")
        if self._secret is None:
            return not kind and "client_secret" not in form and form["client_id"] == CLIENT
        if "client_secret_post" in self.discovery.get("token_endpoint_auth_methods_supported", []):
            return not kind and form.get("client_secret") == self._secret
        if kind != "Basic" or "client_secret" in form:
            return False
        return [unquote_plus(part) for part in base64.b64decode(pair).decode().split(":")] == [CLIENT, self._secret]

    def _handler(provider) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path.removeprefix("/realms/ops")
                provider.asked.append(path)
                if path in provider.instead:
                    provider.instead[path](self)
                elif path == WELL_KNOWN:
                    answer(self, 200, provider.document())
                elif path == "/keys":
                    answer(self, 200, {"keys": provider.keys})
                elif path == "/authorize":
                    onward = f"/realms/ops/consent?{urlsplit(self.path).query}".replace("&", "&amp;")
                    page = f'<!doctype html><title>Provider</title><link rel="icon" href="data:,"><a href="{onward}">I am Ada</a>'
                    answer(self, 200, page.encode(), **{"content-type": "text/html"})
                elif path == "/consent":
                    answer(self, 302, b"", location=provider.consent(self.path))
                else:
                    answer(self, 404, {})

            def do_POST(self) -> None:
                path = urlsplit(self.path).path.removeprefix("/realms/ops")
                provider.asked.append(path)
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                if path in provider.instead:
                    provider.instead[path](self)
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer(self, *provider._token(headers, dict(parse_qsl(body, keep_blank_values=True))))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def answer(handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"content-type": "application/json", **headers, "content-length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        handler.wfile.write(body)
    except OSError:
        handler.close_connection = True


def answering(status: int, content: Any, **headers: str) -> Answer:
    """Always answer this."""
    return lambda handler: answer(handler, status, content, **headers)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte every half a second: never silent for long, never done."""
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.5)
    except OSError:
        return


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing, until the other side has gone."""
    handler.close_connection = True
    handler.connection.settimeout(30)
    handler.connection.recv(1)


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    """Close without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def jwk(key: Any, kid: str) -> dict[str, Any]:
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


def signed(claims: dict[str, Any], key: Any = RSA, kid: str = "k1") -> str:
    return jwt.encode(claims, key, "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256", {"kid": kid})


def unsigned(claims: dict[str, Any], algorithm: str = "none", sign: Callable[[bytes], bytes] = lambda _: b"") -> str:
    """Return a token that no library would make."""
    parts = [json.dumps(part).encode() for part in ({"alg": algorithm, "typ": "JWT", "kid": "k1"}, claims)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return (text + b"." + base64.urlsafe_b64encode(sign(text)).rstrip(b"=")).decode()
