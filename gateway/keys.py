"""The internal key: its form, its digest, and the registry entry that stands for it.

`gk_<environment>_<id>_<secret>`, and `gc_<role>_…` for the console; the secret is 27 base-62 characters (160 bits) and 6
more that are the CRC-32 of id and secret, so that a typing error or a fragment is recognised without asking anyone. Only a
SHA-256 is kept: the secret is random and long, so a slow hash would protect nothing and cost every call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from gateway.model import Bindings

PREFIX: Final = "gk_"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 10
_SECRET_LENGTH: Final = 27
_CHECKSUM_LENGTH: Final = 6
ID_FORM: Final = f"[0-9a-z]{{{_ID_LENGTH}}}"
SECRET_FORM: Final = f"[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
FORM: Final = f"[a-z]{{2,8}}_({ID_FORM})_({SECRET_FORM})"
"""Regular expressions of a key's parts, and of what follows its prefix; a checksum is not looked at."""
_KEY: Final = re.compile(f"(g[a-z]_){FORM}")


@dataclass(frozen=True, slots=True)
class Presented:
    """A key as a caller showed it: which one it claims to be, and the digest of its secret."""

    key_id: str
    digest: str
    """Lower-case hex SHA-256 of the secret with its checksum."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One secret of a key, or one public key; rotation adds the next and gives the one before an end."""

    number: int
    """1 for the first, rising by one with each rotation."""
    created_at: float
    """Unix seconds."""
    digest: str = ""
    """Of the secret; empty for a public key."""
    public_key: str = ""
    """PEM; empty for a secret."""
    expires_at: float | None = None
    """Unix seconds; None: never."""
    revoked_at: float | None = None
    """Unix seconds; None: not revoked."""
    created_by: str = ""

    def state(self, now: float) -> Literal["live", "expired", "revoked"]:
        """Say what may be done with it at an instant in Unix seconds."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "live"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """What the registry knows of one key. Its id stays the same through every rotation."""

    key_id: str
    service: str
    versions: tuple[KeyVersion, ...]
    """Oldest first; at least one."""
    bindings: Bindings = Bindings()
    note: str = ""

    def version_of(self, presented: Presented) -> KeyVersion | None:
        """Return the version whose secret was shown; every digest is compared, in constant time."""
        found = None
        for version in self.versions:
            if hmac.compare_digest(version.digest, presented.digest):
                found = version
        return found

    def rotated(self, fresh: KeyVersion, overlap_seconds: float) -> KeyEntry:
        """Return the key with one more version; those before it end after the overlap, or earlier if they would anyway."""
        end = fresh.created_at + overlap_seconds
        ending = tuple(
            replace(version, expires_at=end if version.expires_at is None else min(end, version.expires_at))
            for version in self.versions
        )
        return replace(self, versions=(*ending, fresh))

    def revoked(self, at: float, number: int | None = None) -> KeyEntry:
        """Return the key with one version revoked, or with all of them."""
        versions = tuple(
            replace(version, revoked_at=at) if number in (None, version.number) and version.revoked_at is None else version
            for version in self.versions
        )
        return replace(self, versions=versions)


@dataclass(frozen=True, slots=True)
class Registry:
    """All keys at one moment."""

    epoch: int
    """Unix microseconds of the last change, or more; an admission under an older epoch is sent back to read again."""
    entries: Mapping[str, KeyEntry]
    """Keyed by key id."""


def parse(text: str, prefix: str = PREFIX) -> Presented | None:
    """Read a whole key; None when it is not one of this prefix, or its checksum does not fit."""
    match = _KEY.fullmatch(text)
    return None if match is None or match[1] != prefix else pair(match[2], match[3])


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


def mint_id(choose: Callable[[str], str]) -> str:
    """Make the id of a key. `choose` picks one character, by a cryptographic source."""
    return "".join(choose(_ALPHABET[:10] + _ALPHABET[36:]) for _ in range(_ID_LENGTH))


def mint(choose: Callable[[str], str], key_id: str, *, environment: str = "live", prefix: str = PREFIX) -> tuple[str, str]:
    """Make a secret of a key: (whole key, secret)."""
    bare = "".join(choose(_ALPHABET) for _ in range(_SECRET_LENGTH))
    secret = bare + _checksum(key_id, bare)
    return f"{prefix}{environment}_{key_id}_{secret}", secret


def _checksum(key_id: str, bare: str) -> str:
    number = zlib.crc32(f"{key_id}_{bare}".encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
