"""The OpenID provider, as the console speaks to it: its discovery document, its token endpoint, its public keys.

Each answer is bounded in bytes and in time, none is cached, and no redirect is followed: few people sign in, and a key that
was rotated is known at once. Authlib's client would read answers of any length and bring its own JWT; what is left of it is
one form and two documents. Source: OpenID Connect Core and Discovery 1.0, RFC 6749, 7636, 9207.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import httpx
import msgspec

from gateway.config import Oidc, is_confidential
from gateway.jwks import Jwks, JwksSettings
from gateway.model import Secret
from gateway.tokens import KeySet

_ANSWER_SECONDS: Final = 8.0
"""For one request, from its first byte to the answer's last; two of them are to fit in one page's time."""
_ANSWER_BYTES_MAX: Final = 262_144
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ProviderFault(Exception):
    """The provider cannot be asked, or answers what cannot be used. The message is one line, without secrets or tokens."""


class Provider(msgspec.Struct, frozen=True):
    """What the discovery document says, as far as it is used."""

    authorization_url: str
    token_url: str
    keys_url: str
    takes: tuple[str, ...]
    """How clients with a secret may prove themselves at `token_url`."""
    names_itself: bool
    """Whether the provider says who it is when it sends somebody back."""


async def discovered(oidc: Oidc) -> Provider:
    """Return what the provider says of itself. Raises: ProviderFault."""
    url = oidc.issuer.removesuffix("/") + "/.well-known/openid-configuration"
    document = await _asked(oidc, "discovery document", "GET", url)
    if document.get("issuer") != oidc.issuer:
        raise ProviderFault("the discovery document is another issuer's; console.oidc.issuer must be exactly the one in it")
    takes = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    return Provider(
        _endpoint(oidc, document, "authorization_endpoint"),
        _endpoint(oidc, document, "token_endpoint"),
        _endpoint(oidc, document, "jwks_uri"),
        takes=tuple(each for each in takes if isinstance(each, str)) if isinstance(takes, list) else (),
        names_itself=document.get("authorization_response_iss_parameter_supported") is True,
    )


async def id_token(oidc: Oidc, provider: Provider, secret: Secret | None, form: Mapping[str, str]) -> str:
    """Return the ID token, not yet proved, that the provider gives for a code. Raises: ProviderFault.

    `form`: the grant, with code, verifier and redirect URI.
    """
    sent, headers = {**form, "client_id": oidc.client_id}, {}
    if secret is not None and "client_secret_basic" in provider.takes:
        # Both are encoded as in a form before they are joined (RFC 6749, section 2.3.1): either may hold a colon.
        pair = f"{quote_plus(oidc.client_id)}:{quote_plus(secret.reveal())}"
        headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    elif secret is not None and "client_secret_post" in provider.takes:
        sent["client_secret"] = secret.reveal()
    elif secret is not None:
        raise ProviderFault("the token endpoint takes neither client_secret_basic nor client_secret_post")
    answer = await _asked(oidc, "token endpoint", "POST", provider.token_url, headers, sent)
    token = answer.get("id_token")
    if not isinstance(token, str):
        raise ProviderFault("the token endpoint gave no ID token")
    return token


async def key_set(oidc: Oidc, provider: Provider) -> KeySet:
    """Return the provider's public keys as they are now. Raises: ProviderFault."""
    source = JwksSettings(
        file="", url=provider.keys_url, ca_file=oidc.ca_file, bearer_file="", max_age_seconds=60, stale_seconds_max=61,
        timeout_seconds=_ANSWER_SECONDS,
    )  # fmt: skip
    try:
        jwks = Jwks({oidc.issuer: source}, lambda *_: None)
    except ValueError:
        raise ProviderFault("the public keys cannot be used: their address is none") from None
    try:
        await jwks.refresh(oidc.issuer)
    finally:
        await jwks.aclose()
    keys = jwks.current(oidc.issuer)
    if keys is None:
        raise ProviderFault(f"the public keys cannot be used: {jwks.problems()[oidc.issuer] or 'no answer in time'}")
    return keys


def plain(word: Any) -> str:
    """Return an error code of the provider's as it may stand in a record or on a page."""
    return word if isinstance(word, str) and _PLAIN.fullmatch(word) else "an error without a usable code"


def _endpoint(oidc: Oidc, document: Mapping[str, Any], name: str) -> str:
    url = document.get(name)
    try:
        parts = urlsplit(url if isinstance(url, str) and url.isascii() and url.isprintable() and " " not in url else "")
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    known = is_confidential(parts) and (parts.scheme == "https" or oidc.issuer.startswith("http://"))
    if not known or not parts.hostname or parts.username or parts.fragment:
        raise ProviderFault(f"the discovery document has no {name} that begins with https://")
    return parts.geturl()


async def _asked(
    oidc: Oidc, what: str, method: str, url: str, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the object that an address answers with. Raises: ProviderFault."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            status, body = await _exchanged(oidc, what, method, url, dict(headers or {}), form)
    except TimeoutError:
        raise ProviderFault(f"the {what} does not answer within {_ANSWER_SECONDS:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ProviderFault(f"the {what} cannot be asked: {type(error).__name__}") from None
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if status != httpx.codes.OK:
        code = f", {plain(answer['error'])}" if isinstance(answer, dict) and "error" in answer else ""
        raise ProviderFault(f"the {what} answers HTTP {status}{code}")
    if not isinstance(answer, dict):
        raise ProviderFault(f"the {what} is no JSON object")
    return answer


async def _exchanged(
    oidc: Oidc, what: str, method: str, url: str, headers: dict[str, str], form: Mapping[str, str] | None
) -> tuple[int, bytes]:
    # Uncompressed, and as it comes: a few kilobytes of gzip could be gigabytes.
    headers |= {"Accept": "application/json", "Accept-Encoding": "identity"}
    trusted = await asyncio.to_thread(_trusted, oidc)
    body = bytearray()
    async with (
        httpx.AsyncClient(verify=trusted, trust_env=False, follow_redirects=False, timeout=_ANSWER_SECONDS) as client,
        client.stream(method, url, headers=headers, data=dict(form) if form is not None else None) as answer,
    ):
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > _ANSWER_BYTES_MAX:
                raise ProviderFault(f"the {what} answers with more than {_ANSWER_BYTES_MAX // 1024} KiB")
    return answer.status_code, bytes(body)


def _trusted(oidc: Oidc) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=oidc.ca_file or None)
