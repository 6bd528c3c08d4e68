"""What the vendor documents: its codes, texts, bodies and headers, to the byte.

Source: Masking API v2 `unset` and, where marked, sibling pages of the same API.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

UNSET_PATH: Final = "/api/v2/Masking/unset"
SET_PATH: Final = "/api/v2/Masking/set"

SUCCESS: Final = b'{"status":"success","message":"Your masking unset"}'

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

_HEADERS: Final = (
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Methods: POST, GET, OPTIONS, PATCH, DELETE",
    "Access-Control-Allow-Headers: X-Requested-With,content-type",
    "Access-Control-Allow-Credentials: true",
    "Vary: Origin",
    "Strict-Transport-Security: max-age=31536000; includeSubDomains",
)


def error_body(code: int, shape: str = "code") -> bytes:
    """Return an error in the current shape, or in the older hosts' (`msg`)."""
    if shape == "msg":
        return dump({"msg": "error", "msg_text": TEXTS.get(code, "Unknown error")})
    return dump({"status": "error", "message": TEXTS.get(code, "Unknown error"), "code": code})


def dump(value: Any) -> bytes:
    """Return JSON as JavaScript writes it: no blanks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def etag(body: bytes) -> str:
    """Return the weak ETag of Express: hex length, then 27 characters of the body's base64 SHA-1."""
    digest = base64.b64encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()[:27]
    return f'W/"{len(body):x}-{digest}"'


def head(status: int, phrase: str, length: int | None, media: str, more: tuple[str, ...] = ()) -> bytes:
    """Return the status line and headers up to the empty line; no length where `length` is None."""
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {media}", *more]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join([*lines, "Connection: keep-alive", *_HEADERS]) + "\r\n\r\n").encode()
