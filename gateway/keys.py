"""The internal key: its form, its digest, and the registry entry that stands for it.

`gk_<environment>_<id>_<secret>`; the secret is 27 base-62 characters (160 bits) and 6 more that are the CRC-32 of id
and secret, so that a typing error or a fragment is recognised without asking anyone. Only a SHA-256 is kept: the
secret is random and long, so a slow hash would protect nothing and cost every call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "gk_"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 10
_SECRET_LENGTH: Final = 27
_CHECKSUM_LENGTH: Final = 6
_KEY: Final = re.compile(rf"gk_[a-z]{{2,8}}_([0-9a-z]{{{_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}})")


@dataclass(frozen=True, slots=True)
class Presented:
    """A key as a caller showed it: which one it claims to be, and the digest of its secret."""

    key_id: str
    digest: str
    """Lower-case hex SHA-256 of the secret with its checksum."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """What the registry knows of one key."""

    key_id: str
    service: str
    digest: str
    scopes: frozenset[str]
    created_at: float
    """Unix seconds."""
    expires_at: float | None = None
    """Unix seconds; None: never."""
    revoked_at: float | None = None
    """Unix seconds; None: not revoked."""
    created_by: str = ""
    note: str = ""

    def matches(self, presented: Presented) -> bool:
        """Compare the digests in constant time."""
        return hmac.compare_digest(self.digest, presented.digest)


@dataclass(frozen=True, slots=True)
class Registry:
    """All keys at one moment."""

    epoch: int
    """Rises with every change; an admission under an older epoch is sent back to read again."""
    entries: Mapping[str, KeyEntry]
    """Keyed by key id."""


def parse(text: str) -> Presented | None:
    """Read a whole key; None when it is not one, or its checksum does not fit."""
    match = _KEY.fullmatch(text)
    return None if match is None else pair(match[1], match[2])


def pair(key_id: str, secret: str) -> Presented | None:
    """Read a key sent as id and secret apart; None when the checksum does not fit."""
    if len(secret) != _SECRET_LENGTH + _CHECKSUM_LENGTH or not (secret.isascii() and secret.isalnum()):
        return None
    if not is_id(key_id):
        return None
    if secret[_SECRET_LENGTH:] != _checksum(key_id, secret[:_SECRET_LENGTH]):
        return None
    return Presented(key_id, digest(secret))


def is_id(text: str) -> bool:
    """Say whether a text has the form of a key id."""
    return len(text) == _ID_LENGTH and text.isascii() and text.isalnum() and text == text.lower()


def digest(secret: str) -> str:
    """Return what is kept in place of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def mint(choose: Callable[[str], str], *, environment: str = "live") -> tuple[str, str, str]:
    """Make a key: (whole key, id, secret). `choose` picks one character, by a cryptographic source."""
    key_id = "".join(choose(_ALPHABET[:10] + _ALPHABET[36:]) for _ in range(_ID_LENGTH))
    bare = "".join(choose(_ALPHABET) for _ in range(_SECRET_LENGTH))
    secret = bare + _checksum(key_id, bare)
    return f"{PREFIX}{environment}_{key_id}_{secret}", key_id, secret


def _checksum(key_id: str, bare: str) -> str:
    number = zlib.crc32(f"{key_id}_{bare}".encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
