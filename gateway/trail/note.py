"""Signed checkpoints: a C2SP signed note whose text is a C2SP tlog checkpoint, signed with Ed25519.

Formats: <https://c2sp.org/signed-note> and <https://c2sp.org/tlog-checkpoint>, both at v1.0.0.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_DASH = "\u2014"


class NoteError(Exception):
    """A key or note is not what it must be. The message says what is wrong with it, never what is in it."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who holds it can tell whether a note was signed by the sealer."""

    name: str
    key: bytes
    """32 bytes."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name+hash+key`. Raises: NoteError."""
        name, told, key = _read_key(text, "public key")
        found = cls(name, key)
        if found.hash.hex() != told:
            raise NoteError("the public key's hash is not that of its name and key: it was cut or altered")
        return found

    def __str__(self) -> str:
        """Return `name+hash+key`."""
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @property
    def hash(self) -> bytes:
        """Four bytes that tell keys of one name apart."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs notes."""

    name: str
    seed: bytes = field(repr=False)
    """32 bytes; nobody but the sealer may have them."""

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make a new key. Raises: NoteError for a name no key can have."""
        _check_name(name)
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PRIVATE+KEY+name+hash+seed`. Raises: NoteError."""
        if not text.startswith(_PRIVATE):
            raise NoteError(f"a signing key begins with {_PRIVATE}")
        name, told, seed = _read_key(text.removeprefix(_PRIVATE), "signing key")
        found = cls(name, seed)
        if found.public.hash.hex() != told:
            raise NoteError("the signing key's hash is not that of its name and key: it was cut or altered")
        return found

    def text(self) -> str:
        """Return `PRIVATE+KEY+name+hash+seed`, to be kept as a secret."""
        return f"{_PRIVATE}{self.name}+{self.public.hash.hex()}+{self.encoded}"

    @property
    def encoded(self) -> str:
        """The seed as `text` has it: 44 characters of base64, plus signs among them."""
        return base64.b64encode(_ED25519 + self.seed).decode()

    @property
    def public(self) -> PublicKey:
        """What others need to verify."""
        return PublicKey(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return a text, which ends with a newline, as a signed note."""
        public = self.public
        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(text.encode())
        return f"{text}\n{_DASH} {self.name} {base64.b64encode(public.hash + signature).decode()}\n"


def verified(note: str, key: PublicKey) -> str:
    """Return the text of a note that this key signed; signatures of others are passed over. Raises: NoteError."""
    text, parted, signatures = note.rpartition("\n\n")
    text += "\n"
    try:
        encoded_text = text.encode()
    except UnicodeEncodeError:
        raise NoteError("it is no signed note: it is not text") from None
    if not parted or not signatures.endswith("\n") or any(character < " " and character != "\n" for character in note):
        raise NoteError("it is no signed note: a text, an empty line and signatures are expected")
    for line in signatures[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != _DASH or not name or not encoded:
            raise NoteError("it is no signed note: a line of its signatures is none")
        signature = _decoded(encoded, "signature")
        if name != key.name or signature[:4] != key.hash:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.key).verify(signature[4:], encoded_text)
        except InvalidSignature:
            raise NoteError(f"the signature of {key.name} is not of this text") from None
        return text
    raise NoteError(f"it is not signed by {key.name}+{key.hash.hex()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a tree was at one moment."""

    origin: str
    size: int
    root: bytes
    at: str
    """RFC 3339, UTC: what was written until then is sealed."""
    tips: dict[str, int]
    """The last sequence number sealed of each writer that has not closed."""

    def text(self) -> str:
        """Return what is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode(), f"at {self.at}"]
        lines += [f"tip {writer} {seq}" for writer, seq in sorted(self.tips.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` wrote; lines of other kinds are passed over. Raises: NoteError."""
        try:
            origin, size, root, *more = text.removesuffix("\n").split("\n")
            words = [_line(line).split(" ") for line in more]
            return cls(
                origin=_line(origin),
                size=_size(size),
                root=_root(root),
                at=next(at for kind, at, *_ in words if kind == "at"),
                tips={line[1]: _size(line[2]) for line in words if line[0] == "tip"},
            )
        except (ValueError, IndexError, StopIteration):
            raise NoteError("it is no checkpoint: an origin, a size, a root and a time are expected") from None


def _read_key(text: str, what: str) -> tuple[str, str, bytes]:
    name, _, rest = text.strip().partition("+")
    told, _, encoded = rest.partition("+")
    _check_name(name)
    raw = _decoded(encoded, what)
    if raw[:1] != _ED25519 or len(raw) != 33:
        raise NoteError(f"the {what} is not one of Ed25519: NAME+HASH+KEY is expected")
    return name, told, raw[1:]


def _line(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _root(text: str) -> bytes:
    root = _decoded(text, "root")
    if len(root) != 32:
        raise ValueError(text)
    return root


def _size(text: str) -> int:
    if not text.isdecimal() or str(int(text)) != text:
        raise ValueError(text)
    return int(text)


def _check_name(name: str) -> None:
    if not name or "+" in name or any(character.isspace() for character in name):
        raise NoteError("the name of a key is a word without spaces and plus signs")


def _decoded(text: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError(f"the {what} is not base64") from None
    # The last letter may hold bits that nobody reads: one text for one value, or a note could be altered unseen.
    if base64.b64encode(raw).decode() != text:
        raise NoteError(f"the {what} is not base64 as it is written")
    return raw
