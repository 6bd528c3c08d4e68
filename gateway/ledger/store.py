"""The ledger itself: admits, settles, and keeps the copy of the key registry that this process decides by."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from importlib import resources
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError

from gateway.audit import Record
from gateway.errors import Problem, Refusal
from gateway.keys import KeyEntry, Registry
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.connect import Connection
from gateway.ledger.journal import Journal
from gateway.model import Admission, Call, Charge, Meter, Verdict

_ADMIT: Final = (resources.files("gateway.ledger") / "admit.lua").read_text(encoding="utf-8")
_ADMIT_SHA: Final = hashlib.sha1(_ADMIT.encode(), usedforsecurity=False).hexdigest()
_DRAIN_EVERY_SECONDS: Final = 0.5
_DRAIN_AT_ONCE: Final = 500


class Names:
    """The Redis keys of one vendor account; one hash tag, so that a cluster keeps them in one slot."""

    def __init__(self, account: str) -> None:
        base = f"gw:{{{account}}}:"
        self.keys = base + "keys"
        self.epoch = base + "epoch"
        self.audit = base + "audit"
        self.open = base + "open"


class RedisLedger:
    """One vendor account's ledger in Redis, as one writer of its audit trail."""

    def __init__(
        self,
        connection: Connection,
        account: str,
        writer: str,
        journal: Journal,
        timeout_seconds: float,
        now: Callable[[], float],
        changed: Callable[[bool, str], None],
    ) -> None:
        """Opens nothing. `now` is a monotonic clock in seconds; `changed(up, why)` is told of outages."""
        self._connection = connection
        self._names = Names(account)
        self.writer = writer
        """Name of this process in the audit trail."""
        self._seq = 0
        self.journal = journal
        self._batch = Batch(connection.client, timeout_seconds, connection.reconnect, changed, now)
        self._registry = Registry(epoch=-1, entries={})
        self._drainer: asyncio.Task[None] | None = None

    @property
    def registry(self) -> Registry:
        """The keys as last read; epoch -1 before the first reading."""
        return self._registry

    async def open(self) -> None:
        """Read the keys if Redis is there, and start carrying the journal over whenever it is."""
        self._drainer = asyncio.create_task(self._drain_for_ever())
        try:
            await self.refresh()
        except Refusal:
            return  # Not ready yet, which readiness tells; every call asks again.

    async def aclose(self) -> None:
        """Write what is still to be written, to Redis or the journal, and close."""
        if self._drainer is not None:
            self._drainer.cancel()
            await asyncio.gather(self._drainer, return_exceptions=True)
        await self._batch.drain()
        await asyncio.sleep(0)  # What could not be written falls into the journal in this turn of the loop.
        await self._drain()
        self.journal.close()
        await self._connection.aclose()

    async def ping(self) -> None:
        """Raise LedgerDown when Redis does not answer, or the keys were never read."""
        await self._batch.submit("PING")
        if self._registry.epoch < 0:
            await self.refresh()

    async def refresh(self) -> bool:
        """Read the keys again if they changed; say whether they did. Raises: Refusal `ledger_unavailable`."""
        try:
            # Epoch before entries: a change in between leaves an old epoch, which the next admission sends back.
            epoch = int(await self._batch.submit("GET", self._names.epoch) or 0)
            if epoch == self._registry.epoch:
                return False
            raw = await self._batch.submit("HGETALL", self._names.keys)
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        self._registry = Registry(epoch, {key.decode(): read_entry(key.decode(), entry) for key, entry in pairs(raw)})
        return True

    async def admit(self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int) -> Admission | Verdict | None:
        """Charge every quota and record the intent in one script, or do neither; None: the keys are newer.

        Raises: Refusal `ledger_unavailable`. The intent may then still have been recorded; the refusal names it.
        """
        self._sign(intent)
        keys = [self._names.epoch, self._names.audit, self._names.open, *(charge.key for charge in charges)]
        drawn = [figure for charge in charges for figure in (charge.interval_us, charge.tolerance_us)]
        operands = (len(keys), *keys, epoch, intent.id, msgspec.json.encode(intent), *drawn)
        try:
            try:
                status, now, *times = await self._batch.submit("EVALSHA", _ADMIT_SHA, *operands)
            except NoScriptError:  # A restart or failover forgot it; nothing was run, so this is no second try.
                status, now, *times = await self._batch.submit("EVAL", _ADMIT, *operands)
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down), intent=intent.id) from None
        if status == b"stale":
            return None
        verdict = _verdict(charges, now, times, admitted=status == b"admitted")
        return Admission(call, intent.id, verdict) if status == b"admitted" else verdict

    def settle(self, record: Record) -> None:
        """Send an outcome or a refusal; what Redis does not take goes to the journal."""
        self._sign(record)
        encoded = msgspec.json.encode(record)
        written = self._batch.submit("XADD", self._names.audit, "*", "r", encoded)
        if record.intent is not None:
            # The answer is not looked at: an intent left open here is closed when the journal is carried over.
            self._batch.submit("HDEL", self._names.open, record.intent).add_done_callback(_ignore)
        written.add_done_callback(lambda future: self._settled(future, encoded))

    async def issue(self, entry: KeyEntry) -> None:
        """Add or replace a key; every process sees it at its next call. Raises: Refusal `ledger_unavailable`."""
        try:
            await asyncio.gather(
                self._batch.submit("HSET", self._names.keys, entry.key_id, write_entry(entry)),
                self._batch.submit("INCR", self._names.epoch),
            )
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        await self.refresh()

    def _sign(self, record: Record) -> None:
        record.writer = self.writer
        record.seq = self._seq
        self._seq += 1

    def _settled(self, written: asyncio.Future[Any], encoded: bytes) -> None:
        if written.cancelled() or written.exception() is not None:
            self.journal.add(encoded)

    async def _drain_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_DRAIN_EVERY_SECONDS)
            try:
                await self.journal.flush()
            except OSError:
                continue  # A full disk: the records wait in memory, and readiness tells.
            if not self._batch.down:
                await self._drain()

    async def _drain(self) -> None:
        """Carry journalled records over to Redis. One that was taken before is written twice; readers tell by its id."""
        while records := self.journal.head(_DRAIN_AT_ONCE):
            writes = []
            for encoded in records:
                writes.append(self._batch.submit("XADD", self._names.audit, "*", "r", encoded))
                intent = msgspec.json.decode(encoded).get("intent")
                if intent is not None:
                    writes.append(self._batch.submit("HDEL", self._names.open, intent))
            results = await asyncio.gather(*writes, return_exceptions=True)
            if any(isinstance(result, BaseException) for result in results):
                break
            self.journal.drop(len(records))


def pairs(raw: Any) -> list[tuple[bytes, bytes]]:
    """Return the pairs of an HGETALL, whichever protocol version answered it."""
    if isinstance(raw, dict):
        return list(raw.items())
    return list(zip(raw[::2], raw[1::2], strict=True))


def write_entry(entry: KeyEntry) -> bytes:
    """Return a key's entry as it is kept."""
    return msgspec.json.encode(
        {
            "service": entry.service,
            "digest": entry.digest,
            "scopes": sorted(entry.scopes),
            "created_at": entry.created_at,
            "expires_at": entry.expires_at,
            "revoked_at": entry.revoked_at,
            "created_by": entry.created_by,
            "note": entry.note,
        }
    )


def read_entry(key_id: str, encoded: bytes) -> KeyEntry:
    """Return what `write_entry` wrote."""
    kept = msgspec.json.decode(encoded)
    return KeyEntry(key_id=key_id, **{**kept, "scopes": frozenset(kept["scopes"])})


def _verdict(charges: tuple[Charge, ...], now: int, times: list[int], *, admitted: bool) -> Verdict:
    meters = []
    for charge, at in zip(charges, times, strict=True):
        passed = admitted or at - now <= charge.tolerance_us
        free = now + charge.tolerance_us - at
        remaining = max(0, free // charge.interval_us + 1)
        wait_us = at - now if remaining else at - now - charge.tolerance_us
        meters.append(Meter(charge.policy, remaining, max(1, math.ceil(wait_us / 1_000_000)), passed))
    return Verdict(tuple(meters))


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
