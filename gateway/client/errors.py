"""What a call comes to: it was carried out, or one of four errors, told apart by what a caller does next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """The vendor carried the call out."""

    request_id: str
    """Leads to the gateway's records."""
    operation: str
    """`end` or `reschedule`."""
    message: str
    """The vendor's words."""
    replayed: bool
    """Whether the call was made before under its key, and this is the answer it got then."""


@dataclass(eq=False)
class GatewayError(Exception):
    """The call came to nothing, or nobody knows: the last try's answer, and which of the classes below it amounts to."""

    message: str
    """What is wrong, and what to do about it."""
    error: str
    """The gateway's name for it, as in its problem table; the client's own are `unreachable`, `no_answer`, `redirected` and
    `not_the_gateway`."""
    status: int | None
    """HTTP status; None: there was no answer."""
    code: int | None
    """The vendor's code for it, where it has one."""
    retryable: bool
    """Whether the same call may succeed later."""
    origin: str
    """Who says so: `gateway`, `vendor`, or `client`."""
    field: str | None
    """The field at fault, by the gateway's name: `expiry_time` is `expires_at`, `expiry_duration` is `expires_in_minutes`."""
    policy: str | None
    """The limit that refused."""
    retry_after: float | None
    """Seconds until a retry may pass."""
    request_id: str
    """Of the last try; leads to the gateway's records."""
    tries: int
    """How often it was asked for."""
    idempotency_key: str
    """Of all its tries; asked for again under it, the call is made once."""

    def __str__(self) -> str:
        return f"{self.message} ({self.error}, request {self.request_id}, tries {self.tries})"


class Refused(GatewayError):
    """It was not carried out, and would not be if it were asked for again as it is.

    `masking_not_found` in more than one of `tries` may mean that an earlier one ended the masking.
    """


class Unavailable(GatewayError):
    """It was not carried out, and may be later: the gateway cannot be reached, or cannot make calls now."""


class RateLimited(Unavailable):
    """It was not carried out: a limit is used up for `retry_after` seconds."""


class Unknown(GatewayError):
    """Nobody knows whether the vendor acted. Asking again with its `idempotency_key` does no harm."""
