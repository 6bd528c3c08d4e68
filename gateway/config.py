"""Typed settings, parsed from mappings; this module opens no file and reads no environment.

`parse` returns `Settings`, or raises one `ConfigError` that lists every fault with its path and what would be right.
Secrets are not in the document, only references to them; `vault` resolves those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, Literal, get_type_hints
from urllib.parse import SplitResult, urlsplit

from gateway.addresses import read_network
from gateway.model import DIMENSIONS, MODES, NUMBER_FIELDS, OPERATIONS, SLOTS, STORE_ERRORS, Bindings


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the configuration or with what it points at."""

    path: str
    """Dotted path of the setting, e.g. `policies.caller.rate`."""
    message: str
    """What is wrong and what would be right; never the value of a secret."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(Exception):
    """Every fault of a configuration at once."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


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


class _Wrong(ValueError):
    """What a reader of one value says of it."""


WORKERS_MAX: Final = 256
PREFIX: Final = r"\+[1-9][0-9]{0,14}"
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of tokens; none with a shared secret."""
# The limiter in Redis counts in doubles, exact to 2^53; today's instant takes up to half of that.
_SPAN_US_MAX: Final = 2**52
_WINDOWS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _rate(value: Any) -> Rate:
    match = re.fullmatch(r"([1-9]\d{0,8})/([smhd])", value) if isinstance(value, str) else None
    if match is None:
        raise _Wrong('must be a text like "50/s", "100/m", "1000/h" or "5000/d"')
    return Rate(int(match[1]), _WINDOWS[match[2]])


def _rate_or_none(value: Any) -> Rate | None:
    return None if value == "" else _rate(value)


def _dimensions(value: Any) -> tuple[str, ...]:
    by = _texts(value)
    if not by or not set(by) <= set(DIMENSIONS) or len(set(by)) < len(by):
        raise _Wrong("must be a list of " + ", ".join(f'"{name}"' for name in DIMENSIONS) + ", each at most once")
    # One order, or two ways of writing one policy would count in two places.
    return tuple(name for name in DIMENSIONS if name in by)


def _operations(value: Any) -> tuple[str, ...]:
    return () if value == [] else _scopes(value)


def _reference(value: Any) -> SecretReference:
    wanted = 'must be one of { env = "NAME" }, { file = "/path" }, { command = ["program", "argument"] }'
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _Wrong(f"{wanted}; a secret itself is never written here")
    source, target = next(iter(value.items()))
    if source in ("env", "file") and isinstance(target, str) and target:
        return SecretReference(source, (target,))
    if source == "command" and isinstance(target, list) and target and all(isinstance(w, str) for w in target):
        return SecretReference("command", tuple(target))
    raise _Wrong(wanted)


def _references(value: Any) -> tuple[tuple[str, SecretReference], ...]:
    if not isinstance(value, Mapping):
        raise _Wrong('must be a table like { k1 = { file = "/path" } }')
    return tuple((_name(name), _reference(reference)) for name, reference in value.items())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("must be a text")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise _Wrong("must be 1 to 64 letters, digits, '.', '_' or '-'")
    return value


def _name_or_none(value: Any) -> str:
    return "" if value == "" else _name(value)


def _subject(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_./-]{1,200}", value):
        raise _Wrong('must be a subject like "crm", or "crm/end" where the policy counts by caller and operation')
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Wrong("must be a list of texts")
    return tuple(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be true or false")
    return value


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise _Wrong("must be a number from 0 to 1")
    return float(value)


def _between(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _Wrong(f"must be a whole number from {low} to {high}")
        return value

    return read


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise _Wrong("must be one of " + ", ".join(f'"{word}"' for word in words))
        return str(value)

    return read


def _region(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{2}", value):
        raise _Wrong('must be an ISO 3166 region of two capitals, like "IN"')
    return value


def _address(value: Any) -> SplitResult:
    """Return the parts of an address. Raises: ValueError."""
    parts = urlsplit(_text(value))
    _ = parts.port  # Looked at only when it is asked for.
    return parts


def is_confidential(parts: SplitResult) -> bool:
    """Say whether nobody between can read what is sent to an address: by https, or on this machine."""
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


def _brand(value: Any) -> str:
    parts = _address(value)
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if not plain or not parts.hostname:
        raise _Wrong('must be the brand\'s address alone, like "https://v4-api.deepcall.com"')
    if not (is_confidential(parts) or (parts.scheme == "http" and parts.hostname == "sandbox")):
        raise _Wrong("must begin with https:// (http:// is for a sandbox on this machine only)")
    return str(value).rstrip("/")


def _collector(value: Any) -> str:
    parts = _address(value)
    if value and not (parts.scheme in ("http", "https") and parts.hostname and parts.path.strip("/")):
        raise _Wrong('must be an address with its path, like "http://127.0.0.1:4318/v1/traces", or empty')
    if parts.username or parts.password or parts.query:
        raise _Wrong("must not hold a secret; put it behind tracing.headers")
    return str(value)


def _redis_url(value: Any) -> str:
    parts = _address(value)
    if value and parts.scheme not in ("redis", "rediss", "unix"):
        raise _Wrong("must begin with redis://, rediss:// or unix://, or be empty for the embedded server")
    if parts.password:
        raise _Wrong("must not hold a password; put it behind redis.password")
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise _Wrong("must end in the database's number, like redis://host:6379/0, or in none")
    return str(value)


def _networks(value: Any) -> tuple[str, ...]:
    for text in _texts(value):
        try:
            read_network(text)
        except ValueError:
            raise _Wrong('must be a list of networks like "10.0.0.0/8"') from None
    return tuple(value)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_name(item) for item in _texts(value))


def _prefixes(value: Any) -> tuple[str, ...]:
    prefixes = _texts(value)
    if not all(re.fullmatch(PREFIX, prefix) for prefix in prefixes):
        raise _Wrong('must be a list of beginnings of numbers with country code, like "+9198"')
    return prefixes


def _scopes(value: Any) -> tuple[str, ...]:
    scopes = _texts(value)
    if not scopes or not set(scopes) <= set(OPERATIONS):
        raise _Wrong("must be a list of " + " and ".join(f'"{operation}"' for operation in OPERATIONS))
    return scopes


def _algorithms(value: Any) -> tuple[str, ...]:
    algorithms = _texts(value)
    if not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise _Wrong("must be a list of " + ", ".join(f'"{name}"' for name in ALGORITHMS))
    return algorithms


def _jwks_url(value: Any) -> str:
    parts = _address(value)
    if value and not is_confidential(parts):
        raise _Wrong("must begin with https://")
    return str(value)


def _oidc_issuer(value: Any) -> str:
    parts = _address(value)
    if value and (not is_confidential(parts) or not parts.hostname or parts.query or parts.fragment or parts.username):
        raise _Wrong('must be an address like "https://sso.example.com/realms/ops" (http:// is for this machine only)')
    return str(value)


def _oidc_scopes(value: Any) -> tuple[str, ...]:
    scopes = _texts(value)
    if "openid" not in scopes or not all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in scopes):
        raise _Wrong('must be a list of scopes with "openid" among them')
    return scopes


def _claim(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,200}", value):
        raise _Wrong('must be the name of a claim, like "email"')
    return value


def _public_url(value: Any) -> str:
    if value == "":
        return ""
    parts = _address(value)
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if not plain or not parts.hostname or not is_confidential(parts):
        raise _Wrong('must be an address without a path, like "https://console.internal" (http:// is for this machine only)')
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = _texts(value)
    if not all(re.fullmatch(r"[A-Za-z0-9._\[\]:-]+", host) for host in hosts):
        raise _Wrong('must be a list of hosts like "masking.internal" or "masking.internal:8080"')
    return tuple(host.lower() for host in hosts)


def _origins(value: Any) -> tuple[str, ...]:
    origins = _texts(value)
    if not all(re.fullmatch(r"https?://[^/\s*]+", origin) for origin in origins):
        raise _Wrong('must be a list of origins like "https://panel.example"; there is no wildcard')
    return origins


def _tables(shape: type[Any], name: Callable[[Any], str] = _name) -> Any:
    """Declare tables of one shape, each under a name of the operator's choice; none where they are left out."""
    return field(default_factory=dict, metadata={"tables": shape, "name": name})


def _s(doc: str, read: Callable[[Any], Any], default: Any = MISSING) -> Any:
    """Declare one setting: what it means, how it is read, and what absence means."""
    metadata = {"doc": doc, "read": read}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


_MS = _between(1, 600_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How callers reach the gateway."""

    host: str = _s("address to listen on", _text, "127.0.0.1")
    port: int = _s("port to listen on; 0 takes a free one", _between(0, 65535), 8080)
    ops_host: str = _s("address to listen on for operators", _text, "127.0.0.1")
    ops_port: int = _s("port of `/metrics`, `/livez` and `/readyz` for operators; 0: none", _between(0, 65535), 9180)
    workers: int = _s("processes that share the port", _between(1, WORKERS_MAX), 1)
    body_bytes_max: int = _s("longest body taken", _between(256, 1_048_576), 16_384)
    headers_max: int = _s("most headers taken", _between(8, 1000), 100)
    header_bytes_max: int = _s("longest head of a request taken", _between(1024, 1_048_576), 32_768)
    header_timeout_ms: int = _s("time for the head to arrive", _MS, 10_000)
    body_timeout_ms: int = _s("time for the body to arrive", _MS, 10_000)
    keep_alive_seconds: int = _s("how long an idle connection is kept", _between(1, 3600), 75)
    lame_duck_seconds: int = _s(
        "how long after SIGTERM new connections and calls are still taken, while readiness says no: longer than a balancer "
        "takes to notice; 0: not at all",
        _between(0, 600),
        5,
    )
    drain_seconds: int = _s(
        "how long after SIGTERM the last call in flight may finish, `lame_duck_seconds` among them", _between(1, 3600), 50
    )
    trusted_proxies: tuple[str, ...] = _s(
        "networks of proxies whose `X-Forwarded-For` is believed; none: a caller's address is its connection's", _networks, ()
    )
    public_scheme: str = _s("scheme of the addresses that callers sign", _one_of("http", "https"), "http")
    metrics_networks: tuple[str, ...] = _s("networks that may read `/metrics`", _networks, ("127.0.0.0/8", "::1/128"))
    cors_origins: tuple[str, ...] = _s("browser origins that may call; none by default", _origins, ())
    state_dir: str = _s("where the embedded server and the journal keep their files; empty: the user's state folder", _text, "")

    @property
    def finish_seconds(self) -> int:
        """How long calls in flight may finish once no new ones are taken."""
        return self.drain_seconds - self.lame_duck_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """The store behind limits, keys and the audit stream."""

    url: str = _s("redis://, rediss:// or unix:// address; empty: `GATEWAY_REDIS_URL`, else the embedded server", _redis_url, "")
    username: str = _s("ACL user; empty: the default user", _text, "")
    password: SecretReference | None = _s("reference to the password", _reference, None)
    ca_file: str = _s("certificate authorities for rediss://; empty: the system's", _text, "")
    cluster: bool = _s("whether `url` names a node of a Redis Cluster", _flag, False)
    sentinels: tuple[str, ...] = _s("`host:port` of the sentinels; none: no Sentinel", _texts, ())
    sentinel_service: str = _s("name of the master at the sentinels", _text, "mymaster")
    timeout_ms: int = _s("longest wait for one answer of Redis", _between(5, 10_000), 250)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What the vendor wants: `ssid`, or `user_id` with `token`."""

    ssid: SecretReference | None = _s("reference to the vendor's session id", _reference, None)
    user_id: SecretReference | None = _s("reference to the vendor's account id", _reference, None)
    token: SecretReference | None = _s("reference to the vendor's token", _reference, None)

    @property
    def given(self) -> bool:
        """Whether anything of it is set."""
        return bool(self.ssid or self.user_id or self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One account at the vendor: what shares a brand, a credential and a quota."""

    brand: str = _s("the vendor's address for the brand, `{{brand}}` in its documentation", _brand)
    services: tuple[str, ...] = _s("services that use this account; none: every service that no account names", _names, ())
    primary: Credential = field(default_factory=Credential)
    secondary: Credential = field(default_factory=Credential)

    def slot(self, name: str) -> Credential:
        """Return where the credential of a slot is."""
        credential: Credential = getattr(self, name)
        return credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """How the vendor is spoken to, the same for every account; each has connections of its own."""

    number_format: str = _s(
        "how numbers are forwarded: as the caller wrote them, `+` and digits, or digits alone",
        _one_of("as_sent", "e164", "digits"),
        "as_sent",
    )
    connect_timeout_ms: int = _s("time to connect, TLS included", _MS, 3_000)
    read_timeout_ms: int = _s("longest silence of the vendor", _MS, 10_000)
    pool_timeout_ms: int = _s("longest wait of a call for its turn, while `connections_max` are under way", _MS, 1_000)
    total_timeout_ms: int = _s("longest time from sending to the answer's last byte", _MS, 20_000)
    connections_max: int = _s("calls under way at once, and so connections, per process and account", _between(1, 10_000), 256)
    waiting_max: int = _s(
        "calls that wait for their turn, per process and account; beyond it the oldest is refused", _between(1, 100_000), 1_000
    )
    breaker_calls: int = _s(
        "calls of ten seconds of which half must fail before no more are made for a while; 0: it never comes to that",
        _between(0, 1_000_000),
        20,
    )
    breaker_seconds: int = _s("that while; as long as probes fail, each is twice as long, up to a minute", _between(1, 60), 2)
    idle_seconds: int = _s(
        "how long an unused connection is kept; below the 5 s after which Node servers close them", _between(1, 3600), 4
    )
    answer_bytes_max: int = _s("longest answer read", _between(1024, 16_777_216), 65_536)
    rejections_to_switch: int = _s(
        "rejections in a row, by one process, after which a credential counts as rejected", _between(1, 1000), 3
    )
    probe_seconds: int = _s("pause between the calls that prove credentials anew while all are rejected", _between(1, 3600), 5)
    command_seconds: int = _s("how often a credential's command is run again", _between(1, 86_400), 300)
    retries: int = _s(
        "further tries of a call that did not reach the vendor, or does no more when it is made twice", _between(0, 10), 1
    )
    ca_file: str = _s("certificate authorities for the vendor; empty: the system's", _text, "")
    send_traceparent: bool = _s(
        "whether the vendor gets a `traceparent`: the trace's id and the gateway's own span's, nothing else; needs "
        "`tracing.endpoint`",
        _flag,
        False,
    )

    @property
    def longest_ms(self) -> int:
        """The longest a call may take, with all its tries."""
        return 2 * (self.pool_timeout_ms + self.total_timeout_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What counts as a call."""

    default_region: str = _s("region of numbers written without a country code", _region, "IN")
    unknown_fields: str = _s("what becomes of a field the call does not have", _one_of("refuse", "drop"), "refuse")
    both_expiry_fields: str = _s(
        "what becomes of a call with expiry_time and expiry_duration", _one_of("forward", "refuse"), "forward"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Calls that are asked for again."""

    keep_hours: int = _s("how long an answer is kept for requests with the same `Idempotency-Key`", _between(1, 8760), 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Callers' keys, and the signatures made with them."""

    expiry_warning_days: int = _s("how long before its end a key is warned of, once a day", _between(0, 3650), 14)
    quiet_hours: int = _s("how long a key must not have been used to be called safe to revoke", _between(1, 24), 24)
    stale_seconds_max: int = _s(
        "how long keys are believed that Redis cannot confirm, while it is away", _between(0, 86_400), 900
    )
    signature_seconds: int = _s("how old a request's signature may be", _between(1, 3600), 300)
    signature_hosts: tuple[str, ...] = _s(
        "hosts, with the port where it is not the usual one, that signed requests must be made for; none: any", _hosts, ()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Whose tokens prove workloads: an OpenID provider, or a Kubernetes cluster."""

    issuer: str = _s("the `iss` of its tokens", _text)
    audience: str = _s("the `aud` its tokens must be made for", _text)
    jwks_url: str = _s("address of its public keys; empty: `jwks_file`", _jwks_url, "")
    jwks_file: str = _s("file of its public keys, read again when it changes; empty: `jwks_url`", _text, "")
    jwks_ca_file: str = _s("certificate authorities for `jwks_url`; empty: the system's", _text, "")
    jwks_bearer_file: str = _s("file of the token that `jwks_url` wants; empty: none", _text, "")
    algorithms: tuple[str, ...] = _s("signature algorithms that are taken", _algorithms, ("RS256", "ES256", "EdDSA"))
    leeway_seconds: int = _s("how far clocks may be apart", _between(0, 600), 30)
    lifetime_seconds_max: int = _s("longest life of a token, from issue to expiry", _between(60, 31_536_000), 86_400)
    max_age_seconds: int = _s("how often the public keys are read again", _between(1, 86_400), 300)
    stale_seconds_max: int = _s("how long they are used while they cannot be read", _between(1, 604_800), 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload that proves itself by a token, and the service it is."""

    issuer: str = _s("name of the issuer's table", _name)
    subject: str = _s("the `sub` of its tokens, like `system:serviceaccount:crm:masking`", _text)
    service: str = _s("the service it is; empty: the table's name", _name_or_none, "")
    scopes: tuple[str, ...] = _s("operations it may ask for", _scopes, OPERATIONS)
    accounts: tuple[str, ...] = _s("accounts it may use; none: those its service is mapped to", _names, ())
    networks: tuple[str, ...] = _s("networks it may call from; none: any", _networks, ())
    prefixes: tuple[str, ...] = _s("beginnings its numbers must have, like `+9198`; none: any", _prefixes, ())

    def bindings(self) -> Bindings:
        """Return what its proof is good for."""
        return Bindings(frozenset(self.scopes), self.accounts, self.networks, self.prefixes)


_BURST = _between(1, 1_000_000_000)
_CONCURRENCY = _between(0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be said of a limit for some who fall under it; what is left out stays as it is for all."""

    rate: Rate | None = _s("units that grow back, for this subject", _rate, None)
    burst: int | None = _s("units that may be used at once, by this subject", _BURST, None)
    concurrency: int | None = _s("calls that may be under way at once, of this subject; 0: any number", _CONCURRENCY, None)
    mode: str | None = _s("`enforce`, `shadow` or `off`, for this subject", _one_of(*MODES), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One limit: GCRA admits at most `burst + rate × window` in any window."""

    by: tuple[str, ...] = _s(
        "what it counts apart, each account for itself: `caller`, `number`, `account`, `operation`", _dimensions
    )
    count: str = _s(
        "what draws a unit: each call, or each number that its subject did not touch within the rate's window",
        _one_of("calls", "new_numbers"),
        "calls",
    )
    rate: Rate | None = _s("units that grow back; empty: no such limit", _rate_or_none, None)
    burst: int = _s("units that may be used at once", _BURST, 1)
    concurrency: int = _s("calls that may be under way at once; 0: any number", _CONCURRENCY, 0)
    mode: str = _s("`enforce`; `shadow`: counted and recorded, never refused; `off`", _one_of(*MODES), MODES[0])
    on_store_error: str = _s(
        "without Redis: `local`, the process' share of it; `deny`, nothing passes; `allow`, it is not looked at",
        _one_of(*STORE_ERRORS),
        STORE_ERRORS[0],
    )
    hard_limit: Rate | None = _s(
        "the most that may pass in any such window; rate and burst that admit more are a fault. Empty: none", _rate_or_none, None
    )
    operations: tuple[str, ...] = _s("operations it is for; none: all", _operations, ())
    services: tuple[str, ...] = _s("services it is for; none: all", _names, ())
    accounts: tuple[str, ...] = _s("accounts it is for; none: all", _names, ())
    subjects: Mapping[str, Terms] = _tables(Terms, _subject)

    @property
    def terms(self) -> Terms:
        """What it says for whoever has no terms of its own."""
        return Terms(rate=self.rate, burst=self.burst, concurrency=self.concurrency, mode=self.mode)


AT_ONCE: Final = ".concurrency"
"""Ends the name under which a policy's calls under way are told apart from its rate."""

BUILT_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    "caller": {"by": ["caller"], "rate": "50/s", "burst": 100},
    "number": {"by": ["number"], "rate": "30/m", "burst": 10},
    "account": {"by": ["account"], "rate": "100/s", "burst": 200},
    "sweep": {"by": ["caller"], "count": "new_numbers", "rate": "1000/h", "burst": 1000, "mode": "shadow"},
    "repeat": {"by": ["caller", "number"], "rate": "20/h", "burst": 20, "mode": "shadow"},
}
"""The policies there are without a word in the settings; a table of the same name changes what it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is recorded, and how numbers are hidden there."""

    pseudonym_key: SecretReference | None = _s(
        "reference to the key of at least 32 characters that turns numbers into pseudonyms; "
        "none: one is made in the state folder, allowed with the embedded server only",
        _reference,
        None,
    )
    pseudonym_key_id: str = _s("name of that key, written beside each pseudonym", _name, "k1")
    strict: bool = _s("whether the gateway refuses to start on a Redis that may lose records", _flag, False)
    on_store_error: str = _s(
        "without Redis: `spool`, records go to the journal on disk before the vendor is called; `refuse`, no call is made",
        _one_of("spool", "refuse"),
        "spool",
    )
    pseudonym_keys: tuple[tuple[str, SecretReference], ...] = _s(
        "references to earlier pseudonym keys, by their names; numbers are found under these too. Take one out, and destroy "
        "it, and the numbers under it are nobody's any more",
        _references,
        (),
    )
    journal_bytes_max: int = _s(
        "most bytes that wait for Redis in one process, and most that are kept until they are sealed", _between(1, 2**40), 2**28
    )
    journal_seconds_max: int = _s("longest that records wait for Redis before no more calls are made", _between(1, 2**31), 86_400)
    disk_free_bytes_min: int = _s(
        "free bytes of the journal's disk below which no call is recorded there alone", _between(0, 2**50), 2**26
    )
    archive: str = _s("folder of the sealed trail; empty: `archive` in the state folder", _text, "")
    sealing: str = _s(
        "who seals the trail: `serve`, a process beside the workers; `apart`, `gateway audit seal`; `auto`, the first with the "
        "embedded server, else the second",
        _one_of("auto", "serve", "apart"),
        "auto",
    )
    signing_key: SecretReference | None = _s(
        "reference to the sealer's key, which `gateway audit signing-key` makes; none: one is made in the state folder",
        _reference,
        None,
    )
    copy_url: str = _s(
        "where the sealer keeps a copy of the sealed trail, `s3://BUCKET/PREFIX`, with the package's extra `s3`; empty: nowhere",
        _text,
        "",
    )
    copy_endpoint: str = _s("address of the S3-compatible store; empty: that of AWS", _text, "")
    keep_days: int = _s("how long sealed records are kept; 0: for ever", _between(0, 100_000), 0)
    stream_hours: int = _s("how long sealed records stay in Redis too", _between(0, 100_000), 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oidc:
    """Whose people sign in to the console beside holders of its keys, by OpenID Connect."""

    issuer: str = _s("the OpenID provider, as its ID tokens have it in `iss`; empty: console keys alone", _oidc_issuer, "")
    client_id: str = _s("the console's name at the provider, where its redirect URI is `/sign-in/oidc/return`", _text, "")
    client_secret: SecretReference | None = _s(
        "reference to the secret it shares with the provider; none: a public client, proved by PKCE alone", _reference, None
    )
    scopes: tuple[str, ...] = _s(
        "what the provider is asked for; some give groups for `groups` or `profile` only", _oidc_scopes, ("openid", "email")
    )
    name_claim: str = _s("claim with the name that records have behind `oidc:`", _claim, "email")
    role_claim: str = _s("claim with one group or a list of them", _claim, "groups")
    auditor: tuple[str, ...] = _s("groups whose members are auditors", _texts, ())
    operator: tuple[str, ...] = _s("groups whose members are operators", _texts, ())
    ca_file: str = _s("certificate authorities for the provider; empty: the system's", _text, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The pages for operators and auditors, which a process of their own serves."""

    host: str = _s("address to listen on", _text, "127.0.0.1")
    port: int = _s("port to listen on; 0 takes a free one", _between(0, 65535), 8090)
    public_url: str = _s(
        "address that browsers see, like `https://console.internal`; empty: that of `host`, which then is on this machine",
        _public_url,
        "",
    )
    session_idle_minutes: int = _s("how long somebody may do nothing before having to sign in again", _between(1, 1440), 30)
    session_hours: int = _s("how long after signing in one has to do so again", _between(1, 168), 10)
    public_key: str = _s(
        "the sealer's public key, or a file with it, that the trail is verified by; empty: the archive's own, which whoever can "
        "write the archive can change",
        _text,
        "",
    )
    oidc: Oidc = field(default_factory=Oidc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The log on standard output."""

    level: str = _s("least severe level written", _one_of("debug", "info", "warning", "error"), "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """OpenTelemetry spans of calls."""

    endpoint: str = _s(
        "where spans go, by OTLP over HTTP, like `http://127.0.0.1:4318/v1/traces`, with the package's extra `otel`; empty: "
        "there are none",
        _collector,
        "",
    )
    headers: tuple[tuple[str, SecretReference], ...] = _s(
        "references to the values of headers the collector wants, by their names", _references, ()
    )
    sample_ratio: float = _s(
        "share of the traces that begin here which is kept, 0 to 1; a caller's own say so themselves", _share, 1.0
    )
    service_name: str = _s("name of the gateway there", _name, "masking-gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the gateway can be told."""

    server: Server = field(default_factory=Server)
    redis: Redis = field(default_factory=Redis)
    accounts: Mapping[str, Account] = _tables(Account)
    upstream: Upstream = field(default_factory=Upstream)
    keys: Keys = field(default_factory=Keys)
    issuers: Mapping[str, Issuer] = _tables(Issuer)
    workloads: Mapping[str, Workload] = _tables(Workload)
    validation: Validation = field(default_factory=Validation)
    policies: Mapping[str, Policy] = _tables(Policy)
    idempotency: Idempotency = field(default_factory=Idempotency)
    audit: Audit = field(default_factory=Audit)
    log: Log = field(default_factory=Log)
    console: Console = field(default_factory=Console)
    tracing: Tracing = field(default_factory=Tracing)


def parse(document: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings of a parsed TOML document.

    `GATEWAY_REDIS_URL` in `environ` fills an empty `redis.url`.
    Raises: ConfigError with every fault at once.
    """
    faults: list[Fault] = []
    if "quotas" in document:
        faults.append(Fault("quotas", "is now policies: write [policies.caller] for [quotas.caller]"))
    tables = {name: table for name, table in document.items() if name != "quotas"}
    settings: Settings | None = _table(Settings, {**tables, "policies": with_built_in(document.get("policies", {}))}, "", faults)
    if settings is not None:
        faults.extend(_contradictions(settings))
    if faults or settings is None:
        raise ConfigError(tuple(faults))
    if not settings.redis.url and environ.get("GATEWAY_REDIS_URL"):
        merged = {**document, "redis": {**document.get("redis", {}), "url": environ["GATEWAY_REDIS_URL"]}}
        return parse(merged, {})
    return settings


def with_built_in(policies: Any) -> Any:
    """Return tables of policies with what is built in where they say nothing; anything else as it is."""
    if not isinstance(policies, Mapping):
        return policies
    return {**BUILT_IN, **filled_up(policies)}


def filled_up(policies: Mapping[str, Any]) -> dict[str, Any]:
    """Return these tables of policies, those of a built-in name with what they say nothing of."""
    return {
        name: {**BUILT_IN.get(name, {}), **table} if isinstance(table, Mapping) else table for name, table in policies.items()
    }


def read_policies(tables: Any, accounts: Collection[str] | None = None) -> Mapping[str, Policy]:
    """Return policies read alone, as from a candidate's file, none built in. `accounts`: that there are. Raises: ConfigError."""
    faults: list[Fault] = []
    setting = next(setting for setting in fields(Settings) if setting.name == "policies")
    policies = _named(setting, tables, "policies", faults)
    if not faults:
        faults.extend(_policy_faults(policies, accounts))
    if faults:
        raise ConfigError(tuple(faults))
    found: Mapping[str, Policy] = policies
    return found


def read_terms(table: Any) -> Terms:
    """Return terms read alone. Raises: ConfigError."""
    faults: list[Fault] = []
    terms: Terms = _table(Terms, table, "", faults)
    if faults:
        raise ConfigError(tuple(faults))
    return terms


def _table(shape: type[Any], value: Any, path: str, faults: list[Fault]) -> Any:
    """Read one table into its dataclass; None when something in it was wrong, told in `faults`."""
    if not isinstance(value, Mapping):
        faults.append(Fault(path.rstrip("."), "must be a table"))
        return None
    known = {setting.name: setting for setting in fields(shape)}
    faults.extend(
        Fault(f"{path}{name}", f"is not a setting; the settings here are {', '.join(known)}")
        for name in value
        if name not in known
    )
    before = len(faults)
    types = get_type_hints(shape)
    read = {name: _setting(setting, types[name], value, path, faults) for name, setting in known.items()}
    return None if len(faults) > before else shape(**{name: item for name, item in read.items() if item is not MISSING})


def _setting(setting: Field[Any], kind: Any, table: Mapping[str, Any], path: str, faults: list[Fault]) -> Any:
    """Read one setting of a table; MISSING where its default stands or a fault was told."""
    here = f"{path}{setting.name}"
    required = setting.default is MISSING and setting.default_factory is MISSING
    if "tables" in setting.metadata:
        return _named(setting, table.get(setting.name, {}), here, faults)
    if is_dataclass(kind) and "read" not in setting.metadata:
        if setting.name in table or required:
            return _table(kind, table.get(setting.name, {}), f"{here}.", faults)  # type: ignore[arg-type]
        return MISSING
    if setting.name not in table:
        if required:
            faults.append(Fault(here, f"is missing; it is the {setting.metadata['doc']}"))
        return MISSING
    try:
        return setting.metadata["read"](table[setting.name])
    except _Wrong as wrong:
        faults.append(Fault(here, str(wrong)))
    except ValueError:  # Of an address that cannot be taken apart; its text may hold a password.
        faults.append(Fault(here, "is no address; write it like scheme://host:port"))
    return MISSING


def _named(setting: Field[Any], tables: Any, path: str, faults: list[Fault]) -> Any:
    """Read tables of one shape, each under its own name."""
    if not isinstance(tables, Mapping):
        faults.append(Fault(path, f"must be tables like [{path}.NAME]"))
        return MISSING
    read = {}
    for name, table in tables.items():
        try:
            read[setting.metadata["name"](name)] = _table(setting.metadata["tables"], table, f"{path}.{name}.", faults)
        except _Wrong as wrong:
            faults.append(Fault(f"{path}.{name}", f"the table's name {wrong}"))
    return read


def _contradictions(settings: Settings) -> list[Fault]:
    """Return what no single setting shows."""
    faults = [*_account_faults(settings), *_workload_faults(settings), *_policy_faults(settings.policies, settings.accounts)]
    if settings.server.ops_port and settings.server.ops_port == settings.server.port:
        faults.append(Fault("server.ops_port", "must not be server.port"))
    faults.extend(_oidc_faults(settings.console))
    if settings.redis.cluster and settings.redis.sentinels:
        faults.append(Fault("redis.cluster", "cannot be true together with redis.sentinels"))
    if not all(re.fullmatch(r"[^:\s]+:\d{1,5}", sentinel) for sentinel in settings.redis.sentinels):
        faults.append(Fault("redis.sentinels", 'must be texts like "10.0.0.1:26379"'))
    if settings.audit.pseudonym_key_id in dict(settings.audit.pseudonym_keys):
        faults.append(
            Fault("audit.pseudonym_keys", f"names the current key, {settings.audit.pseudonym_key_id}: give that one another name")
        )
    if settings.upstream.send_traceparent and not settings.tracing.endpoint:
        faults.append(Fault("upstream.send_traceparent", "needs tracing.endpoint: without it there is no span to name"))
    if settings.upstream.read_timeout_ms > settings.upstream.total_timeout_ms:
        faults.append(Fault("upstream.read_timeout_ms", "must not be longer than upstream.total_timeout_ms"))
    if settings.server.finish_seconds * 1000 <= settings.upstream.longest_ms:
        faults.append(
            Fault(
                "server.drain_seconds",
                f"must be longer than server.lame_duck_seconds and {settings.upstream.longest_ms} ms, twice "
                "upstream.pool_timeout_ms and upstream.total_timeout_ms, or calls in flight are cut when the gateway stops",
            )
        )
    return faults


def _oidc_faults(console: Console) -> list[Fault]:
    oidc, here = console.oidc, "console.oidc"
    if not oidc.issuer:
        told = "is missing; without it nobody signs in by what else stands in this table"
        return [Fault(f"{here}.issuer", told)] if oidc != Oidc() else []
    faults = []
    if not oidc.client_id:
        faults.append(Fault(f"{here}.client_id", "is missing; it is the console's name at the provider"))
    if not console.public_url:
        told = "is missing; console.oidc needs it, since the provider sends people back to this address"
        faults.append(Fault("console.public_url", told))
    if not oidc.auditor and not oidc.operator:
        faults.append(Fault(f"{here}.operator", "is missing, like auditor; name groups in one of them, or nobody has a role"))
    if both := set(oidc.auditor) & set(oidc.operator):
        faults.append(Fault(f"{here}.auditor", f"names {', '.join(sorted(both))} like operator; a group has one role"))
    return faults


def _account_faults(settings: Settings) -> list[Fault]:
    faults = []
    if not settings.accounts:
        faults.append(Fault("accounts", "is missing; name the vendor account in a table like [accounts.main]"))
    for name, account in settings.accounts.items():
        for slot in SLOTS:
            credential, here = account.slot(slot), f"accounts.{name}.{slot}"
            if credential.ssid and (credential.user_id or credential.token):
                faults.append(Fault(here, "has both ssid and user_id or token; the vendor wants one form"))
            elif (credential.given or slot == SLOTS[0]) and not credential.ssid and not (credential.user_id and credential.token):
                faults.append(Fault(here, "is missing; give ssid, or user_id and token"))
    return faults


def _policy_faults(policies: Mapping[str, Policy], accounts: Collection[str] | None) -> list[Fault]:
    faults = []
    for name, policy in policies.items():
        here = f"policies.{name}"
        if name.endswith(AT_ONCE):
            faults.append(Fault(here, f"must not end in '{AT_ONCE}': so the calls under way of another policy are named"))
        if policy.rate is None and not policy.concurrency:
            faults.append(Fault(here, "limits nothing; give rate and burst, or concurrency"))
        if policy.count == "new_numbers" and "number" in policy.by:
            faults.append(Fault(f"{here}.by", 'cannot have "number" where new numbers are counted'))
        if policy.count == "new_numbers" and policy.rate is None:
            faults.append(Fault(f"{here}.rate", "is missing: new numbers are counted by rate and burst"))
        faults.extend(
            Fault(f"{here}.accounts", f"there is no [accounts.{account}]")
            for account in policy.accounts
            if accounts is not None and account not in accounts
        )
        faults.extend(_terms_faults(here, policy, Terms()))
        if policy.subjects and "number" in policy.by:
            faults.append(Fault(f"{here}.subjects", "cannot be told for numbers here; use `gateway limits set`"))
        for subject, terms in policy.subjects.items():
            path = f"{here}.subjects.{subject}"
            if told := subject_fault(policy, subject, accounts):
                faults.append(Fault(path, told))
            faults.extend(_terms_faults(path, policy, terms))
    return faults


def _terms_faults(path: str, policy: Policy, terms: Terms) -> list[Fault]:
    return terms_faults(path, policy, replace(terms, rate=terms.rate or policy.rate, burst=terms.burst or policy.burst))


def terms_faults(path: str, policy: Policy, terms: Terms) -> list[Fault]:
    """Return what is wrong with all terms of a policy for some who fall under it."""
    rate, burst, limit = terms.rate, terms.burst, policy.hard_limit
    if rate is None or burst is None:
        return []
    faults = []
    if burst > rate.burst_max:
        faults.append(
            Fault(f"{path}.burst", f"must be {rate.burst_max} or less at {rate}: more would take over a century to grow back")
        )
    if policy.count == "new_numbers" and burst < len(NUMBER_FIELDS):
        faults.append(Fault(f"{path}.burst", "must be 3 or more: one call may have three new numbers"))
    if limit is not None and (worst := rate.worst_case(burst, limit.window_seconds)) > limit.count:
        told = f"{rate} with burst {burst} admits up to {worst} in a window of hard_limit {limit}; lower rate or burst"
        faults.append(Fault(path, told))
    return faults


def subject_fault(policy: Policy, subject: str, accounts: Collection[str] | None) -> str:
    """Return why nobody who falls under a policy is this subject; empty where somebody may be. `accounts`: that there are."""
    parts = subject.split("/")
    if len(parts) != len(policy.by):
        return f"must be {'/'.join(policy.by)}"
    among = {
        "caller": policy.services,
        "account": policy.accounts or accounts or (),
        "operation": policy.operations or OPERATIONS,
    }
    for dimension, part in zip(policy.by, parts, strict=True):
        known = among.get(dimension)
        if known and part not in known:
            return f"the policy has no {dimension} '{part}'; it has {', '.join(known)}"
    return ""


def _workload_faults(settings: Settings) -> list[Fault]:
    faults = [
        Fault(f"issuers.{name}", "give one of jwks_url and jwks_file")
        for name, issuer in settings.issuers.items()
        if bool(issuer.jwks_url) == bool(issuer.jwks_file)
    ]
    faults += [
        Fault(
            f"issuers.{name}.stale_seconds_max", "must be longer than max_age_seconds, or its tokens are refused between readings"
        )
        for name, issuer in settings.issuers.items()
        if issuer.stale_seconds_max <= issuer.max_age_seconds
    ]
    seen: set[tuple[str, str]] = set()
    for name, workload in settings.workloads.items():
        if workload.issuer not in settings.issuers:
            faults.append(Fault(f"workloads.{name}.issuer", f"there is no [issuers.{workload.issuer}]"))
        if (workload.issuer, workload.subject) in seen:
            faults.append(Fault(f"workloads.{name}.subject", "stands in another workload too"))
        seen.add((workload.issuer, workload.subject))
        faults.extend(
            Fault(f"workloads.{name}.accounts", f"there is no [accounts.{account}]")
            for account in workload.accounts
            if account not in settings.accounts
        )
    issuers = [issuer.issuer for issuer in settings.issuers.values()]
    faults.extend(Fault("issuers", f"two tables have the issuer {text}") for text in set(issuers) if issuers.count(text) > 1)
    return faults


def documented(shape: type[Any] = Settings, path: str = "") -> list[tuple[str, str, Any]]:
    """Return every setting as (path, meaning, default); MISSING as default means required."""
    rows: list[tuple[str, str, Any]] = []
    types = get_type_hints(shape)
    for setting in fields(shape):
        kind = types[setting.name]
        if "tables" in setting.metadata:
            rows.extend(documented(setting.metadata["tables"], f"{path}{setting.name}.NAME."))
        elif is_dataclass(kind) and "read" not in setting.metadata:
            rows.extend(documented(kind, f"{path}{setting.name}."))  # type: ignore[arg-type]
        else:
            rows.append((f"{path}{setting.name}", setting.metadata["doc"], setting.default))
    return rows
