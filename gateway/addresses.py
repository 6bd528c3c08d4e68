"""IP addresses and the networks they are in."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

_EVERYWHERE: Final = ("0.0.0.0/0", "::/0")


def is_within(address: str, networks: tuple[str, ...]) -> bool:
    """Say whether an address is in one of the networks, given in CIDR notation; what is no address is in none."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    # A listener on both families shows an IPv4 caller as ::ffff:10.0.0.1.
    plain = getattr(found, "ipv4_mapped", None) or found
    return any(plain in network for network in _read(networks))


def source(connected: str, forwarded: str, proxies: tuple[str, ...]) -> str:
    """Return where a request came from: whoever connected, or what the last trusted proxy saw; empty where that is no address.

    `forwarded`: its `X-Forwarded-For`, all of them joined by commas.
    """
    address, hops = connected, [hop.strip() for hop in forwarded.split(",")] if forwarded else []
    while hops and is_within(address, proxies):
        address = hops.pop()
    # A proxy may have passed on what a caller made up: not an address, then not one in the records either.
    return address if is_within(address, _EVERYWHERE) else ""


def read_network(text: str) -> IPv4Network | IPv6Network:
    """Return a network in CIDR notation. Raises: ValueError."""
    return ip_network(text)


@lru_cache(maxsize=1024)
def _read(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(read_network, networks))
