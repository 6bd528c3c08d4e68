"""What a schema cannot say, for Schemathesis: loaded by the runs of `test_openapi.py`, in their process.

A schema says what a key, a number or an account looks like, not which there are. What has the right form becomes one that there
is, so that the gateway looks at the rest of the request too; what has a wrong form is sent as it was made.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import schemathesis

KEY, KEY_ID, KEY_SECRET, ACCOUNT = (os.environ[f"DESCRIBED_{name}"] for name in ("KEY", "ID", "SECRET", "ACCOUNT"))
WRITTEN = ("{0}", "0{0}", "91{0}", "+91{0}", "+91 {0}", "(0){0}")
TEXT = re.compile(r"\+?[0-9 ().-]{3,32}")
_count = itertools.count(1)
_keys: set[str] = set()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put what there is in the place of what only looks so."""
    if case.operation.definition.raw.get("operationId") != "unset":
        return
    if isinstance(case.body, dict):
        _body(case.body)
    headers = case.headers
    if headers is None:
        return
    if re.fullmatch("[a-z0-9-]+", str(headers.get("X-Gateway-Account", ""))):
        headers["X-Gateway-Account"] = ACCOUNT
    # The second call under a key is refused, as it must be: a schema tells nothing of earlier requests.
    key = str(headers.get("Idempotency-Key", "")).strip(' "')
    if key in _keys:
        del headers["Idempotency-Key"]
    _keys.add(key)


def _body(body: dict[str, Any]) -> None:
    for place, name in enumerate(("m1", "m2", "mask")):
        value, number = body.get(name), f"{97 + place}{next(_count):08d}"
        if isinstance(value, str) and TEXT.fullmatch(value):
            body[name] = WRITTEN[len(value) % len(WRITTEN)].format(number)
        elif type(value) is int and 100 <= value <= 999_999_999_999_999:
            body[name] = int(number if value % 2 else f"91{number}")
    for name, real in (("ssid", KEY), ("userId", KEY_ID), ("token", KEY_SECRET)):
        if isinstance(body.get(name), str) and len(body[name]) == len(real) and body[name].replace("_", "").isalnum():
            body[name] = real
