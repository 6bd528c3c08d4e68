"""The ledger of one vendor account: admits, settles, and agrees with every other process on slot and limits.

While Redis is away it admits by this process' share of each limit, and records in the journal on disk before it does.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from gateway.admission import Live
from gateway.audit import Record
from gateway.calling import Held
from gateway.errors import Problem, Refusal
from gateway.ledger import limits
from gateway.ledger.batch import OVERLOAD, Batch, LedgerDown
from gateway.ledger.connect import Connection, pairs
from gateway.ledger.journal import Journal, read_waiting
from gateway.limiter import Limiter, verdict
from gateway.model import SLOTS, Admission, Call, Caller, Charge, Limit, Outdated, Slot, Verdict

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
NOW: Final = "local clock = redis.call('TIME') return clock[1] * 1000000 + clock[2]"
"""Redis' clock in microseconds, of the node that has KEYS[1]."""
_DRAIN_EVERY_SECONDS: Final = 0.5
_DRAIN_AT_ONCE: Final = 500
# KEYS: living processes, epoch of the keys. ARGV: this one, microseconds after which one counts as dead ('' says goodbye).
# Returns {processes, epoch}.
_BEAT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if ARGV[2] == '' then redis.call('ZREM', KEYS[1], ARGV[1]) return {0, '0'} end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
return {redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]) or '0'}
"""
_BEAT_EVERY_SECONDS: Final = 1.0
_DEAD_AFTER_US: Final = 5_000_000
_ANOTHER: Final = "?"
"""A version of the limits that nobody has."""
BUCKET_SECONDS: Final = 600
_KEPT: Final = re.compile(rb"(\d+) ([1-9]\d*) ([1-9]\d*)")
"""What the admit script keeps of a limit: a time, its interval and its burst."""
_HOUR_SECONDS: Final = 3600
_DOUBTFUL_MAX: Final = 10_000
_UPKEEP_LATE_SECONDS: Final = 10.0


class Names:
    """The Redis keys of one vendor account; one hash tag, so that a cluster keeps them in one slot."""

    def __init__(self, account: str) -> None:
        base = f"gw:{{{account}}}:"
        self.epoch = base + "epoch"
        self.slot = base + "slot"
        self.audit = base + "audit"
        self.open = base + "open"
        self.nonce = base + "nonce"
        self.limits = base + "limits"
        self.limits_version = base + "limits:version"
        self.processes = base + "processes"
        self.probe = base + "probe"
        self._refused = base + "refused:"

    def refused(self, bucket: int) -> str:
        """Return where refusals of a span of `BUCKET_SECONDS` are counted."""
        return f"{self._refused}{bucket}"


@dataclass(frozen=True, slots=True)
class Away:
    """What the ledger may do while Redis is away."""

    spool: bool
    """Whether a call may be recorded in the journal instead."""
    stale_seconds_max: float
    """How long a key is believed that Redis cannot confirm."""


class RedisLedger:
    """One vendor account's ledger in Redis, as one writer of its audit trail."""

    def __init__(
        self,
        connection: Connection,
        account: str,
        writer: str,
        journal: Journal,
        timeout_seconds: float,
        away: Away,
        now: Callable[[], float],
        changed: Callable[[bool, str], None],
        clock: Callable[[], float],
    ) -> None:
        """Opens nothing. `now` is a monotonic clock, `clock` gives Unix seconds; `changed(up, why)` is told of outages."""
        self._now = now
        self._clock = clock
        self._connection = connection
        self._names = Names(account)
        self.writer = writer
        """Name of this process in the audit trail."""
        self._seq = 0
        self.journal = journal
        self._batch = Batch(connection.exchange, timeout_seconds, connection.reconnect, self._changed, self._names.probe)
        self._tell_changed = changed
        self._opened = False
        self._kept_up_at = now()
        self._away = away
        self._limiter: Limiter | None = None
        self._processes, self._epoch, self._confirmed_at = 0, 0, -math.inf
        self._drilled_until = 0
        self._changes: limits.Changes | None = None
        self._ahead_us = 0
        """Redis' clock less ours, when the changes were read."""
        self._doubtful: deque[tuple[str, str]] = deque(maxlen=_DOUBTFUL_MAX)
        """Places that Redis may have given, or not taken back, to calls that hold none: where, and their holders."""
        self.refusals: Counter[tuple[str, bool]] = Counter()
        """How often this process saw each policy refuse, by name and whether in shadow."""
        self.degraded = 0
        """How many calls this process admitted without Redis."""
        self._uncounted: Counter[tuple[int, str]] = Counter()

    @property
    def epoch(self) -> int:
        """The epoch of the keys, as Redis last said by itself."""
        return self._epoch

    @property
    def down(self) -> bool:
        """Whether Redis is away now."""
        return self._batch.down

    async def open(self) -> None:
        """Tell that this process lives."""
        self._opened = True
        await self._beat()

    async def keep_up(self) -> None:
        """Tell for ever that this process lives, and carry the journal over whenever Redis is there."""
        beaten_at = self._now()
        while True:
            await asyncio.sleep(_DRAIN_EVERY_SECONDS)
            try:
                await self.journal.flush()
            except OSError:
                continue  # A full disk: the records wait in memory, and readiness tells.
            if not self._batch.down:
                await self._drain()
                if self._now() - beaten_at >= _BEAT_EVERY_SECONDS:
                    beaten_at = self._now()
                    await self._beat()
                    await self._write_counts()
            self._kept_up_at = self._now()

    async def aclose(self) -> None:
        """Write what is still to be written, to Redis or the journal, and close."""
        if self._opened:
            await self._write_counts()
            goodbye = self._batch.submit("EVAL", _BEAT, 2, self._names.processes, self._names.epoch, self.writer, "")
            await asyncio.gather(goodbye, return_exceptions=True)
        await self._batch.drain()
        await asyncio.sleep(0)  # What could not be written falls into the journal in this turn of the loop.
        await self._drain()
        await self.journal.aclose()
        await self._batch.aclose()
        await self._connection.aclose()

    async def ready(self) -> None:
        """Raise LedgerDown when no call could be recorded now, neither by Redis nor, while it is away, on disk."""
        try:
            await self.ping()
        except LedgerDown:
            # A gateway that goes on without Redis must not be taken out of service for it.
            if not self._goes_on or self.journal.full or self._unconfirmed_seconds > self._away.stale_seconds_max:
                raise

    async def kept_up(self) -> None:
        """Raise LedgerDown when what is to be done for ever has not been done for some time."""
        if self._now() - self._kept_up_at > _UPKEEP_LATE_SECONDS:
            raise LedgerDown("upkeep")

    async def ping(self) -> None:
        """Raise LedgerDown when Redis does not answer."""
        await self._batch.submit("EXISTS", self._names.probe)  # Not PING: a cluster has to be told which node is meant.

    async def admit(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, active: Slot | None, live: Live
    ) -> Admission | Verdict | Outdated:
        """Charge every limit, spend the nonce and record the intent in one script, or do nothing.

        `epoch`, `active` and `live` are what the call was decided by; an `active` of None is not compared.
        Raises: Refusal `ledger_unavailable`, `signature_replayed`. In the first case the intent may still have been
        recorded; the refusal names it.
        """
        self._sign(intent)
        nonce, nonce_ms = self._nonce(call.caller)
        names = self._names
        keys = [names.epoch, names.slot, names.limits_version, names.audit, names.open, nonce]
        figures = []
        for charge in charges:
            keys.append(charge.key)
            if charge.touched is not None:
                keys.extend(charge.touched)
            figures.append(_figures(charge.limit, len(charge.touched or ())))
        what_stays_open = f"{call.caller.key_id}.{call.caller.key_version or 0}"
        decided_by = (epoch, active or "", live.version, live.until_us)
        record = msgspec.json.encode(intent)
        operands = (len(keys), *keys, *decided_by, intent.id, what_stays_open, record, nonce_ms, b"".join(figures))
        try:
            status, *answer = await self._run_admit(operands)
        except LedgerDown as down:
            if str(down) == OVERLOAD:  # Redis is there, and counts: beside it nobody may.
                raise Refusal(Problem.ledger_unavailable, error=OVERLOAD) from None
            if down.sent:
                self._doubtful.extend((charge.key, intent.id) for charge in charges if not charge.limit.interval_us)
            if live.until_us and self._redis_clock_us() >= live.until_us:
                return Outdated(epoch, None, _ANOTHER)
            return await self._admit_without_redis(call, charges, intent, epoch, down)
        if status == b"outdated":
            return Outdated(int(answer[0]), _slot(answer[1]), answer[2].decode())
        if status == b"replayed":
            raise Refusal(Problem.signature_replayed)
        now, *times = answer
        found = verdict(charges, now, times)
        self._count(found)
        if status != b"admitted":
            return found
        return Admission(call, intent.id, found, _held(charges, found))

    async def live(self) -> Live:
        """Return what was changed of the limits. Raises: Refusal `ledger_unavailable`."""
        try:
            self._changes = await self.changes()
        except Refusal:
            # An end comes by itself, also while Redis is away.
            if self._changes is None or not self.down:
                raise
            return limits.live(self._changes.at(self._redis_clock_us()))
        self._ahead_us = self._changes.now_us - self._now_us()
        found = limits.live(self._changes)
        if found.drill_until_us > self._drilled_until:
            self._drilled_until = found.drill_until_us
            self._batch.trip((found.drill_until_us - self._changes.now_us) / 1_000_000)
        return found

    async def changes(self) -> limits.Changes:
        """Return the live changes of the limits, as they are kept. Raises: Refusal `ledger_unavailable`."""
        return limits.read_changes(await self._asked("EVAL", limits.READ, 2, self._names.limits, self._names.limits_version))

    async def change(self, before: limits.Changes, made: list[limits.Made]) -> bool:
        """Make changes of the limits with their records, if `before` still is what holds; say whether it was.

        Every process decides by them from its next call on. Raises: Refusal `ledger_unavailable`.
        """
        for _, _, record in made:
            self._sign(record)
        names = self._names
        keys = (names.limits, names.limits_version, names.audit)
        words = limits.encode(before.ended, made)
        return bool(await self._asked("EVAL", limits.SAVE, len(keys), *keys, before.version, *words))

    async def used(self, key: str) -> float:
        """Return how many units of a limit have not grown back yet. Raises: Refusal `ledger_unavailable`."""
        now, kept = await self._redis_now(), await self._asked("GET", key)
        found = _KEPT.fullmatch(kept or b"")
        if found is None:
            return 0.0
        at, interval, burst = map(int, found.groups())
        return min(max(0.0, (at - now) / interval), burst)

    async def under_way(self, key: str) -> int:
        """Return how many calls hold a place of a limit. Raises: Refusal `ledger_unavailable`."""
        return int(await self._asked("ZCOUNT", key, await self._redis_now(), "+inf"))

    async def refused_last_hour(self) -> Counter[tuple[str, bool]]:
        """Return how often each policy refused in the last hour, to within ten minutes, by name and whether in shadow.

        Raises: Refusal `ledger_unavailable`.
        """
        total: Counter[tuple[str, bool]] = Counter()
        latest = int(self._clock()) // BUCKET_SECONDS
        for bucket in range(latest - _HOUR_SECONDS // BUCKET_SECONDS, latest + 1):
            raw = await self._asked("HGETALL", self._names.refused(bucket))
            for name, count in pairs(raw):
                shadow, _, policy = name.decode().partition(" ")
                total[policy, shadow == "shadow"] += int(count)
        return total

    async def switch(self, before: Slot | None, after: Slot, record: Record) -> Slot:
        """Make a slot the active one for every process, if `before` still is (None: whichever is), and record it.

        Returns the slot that is active now. Raises: Refusal `ledger_unavailable`.
        """
        self._sign(record)
        operands = (2, self._names.slot, self._names.audit, before or "", after, msgspec.json.encode(record))
        _, active = await self._asked("EVAL", _SWITCH, *operands)
        return _slot(active)

    async def active(self) -> Slot:
        """Return the active slot. Raises: Refusal `ledger_unavailable`."""
        return _slot(await self._asked("GET", self._names.slot))

    def settle(self, record: Record, held: Held | None = None) -> None:
        """Send an outcome or a refusal, and give the call's places back; what Redis does not take goes to the journal."""
        self._sign(record)
        encoded = msgspec.json.encode(record)
        if held is not None and held.keys:
            if self._limiter is not None:
                self._limiter.release(held.keys, held.holder)
            for key in held.keys:
                self._free(key, held.holder)
        if len(self.journal):
            # After what waits there, which may be the intent this closes.
            self.journal.add(encoded)
            return
        journalled = False

        def settled(future: asyncio.Future[Any]) -> None:
            """Leave to the journal whatever of it Redis did not take: written twice, a record is told by its id."""
            nonlocal journalled
            if not journalled and _failed(future):
                journalled = True
                self.journal.add(encoded)

        self._batch.submit("XADD", self._names.audit, "*", "r", encoded).add_done_callback(settled)
        if record.intent is not None:
            self._batch.submit("HDEL", self._names.open, record.intent).add_done_callback(settled)

    async def _run_admit(self, operands: tuple[Any, ...]) -> Any:
        try:
            return await self._batch.submit("EVALSHA", _ADMIT_SHA, *operands)
        except NoScriptError:  # A restart or failover forgot it; nothing was run, so this is no second try.
            return await self._batch.submit("EVAL", _ADMIT, *operands)

    async def _admit_without_redis(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, down: LedgerDown
    ) -> Admission | Verdict:
        """Charge this process' share of each limit and record the intent in the journal, or do nothing.

        Refused all the same is:
        - a signed request, since nobody can say whether its nonce was spent;
        - a key that Redis has not confirmed for too long, or of which it knew more than we do;
        - what falls under a policy that allows nothing without Redis;
        - everything while it is not known among how many processes the limits are divided.
        """
        caller = call.caller
        denying = next((c.limit.policy for c in charges if c.limit.on_store_error == "deny" and not c.limit.shadow), None)
        known = caller.key_version is None or (epoch >= self._epoch and self._unconfirmed_seconds <= self._away.stale_seconds_max)
        if not self._goes_on or caller.nonce is not None or not known or denying:
            raise Refusal(Problem.ledger_unavailable, error=str(down), policy=denying, intent=intent.id)
        if down.sent:
            # Redis may have taken it, or take it yet: one id must not stand for two records.
            intent.intent = intent.id
            self._sign(intent)
        self._limiter = limiter = self._limiter or Limiter(self._processes)
        local = tuple(charge for charge in charges if charge.limit.on_store_error == "local")
        found = replace(limiter.decide(local, self._now_us(), intent.id), degraded=True, left_behind=intent.intent)
        self._count(found)
        if found.refused:
            return found
        intent.degraded = True
        held = _held(local, found)
        try:
            await self.journal.keep(msgspec.json.encode(intent))
        except OSError as error:
            limiter.release(held, intent.id)
            raise Refusal(Problem.ledger_unavailable, error=type(error).__name__, intent=intent.id) from None
        self.degraded += 1
        return Admission(call, intent.id, found, held)

    @property
    def _goes_on(self) -> bool:
        """Whether calls may be made without Redis: it is allowed, and known among how many the limits are divided."""
        return self._away.spool and self._processes > 0

    @property
    def _unconfirmed_seconds(self) -> float:
        return self._now() - self._confirmed_at

    def _now_us(self) -> int:
        return int(self._now() * 1_000_000)

    def _redis_clock_us(self) -> int:
        """Return Redis' clock as far as it is known without asking; as good as ours where it is not."""
        return self._now_us() + self._ahead_us

    async def _redis_now(self) -> int:
        """Return Redis' clock in microseconds. Raises: Refusal `ledger_unavailable`."""
        return int(await self._asked("EVAL", NOW, 1, self._names.probe))

    async def _asked(self, *command: Any) -> Any:
        try:
            return await self._batch.submit(*command)
        except (LedgerDown, ResponseError) as error:
            told = str(error) if isinstance(error, LedgerDown) else type(error).__name__
            raise Refusal(Problem.ledger_unavailable, error=told) from None

    def _free(self, key: str, holder: str) -> None:
        def freed(future: asyncio.Future[Any]) -> None:
            if _failed(future):
                self._doubtful.append((key, holder))

        self._batch.submit("ZREM", key, holder).add_done_callback(freed)

    def _count(self, found: Verdict) -> None:
        bucket = int(self._clock()) // BUCKET_SECONDS
        for meter in found.meters:
            if not meter.admitted:
                policy, shadow = meter.limit.policy, meter.limit.shadow
                self.refusals[policy, shadow] += 1
                self._uncounted[bucket, f"{'shadow' if shadow else 'enforce'} {policy}"] += 1

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

    def _changed(self, up: bool, why: str) -> None:
        if up:
            self._limiter = None
            doubtful, self._doubtful = self._doubtful, deque(maxlen=_DOUBTFUL_MAX)
            for key, holder in doubtful:
                self._free(key, holder)
        self._tell_changed(up, why)

    async def _beat(self) -> None:
        """Tell that this process lives; learn how many do, and the epoch of the keys."""
        try:
            processes, epoch = await self._batch.submit(
                "EVAL", _BEAT, 2, self._names.processes, self._names.epoch, self.writer, _DEAD_AFTER_US
            )
        except LedgerDown:
            return
        self._processes, self._epoch, self._confirmed_at = int(processes), int(epoch), self._now()

    async def _write_counts(self) -> None:
        counts, self._uncounted = self._uncounted, Counter()
        writes = []
        for (bucket, name), count in counts.items():
            writes.append(self._batch.submit("HINCRBY", self._names.refused(bucket), name, count))
            writes.append(self._batch.submit("EXPIRE", self._names.refused(bucket), _HOUR_SECONDS + 2 * BUCKET_SECONDS))
        results = await asyncio.gather(*writes, return_exceptions=True)
        if any(isinstance(result, BaseException) for result in results):
            self._uncounted += counts

    async def _drain(self) -> None:
        """Carry journalled records over to Redis. One that was taken before is written twice; readers tell by its id."""
        while records := self.journal.head(_DRAIN_AT_ONCE):
            writes = []
            for encoded in records:
                record = read_waiting(encoded)
                writes.append(self._batch.submit("XADD", self._names.audit, "*", "r", encoded))
                if record.stage == "intent":
                    opened = f"{record.at_us} {record.key_id}.{record.key_version or 0}"
                    writes.append(self._batch.submit("HSET", self._names.open, record.id, opened))
                if record.intent is not None:
                    writes.append(self._batch.submit("HDEL", self._names.open, record.intent))
            results = await asyncio.gather(*writes, return_exceptions=True)
            if any(isinstance(result, BaseException) for result in results):
                break
            self.journal.drop(len(records))


@lru_cache(maxsize=4096)
def _figures(limit: Limit, numbers: int) -> bytes:
    most = limit.tolerance_us if limit.interval_us else limit.burst
    return msgspec.msgpack.encode((int(limit.shadow), limit.interval_us, most, limit.life_ms, numbers))


def _held(charges: tuple[Charge, ...], found: Verdict) -> tuple[str, ...]:
    return tuple(
        charge.key for charge, meter in zip(charges, found.meters, strict=True) if not charge.limit.interval_us and meter.admitted
    )


def _slot(answer: bytes | None) -> Slot:
    return next((slot for slot in SLOTS if answer == slot.encode()), SLOTS[0])


def _failed(future: asyncio.Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None
