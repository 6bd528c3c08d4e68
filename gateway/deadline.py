"""How long a caller still waits: `X-Request-Timeout-Ms`, counted from the request's arrival."""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import Problem, Refusal
from gateway.model import Arrival

TIMEOUT_MS_MAX: Final = 600_000
_MS: Final = re.compile(r"[1-9][0-9]{0,5}")


def read_deadline(arrival: Arrival) -> float | None:
    """Return the Unix second at which the caller stops waiting; None where it did not say.

    Raises: Refusal `request_timeout_malformed`.
    """
    if arrival.timeout_ms is None:
        return None
    told = arrival.timeout_ms.strip()
    if not _MS.fullmatch(told) or int(told) > TIMEOUT_MS_MAX:
        raise Refusal(Problem.request_timeout_malformed)
    return arrival.received_at + int(told) / 1000


def refuse_if_passed(ends_at: float | None, now: float) -> None:
    """Raise `deadline_passed` where nobody waits any more. Both in Unix seconds."""
    if ends_at is not None and now >= ends_at:
        raise Refusal(Problem.deadline_passed)
