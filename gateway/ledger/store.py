"""The ledger of one vendor account: admits, settles, and agrees with every other process on slot and limits.

While Redis is away it admits by this process' share of each limit, and records in the journal on disk before it does.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import resources
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import RedisError, ResponseError

from gateway.admission import Live
from gateway.audit import Record, Stage, abort, rfc3339
from gateway.calling import Claimed, Held
from gateway.durations import Durations
from gateway.errors import Problem, Refusal
from gateway.floods import Floods
from gateway.ledger import limits
from gateway.ledger.batch import OVERLOAD, Batch, LedgerDown
from gateway.ledger.chain import Claim, read_tip
from gateway.ledger.connect import Connection
from gateway.ledger.ends import Ends
from gateway.ledger.heir import Heir
from gateway.ledger.journal import Journal
from gateway.ledger.names import Names
from gateway.ledger.verdicts import Verdicts
from gateway.ledger.writer import Script, TrailWriter
from gateway.limiter import Limiter, verdict
from gateway.model import SLOTS, Admission, Call, Caller, Charge, Limit, Outdated, Repeated, Slot, Verdict

_ADMIT: Final = Script((resources.files("gateway.ledger") / "admit.lua").read_text(encoding="utf-8"))
# KEYS: tips, audit stream, active slot. ARGV: those of the record, then the slot it must be now ('' for any), and what it
# becomes.
_SWITCH: Final = Script("""
local behind = append_first()
if behind then return behind end
local now = redis.call('GET', KEYS[3]) or 'primary'
if ARGV[8] ~= '' and ARGV[8] ~= now then return {'stale', now} end
redis.call('SET', KEYS[3], ARGV[9])
return {'switched', ARGV[9]}
""")
NOW: Final = "local clock = redis.call('TIME') return clock[1] * 1000000 + clock[2]"
"""Redis' clock in microseconds, of the node that has KEYS[1]."""
_KEEP_UP_SECONDS: Final = 0.5
_HEIRS_LOOK_SECONDS: Final = 2.0
BEAT_RECORD_SECONDS: Final = 30.0
"""How often a writer says in the trail that it is there."""
# KEYS: living processes, epoch of the keys, tips, sealed. ARGV: this one, microseconds after which one counts as dead ('' says
# goodbye). Returns {processes, epoch, its tip, number of its last sealed record}, the last two '' where there is none.
_BEAT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if ARGV[2] == '' then redis.call('ZREM', KEYS[1], ARGV[1]) return {0, '0', '', ''} end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
return {
  redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]) or '0',
  redis.call('HGET', KEYS[3], ARGV[1]) or '', redis.call('HGET', KEYS[4], ARGV[1]) or '',
}
"""
_BEAT_EVERY_SECONDS: Final = 1.0
_DEAD_AFTER_US: Final = 5_000_000
_ANOTHER: Final = "?"
"""A version of the limits that nobody has."""
_KEPT: Final = re.compile(rb"(\d+) ([1-9]\d*) ([1-9]\d*)")
"""What the admit script keeps of a limit: a time, its interval and its burst."""
_DOUBTFUL_MAX: Final = 10_000
_STANDINGS: Final[dict[bytes, Literal["answered", "running", "unknown", "mismatch"]]] = {
    b"answered": "answered",
    b"running": "running",
    b"unknown": "unknown",
    b"mismatch": "mismatch",
}
_UPKEEP_LATE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Away:
    """What the ledger may do while Redis is away."""

    spool: bool
    """Whether a call may be recorded in the journal instead."""
    stale_seconds_max: float
    """How long a key is believed that Redis cannot confirm."""


@dataclass(frozen=True, slots=True)
class Claims:
    """How long a call is known by its idempotency key."""

    keep_ms: int
    longest_us: int
    """That a call takes, all its tries together: one begun longer ago is not running, whatever Redis has of it."""


_CLAIMS: Final = Claims(86_400_000, 60_000_000)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process that serves callers says of itself in the trail; a command is no such process."""

    version: str
    config: str
    """Digest of its settings."""


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
        alarm: Callable[[str], None] = lambda _: None,
        serving: Serving | None = None,
        claims: Claims = _CLAIMS,
        answered: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """Opens nothing. `now` is a monotonic clock, `clock` gives Unix seconds.

        `changed(up, why)` is told of outages, `alarm(event)` of what somebody should look at, `answered(answer, seconds)` of
        what Redis said to each call and how long it took.
        """
        self._answered = answered
        self._now = now
        self._clock = clock
        self._connection = connection
        self._names = names = Names(account)
        self._serving = serving
        self._claims = claims
        self._tell_alarm, alarm = alarm, self._alarm
        self._batch = Batch(
            connection.exchange, timeout_seconds, connection.reconnect, self._changed, names.probe, self._journal_first
        )
        self._trail = TrailWriter(names, writer, journal, self._batch, now, alarm, partial(self._of_itself, "open"))
        self._ends = Ends(names)
        self.verdicts = Verdicts(names)
        self._heir = Heir(names, journal.folder, self._batch, clock, alarm, claims.keep_ms, self.ended)
        self._floods = Floods()
        self._tell_changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it was opened; None: it was not."""
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
        self.degraded = 0
        """How many calls this process admitted without Redis."""
        self.outages = 0
        """How often this process lost Redis."""
        self.alarms: Counter[str] = Counter()
        """By event, what somebody should have looked at."""
        self.repeats: Counter[str] = Counter()
        """How often this process was asked for a call again, by how that call stood."""

    @property
    def account(self) -> str:
        """The account whose ledger it is."""
        return self._names.account

    @property
    def writer(self) -> str:
        """Name of this process in the audit trail."""
        return self._trail.name

    @property
    def journal(self) -> Journal:
        """Where its records are kept until they are sealed."""
        return self._trail.journal

    @property
    def waiting(self) -> int:
        """How many records wait for Redis."""
        return self._trail.waiting

    @property
    def waiting_ratio(self) -> float:
        """How much of what may wait for Redis does; at 1 no more calls are admitted."""
        return self._trail.used_ratio

    @property
    def unsealed(self) -> int:
        """How many of its records are not known to be sealed."""
        return self._trail.unsealed

    @property
    def processes(self) -> int:
        """How many processes of all gateways live, as Redis last said."""
        return self._processes

    @property
    def upkeep_seconds(self) -> float:
        """How long ago what is to be done for ever was done last."""
        return self._now() - self._kept_up_at

    @property
    def round_trips(self) -> Durations:
        """How long Redis took to answer what was sent to it together."""
        return self._batch.round_trips

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
        self._loop = asyncio.get_running_loop()
        if self._serving is not None:
            self._trail.send(self._of_itself("open"))
        await self._beat()

    async def keep_up(self) -> None:
        """Tell for ever that this process lives, and bring to Redis what waits, also of writers that died here."""
        beaten_at = inherited_at = self._now()
        recorded_at = self._now()
        while True:
            await asyncio.sleep(_KEEP_UP_SECONDS)
            self._journal_first()
            if self.journal.in_doubt:
                with suppress(OSError):
                    await self.journal.sync()
            self._floods_over()
            if self._now() - recorded_at >= BEAT_RECORD_SECONDS and self._serving is not None:
                recorded_at = self._now()
                self._trail.send(self._of_itself("beat"))
            if not self._batch.down:
                if self._trail.behind:
                    with suppress(LedgerDown):
                        await self._trail.catch_up()
                if self._now() - beaten_at >= _BEAT_EVERY_SECONDS:
                    beaten_at = self._now()
                    await self._beat()
                    await self._write_counts()
                if self._now() - inherited_at >= _HEIRS_LOOK_SECONDS and self._serving is not None:
                    inherited_at = self._now()
                    with suppress(LedgerDown):
                        await self._heir.look()
            else:
                self._ends.without_redis(self._clock())
            self._kept_up_at = self._now()

    async def aclose(self) -> None:
        """Write what is still to be written, to Redis or the journal, and close."""
        # Who leaves does not wait for the next look whether Redis is back: what it has not sent, an heir would have to.
        await self._batch.look()
        if self._loop is not None:
            self._loop = None
            self._floods_over(at_once=True)
            if self._serving is not None:
                self._trail.send(self._of_itself("close"))
            goodbye = self._batch.submit("EVAL", _BEAT, 4, *self._beat_keys, self.writer, "")
            await asyncio.gather(goodbye, return_exceptions=True)
        while await self._write_counts():
            pass
        await self._batch.drain()
        with suppress(LedgerDown, RedisError):
            await self._trail.catch_up()
        # A command leaves nothing behind that Redis has: what it changed, and the record of that, Redis keeps or loses together.
        done = self._trail.sealed if self._serving is not None else self._trail.taken
        self._heir.close()
        try:
            await self.journal.aclose(sealed=not self.waiting and done >= self._trail.last)
        finally:
            await self._batch.aclose()
            await self._connection.aclose()

    async def ready(self) -> None:
        """Raise LedgerDown when no call could be recorded now, neither by Redis nor, while it is away, on disk."""
        try:
            await self.ping()
        except LedgerDown:
            # A gateway that goes on without Redis must not be taken out of service for it.
            if (
                not self._goes_on
                or self._trail.full
                or self.journal.broken
                or self._unconfirmed_seconds > self._away.stale_seconds_max
            ):
                raise

    async def kept_up(self) -> None:
        """Raise LedgerDown when what is to be done for ever has not been done for some time."""
        if self.upkeep_seconds > _UPKEEP_LATE_SECONDS:
            raise LedgerDown("upkeep")

    async def ping(self) -> None:
        """Raise LedgerDown when Redis does not answer."""
        await self._batch.submit("EXISTS", self._names.probe)  # Not PING: a cluster has to be told which node is meant.

    async def admit(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, active: Slot | None, live: Live
    ) -> Admission | Verdict | Outdated | Repeated:
        """Record the intent, and charge every limit, spend the nonce and claim the key in the same script, or nothing of these.

        `epoch`, `active` and `live` are what the call was decided by; an `active` of None is not compared.
        Whatever comes but an admission, the intent stands in the trail where it has a number, and is to be closed.
        Raises: Refusal `ledger_unavailable`, `signature_replayed`.
        """
        if self._batch.down:
            return await self._admit_without_redis(call, charges, intent, epoch, live, LedgerDown("breaker"))
        if self._trail.full:
            raise Refusal(Problem.ledger_unavailable, error="full")
        keys, words = self._operands(call, charges, (epoch, active or "", live.version, live.until_us))
        asked_at = self._now()
        try:
            status, *answer = await self._trail.run(_ADMIT, intent, keys, words, opens=self._opens(call.caller))
        except LedgerDown as down:
            if str(down) == OVERLOAD:  # Redis is there, and counts: beside it nobody may.
                raise Refusal(Problem.ledger_unavailable, error=OVERLOAD) from None
            if down.sent:
                self._doubtful.extend((charge.key, intent.id) for charge in charges if not charge.limit.interval_us)
            return await self._admit_without_redis(call, charges, intent, epoch, live, down)
        self._answered(status.decode(), self._now() - asked_at)
        if status == b"outdated":
            return Outdated(int(answer[0]), _slot(answer[1]), answer[2].decode())
        if status == b"replayed":
            raise Refusal(Problem.signature_replayed)
        if status == b"repeated":
            standing = _STANDINGS[answer[0]]
            self.repeats[standing] += 1
            return Repeated(standing, answer[1].decode(), answer[2])
        now, *times = answer
        found = verdict(charges, now, times)
        self.verdicts.count(found, self._clock())
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
        records = [record for _, _, record in made]
        words = limits.encode(before, made)
        keys = (self._names.limits, self._names.limits_version)
        status, *_ = await self._changed_by(limits.SAVE, records, keys, words)
        return bool(status == b"saved")

    async def used(self, keys: Sequence[str]) -> list[float]:
        """Return how many units of each limit have not grown back yet. Raises: Refusal `ledger_unavailable`."""
        if not keys:
            return []
        now, kept = await self._redis_now(), await self._asked("MGET", *keys)
        return [_used(one, now) for one in kept]

    async def under_way(self, key: str) -> int:
        """Return how many calls hold a place of a limit. Raises: Refusal `ledger_unavailable`."""
        return int(await self._asked("ZCOUNT", key, await self._redis_now(), "+inf"))

    async def refused_last_hour(self) -> Counter[tuple[str, bool]]:
        """Return how often each policy refused in the last hour, to within ten minutes, by name and whether in shadow.

        Raises: Refusal `ledger_unavailable`.
        """
        return await self.verdicts.refused_last_hour(self._asked, self._clock())

    async def switch(self, before: Slot | None, after: Slot, record: Record) -> Slot:
        """Make a slot the active one for every process, if `before` still is (None: whichever is), and record it.

        Returns the slot that is active now. Raises: Refusal `ledger_unavailable`.
        """
        active = await self.active()
        if active == after or before not in (None, active):
            return active
        _, found = await self._changed_by(_SWITCH, [record], (self._names.slot,), (before or "", after))
        return _slot(found)

    async def close_lost(self, writer: str, operator: str, why: str) -> int | None:
        """Close a writer whose journal is lost; return how many intents it left open, None: it is not known, or lives.

        Raises: Refusal `ledger_unavailable`.
        """
        try:
            return await self._heir.close_lost(writer, operator, why)
        except (LedgerDown, ResponseError) as error:
            raise Refusal(Problem.ledger_unavailable, error=str(error)) from None

    async def active(self) -> Slot:
        """Return the active slot. Raises: Refusal `ledger_unavailable`."""
        return _slot(await self._asked("GET", self._names.slot))

    def settle(self, record: Record, held: Held | None = None, claimed: Claimed | None = None) -> None:
        """Send what closes a call, and give its places and its key back; what Redis does not take now, it takes later."""
        if record.stage == "outcome":
            self._ends.tried(record, self._clock())
        if held is not None and held.keys:
            if self._limiter is not None:
                self._limiter.release(held.keys, held.holder)
            for key in held.keys:
                self._free(key, held.holder)
        if not self._floods.swallow(record, self._now(), always=self._trail.full):
            self._trail.send(record, None if claimed is None else self._claim(claimed))
            # The caller is answered next: after that, a kill must not take away what it was answered.
            self._journal_first()

    def ended(self, record: Record) -> None:
        """Count a request by the last record of it."""
        self._ends.ended(record, self._clock())

    def _operands(
        self, call: Call, charges: tuple[Charge, ...], decided_by: tuple[int, str, str, int]
    ) -> tuple[list[str], tuple[Any, ...]]:
        """Return the keys and words of the admit script behind those of the record."""
        caller = call.caller
        nonce, nonce_ms = self._nonce(caller)
        names = self._names
        keys = [names.epoch, names.slot, names.limits_version, names.open, nonce]
        figures = []
        for charge in charges:
            keys.append(charge.key)
            if charge.touched is not None:
                keys.extend(charge.touched)
            figures.append(_figures(charge.limit, len(charge.touched or ())))
        words = (*decided_by, _held_by(caller), nonce_ms, b"".join(figures))
        if call.once is None:
            return keys, words
        once, claims = call.once, self._claims
        keys.append(names.once(once.name))
        # What is open tells an heir which key the call was made under.
        words = (*decided_by, f"{_held_by(caller)} {once.name}", *words[5:])
        return keys, (*words, once.fingerprint, once.owner, int(call.repeatable), claims.keep_ms, claims.longest_us)

    def _claim(self, claimed: Claimed) -> Claim:
        return Claim(self._names.once(claimed.once.name), claimed.once.owner, claimed.answer, self._claims.keep_ms)

    async def _changed_by(self, script: Script, records: list[Record], keys: Sequence[str], words: Sequence[Any]) -> Any:
        """Make a change with its records, which tell of themselves where it was not made after all."""
        first, *more = records
        if self._batch.down:
            raise Refusal(Problem.ledger_unavailable, error="breaker")
        try:
            answer = await self._trail.run(script, first, keys, words, more=more)
        except (LedgerDown, ResponseError) as error:
            for record in records:
                self._trail.send(abort(record, "unknown_outcome", self._clock()))
            told = str(error) if isinstance(error, LedgerDown) else type(error).__name__
            raise Refusal(Problem.ledger_unavailable, error=told) from None
        if answer[0] == b"stale":
            for record in records:
                self._trail.send(abort(record, "decided_anew", self._clock()))
        return answer

    async def _admit_without_redis(
        self, call: Call, charges: tuple[Charge, ...], intent: Record, epoch: int, live: Live, down: LedgerDown
    ) -> Admission | Verdict | Outdated:
        """Charge this process' share of each limit and record the intent in the journal, or do nothing.

        Refused all the same is:
        - a signed request, since nobody can say whether its nonce was spent, and one with an idempotency key, since nobody can
          say whether it was made before;
        - a key that Redis has not confirmed for too long, or of which it knew more than we do;
        - what falls under a policy that allows nothing without Redis;
        - everything while it is not known among how many processes the limits are divided, and while no more can wait.
        """
        if live.until_us and self._redis_clock_us() >= live.until_us:
            return Outdated(epoch, None, _ANOTHER)
        caller = call.caller
        denying = next((c.limit.policy for c in charges if c.limit.on_store_error == "deny" and not c.limit.shadow), None)
        known = caller.key_version is None or (epoch >= self._epoch and self._unconfirmed_seconds <= self._away.stale_seconds_max)
        if not self._goes_on or caller.nonce is not None or call.once is not None or not known or denying:
            raise Refusal(Problem.ledger_unavailable, error=str(down), policy=denying)
        if self._trail.full or self.journal.disk_short:
            raise Refusal(Problem.ledger_unavailable, error="full")
        self._limiter = limiter = self._limiter or Limiter(self._processes)
        local = tuple(charge for charge in charges if charge.limit.on_store_error == "local")
        holder = intent.id if intent.seq >= 0 else self._trail.next_id
        found = replace(limiter.decide(local, self._now_us(), holder), degraded=True)
        self.verdicts.count(found, self._clock())
        if found.refused:
            return found
        held = _held(local, found)
        if intent.seq < 0:
            intent.degraded = True
            self._trail.write(intent, self._opens(caller))
        was_broken = self.journal.broken
        try:
            await self.journal.sync()
        except OSError as error:
            limiter.release(held, holder)
            if not was_broken:
                self._alarm("journal.broken")
            raise Refusal(Problem.ledger_unavailable, error=type(error).__name__) from None
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

    def _nonce(self, caller: Caller) -> tuple[str, int]:
        """Return where a caller's nonce is kept and for how many milliseconds; 0 where it has none."""
        if caller.nonce is None:
            return self._names.nonce, 0
        digest = hashlib.sha256(caller.nonce.value.encode()).hexdigest()[:32]
        lasting = caller.nonce.expires_at - self._clock()
        return f"{self._names.nonce}:{caller.key_id}:{digest}", max(1000, math.ceil(lasting * 1000))

    def _opens(self, caller: Caller) -> str:
        return f"{int(self._clock() * 1_000_000)} {_held_by(caller)}"

    def _of_itself(self, stage: Stage, why: str | None = None) -> Record:
        found = self._serving if stage == "open" else None
        return Record(
            stage=stage,
            at=rfc3339(self._clock()),
            account=self._names.account,
            version=found.version if found is not None else None,
            config=found.config if found is not None else None,
            why=why,
        )

    def _journal_first(self) -> None:
        """Hand to the journal what is about to be sent; a disk that takes nothing now does not stop what Redis takes."""
        was_broken = self.journal.broken
        try:
            self.journal.write()
        except OSError:
            if not was_broken:
                self._alarm("journal.broken")

    def _alarm(self, event: str) -> None:
        self.alarms[event] += 1
        self._tell_alarm(event)

    def note(self, record: Record) -> None:
        """Record what befell this process since it was opened, from any thread; what was so before, its `open` tells."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._trail.send, record)

    def _floods_over(self, *, at_once: bool = False) -> None:
        if not self._trail.full:
            for record in self._floods.over(self._now(), at_once=at_once):
                self._trail.send(record)

    def _changed(self, up: bool, why: str) -> None:
        if self._serving is not None:
            self._trail.send(self._of_itself("recovered" if up else "degraded", why or None))
        if not up:
            self.outages += 1
            if self._serving is not None:
                self._ends.without_redis(self._clock())
        else:
            self._limiter = None
            doubtful, self._doubtful = self._doubtful, deque(maxlen=_DOUBTFUL_MAX)
            for key, holder in doubtful:
                self._free(key, holder)
        self._tell_changed(up, why)

    @property
    def _beat_keys(self) -> tuple[str, ...]:
        names = self._names
        return names.processes, names.epoch, names.tips, names.sealed

    async def _beat(self) -> None:
        """Tell that this process lives; learn how many do, the epoch of the keys, and what became of our records."""
        taken, name = self._trail.taken, self.writer
        try:
            processes, epoch, tip, sealed = await self._batch.submit("EVAL", _BEAT, 4, *self._beat_keys, name, _DEAD_AFTER_US)
        except (LedgerDown, ResponseError):
            return
        self._processes, self._epoch, self._confirmed_at = int(processes), int(epoch), self._now()
        if name != self.writer:
            return
        if sealed:
            self._trail.sealed = max(self._trail.sealed, int(sealed))
        if read_tip(tip) < taken:
            self._trail.lost(read_tip(tip))
        if self.journal.forget(self._trail.done, self._trail.taken):
            self._alarm("journal.unsealed_forgotten")

    async def _write_counts(self) -> bool:
        """Bring some of what was counted to Redis; say whether it took all of that, and there is more."""
        return any(await asyncio.gather(self.verdicts.write(self._batch.submit), self._ends.write(self._batch.submit)))


@lru_cache(maxsize=4096)
def _figures(limit: Limit, numbers: int) -> bytes:
    most = limit.tolerance_us if limit.interval_us else limit.burst
    return msgspec.msgpack.encode((int(limit.shadow), limit.interval_us, most, limit.life_ms, numbers))


def _held(charges: tuple[Charge, ...], found: Verdict) -> tuple[str, ...]:
    return tuple(
        charge.key for charge, meter in zip(charges, found.meters, strict=True) if not charge.limit.interval_us and meter.admitted
    )


def _held_by(caller: Caller) -> str:
    return f"{caller.key_id}.{caller.key_version or 0}"


def _used(kept: bytes | None, now_us: int) -> float:
    found = _KEPT.fullmatch(kept or b"")
    if found is None:
        return 0.0
    at, interval, burst = map(int, found.groups())
    return min(max(0.0, (at - now_us) / interval), burst)


def _slot(answer: bytes | None) -> Slot:
    return next((slot for slot in SLOTS if answer == slot.encode()), SLOTS[0])


def _failed(future: asyncio.Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None
