"""The frozen values that travel the chain, in the order they are made.

Each stage takes one of these and returns a narrower one, so that the stages cannot be called in the wrong order.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

import msgspec

UNSET_PATH: Final = "/api/v2/Masking/unset"
"""The call's path, the same here and at the vendor, so that a client changes its host alone."""

Operation = Literal["end", "reschedule"]
OPERATIONS: Final[tuple[Operation, ...]] = ("end", "reschedule")
"""What a caller may be allowed to ask for: end a masking at once, or change when it ends."""

NUMBER_FIELDS: Final = ("m1", "m2", "mask")
"""The body's fields that hold a telephone number, in the order in which they are told."""

Dimension = Literal["caller", "number", "account", "operation"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("caller", "number", "account", "operation")
"""What a policy may count apart, in the order in which its subjects are named."""

MODES: Final = ("enforce", "shadow", "off")
"""A policy refuses; or counts and records, and never refuses; or is not looked at."""

STORE_ERRORS: Final = ("local", "deny", "allow")
"""What a policy does without Redis."""

Result = Literal["answered", "refused", "failed", "unknown"]
RESULTS: Final[tuple[Result, ...]] = ("answered", "refused", "failed", "unknown")
"""`answered`: the vendor did it. `refused`: nobody did anything. `failed`: the vendor said no. `unknown`: it was asked, and
nobody can tell whether it acted."""

Slot = Literal["primary", "secondary"]
SLOTS: Final[tuple[Slot, ...]] = ("primary", "secondary")
"""The places of an account's credentials. One of them is active, the other stands by; the first is active at first."""


class Secret:
    """A value that is used but never shown: it prints as `Secret(…)` and refuses to be copied into bytes."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself. Only the exchange of credentials and the edge that opens a connection may ask."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash table would keep a fingerprint of it

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not serialised")


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """What an HTTP message signature (RFC 9421) may cover of a request."""

    method: str
    scheme: str
    """`http` or `https`, as the caller saw it."""
    authority: str
    """The Host header."""
    path: str
    """As sent, percent-encoding kept."""
    query: str
    """As sent, without the question mark."""
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """Lower-case names, in order."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The raw inbound request with its instant and id; nothing in it is trusted yet."""

    request_id: str
    """Ours, or the caller's own `X-Request-Id` when it is well-formed."""
    received_at: float
    """Unix seconds, read once at the edge."""
    body: bytes = field(repr=False)
    """At most one byte longer than the bound; a longer body is cut there and refused."""
    authorization: tuple[str, ...] = field(default=(), repr=False)
    """Every `Authorization` header, in order."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Every `X-API-Key` header, in order."""
    trace_id: str | None = None
    """32 hex digits of a valid W3C `traceparent`, or None."""
    source: str = ""
    """IP address the request came from, as far as trusted proxies tell; empty where there is none."""
    account: str | None = None
    """The vendor account asked for by `X-Gateway-Account`, or None."""
    message: SignedMessage | None = field(default=None, repr=False)
    """What a signature may cover; None where none was sent."""
    idempotency_key: str | None = field(default=None, repr=False)
    """`Idempotency-Key`; empty where it was sent twice, None where it was not sent."""
    timeout_ms: str | None = None
    """`X-Request-Timeout-Ms`; the same."""


@dataclass(frozen=True, slots=True)
class Bindings:
    """What a caller's proof is good for. An empty tuple binds nothing."""

    scopes: frozenset[str] = frozenset(OPERATIONS)
    """Operations that may be asked for."""
    accounts: tuple[str, ...] = ()
    """Vendor accounts that may be used."""
    networks: tuple[str, ...] = ()
    """Networks in CIDR notation that requests may come from."""
    prefixes: tuple[str, ...] = ()
    """`+` and digits that every number of a call must begin with one of."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """What makes a signed request good for one call."""

    value: str = field(repr=False)
    expires_at: float
    """Unix seconds after which the signature itself is too old."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated service and what it may ask for."""

    principal: str
    """The service, as written in records."""
    key_id: str
    """Of its key; of a workload, the name of its entry in the settings."""
    bindings: Bindings
    proof: Literal["key", "token", "signature"] = "key"
    key_version: int | None = None
    """Which of the key's secrets was shown; None for a workload."""
    nonce: Nonce | None = None
    """To be spent with the call; None where the proof is no signature."""

    def may(self, operation: Operation) -> bool:
        """Say whether the scopes cover the operation."""
        return operation in self.bindings.scopes


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """One telephone number, in the three forms the gateway needs."""

    sent: str = field(repr=False)
    """As the caller wrote it, trimmed."""
    e164: str = field(repr=False)
    """`+` and digits; the same for every way of writing one number."""
    country: str
    """ISO 3166 region code of the number, or `ZZ` where it has none."""


@dataclass(frozen=True, slots=True)
class Once:
    """What an idempotency key makes of a call: one that is made once, however often it is asked for."""

    name: str
    """32 hex digits of SHA-256 over service and key: a key is one service's own, and may hold anything."""
    fingerprint: str
    """32 hex digits; equal for equal calls, and made of pseudonyms, never of a number."""
    owner: str = ""
    """`writer-seq` of the call's first intent, which claimed the key; empty where none did yet."""


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated and validated operation on one vendor account."""

    caller: Caller
    account: str
    operation: Operation
    numbers: Mapping[str, PhoneNumber]
    """Keyed by field name (`m1`, `m2`, `mask`), in that order; at least one."""
    expiry_time: int | None = None
    """Unix seconds, or None when not given."""
    expiry_duration: int | None = None
    """Minutes; negative ends the masking at once; None when not given."""
    once: Once | None = None
    """None where the caller sent no idempotency key."""

    @property
    def repeatable(self) -> bool:
        """Whether made twice it does what it does once: it ends the masking, or names an instant, and not minutes from now."""
        return self.expiry_duration is None or self.expiry_duration < 0


@dataclass(frozen=True, slots=True, eq=False)  # made once and drawn on by many calls, it is told apart by identity
class Limit:
    """What a policy allows one subject, ready to be charged. Either a rate, or a number of calls under way at once."""

    policy: str
    """Its name, as shown to callers."""
    shadow: bool
    """Whether it never refuses."""
    on_store_error: Literal["local", "deny", "allow"]
    burst: int
    """Units that may be used at once; calls that may be under way at once where `interval_us` is 0."""
    interval_us: int = 0
    """Microseconds in which one unit grows back; 0: calls under way are counted."""
    life_ms: int = 0
    """How long a number counts as touched, or a place is kept for a call that never ends; 0: for neither."""
    window_seconds: int = 0
    """Window the rate was given for."""
    units: int = 0
    """Units that grow back in that window."""

    @property
    def tolerance_us(self) -> int:
        """Microseconds by which a call may be early."""
        return self.interval_us * (self.burst - 1)


class Charge(msgspec.Struct, frozen=True, gc=False):  # Made many times a call: a third of what a dataclass costs.
    """One draw on one limit."""

    limit: Limit
    key: str
    """Where it is kept; holds a pseudonym, never a number."""
    field: str = ""
    """The body's field whose number is counted; empty where none is."""
    touched: tuple[str, ...] | None = None
    """Where it is kept which numbers were touched, one unit for each that was not; None: one unit."""


class Meter(msgspec.Struct, frozen=True, gc=False):
    """What one charged limit had left."""

    limit: Limit
    field: str
    remaining: int
    """Units left after this call; 0 where it was refused."""
    reset_after_seconds: int
    """Until a unit is free where none remains, else until the limit is full again."""
    admitted: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The limiter's answer for all charges of one call: all were made, or none."""

    meters: tuple[Meter, ...]
    """Same length and order as the charges."""
    degraded: bool = False
    """Whether it was given without Redis."""

    @property
    def refused(self) -> tuple[Meter, ...]:
        """The limits that had nothing left and refused; empty when the call was admitted."""
        return tuple(meter for meter in self.meters if not meter.admitted and not meter.limit.shadow)

    @property
    def shadow_refused(self) -> tuple[Meter, ...]:
        """The limits in shadow that would have refused."""
        return tuple(meter for meter in self.meters if not meter.admitted and meter.limit.shadow)


@dataclass(frozen=True, slots=True)
class Admission:
    """Proof that a call was charged and recorded. Only the ledger makes one."""

    call: Call
    record_id: str
    """`writer-sequence` of the intent."""
    verdict: Verdict
    held: tuple[str, ...] = ()
    """Where the call holds places among those under way; given back with its outcome."""


@dataclass(frozen=True, slots=True)
class Outdated:
    """The ledger's word that a call was decided by what is no longer so. Nothing was charged."""

    epoch: int
    """Epoch the copy of the keys must have reached."""
    active: Slot | None
    """The slot whose credential is to be used; None: as it was."""
    limits: str
    """Version of the limits' live changes."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The ledger's word that a call was asked for before under its idempotency key. Nothing was charged."""

    standing: Literal["answered", "running", "unknown", "mismatch"]
    """What became of the call that was made under the key; `mismatch`: it is another one."""
    intent: str
    """`writer-seq` of that call's last intent."""
    answer: bytes = field(default=b"", repr=False)
    """As it was kept; empty where none was."""


@dataclass(frozen=True, slots=True)
class VendorCredential:
    """What the vendor wants of us. Either `ssid`, or `user_id` with `token`: its documentation forbids both forms."""

    slot: Slot
    version: str
    """Names this value in records without telling it: equal for equal values on every replica."""
    ssid: Secret | None = None
    user_id: Secret | None = None
    token: Secret | None = None
    forms: tuple[str, ...] = field(default=(), repr=False)
    """Every form of its secrets, to be removed from whatever the vendor answers."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at the vendor, as records name it."""

    number: int
    """1; more where the vendor had rejected the first credential, or was not reached."""
    slot: Slot
    version: str


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """The call as the vendor wants it, with the vendor's credential inside."""

    body: bytes
    scrub: tuple[str, ...]
    """The credential's forms."""

    def __repr__(self) -> str:
        return f"UpstreamRequest({len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """What came back from the vendor, read to its end or to the bound."""

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = None
    complete: bool = True
    """False when the body was longer than we read."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one arrival ended, ready to be answered and recorded."""

    status: int
    """HTTP status for the caller."""
    slug: str
    """`success`, or the code of the problem."""
    body: dict[str, Any] = field(repr=False)
    result: Result
    origin: Literal["gateway", "vendor"]
    vendor_code: int | None = None
    upstream_status: int | None = None
    retry_after_seconds: int | None = None
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)
    """What the record and the log say beyond the caller's answer; no secret and no number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller gets."""

    request_id: str
    outcome: Outcome
    verdict: Verdict | None = None
    replayed: bool = False
    """Whether it is the answer to an earlier request under the same idempotency key."""
