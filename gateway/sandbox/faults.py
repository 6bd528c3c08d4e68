"""The switches: everything the vendor may do that its documentation does not say, on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from gateway.sandbox.contract import TEXTS
from gateway.sandbox.maskings import Unknowns

ANSWERS: Final[dict[str, str]] = {
    "html_502": "an HTML error page with HTTP 502",
    "html_200": "an HTML page with HTTP 200",
    "empty": "HTTP 200 and no body",
    "truncated": "half of a JSON body, complete by its length",
    "cut": "half of the promised body, then the connection is closed",
    "wrong_charset": "bytes that are not UTF-8",
    "huge": "a body of 10 MB",
    "slow": "the right answer after delay_ms",
    "one_byte": "the right answer, a byte each delay_ms",
    "stalled": "headers, then nothing",
    "stall_before": "nothing at all",
    "reset": "half of the body, then a TCP reset",
    "close": "the connection is closed without a byte",
    "redirect": "HTTP 302 to another path",
    "status_429": "HTTP 429 with Retry-After: 7",
    "echo": "an error whose message is the request's body, credential and all",
    "success_with_code": "the success with `code: 200` in it, as other modules of the API have it",
    "success_500": "the success body with HTTP 500",
    "code_text": "an error whose code is a text",
    "no_code": "an error without a code",
    "array": "JSON, but a list",
}
_BEFORE_ACTING: Final = frozenset(("html_502", "status_429", "redirect", "close", "stall_before", "echo", "code_text", "no_code"))


@dataclass(frozen=True, slots=True)
class Faults:
    """The switches as they stand; the defaults are the documented behaviour."""

    error_status: int = 200
    """HTTP status of errors."""
    error_shape: str = "code"
    """`code`, or `msg` for the older hosts' shape."""
    force_code: int | None = None
    """Every call is refused with this code."""
    answer: str | None = None
    """One of ANSWERS; None: the right answer."""
    delay_ms: int = 50
    act: bool | None = None
    """Whether the call takes effect before a faulty answer; None: as is likely for that answer."""
    times: int | None = None
    """For how many calls the switches hold; None: until they are reset."""
    unknowns: Unknowns = field(default_factory=Unknowns)

    @property
    def acts(self) -> bool:
        """Whether a call takes effect."""
        return self.act if self.act is not None else self.answer not in _BEFORE_ACTING

    def spent(self) -> Faults:
        """Return the switches after one more call."""
        if self.times is None:
            return self
        return replace(self, times=self.times - 1) if self.times > 1 else Faults()


def read_faults(wanted: Mapping[str, Any]) -> Faults:
    """Return the switches of a JSON object. Raises: ValueError that names the switch and what it takes."""
    known = {item.name for item in fields(Faults)} - {"unknowns"}
    unknown = {item.name for item in fields(Unknowns)}
    for name in wanted:
        if name not in known | unknown:
            raise ValueError(f"{name}: is not a switch; the switches are {', '.join(sorted(known | unknown))}")
    if wanted.get("answer") is not None and wanted["answer"] not in ANSWERS:
        raise ValueError(f"answer: must be one of {', '.join(ANSWERS)}")
    if wanted.get("force_code") is not None and wanted["force_code"] not in TEXTS and not isinstance(wanted["force_code"], int):
        raise ValueError("force_code: must be a number")
    return Faults(
        **{name: value for name, value in wanted.items() if name in known},
        unknowns=Unknowns(**{name: value for name, value in wanted.items() if name in unknown}),
    )
