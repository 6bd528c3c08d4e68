"""The exchange: the caller's identity out, the vendor's credential in."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from gateway.model import Admission, Call, PhoneNumber, Secret, UpstreamRequest


@dataclass(frozen=True, slots=True)
class VendorCredential:
    """What the vendor wants of us. Either `ssid`, or `user_id` with `token`: its documentation forbids both forms."""

    version: str
    """Names this value in records without telling it: equal for equal values on every replica."""
    ssid: Secret | None = None
    user_id: Secret | None = None
    token: Secret | None = None

    def fields(self) -> dict[str, str]:
        """Return the body's fields that hold it."""
        if self.ssid is not None:
            return {"ssid": self.ssid.reveal()}
        assert self.user_id is not None
        assert self.token is not None
        return {"userId": self.user_id.reveal(), "token": self.token.reveal()}

    def forms(self) -> tuple[str, ...]:
        """Return each secret as text, percent-encoded, base64 and hex, longest first, to look for in answers."""
        plain = [secret.reveal() for secret in (self.ssid, self.token) if secret is not None]
        forms = {form for text in plain for form in _written(text)}
        return tuple(sorted(forms, key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Makes the request the vendor wants out of an admitted call. Nothing else of the arrival goes to the vendor."""

    number_format: str

    def exchange(self, admission: Admission, credential: VendorCredential, forms: tuple[str, ...]) -> UpstreamRequest:
        """Return the vendor's request; `forms` are the credential's, made once and not per call."""
        body = msgspec.json.encode({**credential.fields(), **self._fields(admission.call)})
        return UpstreamRequest(body, credential.version, forms)

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
