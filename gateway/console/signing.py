"""Signing in with a console key, and out."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.console.keys import proved
from gateway.console.sessions import Sessions
from gateway.console.visit import Go, View, Visit
from gateway.ledger.names import KEYS_TAG

HOME: Final = "/overview"
_TRIES: Final = f"gw:{{{KEYS_TAG}}}:console:tries:"
_TRIES_MAX: Final = 10
_TRIES_SECONDS: Final = 60
_COUNT: Final = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
"""
_IPV6_BITS: Final = 64
"""Of an address: whoever has one has all that begin so."""


async def sign_in_page(visit: Visit) -> View:
    """Show where to sign in."""
    return page(visit, visit.query.get("next", ""))


async def sign_in(visit: Visit) -> View | Go:
    """Begin a session for whoever shows a live console key; every try is recorded, but those beyond the bound."""
    wanted = visit.form.get("next", "")
    async with visit.opened.client() as client:
        if (refused := await tried(visit, client, wanted)) is not None:
            return refused
        key, why = await proved(client, visit.form.get("key", ""), visit.now)
        if key is None:
            await visit.record("console.sign_in_denied", operator=None, decision="denied", why=why)
            return page(visit, wanted, "This is not a key that is good here. Check that you pasted all of it.", 401)
        who = f"console:{key.name}"
        await visit.record("console.signed_in", operator=who, key_id=key.key_id, after=key.role)
        begins = await Sessions(client, visit.opened.settings.console).begin(who, key.role, visit.now, key.key_id)
    return Go(wanted if is_local(wanted) else HOME, begins=begins)


async def sign_out(visit: Visit) -> Go:
    """End the session."""
    session = visit.session
    await visit.record("console.signed_out", key_id=session.key_id if session is not None else None)
    return Go("/sign-in", ends=True)


def is_local(path: str) -> bool:
    """Say whether a text is a path of this console, and no other site's address."""
    return path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path


def page(visit: Visit, wanted: str, wrong: str = "", status: int = 200) -> View:
    """Return the page to sign in with, which then leads to the page that was wanted. `wrong`: what was, before."""
    provider = urlsplit(visit.opened.settings.console.oidc.issuer).netloc
    return View(
        "sign_in.html", "Sign in", {"next": wanted if is_local(wanted) else "", "wrong": wrong, "provider": provider}, status
    )


async def tried(visit: Visit, client: Any, wanted: str) -> View | None:
    """Count a try to sign in, and return what it is refused with where there were too many; the first such is recorded."""
    if (tries := await _try(client, visit.source)) <= _TRIES_MAX:
        return None
    if tries == _TRIES_MAX + 1:
        await visit.record("console.sign_in_denied", operator=None, decision="denied", why="too many tries")
    return page(visit, wanted, "Too many tries from your address. Wait a minute, then try again.", 429)


async def _try(client: Any, source: str) -> int:
    """Count a try from an address, and return how many there were in this minute."""
    return int(await client.eval(_COUNT, 1, _TRIES + _network(source), _TRIES_SECONDS))


def _network(source: str) -> str:
    try:
        address = ip_address(source)
    except ValueError:
        return "unknown"
    # A listener on both families shows 192.0.2.1 as ::ffff:192.0.2.1, and all of these begin alike.
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ip_network((address, _IPV6_BITS), strict=False)) if isinstance(address, IPv6Address) else str(address)
