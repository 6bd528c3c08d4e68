"""One writer's records in the order it made them, each naming the one before it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import msgspec

from gateway.audit import Head, Record, chained

_read_head = msgspec.json.Decoder(Head).decode


class Claim(NamedTuple):
    """What becomes of the claim on an idempotency key when a record closes the intent of its call."""

    name: str
    """Where it is kept."""
    owner: str
    """Id of the intent that laid it; empty: that of the last try, which is closed. Another call's claim is left alone."""
    answer: bytes
    """To be kept; empty: the claim ends."""
    keep_ms: int


class Link(NamedTuple):
    """One record of a chain, as it is stored."""

    seq: int
    prev: str
    """Hash of the record before, in hexadecimal; empty for the first."""
    hash: str
    """Its own."""
    record: bytes
    opens: str = ""
    """What stays open until another record closes it; empty: nothing."""
    closes: str = ""
    """Id of the intent it closes; empty: of none."""
    claim: Claim | None = None
    """None: it settles none."""

    @classmethod
    def read(cls, record: bytes) -> tuple[Link, Head]:
        """Return a stored record as a link, and what it tells of itself. Raises: msgspec.MsgspecError, UnicodeDecodeError."""
        head = _read_head(record)
        return cls(head.seq, head.prev, chained(record).hex(), record, "", head.intent or ""), head


class Chain:
    """Numbers and links the records of one writer."""

    def __init__(self, writer: str, seq: int = 0, prev: str = "") -> None:
        """`seq` is the number of the next record, `prev` the hash of the one before."""
        self.writer = writer
        self.seq = seq
        self._prev = prev

    def link(self, record: Record, opens: str = "") -> Link:
        """Take a record; its writer, number and predecessor are set here and nowhere else."""
        record.writer, record.seq, record.prev = self.writer, self.seq, self._prev
        encoded = msgspec.json.encode(record)
        link = Link(self.seq, self._prev, chained(encoded).hex(), encoded, opens, record.intent or "")
        self.seq, self._prev = link.seq + 1, link.hash
        return link

    def take_back(self, link: Link) -> None:
        """Forget the newest record: it was not written anywhere."""
        self.seq, self._prev = link.seq, link.prev

    def begun_anew(self) -> Chain:
        """Return an empty chain under another name: it is not known, or not true, that this one stands in the trail."""
        return Chain(f"{self.writer.rpartition('-')[0]}-{secrets.token_hex(4)}")


def read_tip(tip: bytes | None) -> int:
    """Return the number of a writer's newest record in the stream, as it is kept; -1: it has none."""
    number = (tip or b"").partition(b" ")[0]
    return int(number) if number.isdigit() else -1
