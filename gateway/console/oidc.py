"""Signing in by OpenID Connect: to the provider, and back with a code that this browser alone can use, once.

What is to come back stands in Redis under a digest of the state and of an id in this browser's cookie. So a return with
another state, in another browser, too late or for a second time finds nothing.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from gateway.config import ALGORITHMS, Oidc
from gateway.console import provider as providers
from gateway.console.keys import Role
from gateway.console.provider import Provider, ProviderFault
from gateway.console.sessions import Sessions
from gateway.console.signing import HOME, is_local, page, tried
from gateway.console.visit import Go, Missing, View, Visit
from gateway.ledger.names import KEYS_TAG
from gateway.tokens import IssuerRules, TokenFault, proved_claims

RETURN: Final = "/sign-in/oidc/return"
"""Behind `console.public_url`: the redirect URI that the provider is to know."""
SIGN_IN_SECONDS: Final = 600
"""How long somebody may take at the provider."""
_BASE: Final = f"gw:{{{KEYS_TAG}}}:console:oidc:"
_ID_BYTES: Final = 32
_LEEWAY_SECONDS: Final = 60
_LIFETIME_SECONDS_MAX: Final = 31_536_000
"""Of an ID token. It is used once, at once; how long it would be good says nothing."""
_TOKEN_MAX: Final = 65_536
"""Longer than a workload's: it may name some hundred groups."""
_NAME_MAX: Final = 128
_SUBJECT_MAX: Final = 255
_NEXT_MAX: Final = 2048
_TOLD_MAX: Final = 200


class _Denied(Exception):
    """Somebody does not sign in."""

    def __init__(self, why: str, told: str, *, who: str | None = None, subject: str | None = None, status: int = 403) -> None:
        super().__init__(why)
        self.why, self.told, self.who, self.subject, self.status = why, told, who, subject, status


class _UnderWay(msgspec.Struct, frozen=True):
    """A sign-in that the provider is to send back."""

    provider: Provider
    """As it was discovered at the start: nobody changes the endpoints meanwhile."""
    nonce: str
    verifier: str
    wanted: str


@dataclass(frozen=True, slots=True)
class _Person:
    who: str
    subject: str
    role: Role


_read = msgspec.json.Decoder(_UnderWay).decode


async def start(visit: Visit) -> View | Go:
    """Send the browser to the provider.

    By a link and not by a form: Chromium holds the page's `form-action` against the redirects of a form too, and the
    policy would have to name another site. A GET that other sites can bring about is no danger here: all it does is begin a
    sign-in, and whom that signs in is for the person to say at the provider.
    """
    oidc = _settings(visit)
    wanted = visit.query.get("next", "")
    wanted = wanted if is_local(wanted) and len(wanted) <= _NEXT_MAX else HOME
    async with visit.opened.client() as client:
        if (refused := await tried(visit, client, wanted)) is not None:
            return refused
        try:
            provider = await providers.discovered(oidc)
        except ProviderFault as fault:
            return await _denied(visit, wanted, _unusable(fault))
        identity, state, nonce, verifier = (secrets.token_urlsafe(_ID_BYTES) for _ in range(4))
        kept = msgspec.json.encode(_UnderWay(provider, nonce, verifier, wanted))
        await client.set(_name(identity, state), kept, ex=SIGN_IN_SECONDS)
    asked = {
        "response_type": "code",
        "client_id": oidc.client_id,
        "redirect_uri": _redirect_uri(visit),
        "scope": " ".join(oidc.scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    url = provider.authorization_url
    return Go(f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}", under_way=identity)


async def returned(visit: Visit) -> View | Go:
    """Begin a session for whom the provider sent back with a role here; every return is recorded."""
    oidc = _settings(visit)
    async with visit.opened.client() as client:
        kept = await client.getdel(_name(visit.under_way, visit.query.get("state", "")))
        if kept is None:
            # The others were counted when they began.
            if (refused := await tried(visit, client, HOME)) is not None:
                return refused
            told = "This sign-in was not begun in this browser, took more than ten minutes, or is done already. Begin it again."
            return await _denied(visit, HOME, _Denied("no sign-in under way", told, status=400))
        under_way = _read(kept)
        try:
            person = await _person(visit, oidc, under_way)
        except ProviderFault as fault:
            return await _denied(visit, under_way.wanted, _unusable(fault))
        except _Denied as denied:
            return await _denied(visit, under_way.wanted, denied)
        await visit.record(
            "console.signed_in", operator=person.who, subject=person.subject, after=person.role, why=f"by {oidc.issuer}"
        )
        begins = await Sessions(client, visit.opened.settings.console).begin(person.who, person.role, visit.now)
    return Go(under_way.wanted, begins=begins, from_here=True)


async def _person(visit: Visit, oidc: Oidc, under_way: _UnderWay) -> _Person:
    """Return who was sent back. Raises: _Denied, ProviderFault."""
    query = visit.query
    told_issuer = query.get("iss")
    if told_issuer != oidc.issuer and (told_issuer is not None or under_way.provider.names_itself):
        # Before anything else is believed: the code may be another provider's, and must not be told to this one.
        raise _Denied("returned by another issuer", "Another provider than the one asked sent you back. Begin it again.")
    if "error" in query:
        code = providers.plain(query["error"])
        raise _Denied(f"provider: {code}", f"The provider did not sign you in: {code}{_detail(query)}.")
    form = {
        "grant_type": "authorization_code",
        "code": query.get("code", ""),
        "redirect_uri": _redirect_uri(visit),
        "code_verifier": under_way.verifier,
    }
    # Read anew each time, since secrets are rotated, and apart: it may be a command that takes a while.
    secret = await asyncio.to_thread(visit.opened.secret, oidc.client_secret) if oidc.client_secret is not None else None
    token = await providers.id_token(oidc, under_way.provider, secret, form)
    keys = await providers.key_set(oidc, under_way.provider)
    rules = IssuerRules("console", oidc.issuer, oidc.client_id, ALGORITHMS, _LEEWAY_SECONDS, _LIFETIME_SECONDS_MAX)
    try:
        claims = proved_claims(token, rules, keys, visit.now, length_max=_TOKEN_MAX)
    except TokenFault as fault:
        raise ProviderFault(f"the ID token is not taken: {fault.kind}") from None
    return _named(claims, oidc, under_way.nonce)


def _named(claims: Mapping[str, Any], oidc: Oidc, nonce: str) -> _Person:
    """Return whom proved claims name. Raises: _Denied, ProviderFault."""
    found, several = claims.get("nonce"), isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
    if not isinstance(found, str) or not compare_digest(found.encode(), nonce.encode()):
        raise ProviderFault("the ID token is not taken: nonce")
    if (several or "azp" in claims) and claims.get("azp") != oidc.client_id:
        raise ProviderFault("the ID token is not taken: azp")
    subject, name = claims.get("sub"), claims.get(oidc.name_claim)
    if not _is_shown(subject, _SUBJECT_MAX):
        raise ProviderFault("the ID token is not taken: sub")
    # Not cut or cleaned: the name of one would become another's.
    if not _is_shown(name, _NAME_MAX):
        told = f"The provider gives no '{oidc.name_claim}' of 1 to {_NAME_MAX} printable characters to call you by."
        raise _Denied(f"no usable {oidc.name_claim}", told, subject=subject)
    if oidc.name_claim == "email" and claims.get("email_verified") in (False, "false"):
        told = "The provider has not verified your e-mail address, and it is what you are called here. Verify it there first."
        raise _Denied("email not verified", told, subject=subject)
    who, role = f"oidc:{name}", _role(claims.get(oidc.role_claim), oidc)
    if role is None:
        told = f"You are {name}, but none of your groups has a role here. Ask those who run the console."
        raise _Denied("no role", told, who=who, subject=subject)
    return _Person(who, str(subject), role)


def _role(groups: Any, oidc: Oidc) -> Role | None:
    listed = groups if isinstance(groups, list) else [groups]
    found = {group for group in listed if isinstance(group, str)}
    return "operator" if found & set(oidc.operator) else "auditor" if found & set(oidc.auditor) else None


def _is_shown(claim: Any, length_max: int) -> bool:
    return isinstance(claim, str) and claim.strip() == claim and 0 < len(claim) <= length_max and claim.isprintable()


def _detail(query: Mapping[str, str]) -> str:
    detail = "".join(each for each in query.get("error_description", "") if each.isprintable())[:_TOLD_MAX].strip().rstrip(".")
    return f", which says “{detail}”" if detail else ""


async def _denied(visit: Visit, wanted: str, denied: _Denied) -> View:
    await visit.record(
        "console.sign_in_denied", operator=denied.who, subject=denied.subject, decision="denied", why=f"oidc: {denied.why}"
    )
    return page(visit, wanted, denied.told, denied.status)


def _unusable(fault: ProviderFault) -> _Denied:
    return _Denied(str(fault), f"Signing in there does not work now: {fault}. A key to the console still does.", status=502)


def _settings(visit: Visit) -> Oidc:
    oidc = visit.opened.settings.console.oidc
    if not oidc.issuer:
        raise Missing("There is no such page; console.oidc is not set.")
    return oidc


def _redirect_uri(visit: Visit) -> str:
    return visit.opened.settings.console.public_url + RETURN


def _name(identity: str, state: str) -> str:
    return _BASE + sha256(f"{identity} {state}".encode()).hexdigest()
