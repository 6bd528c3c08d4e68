"""How one value of the settings is read: by a function that returns it, or raises `Wrong` with what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from gateway.addresses import read_network
from gateway.model import DIMENSIONS, NUMBER_FIELDS, OPERATIONS


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is to be read; never the secret."""

    source: Literal["env", "file", "command"]
    target: tuple[str, ...]
    """One variable name, one path, or the words of a command."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` units in `window_seconds`, written `50/s`, `100/m`, `1000/h` or `5000/d`."""

    count: int
    window_seconds: int

    def __str__(self) -> str:
        letter = next(letter for letter, seconds in _WINDOWS.items() if seconds == self.window_seconds)
        return f"{self.count}/{letter}"

    @property
    def interval_us(self) -> int:
        """Microseconds in which one unit grows back: rounded up, so that no more pass than were asked for."""
        return -(-self.window_seconds * 1_000_000 // self.count)

    @property
    def burst_max(self) -> int:
        """The largest burst whose time to grow back can be counted exactly."""
        return _SPAN_US_MAX // self.interval_us - len(NUMBER_FIELDS)

    def worst_case(self, burst: int, window_seconds: int) -> int:
        """Return the most that passes in any window of that length."""
        return burst + window_seconds * 1_000_000 // self.interval_us


class Wrong(ValueError):
    """What a reader of one value says of it."""


WORKERS_MAX: Final = 256
PREFIX: Final = r"\+[1-9][0-9]{0,14}"

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of tokens; none with a shared secret."""
# The limiter in Redis counts in doubles, exact to 2^53; today's instant takes up to half of that.
_SPAN_US_MAX: Final = 2**52
_WINDOWS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def rate(value: Any) -> Rate:
    """Return a rate written like `50/s`."""
    match = re.fullmatch(r"([1-9]\d{0,8})/([smhd])", value) if isinstance(value, str) else None
    if match is None:
        raise Wrong('must be a text like "50/s", "100/m", "1000/h" or "5000/d"')
    return Rate(int(match[1]), _WINDOWS[match[2]])


def rate_or_none(value: Any) -> Rate | None:
    """Return a rate; None for an empty text."""
    return None if value == "" else rate(value)


def dimensions(value: Any) -> tuple[str, ...]:
    """Return what a policy counts apart, in one order however it was written."""
    by = texts(value)
    if not by or not set(by) <= set(DIMENSIONS) or len(set(by)) < len(by):
        raise Wrong("must be a list of " + ", ".join(f'"{name}"' for name in DIMENSIONS) + ", each at most once")
    # One order, or two ways of writing one policy would count in two places.
    return tuple(name for name in DIMENSIONS if name in by)


def operations(value: Any) -> tuple[str, ...]:
    """Return operations; none stand for all."""
    return () if value == [] else scopes(value)


def reference(value: Any) -> SecretReference:
    """Return where a secret is."""
    wanted = 'must be one of { env = "NAME" }, { file = "/path" }, { command = ["program", "argument"] }'
    if not isinstance(value, Mapping) or len(value) != 1:
        raise Wrong(f"{wanted}; a secret itself is never written here")
    source, target = next(iter(value.items()))
    if source in ("env", "file") and isinstance(target, str) and target:
        return SecretReference(source, (target,))
    if source == "command" and isinstance(target, list) and target and all(isinstance(w, str) for w in target):
        return SecretReference("command", tuple(target))
    raise Wrong(wanted)


def references(value: Any) -> tuple[tuple[str, SecretReference], ...]:
    """Return where secrets are, each with its name."""
    if not isinstance(value, Mapping):
        raise Wrong('must be a table like { k1 = { file = "/path" } }')
    return tuple((name(key), reference(target)) for key, target in value.items())


def text(value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise Wrong("must be a text")
    return value


def _matching(value: Any, pattern: str, wanted: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Wrong(wanted)
    return value


def name(value: Any) -> str:
    """Return a name of the operator's choice, as it may stand in keys, records and labels."""
    return _matching(value, r"[A-Za-z0-9_.-]{1,64}", "must be 1 to 64 letters, digits, '.', '_' or '-'")


def name_or_none(value: Any) -> str:
    """Return a name, or an empty text."""
    return "" if value == "" else name(value)


def subject(value: Any) -> str:
    """Return whom terms of a policy are for."""
    told = 'must be a subject like "crm", or "crm/end" where the policy counts by caller and operation'
    return _matching(value, r"[A-Za-z0-9_./-]{1,200}", told)


def texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Wrong("must be a list of texts")
    return tuple(value)


def flag(value: Any) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise Wrong("must be true or false")
    return value


def share(value: Any) -> float:
    """Return a number from 0 to 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise Wrong("must be a number from 0 to 1")
    return float(value)


def between(low: int, high: int) -> Callable[[Any], int]:
    """Return what reads whole numbers between two, both among them."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Wrong(f"must be a whole number from {low} to {high}")
        return value

    return read


def one_of(*words: str) -> Callable[[Any], str]:
    """Return what reads one of some words."""

    def read(value: Any) -> str:
        if value not in words:
            raise Wrong("must be one of " + ", ".join(f'"{word}"' for word in words))
        return str(value)

    return read


def region(value: Any) -> str:
    """Return an ISO 3166 region."""
    return _matching(value, r"[A-Z]{2}", 'must be an ISO 3166 region of two capitals, like "IN"')


def address(value: Any) -> SplitResult:
    """Return the parts of an address. Raises: ValueError."""
    parts = urlsplit(text(value))
    _ = parts.port  # Looked at only when it is asked for.
    return parts


def is_confidential(parts: SplitResult) -> bool:
    """Say whether nobody between can read what is sent to an address: by https, or on this machine."""
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


def brand(value: Any) -> str:
    """Return a brand's address, without a slash at its end."""
    parts = address(value)
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if not plain or not parts.hostname:
        raise Wrong('must be the brand\'s address alone, like "https://v4-api.deepcall.com"')
    if not (is_confidential(parts) or (parts.scheme == "http" and parts.hostname == "sandbox")):
        raise Wrong("must begin with https:// (http:// is for a sandbox on this machine only)")
    return str(value).rstrip("/")


def collector(value: Any) -> str:
    """Return a trace collector's address, or an empty text."""
    parts = address(value)
    if value and not (parts.scheme in ("http", "https") and parts.hostname and parts.path.strip("/")):
        raise Wrong('must be an address with its path, like "http://127.0.0.1:4318/v1/traces", or empty')
    if parts.username or parts.password or parts.query:
        raise Wrong("must not hold a secret; put it behind tracing.headers")
    return str(value)


def redis_url(value: Any) -> str:
    """Return a Redis server's address, or an empty text."""
    parts = address(value)
    if value and parts.scheme not in ("redis", "rediss", "unix"):
        raise Wrong("must begin with redis://, rediss:// or unix://, or be empty for the embedded server")
    if parts.password:
        raise Wrong("must not hold a password; put it behind redis.password")
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise Wrong("must end in the database's number, like redis://host:6379/0, or in none")
    return str(value)


def networks(value: Any) -> tuple[str, ...]:
    """Return networks."""
    for text in texts(value):
        try:
            read_network(text)
        except ValueError:
            raise Wrong('must be a list of networks like "10.0.0.0/8"') from None
    return tuple(value)


def names(value: Any) -> tuple[str, ...]:
    """Return names."""
    return tuple(name(item) for item in texts(value))


def prefixes(value: Any) -> tuple[str, ...]:
    """Return beginnings of numbers."""
    prefixes = texts(value)
    if not all(re.fullmatch(PREFIX, prefix) for prefix in prefixes):
        raise Wrong('must be a list of beginnings of numbers with country code, like "+9198"')
    return prefixes


def scopes(value: Any) -> tuple[str, ...]:
    """Return operations, one at least."""
    scopes = texts(value)
    if not scopes or not set(scopes) <= set(OPERATIONS):
        raise Wrong("must be a list of " + " and ".join(f'"{operation}"' for operation in OPERATIONS))
    return scopes


def algorithms(value: Any) -> tuple[str, ...]:
    """Return signature algorithms, one at least."""
    algorithms = texts(value)
    if not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise Wrong("must be a list of " + ", ".join(f'"{name}"' for name in ALGORITHMS))
    return algorithms


def jwks_url(value: Any) -> str:
    """Return the address of public keys, or an empty text."""
    parts = address(value)
    if value and not is_confidential(parts):
        raise Wrong("must begin with https://")
    return str(value)


def oidc_issuer(value: Any) -> str:
    """Return an OpenID provider's `iss`, or an empty text."""
    parts = address(value)
    if value and (not is_confidential(parts) or not parts.hostname or parts.query or parts.fragment or parts.username):
        raise Wrong('must be an address like "https://sso.example.com/realms/ops" (http:// is for this machine only)')
    return str(value)


def oidc_scopes(value: Any) -> tuple[str, ...]:
    """Return scopes with `openid` among them."""
    scopes = texts(value)
    if "openid" not in scopes or not all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in scopes):
        raise Wrong('must be a list of scopes with "openid" among them')
    return scopes


def claim(value: Any) -> str:
    """Return a claim's name."""
    return _matching(value, r"[!-~]{1,200}", 'must be the name of a claim, like "email"')


def public_url(value: Any) -> str:
    """Return an origin that browsers see, or an empty text."""
    if value == "":
        return ""
    parts = address(value)
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if not plain or not parts.hostname or not is_confidential(parts):
        raise Wrong('must be an address without a path, like "https://console.internal" (http:// is for this machine only)')
    return f"{parts.scheme}://{parts.netloc.lower()}"


def hosts(value: Any) -> tuple[str, ...]:
    """Return hosts in lower case, with their ports."""
    hosts = texts(value)
    if not all(re.fullmatch(r"[A-Za-z0-9._\[\]:-]+", host) for host in hosts):
        raise Wrong('must be a list of hosts like "masking.internal" or "masking.internal:8080"')
    return tuple(host.lower() for host in hosts)


def origins(value: Any) -> tuple[str, ...]:
    """Return origins of browsers."""
    origins = texts(value)
    if not all(re.fullmatch(r"https?://[^/\s*]+", origin) for origin in origins):
        raise Wrong('must be a list of origins like "https://panel.example"; there is no wildcard')
    return origins
