"""The exchange: the caller's identity out, the vendor's credential in."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from gateway.model import Admission, Call, PhoneNumber, Secret, UpstreamRequest, VendorCredential


def fields_of(credential: VendorCredential) -> dict[str, str]:
    """Return the body's fields that hold a credential."""
    if credential.ssid is not None:
        return {"ssid": credential.ssid.reveal()}
    assert credential.user_id is not None
    assert credential.token is not None
    return {"userId": credential.user_id.reveal(), "token": credential.token.reveal()}


def forms_of(secrets: Iterable[Secret]) -> tuple[str, ...]:
    """Return each secret as text, percent-encoded, base64 and hex, longest first, to look for in answers."""
    forms = {form for secret in secrets for form in _written(secret.reveal())}
    return tuple(sorted(forms, key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Makes the request the vendor wants out of an admitted call. Nothing else of the arrival goes to the vendor."""

    number_format: str

    def exchange(self, admission: Admission, credential: VendorCredential) -> UpstreamRequest:
        """Return the vendor's request."""
        body = msgspec.json.encode({**fields_of(credential), **self._fields(admission.call)})
        return UpstreamRequest(body, credential.forms)

    def _fields(self, call: Call) -> dict[str, Any]:
        fields: dict[str, Any] = {name: self._written(number) for name, number in call.numbers.items()}
        if call.expiry_time is not None:
            fields["expiry_time"] = call.expiry_time
        if call.expiry_duration is not None:
            fields["expiry_duration"] = call.expiry_duration
        return fields

    def _written(self, number: PhoneNumber) -> str:
        if self.number_format == "as_sent":
            return number.sent
        return number.e164 if self.number_format == "e164" else number.e164[1:]


def _written(text: str) -> tuple[str, ...]:
    raw = text.encode()
    return text, quote(text, safe=""), base64.b64encode(raw).decode().rstrip("="), raw.hex()
