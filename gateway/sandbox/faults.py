"""The switches: everything the vendor may do that its documentation does not say, on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from gateway.sandbox.contract import SUCCESS, TEXTS, Answer, dump
from gateway.sandbox.maskings import Unknowns

ANSWERS: Final[dict[str, str]] = {
    "html_502": "an HTML error page with HTTP 502",
    "html_200": "an HTML page with HTTP 200",
    "empty": "HTTP 200 and no body",
    "truncated": "half of a JSON body, complete by its length",
    "cut": "half of the promised body, then the connection is closed",
    "wrong_charset": "bytes that are not UTF-8",
    "huge": "a body of more than 10 MB",
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
DELIVERIES: Final = frozenset(("cut", "slow", "one_byte", "stalled", "stall_before", "reset", "close"))
"""The answers whose bytes are right and whose way to the caller is not."""
SILENT: Final = frozenset(("stall_before", "close"))
"""The answers of which the caller sees no byte."""
ELSEWHERE: Final = "/_sandbox/elsewhere"
"""Where `redirect` points. Calls to it are recorded, so that a client that follows is seen."""

_BEFORE_ACTING: Final = frozenset(("html_502", "status_429", "redirect", "close", "stall_before", "echo", "code_text", "no_code"))
_HUGE_BYTES: Final = 10 * 1024 * 1024
_PAGE: Final = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_NOT_FOUND: Final = {"status": "error", "message": TEXTS[1012], "code": 1012}
_FIXED: Final[dict[str, Answer]] = {
    "html_502": Answer(502, _PAGE, "text/html"),
    "html_200": Answer(200, _PAGE, "text/html"),
    "empty": Answer(200),
    "wrong_charset": Answer(200, '{"status":"error","message":"é","code":1012}'.encode("latin-1"), code=1012),
    "redirect": Answer(302, more=(("Location", ELSEWHERE),)),
    "status_429": Answer(429, b"slow down", "text/plain", (("Retry-After", "7"),)),
    "success_with_code": Answer(200, dump({"status": "success", "code": 200, "message": "Your masking unset"})),
    "success_500": Answer(500, SUCCESS.body),
    "code_text": Answer(200, dump({**_NOT_FOUND, "code": "1012"}), code=1012),
    "no_code": Answer(200, dump({"status": "error", "message": "No"})),
    "array": Answer(200, b"[]"),
}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "error_shape": ("code", "msg"),
    "answer": tuple(ANSWERS),
    "duration_zero": ("end", "ignore", "refuse"),
    "both_expiry_fields": ("duration", "time"),
    "several": ("all", "refuse"),
}
_CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "error_status": (lambda value: _whole(value) and (value == 200 or 400 <= value <= 599), "200, or from 400 to 599"),
    "force_code": (lambda value: _whole(value) and value > 0, "a whole number above 0, such as 1014"),
    "delay_ms": (lambda value: _whole(value) and value >= 0, "a whole number of milliseconds, 0 or more"),
    "act": (lambda value: isinstance(value, bool), "true or false"),
    "times": (lambda value: _whole(value) and value >= 1, "a whole number, 1 or more"),
}
_MAY_BE_NULL: Final = frozenset(("force_code", "answer", "act", "times"))


@dataclass(frozen=True, slots=True)
class Faults:
    """The switches as they stand; the defaults are the documented behaviour."""

    error_status: int = 200
    """HTTP status of errors."""
    error_shape: str = "code"
    """`code`, or `msg` for the older hosts' shape."""
    force_code: int | None = None
    """Every call with a valid credential is refused with this code."""
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

    def told(self) -> dict[str, Any]:
        """Return the switches as `read_faults` takes them."""
        values = asdict(self)
        unknowns = values.pop("unknowns")
        return {**values, **unknowns}


def read_faults(wanted: Mapping[str, Any]) -> Faults:
    """Return the switches of a JSON object. Raises: ValueError that names the switch and what it takes."""
    known = {item.name for item in fields(Faults)} - {"unknowns"}
    unknown = {item.name for item in fields(Unknowns)}
    for name, value in wanted.items():
        if name not in known | unknown:
            raise ValueError(f"{name}: is not a switch; the switches are {', '.join(sorted(known | unknown))}")
        if value is None and name in _MAY_BE_NULL:
            continue
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name}: must be one of {', '.join(_CHOICES[name])}")
        if name in _CHECKS and not _CHECKS[name][0](value):
            raise ValueError(f"{name}: must be {_CHECKS[name][1]}")
    return Faults(
        **{name: value for name, value in wanted.items() if name in known},
        unknowns=Unknowns(**{name: value for name, value in wanted.items() if name in unknown}),
    )


def replaced(name: str, right: Answer, sent: bytes) -> Answer:
    """Return what the switch `name` says instead of the right answer to `sent`; `right` when only its delivery is faulty."""
    if name == "truncated":
        return Answer(200, right.body[: len(right.body) // 2])
    if name == "echo":
        return Answer(200, dump({**_NOT_FOUND, "message": sent.decode("utf-8", errors="replace")}), code=1012)
    if name == "huge":
        return Answer(200, b'{"status":"success","message":"' + b"x" * _HUGE_BYTES + b'"}')
    return _FIXED.get(name, right)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
