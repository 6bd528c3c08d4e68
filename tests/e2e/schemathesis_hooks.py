"""What a schema cannot say, for Schemathesis: loaded by the runs of `test_openapi.py`, in their process.

A schema says what a key, a number or an account looks like, not which there are. What has the right form becomes one that there
is, so that the gateway looks at the rest of the request too; what has a wrong form is sent as it was made.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import httpx
import schemathesis

SET, SSID, ACCOUNT = (os.environ[f"DESCRIBED_{name}"] for name in ("SET", "SSID", "ACCOUNT"))
CREDENTIALS = {name: os.environ[f"DESCRIBED_{name.upper()}"] for name in ("ssid_key", "userId", "token")}
CREDENTIALS["ssid"] = CREDENTIALS.pop("ssid_key")
NUMBERS = ("m1", "m2", "mask")
WRITTEN = ("{0}", "0{0}", "91{0}", "+91{0}", "+91 {0}", "(0){0}")
NUMBER = re.compile(r"\+?[0-9 ().-]{3,32}")
HEADERS_ONLY = "DESCRIBED_HEADERS_ONLY" in os.environ
_vendor = httpx.Client(trust_env=False, timeout=10)
# The two runs share one sandbox, in which each masking is set once.
_count = itertools.count(50_000_000 if HEADERS_ONLY else 1)
_keys: set[str] = set()


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """For one run, leave out that a key may come in the body: with it authentication is optional to OpenAPI, and not looked at."""
    if HEADERS_ONLY:
        unset = raw_schema["paths"]["/api/v2/Masking/unset"]["post"]
        unset["security"].remove({})
        unset["requestBody"]["content"]["application/json"]["examples"].pop("vendor")
        schema = raw_schema["components"]["schemas"]["Unset"]
        del schema["dependentRequired"]
        for name in CREDENTIALS:
            del schema["properties"][name]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put what there is in the place of what only looks so."""
    if case.operation.definition.raw.get("operationId") != "unset":
        return
    if isinstance(case.body, dict):
        _numbers(case.body)
        for name, real in CREDENTIALS.items():
            if isinstance(case.body.get(name), str) and len(case.body[name]) == len(real):
                case.body[name] = real
    headers = case.headers or {}
    if "X-Gateway-Account" in headers:
        headers["X-Gateway-Account"] = ACCOUNT
    if "Idempotency-Key" in headers:
        # The second call under a key is refused, as it must be: a schema tells nothing of earlier requests.
        key = str(headers["Idempotency-Key"]).strip(' "')
        if key in _keys:
            del headers["Idempotency-Key"]
        _keys.add(key)


def _numbers(body: dict[str, Any]) -> None:
    """Make a masking, and name its numbers in the body, each written as it was."""
    count = next(_count)
    there = {"m1": f"97{count:08d}", "m2": f"98{count:08d}"}
    answer = _vendor.post(SET, json={"ssid": SSID, **there}).json()
    there["mask"] = answer["mask"][-10:]
    for name in NUMBERS:
        value = body.get(name)
        if isinstance(value, str) and NUMBER.fullmatch(value):
            body[name] = WRITTEN[len(value) % len(WRITTEN)].format(there[name])
        elif type(value) in (int, float) and value % 1 == 0 and 100 <= value <= 999_999_999_999_999:
            body[name] = type(value)(there[name] if value % 2 else f"91{there[name]}")
