"""What the vendor documents: its codes, texts, bodies and headers, to the byte.

Source: Masking API v2 `unset` and, where marked, sibling pages of the same API.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

UNSET_PATH: Final = "/api/v2/Masking/unset"
SET_PATH: Final = "/api/v2/Masking/set"

JSON: Final = "application/json; charset=utf-8"

TEXTS: Final[dict[int, str]] = {
    1501: "m1 and m2 cannot be the same",
    1502: "Expiry must be an integer value",
    1503: "Your masking request could not be expired until now. So you cannot make another request",
    1504: "Masking could not be inserted",
    1505: "Masking number not available",
    # Sibling pages:
    1000: "Invalid parameter(s)",
    1005: "Invalid contact number",
    1009: "Something went wrong",
    1010: "Error in DB connect",
    1012: "No data found",
    1014: "Invalid token",
    1015: "Permission denied",
    1020: "Token not found",
    1032: "Internal server error",
    1039: "User account suspended",
    1047: "Invalid Request Data",
}

_COMMON: Final = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PATCH, DELETE"),
    ("Access-Control-Allow-Headers", "X-Requested-With,content-type"),
    ("Access-Control-Allow-Credentials", "true"),
    ("Vary", "Origin"),
    ("Strict-Transport-Security", "max-age=31536000; includeSubDomains"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, before it is bytes."""

    status: int
    body: bytes = b""
    media: str = JSON
    more: tuple[tuple[str, str], ...] = ()
    """Headers of this answer alone."""
    code: int | None = None
    """The vendor's code the body gives; None where it gives none, as in a success."""

    def headers(self) -> list[tuple[str, str]]:
        """Return every header but `Connection`, which is the connection's to say."""
        length = [] if self.status == HTTPStatus.NO_CONTENT else [("Content-Length", str(len(self.body)))]
        return [("Content-Type", self.media), *self.more, *length, *_COMMON]

    def head(self, *, keep_alive: bool = True) -> bytes:
        """Return the status line and the headers, up to and with the empty line."""
        connection = ("Connection", "keep-alive" if keep_alive else "close")
        lines = [f"{name}: {value}" for name, value in (*self.headers(), connection)]
        return "\r\n".join([f"HTTP/1.1 {self.status} {_phrase(self.status)}", *lines, "", ""]).encode("latin-1")


def json_answer(status: int, value: Any, code: int | None = None, more: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Return a JSON answer with its ETag."""
    body = dump(value)
    return Answer(status, body, more=(("ETag", etag(body)), *more), code=code)


def error(code: int, status: int = 200, shape: str = "code") -> Answer:
    """Return an error in the current shape, or in the older hosts' (`msg`)."""
    text = TEXTS.get(code, "Unknown error")
    if shape == "msg":
        return json_answer(status, {"msg": "error", "msg_text": text}, code)
    return json_answer(status, {"status": "error", "message": text, "code": code}, code)


def dump(value: Any) -> bytes:
    """Return JSON as JavaScript writes it: no blanks. A lone surrogate, which has no bytes, becomes a question mark."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def etag(body: bytes) -> str:
    """Return the weak ETag of Express: hex length, then 27 characters of the body's base64 SHA-1."""
    digest = base64.b64encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()[:27]
    return f'W/"{len(body):x}-{digest}"'


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # A switch may ask for a status nobody has named.
        return "Status"


SUCCESS: Final = json_answer(200, {"status": "success", "message": "Your masking unset"})
