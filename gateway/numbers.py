"""Telephone numbers: one form for every way of writing them, and the pseudonym that stands for them in records."""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache
from typing import Final

import phonenumbers

from gateway.model import PhoneNumber, Secret

# The library also reads letters, other scripts' digits, extensions and `tel:` URIs; the vendor documents none of them.
_WRITTEN: Final = re.compile(r"\+?[0-9 ().\-]{3,32}")
_TELLING: Final = re.compile(r"(?:[0-9][\s_.()/-]*){9}|gk_")
_DATE: Final = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")


# 25 µs to 0.2 µs for a number seen lately; the bound keeps it to a few megabytes.
@lru_cache(maxsize=16_384)
def read_number(text: str, default_region: str) -> PhoneNumber | None:
    """Return the number a text stands for; None when it stands for none.

    A number is taken when its length is possible in its country: ranges are opened faster than tables are updated,
    so a stricter test would refuse good numbers.
    """
    written = text.strip()
    if _WRITTEN.fullmatch(written) is None:
        return None
    try:
        number = phonenumbers.parse(written, default_region)
    except phonenumbers.NumberParseException:
        return None
    if phonenumbers.is_possible_number_with_reason(number) != phonenumbers.ValidationResult.IS_POSSIBLE:
        return None
    return PhoneNumber(
        sent=written,
        e164=phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164),
        country=phonenumbers.region_code_for_number(number) or "ZZ",
    )


def may_tell(text: str) -> bool:
    """Say whether an operator's words could hold a telephone number or a key, and so do not belong into a record."""
    return _TELLING.search(_DATE.sub("", text)) is not None


class Pseudonyms:
    """Turns numbers into keyed digests: equal numbers give equal digests, and without the key no digest is undone.

    A plain hash would not do: there are few enough telephone numbers to try them all.
    """

    def __init__(self, key: Secret, key_id: str) -> None:
        self.key_id = key_id
        self._hmac = hmac.new(key.reveal().encode(), digestmod=hashlib.sha256)
        # A call asks three times for each of its numbers: for its limits, its intent and its outcome.
        self._cached = lru_cache(maxsize=4096)(self._digest)

    def of(self, e164: str) -> str:
        """Return 32 hex digits, the first half of HMAC-SHA-256 over the E.164 form."""
        return self._cached(e164)

    def _digest(self, e164: str) -> str:
        mac = self._hmac.copy()
        mac.update(e164.encode())
        return mac.hexdigest()[:32]
