"""The ledger of one vendor account: admits, settles, and agrees with every other process on the slot in use."""

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
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.connect import Connection
from gateway.ledger.journal import Journal
from gateway.model import SLOTS, Admission, Call, Caller, Charge, Meter, Outdated, Slot, Verdict

_ADMIT: Final = (resources.files("gateway.ledger") / "admit.lua").read_text(encoding="utf-8")
_ADMIT_SHA: Final = hashlib.sha1(_ADMIT.encode(), usedforsecurity=False).hexdigest()
# KEYS: active slot, audit stream. ARGV: the slot it must be now ('' for any), the slot it becomes, the record.
_SWITCH: Final = """
local now = redis.call('GET', KEYS[1]) or 'primary'
if (ARGV[1] ~= '' and ARGV[1] ~= now) or ARGV[2] == now then return {0, now} end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'r', ARGV[3])
return {1, ARGV[2]}
"""
_DRAIN_EVERY_SECONDS: Final = 0.5
_DRAIN_AT_ONCE: Final = 500


class Names:
    """The Redis keys of one vendor account; one hash tag, so that a cluster keeps them in one slot."""

    def __init__(self, account: str) -> None:
        base = f"gw:{{{account}}}:"
        self.epoch = base + "epoch"
        self.slot = base + "slot"
        self.audit = base + "audit"
        self.open = base + "open"
        self.nonce = base + "nonce"


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
        clock: Callable[[], float],
    ) -> None:
        """Opens nothing. `now` is a monotonic clock, `clock` gives Unix seconds; `changed(up, why)` is told of outages."""
        self._clock = clock
        self._connection = connection
        self._names = Names(account)
        self.writer = writer
        """Name of this process in the audit trail."""
        self._seq = 0
        self.journal = journal
        self._batch = Batch(connection.client, timeout_seconds, connection.reconnect, changed, now)
        self._drainer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start carrying the journal over whenever Redis is there."""
        self._drainer = asyncio.create_task(self._drain_for_ever())

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
        """Raise LedgerDown when Redis does not answer."""
        await self._batch.submit("PING")

    async def admit(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, active: Slot | None
    ) -> Admission | Verdict | Outdated:
        """Charge every quota, spend the nonce and record the intent in one script, or do nothing.

        `epoch` and `active` are what the call was decided by; an `active` of None is not compared.
        Raises: Refusal `ledger_unavailable`, `signature_replayed`. In the first case the intent may still have been
        recorded; the refusal names it.
        """
        self._sign(intent)
        nonce, nonce_ms = self._nonce(call.caller)
        names = self._names
        keys = [names.epoch, names.slot, names.audit, names.open, nonce, *(charge.key for charge in charges)]
        drawn = [figure for charge in charges for figure in (charge.interval_us, charge.tolerance_us)]
        what_stays_open = f"{call.caller.key_id}.{call.caller.key_version or 0}"
        arguments = (epoch, active or "", intent.id, what_stays_open, msgspec.json.encode(intent), nonce_ms, *drawn)
        operands = (len(keys), *keys, *arguments)
        try:
            try:
                status, *answer = await self._batch.submit("EVALSHA", _ADMIT_SHA, *operands)
            except NoScriptError:  # A restart or failover forgot it; nothing was run, so this is no second try.
                status, *answer = await self._batch.submit("EVAL", _ADMIT, *operands)
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down), intent=intent.id) from None
        if status == b"outdated":
            return Outdated(int(answer[0]), _slot(answer[1]))
        if status == b"replayed":
            raise Refusal(Problem.signature_replayed)
        now, *times = answer
        verdict = _verdict(charges, now, times, admitted=status == b"admitted")
        return Admission(call, intent.id, verdict) if status == b"admitted" else verdict

    async def switch(self, before: Slot | None, after: Slot, record: Record) -> Slot:
        """Make a slot the active one for every process, if `before` still is (None: whichever is), and record it.

        Returns the slot that is active now. Raises: Refusal `ledger_unavailable`.
        """
        self._sign(record)
        operands = (2, self._names.slot, self._names.audit, before or "", after, msgspec.json.encode(record))
        try:
            _, active = await self._batch.submit("EVAL", _SWITCH, *operands)
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        return _slot(active)

    async def active(self) -> Slot:
        """Return the active slot. Raises: Refusal `ledger_unavailable`."""
        try:
            return _slot(await self._batch.submit("GET", self._names.slot))
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    def settle(self, record: Record) -> None:
        """Send an outcome or a refusal; what Redis does not take goes to the journal."""
        self._sign(record)
        encoded = msgspec.json.encode(record)
        written = self._batch.submit("XADD", self._names.audit, "*", "r", encoded)
        if record.intent is not None:
            # The answer is not looked at: an intent left open here is closed when the journal is carried over.
            self._batch.submit("HDEL", self._names.open, record.intent).add_done_callback(_ignore)
        written.add_done_callback(lambda future: self._settled(future, encoded))

    def _nonce(self, caller: Caller) -> tuple[str, int]:
        """Return where a caller's nonce is kept and for how many milliseconds; 0 where it has none."""
        if caller.nonce is None:
            return self._names.nonce, 0
        digest = hashlib.sha256(caller.nonce.value.encode()).hexdigest()[:32]
        lasting = caller.nonce.expires_at - self._clock()
        return f"{self._names.nonce}:{caller.key_id}:{digest}", max(1000, math.ceil(lasting * 1000))

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


def _verdict(charges: tuple[Charge, ...], now: int, times: list[int], *, admitted: bool) -> Verdict:
    meters = []
    for charge, at in zip(charges, times, strict=True):
        passed = admitted or at - now <= charge.tolerance_us
        free = now + charge.tolerance_us - at
        remaining = max(0, free // charge.interval_us + 1)
        wait_us = at - now if remaining else at - now - charge.tolerance_us
        meters.append(Meter(charge.policy, remaining, max(1, math.ceil(wait_us / 1_000_000)), passed))
    return Verdict(tuple(meters))


def _slot(answer: bytes | None) -> Slot:
    return next((slot for slot in SLOTS if answer == slot.encode()), SLOTS[0])


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
