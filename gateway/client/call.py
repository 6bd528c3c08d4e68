"""One call over all its tries: what to send next, what an answer means, and whether to try again. Touches nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypedDict

from gateway.client.errors import Done, GatewayError, RateLimited, Refused, Unavailable, Unknown

TIMEOUT_SECONDS_MAX: Final = 600
_VISIBLE: Final = re.compile(r"[!-~]+")
_CONNECT_SECONDS_MAX: Final = 5.0
_WAY_BACK_SECONDS_MAX: Final = 0.1
"""That the gateway is told less than is left, so that its own answer still comes in time."""
_PAUSE_SECONDS: Final = 0.2
_PAUSE_SECONDS_MAX: Final = 5.0
UNKNOWN: Final = frozenset((
    "internal", "upstream_timeout", "upstream_broken", "upstream_unreadable", "vendor_something_wrong", "vendor_database_down",
    "vendor_internal", "vendor_failed", "idempotency_running", "idempotency_unknown",
))  # fmt: skip
"""The errors of the gateway after which nobody knows whether the vendor acted, or is about to."""


class Fields(TypedDict, total=False):
    """What a call may say; at least one number. What is not given is not sent: None is refused, for it would mean more."""

    m1: str
    m2: str
    mask: str
    """The two parties and the virtual number between them, written in any way."""
    expires_in_minutes: int
    """When the masking is to end, 1 or more from now. Neither this nor `expires_at`: it ends at once."""
    expires_at: datetime
    """With its zone; seconds count."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, read whole."""

    status: int
    headers: Mapping[str, str]
    """By name, in whatever case: a mapping that does not mind."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer. Not the exception itself, which holds the request and thereby the key."""

    not_sent: bool
    """Whether it is known that nobody got the request."""
    detail: str = ""


LATE: Final = Failure(not_sent=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One try, to be sent."""

    content: bytes
    headers: Mapping[str, str]
    """All but the key."""
    seconds: float
    """For all of it."""
    connect_seconds: float
    """For a connection to be had."""


@dataclass(slots=True)
class Call:
    """One call over all its tries: what to send next, what an answer means, and whether to try again."""

    content: bytes
    headers: dict[str, str]
    ends_at: float
    """Second of the monotonic clock."""
    tries_max: int
    key: str
    """By which the gateway knows the call again."""
    keyed: bool = True
    """Whether the next try tells it."""
    spare: bool = False
    """Whether it does without where the gateway cannot look the key up: nobody else has the key, and twice does no more."""
    tries: int = 0
    doubtful: bool = False
    """Whether a try may have been carried out without our knowing."""
    request_id: str = ""
    """Of the last try."""

    def request(self, request_id: str, left: float) -> Request:
        """Return the next try. `left`: seconds."""
        self.tries += 1
        self.request_id = request_id
        told = left - min(_WAY_BACK_SECONDS_MAX, left / 10)
        more = {"X-Request-Id": request_id, "X-Request-Timeout-Ms": str(max(1, int(told * 1000)))}
        if self.keyed:
            more["Idempotency-Key"] = self.key
        # Half, so that there is time to try elsewhere behind the same name.
        return Request(self.content, {**self.headers, **more}, left, min(_CONNECT_SECONDS_MAX, left / 2))

    def judge(self, answer: Answer | Failure) -> Done | GatewayError:
        """Return what a try came to."""
        if isinstance(answer, Failure):
            if answer.not_sent:
                return self._error(f"The gateway could not be reached: {answer.detail}", "unreachable", retryable=True)
            self.doubtful = True
            return self._error("No whole answer came in time; the call may have been made.", "no_answer", retryable=True)
        said = _object(answer.body)
        if said.get("status") == "success" and answer.status == 200 and isinstance(said.get("request_id"), str):
            replayed = answer.headers.get("idempotency-replayed") == "true"
            return Done(said["request_id"], str(said.get("operation")), str(said.get("message")), replayed)
        if said.get("status") == "error" and isinstance(said.get("error"), str):
            return self._refusal(answer, said)
        return self._stranger(answer)

    def pause(self, error: GatewayError, now: float, chance: float) -> float | None:
        """Return the seconds to wait before the next try; None: it is not worth one, or there is no time for it.

        Anything up to twice as long each time, by chance: those who failed together must not come back together.
        """
        if not error.retryable or self.tries >= self.tries_max:
            return None
        longest = min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS * 2.0 ** (self.tries - 1))
        seconds = (error.retry_after or 0.0) + longest * chance
        return seconds if now + seconds < self.ends_at else None

    def _refusal(self, answer: Answer, said: Mapping[str, Any]) -> GatewayError:
        slug = said["error"]
        self.doubtful = self.doubtful or slug in UNKNOWN
        # Calls go on while Redis is away, but for those with a key.
        self.keyed = self.keyed and not (slug == "ledger_unavailable" and self.spare and not self.doubtful)
        # What the vendor says of the call settles what became of it.
        settled = said.get("origin") == "vendor" and answer.status < 500
        retryable = said.get("retryable") is True
        return self._error(str(said.get("message")), slug, answer=answer, said=said, retryable=retryable, settled=settled)

    def _stranger(self, answer: Answer) -> GatewayError:
        """Return the error of an answer that is not the gateway's: of a proxy before it, or of something else at its address."""
        if 300 <= answer.status < 400:
            there = answer.headers.get("location", "").partition("?")[0]
            words = f"The gateway's address redirects to {there!r}, which is not followed: it would be given the key. "
            return self._error(words + "Correct 'base_url'.", "redirected", answer=answer, retryable=False)
        kind = answer.headers.get("content-type", "no type").partition(";")[0]
        words = f"HTTP {answer.status} with {kind} is no answer of the gateway: of a proxy, or 'base_url' is wrong."
        # A proxy may have passed the request on before it failed.
        self.doubtful = self.doubtful or answer.status >= 500 or answer.status < 300
        retryable = answer.status in (408, 429) or answer.status >= 500
        return self._error(words, "not_the_gateway", answer=answer, retryable=retryable)

    def _error(
        self,
        message: str,
        slug: str,
        *,
        retryable: bool,
        answer: Answer | None = None,
        said: Mapping[str, Any] | None = None,
        settled: bool = False,
    ) -> GatewayError:
        said = said or {}
        status = None if answer is None else answer.status
        kind: type[GatewayError] = Refused
        if self.doubtful and not settled:
            kind = Unknown
        elif status == 429:
            kind = RateLimited
        elif retryable:
            kind = Unavailable
        retry_after = None if answer is None else _retry_after(said.get("retry_after"), answer.headers)
        request_id = str(said.get("request_id") or self.request_id)
        # By position: what an exception is made from is what it is pickled by.
        return kind(
            message, slug, status, said.get("code"), retryable, str(said.get("origin", "client")),
            said.get("field"), said.get("policy"), retry_after, request_id, self.tries, self.key,
        )  # fmt: skip


def checked(name: str, value: str) -> str:
    """Return what can be sent in a header. Raises: ValueError without the value, which may be the key."""
    if not _VISIBLE.fullmatch(value):
        raise ValueError(f"{name} must be visible ASCII characters, at least one.")
    return value


def content_of(fields: Fields) -> bytes:
    """Return the body of a call. Raises: TypeError or ValueError with the argument at fault."""
    unknown = sorted(fields.keys() - Fields.__annotations__.keys())
    if unknown:
        raise TypeError(f"unset() takes no {unknown[0]!r}; it takes {', '.join(Fields.__annotations__)}.")
    empty = sorted(name for name, value in fields.items() if value is None)
    if empty:
        raise TypeError(f"{empty[0]} is None: give a value, or leave the argument out.")
    sent: dict[str, object] = {name: fields[name] for name in ("m1", "m2", "mask") if name in fields}
    if "expires_in_minutes" in fields and "expires_at" in fields:
        raise ValueError("Give expires_in_minutes or expires_at, not both.")
    if "expires_in_minutes" in fields:
        minutes = fields["expires_in_minutes"]
        if not isinstance(minutes, int) or isinstance(minutes, bool) or minutes < 1:
            raise ValueError("expires_in_minutes must be a whole number, 1 or more; without it the masking ends at once.")
        sent["expiry_duration"] = minutes
    if "expires_at" in fields:
        if not isinstance(fields["expires_at"], datetime) or fields["expires_at"].tzinfo is None:
            raise ValueError("expires_at must be a datetime with its zone, like datetime.now(UTC) + timedelta(hours=1).")
        sent["expiry_time"] = int(fields["expires_at"].timestamp())
    return json.dumps(sent).encode()


def _object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of an answer; an empty one where there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after(told: object, headers: Mapping[str, str]) -> float | None:
    """Return seconds; of a date, by the answer's own clock. None: not told, or not to be read."""
    if isinstance(told, int):
        return float(max(0, told))
    written = headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit():
        return float(written[:9])
    try:
        return max(0.0, (parsedate_to_datetime(written) - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError):
        return None
