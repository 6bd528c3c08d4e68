"""Every table of the settings but the limits': what each setting means, how it is read, and what absence means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.config import values
from gateway.config.policies import Policy
from gateway.config.tables import setting, tables_of
from gateway.config.values import WORKERS_MAX, SecretReference
from gateway.model import OPERATIONS, Bindings

_MS: Final = values.between(1, 600_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How callers reach the gateway."""

    host: str = setting("address to listen on", values.text, "127.0.0.1")
    port: int = setting("port to listen on; 0 takes a free one", values.between(0, 65535), 8080)
    ops_host: str = setting("address to listen on for operators", values.text, "127.0.0.1")
    ops_port: int = setting("port of `/metrics`, `/livez` and `/readyz` for operators; 0: none", values.between(0, 65535), 9180)
    workers: int = setting("processes that share the port", values.between(1, WORKERS_MAX), 1)
    body_bytes_max: int = setting("longest body taken", values.between(256, 1_048_576), 16_384)
    headers_max: int = setting("most headers taken", values.between(8, 1000), 100)
    header_bytes_max: int = setting("longest head of a request taken", values.between(1024, 1_048_576), 32_768)
    header_timeout_ms: int = setting("time for the head to arrive", _MS, 10_000)
    body_timeout_ms: int = setting("time for the body to arrive", _MS, 10_000)
    keep_alive_seconds: int = setting("how long an idle connection is kept", values.between(1, 3600), 75)
    lame_duck_seconds: int = setting(
        "how long after SIGTERM new connections and calls are still taken, while readiness says no: longer than a balancer "
        "takes to notice; 0: not at all",
        values.between(0, 600),
        5,
    )
    drain_seconds: int = setting(
        "how long after SIGTERM the last call in flight may finish, `lame_duck_seconds` among them", values.between(1, 3600), 50
    )
    trusted_proxies: tuple[str, ...] = setting(
        "networks of proxies whose `X-Forwarded-For` is believed; none: a caller's address is its connection's",
        values.networks,
        (),
    )
    public_scheme: str = setting("scheme of the addresses that callers sign", values.one_of("http", "https"), "http")
    metrics_networks: tuple[str, ...] = setting("networks that may read `/metrics`", values.networks, ("127.0.0.0/8", "::1/128"))
    cors_origins: tuple[str, ...] = setting("browser origins that may call; none by default", values.origins, ())
    state_dir: str = setting(
        "where the embedded server and the journal keep their files; empty: the user's state folder", values.text, ""
    )

    @property
    def finish_seconds(self) -> int:
        """How long calls in flight may finish once no new ones are taken."""
        return self.drain_seconds - self.lame_duck_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """The store behind limits, keys and the audit stream."""

    url: str = setting(
        "redis://, rediss:// or unix:// address; empty: `GATEWAY_REDIS_URL`, else the embedded server", values.redis_url, ""
    )
    username: str = setting("ACL user; empty: the default user", values.text, "")
    password: SecretReference | None = setting("reference to the password", values.reference, None)
    ca_file: str = setting("certificate authorities for rediss://; empty: the system's", values.text, "")
    cluster: bool = setting("whether `url` names a node of a Redis Cluster", values.flag, False)
    sentinels: tuple[str, ...] = setting("`host:port` of the sentinels; none: no Sentinel", values.texts, ())
    sentinel_service: str = setting("name of the master at the sentinels", values.text, "mymaster")
    timeout_ms: int = setting("longest wait for one answer of Redis", values.between(5, 10_000), 250)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What the vendor wants: `ssid`, or `user_id` with `token`."""

    ssid: SecretReference | None = setting("reference to the vendor's session id", values.reference, None)
    user_id: SecretReference | None = setting("reference to the vendor's account id", values.reference, None)
    token: SecretReference | None = setting("reference to the vendor's token", values.reference, None)

    @property
    def given(self) -> bool:
        """Whether anything of it is set."""
        return bool(self.ssid or self.user_id or self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One account at the vendor: what shares a brand, a credential and a quota."""

    brand: str = setting("the vendor's address for the brand, `{{brand}}` in its documentation", values.brand)
    services: tuple[str, ...] = setting(
        "services that use this account; none: every service that no account names", values.names, ()
    )
    primary: Credential = field(default_factory=Credential)
    secondary: Credential = field(default_factory=Credential)

    def slot(self, name: str) -> Credential:
        """Return where the credential of a slot is."""
        credential: Credential = getattr(self, name)
        return credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """How the vendor is spoken to, the same for every account; each has connections of its own."""

    number_format: str = setting(
        "how numbers are forwarded: as the caller wrote them, `+` and digits, or digits alone",
        values.one_of("as_sent", "e164", "digits"),
        "as_sent",
    )
    connect_timeout_ms: int = setting("time to connect, TLS included", _MS, 3_000)
    read_timeout_ms: int = setting("longest silence of the vendor", _MS, 10_000)
    pool_timeout_ms: int = setting("longest wait of a call for its turn, while `connections_max` are under way", _MS, 1_000)
    total_timeout_ms: int = setting("longest time from sending to the answer's last byte", _MS, 20_000)
    connections_max: int = setting(
        "calls under way at once, and so connections, per process and account", values.between(1, 10_000), 256
    )
    waiting_max: int = setting(
        "calls that wait for their turn, per process and account; beyond it the oldest is refused",
        values.between(1, 100_000),
        1_000,
    )
    breaker_calls: int = setting(
        "calls of ten seconds of which half must fail before no more are made for a while; 0: it never comes to that",
        values.between(0, 1_000_000),
        20,
    )
    breaker_seconds: int = setting(
        "that while; as long as probes fail, each is twice as long, up to a minute", values.between(1, 60), 2
    )
    idle_seconds: int = setting(
        "how long an unused connection is kept; below the 5 s after which Node servers close them", values.between(1, 3600), 4
    )
    answer_bytes_max: int = setting("longest answer read", values.between(1024, 16_777_216), 65_536)
    rejections_to_switch: int = setting(
        "rejections in a row, by one process, after which a credential counts as rejected", values.between(1, 1000), 3
    )
    probe_seconds: int = setting(
        "pause between the calls that prove credentials anew while all are rejected", values.between(1, 3600), 5
    )
    command_seconds: int = setting("how often a credential's command is run again", values.between(1, 86_400), 300)
    retries: int = setting(
        "further tries of a call that did not reach the vendor, or does no more when it is made twice", values.between(0, 10), 1
    )
    ca_file: str = setting("certificate authorities for the vendor; empty: the system's", values.text, "")
    send_traceparent: bool = setting(
        "whether the vendor gets a `traceparent`: the trace's id and the gateway's own span's, nothing else; needs "
        "`tracing.endpoint`",
        values.flag,
        False,
    )

    @property
    def longest_ms(self) -> int:
        """The longest a call may take, with all its tries."""
        return 2 * (self.pool_timeout_ms + self.total_timeout_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What counts as a call."""

    default_region: str = setting("region of numbers written without a country code", values.region, "IN")
    unknown_fields: str = setting("what becomes of a field the call does not have", values.one_of("refuse", "drop"), "refuse")
    both_expiry_fields: str = setting(
        "what becomes of a call with expiry_time and expiry_duration", values.one_of("forward", "refuse"), "forward"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Calls that are asked for again."""

    keep_hours: int = setting(
        "how long an answer is kept for requests with the same `Idempotency-Key`", values.between(1, 8760), 24
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Callers' keys, and the signatures made with them."""

    expiry_warning_days: int = setting("how long before its end a key is warned of, once a day", values.between(0, 3650), 14)
    quiet_hours: int = setting("how long a key must not have been used to be called safe to revoke", values.between(1, 24), 24)
    stale_seconds_max: int = setting(
        "how long keys are believed that Redis cannot confirm, while it is away", values.between(0, 86_400), 900
    )
    signature_seconds: int = setting("how old a request's signature may be", values.between(1, 3600), 300)
    signature_hosts: tuple[str, ...] = setting(
        "hosts, with the port where it is not the usual one, that signed requests must be made for; none: any", values.hosts, ()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Whose tokens prove workloads: an OpenID provider, or a Kubernetes cluster."""

    issuer: str = setting("the `iss` of its tokens", values.text)
    audience: str = setting("the `aud` its tokens must be made for", values.text)
    jwks_url: str = setting("address of its public keys; empty: `jwks_file`", values.jwks_url, "")
    jwks_file: str = setting("file of its public keys, read again when it changes; empty: `jwks_url`", values.text, "")
    jwks_ca_file: str = setting("certificate authorities for `jwks_url`; empty: the system's", values.text, "")
    jwks_bearer_file: str = setting("file of the token that `jwks_url` wants; empty: none", values.text, "")
    algorithms: tuple[str, ...] = setting("signature algorithms that are taken", values.algorithms, ("RS256", "ES256", "EdDSA"))
    leeway_seconds: int = setting("how far clocks may be apart", values.between(0, 600), 30)
    lifetime_seconds_max: int = setting("longest life of a token, from issue to expiry", values.between(60, 31_536_000), 86_400)
    max_age_seconds: int = setting("how often the public keys are read again", values.between(1, 86_400), 300)
    stale_seconds_max: int = setting("how long they are used while they cannot be read", values.between(1, 604_800), 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload that proves itself by a token, and the service it is."""

    issuer: str = setting("name of the issuer's table", values.name)
    subject: str = setting("the `sub` of its tokens, like `system:serviceaccount:crm:masking`", values.text)
    service: str = setting("the service it is; empty: the table's name", values.name_or_none, "")
    scopes: tuple[str, ...] = setting("operations it may ask for", values.scopes, OPERATIONS)
    accounts: tuple[str, ...] = setting("accounts it may use; none: those its service is mapped to", values.names, ())
    networks: tuple[str, ...] = setting("networks it may call from; none: any", values.networks, ())
    prefixes: tuple[str, ...] = setting("beginnings its numbers must have, like `+9198`; none: any", values.prefixes, ())

    def bindings(self) -> Bindings:
        """Return what its proof is good for."""
        return Bindings(frozenset(self.scopes), self.accounts, self.networks, self.prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is recorded, and how numbers are hidden there."""

    pseudonym_key: SecretReference | None = setting(
        "reference to the key of at least 32 characters that turns numbers into pseudonyms; "
        "none: one is made in the state folder, allowed with the embedded server only",
        values.reference,
        None,
    )
    pseudonym_key_id: str = setting("name of that key, written beside each pseudonym", values.name, "k1")
    strict: bool = setting("whether the gateway refuses to start on a Redis that may lose records", values.flag, False)
    on_store_error: str = setting(
        "without Redis: `spool`, records go to the journal on disk before the vendor is called; `refuse`, no call is made",
        values.one_of("spool", "refuse"),
        "spool",
    )
    pseudonym_keys: tuple[tuple[str, SecretReference], ...] = setting(
        "references to earlier pseudonym keys, by their names; numbers are found under these too. Take one out, and destroy "
        "it, and the numbers under it are nobody's any more",
        values.references,
        (),
    )
    journal_bytes_max: int = setting(
        "most bytes that wait for Redis in one process, and most that are kept until they are sealed",
        values.between(1, 2**40),
        2**28,
    )
    journal_seconds_max: int = setting(
        "longest that records wait for Redis before no more calls are made", values.between(1, 2**31), 86_400
    )
    disk_free_bytes_min: int = setting(
        "free bytes of the journal's disk below which no call is recorded there alone", values.between(0, 2**50), 2**26
    )
    archive: str = setting("folder of the sealed trail; empty: `archive` in the state folder", values.text, "")
    sealing: str = setting(
        "who seals the trail: `serve`, a process beside the workers; `apart`, `gateway audit seal`; `auto`, the first with the "
        "embedded server, else the second",
        values.one_of("auto", "serve", "apart"),
        "auto",
    )
    signing_key: SecretReference | None = setting(
        "reference to the sealer's key, which `gateway audit signing-key` makes; none: one is made in the state folder",
        values.reference,
        None,
    )
    copy_url: str = setting(
        "where the sealer keeps a copy of the sealed trail, `s3://BUCKET/PREFIX`, with the package's extra `s3`; empty: nowhere",
        values.text,
        "",
    )
    copy_endpoint: str = setting("address of the S3-compatible store; empty: that of AWS", values.text, "")
    keep_days: int = setting("how long sealed records are kept; 0: for ever", values.between(0, 100_000), 0)
    stream_hours: int = setting("how long sealed records stay in Redis too", values.between(0, 100_000), 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oidc:
    """Whose people sign in to the console beside holders of its keys, by OpenID Connect."""

    issuer: str = setting(
        "the OpenID provider, as its ID tokens have it in `iss`; empty: console keys alone", values.oidc_issuer, ""
    )
    client_id: str = setting(
        "the console's name at the provider, where its redirect URI is `/sign-in/oidc/return`", values.text, ""
    )
    client_secret: SecretReference | None = setting(
        "reference to the secret it shares with the provider; none: a public client, proved by PKCE alone", values.reference, None
    )
    scopes: tuple[str, ...] = setting(
        "what the provider is asked for; some give groups for `groups` or `profile` only", values.oidc_scopes, ("openid", "email")
    )
    name_claim: str = setting("claim with the name that records have behind `oidc:`", values.claim, "email")
    role_claim: str = setting("claim with one group or a list of them", values.claim, "groups")
    auditor: tuple[str, ...] = setting("groups whose members are auditors", values.texts, ())
    operator: tuple[str, ...] = setting("groups whose members are operators", values.texts, ())
    ca_file: str = setting("certificate authorities for the provider; empty: the system's", values.text, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The pages for operators and auditors, which a process of their own serves."""

    host: str = setting("address to listen on", values.text, "127.0.0.1")
    port: int = setting("port to listen on; 0 takes a free one", values.between(0, 65535), 8090)
    public_url: str = setting(
        "address that browsers see, like `https://console.internal`; empty: that of `host`, which then is on this machine",
        values.public_url,
        "",
    )
    session_idle_minutes: int = setting(
        "how long somebody may do nothing before having to sign in again", values.between(1, 1440), 30
    )
    session_hours: int = setting("how long after signing in one has to do so again", values.between(1, 168), 10)
    public_key: str = setting(
        "the sealer's public key, or a file with it, that the trail is verified by; empty: the archive's own, which whoever can "
        "write the archive can change",
        values.text,
        "",
    )
    oidc: Oidc = field(default_factory=Oidc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The log on standard output."""

    level: str = setting("least severe level written", values.one_of("debug", "info", "warning", "error"), "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """OpenTelemetry spans of calls."""

    endpoint: str = setting(
        "where spans go, by OTLP over HTTP, like `http://127.0.0.1:4318/v1/traces`, with the package's extra `otel`; empty: "
        "there are none",
        values.collector,
        "",
    )
    headers: tuple[tuple[str, SecretReference], ...] = setting(
        "references to the values of headers the collector wants, by their names", values.references, ()
    )
    sample_ratio: float = setting(
        "share of the traces that begin here which is kept, 0 to 1; a caller's own say so themselves", values.share, 1.0
    )
    service_name: str = setting("name of the gateway there", values.name, "masking-gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the gateway can be told."""

    server: Server = field(default_factory=Server)
    redis: Redis = field(default_factory=Redis)
    accounts: Mapping[str, Account] = tables_of(Account)
    upstream: Upstream = field(default_factory=Upstream)
    keys: Keys = field(default_factory=Keys)
    issuers: Mapping[str, Issuer] = tables_of(Issuer)
    workloads: Mapping[str, Workload] = tables_of(Workload)
    validation: Validation = field(default_factory=Validation)
    policies: Mapping[str, Policy] = tables_of(Policy)
    idempotency: Idempotency = field(default_factory=Idempotency)
    audit: Audit = field(default_factory=Audit)
    log: Log = field(default_factory=Log)
    console: Console = field(default_factory=Console)
    tracing: Tracing = field(default_factory=Tracing)
