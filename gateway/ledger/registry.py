"""The registry of keys in Redis: the copy a process decides by, how it changes, and how much each key is used.

It lives in a slot of its own, beside the accounts. A change is in force when it has raised the epoch of every account,
because the admit script of an account sends back whoever decided by older keys.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from gateway.audit import Record
from gateway.errors import Problem, Refusal
from gateway.keys import KeyEntry, KeyVersion, Registry
from gateway.ledger import levels
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.buckets import Buckets
from gateway.ledger.chain import Chain
from gateway.ledger.connect import Connection, pairs
from gateway.ledger.names import KEYS_TAG, Names
from gateway.ledger.store import NOW
from gateway.ledger.writer import FIRST, Script, link_words
from gateway.model import Bindings

_FLUSH_EVERY_SECONDS: Final = 1.0
_BUCKET_SECONDS: Final = 600
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86_400
_IN_FLIGHT_EVERY_SECONDS: Final = 0.02
_REPLICAS_MS: Final = 1000

# KEYS: tips, audit stream, keys, epoch. ARGV: those of the record, then key id, entry as it was read ('' where there was none),
# entry as it becomes, the highest epoch of an account. Returns {'saved', epoch}, or {'stale'} where the entry is another now.
# After a failover that lost changes an account may be ahead, and a counter would give one number to two states: so an epoch is
# the microsecond of its change, or above all others.
_SAVE: Final = Script("""
if (redis.call('HGET', KEYS[3], ARGV[8]) or '') ~= ARGV[9] then return {'stale'} end
local behind = append_first()
if behind then return behind end
redis.call('HSET', KEYS[3], ARGV[8], ARGV[10])
local clock = redis.call('TIME')
local epoch = math.max(tonumber(redis.call('GET', KEYS[4]) or 0) + 1, tonumber(ARGV[11]) + 1, clock[1] * 1000000 + clock[2])
redis.call('SET', KEYS[4], string.format('%.0f', epoch))
return {'saved', epoch}
""")
# The same without a change. KEYS: tips, audit stream. ARGV: those of the record.
_RECORD: Final = Script("""
return append_first() or {'saved'}
""")
# The same for a field of another hash. KEYS: tips, audit stream, hash. ARGV: those of the record, then field, as it was read (''
# where there was none), as it becomes.
_REPLACE: Final = Script("""
if (redis.call('HGET', KEYS[3], ARGV[8]) or '') ~= ARGV[9] then return {'stale'} end
local behind = append_first()
if behind then return behind end
redis.call('HSET', KEYS[3], ARGV[8], ARGV[10])
return {'saved'}
""")
# KEYS: epoch of an account. ARGV: the epoch it must have reached.
_RAISE: Final = """
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""


class Changed(Exception):
    """Somebody else changed the key at the same time; nothing was written."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How one version of a key was used."""

    last_used_at: float | None
    """Unix seconds; None: never."""
    last_hour: int
    """Requests, to within ten minutes."""
    last_day: int


class KeyRegistry:
    """All keys, for one process."""

    def __init__(
        self,
        connection: Connection,
        accounts: Collection[str],
        writer: str,
        timeout_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """Opens nothing. `clock` gives Unix seconds."""
        base = f"gw:{{{KEYS_TAG}}}:"
        self._keys, self._epoch, self._accounts_key = base + "keys", base + "epoch", base + "accounts"
        self._levels = base + "levels"
        self._used, self._warned = base + "used", base + "warned:"
        names = Names(KEYS_TAG)
        self._trail, self._checkpoint = (names.tips, names.audit), names.checkpoint
        self._chain = Chain(writer)
        self._connection = connection
        self._accounts = tuple(accounts)
        self._clock = clock
        self._batch = Batch(connection.exchange, timeout_seconds, connection.reconnect, _quietly, base + "probe")
        self._current = Registry(epoch=-1, entries={})
        self._raw: dict[str, bytes] = {}
        self.unreadable: tuple[str, ...] = ()
        """Ids of entries that cannot be read; to callers they are unknown keys."""
        self._announced = False
        self._read_epoch, self._floor = -1, 0
        self._uses = Buckets(base + "use:", _BUCKET_SECONDS, _DAY_SECONDS)
        self._last: dict[str, float] = {}

    @property
    def current(self) -> Registry:
        """The keys as last read; epoch -1 before the first reading."""
        return self._current

    async def aclose(self) -> None:
        """Write what was counted, and close."""
        while await self._flush():
            pass
        await self._batch.aclose()
        await self._connection.aclose()

    async def ready(self) -> None:
        """Raise Refusal `ledger_unavailable` when the keys are not known: they were never read, and cannot be now."""
        if self._current.epoch < 0:
            await self.refresh()

    async def ping(self) -> None:
        """Raise LedgerDown when the keys could not be read again now."""
        await self._batch.submit("EXISTS", self._epoch)

    async def checkpoint(self) -> tuple[float, int] | None:
        """Return until when the trail is sealed, in Unix seconds, and how many records are; None: never, or Redis is away."""
        try:
            found = await self._batch.submit("GET", self._checkpoint)
        except (LedgerDown, ResponseError):
            return None
        if not found:
            return None
        until, size = found.split()
        return float(until), int(size)

    async def refresh(self, at_least: int = 0) -> None:
        """Read the keys again if they changed. `at_least` is an epoch that was seen elsewhere.

        Raises: Refusal `ledger_unavailable`.
        """
        if at_least:
            await self._batch.look()  # Redis has just said so: it is there, and our own breaker may not know yet.
        try:
            if not self._announced:
                # Before reading: whoever changes keys from now on raises the epoch of these accounts too.
                await self._batch.submit("SADD", self._accounts_key, *self._accounts)
                self._announced = True
            # Epoch before entries: a change in between leaves an old epoch, which the next admission sends back.
            epoch = int(await self._batch.submit("GET", self._epoch) or 0)
            if epoch == self._read_epoch and at_least <= self._current.epoch:
                return
            if not epoch and self._read_epoch > 0:
                # Redis has lost what it kept. Nobody's key is believed to be revoked by that; who is unknown stays unknown.
                raise Refusal(Problem.ledger_unavailable, error="emptied")
            raw = await self._batch.submit("HGETALL", self._keys)
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        self._raw = {key.decode(): entry for key, entry in pairs(raw)}
        read = {key_id: read_entry(key_id, entry) for key_id, entry in self._raw.items()}
        entries = {key_id: entry for key_id, entry in read.items() if entry is not None}
        self.unreadable = tuple(read.keys() - entries.keys())
        # A failover may have lost the raise of our own epoch, though not that of an account's.
        self._read_epoch, self._floor = epoch, max(self._floor, at_least)
        self._current = Registry(max(epoch, self._floor), entries)

    async def save(self, entry: KeyEntry, record: Record) -> None:
        """Add or replace a key, with its record; every process decides by it when this returns.

        Raises: Changed; Refusal `ledger_unavailable`, after which the change may be made and not in force everywhere:
        make it again.
        """
        before, after = self._raw.get(entry.key_id, b""), write_entry(entry)
        try:
            reached = [int(epoch or 0) for epoch in await self._of_accounts("GET")]
            words = (entry.key_id, before, after, max(reached))
            epoch = await self._recorded(_SAVE, record, (self._keys, self._epoch), words)
            if epoch is None:
                raise Changed
            await self._of_accounts("EVAL", _RAISE, 1, after=(int(epoch),))
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        await self.refresh()

    async def log_levels(self) -> dict[str, levels.Change]:
        """Return the live changes of the log's levels, by module. Raises: Refusal `ledger_unavailable`."""
        try:
            return levels.read_levels(await self._batch.submit("EVAL", levels.READ, 1, self._levels))
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    async def change_log_level(self, module: str, change: levels.Change | None, record: Record) -> None:
        """Change the level of a module of the log, with the record of that. Raises: Refusal `ledger_unavailable`."""
        try:
            await self._recorded(levels.SAVE, record, (self._levels,), levels.words(module, change))
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    async def record(self, record: Record) -> None:
        """Record what somebody did who uses a command, and return when Redis has it. Raises: Refusal `ledger_unavailable`."""
        try:
            await self._recorded(_RECORD, record, (), ())
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    async def replace(self, name: str, field: str, before: bytes, after: bytes, record: Record) -> None:
        """Change one field of a hash that lies beside the keys, with its record. `before`: as it was read; empty: it is new.

        Raises: Changed; Refusal `ledger_unavailable`.
        """
        try:
            if await self._recorded(_REPLACE, record, (name,), (field, before, after)) is None:
                raise Changed
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    async def _recorded(self, script: Script, record: Record, keys: Sequence[str], words: Sequence[Any]) -> Any:
        """Run a script that records and may change something; return what it found, None where it did neither."""
        chain, known = self._chain, False
        link = chain.link(record)
        names = (*self._trail, *keys)
        told = (chain.writer, FIRST, *link_words(link), record.id)
        try:
            status, *found = await self._batch.submit("EVAL", script.text, len(names), *names, *told, *words)
            known = status in (b"saved", b"stale")
        finally:
            if not known:
                # Whether it stands there, or what was before it, nobody knows: under another name nothing hangs on that.
                self._chain = chain.begun_anew()
        if not known:
            raise LedgerDown(status.decode())
        if status == b"stale":
            chain.take_back(link)
            return None
        return found[0] if found else 0

    async def _of_accounts(self, *words: str | int, after: tuple[int, ...] = ()) -> list[Any]:
        """Send one command about the epoch of every account that any process serves."""
        accounts = await self._all_accounts()
        return await asyncio.gather(*(self._batch.submit(*words, Names(account).epoch, *after) for account in accounts))

    async def _all_accounts(self) -> list[str]:
        known = await self._batch.submit("SMEMBERS", self._accounts_key)
        return sorted({*self._accounts, *(name.decode() for name in known)})

    async def in_flight(self, key_id: str, number: int | None, longest_seconds: float, wait_seconds: float | None = None) -> int:
        """Wait until no call admitted under a key before now is under way, and return how many still are.

        An intent older than `longest_seconds` was left by a process that died; nobody carries it on. So long is waited, or
        for `wait_seconds`.
        Raises: Refusal `ledger_unavailable`.
        """
        deadline = self._clock() + (longest_seconds if wait_seconds is None else wait_seconds)
        while True:
            left = 0
            try:
                for account in await self._all_accounts():
                    now = int(await self._batch.submit("EVAL", NOW, 1, Names(account).open))
                    oldest = now - longest_seconds * 1_000_000
                    left += sum(
                        _is_of(value, key_id, number) and int(value.split()[0]) > oldest
                        for _, value in pairs(await self._batch.submit("HGETALL", Names(account).open))
                    )
            except LedgerDown as down:
                raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
            if not left or self._clock() > deadline:
                return left
            await asyncio.sleep(_IN_FLIGHT_EVERY_SECONDS)

    async def replicas_behind(self) -> int:
        """Wait a moment until every replica of Redis has what was written, and return how many have not.

        A failover to one of those would undo it. Of a cluster, and where Redis does not tell, nothing is known: 0.
        Raises: Refusal `ledger_unavailable`.
        """
        if self._connection.single is None:
            return 0
        try:
            told = await self._batch.submit("INFO", "replication")
            found = re.search(rb"connected_slaves:(\d+)", told if isinstance(told, bytes) else str(told).encode())
            replicas = int(found[1]) if found else 0
            return max(0, replicas - int(await self._batch.submit("WAIT", replicas, _REPLICAS_MS))) if replicas else 0
        except ResponseError:
            return 0
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None

    def used(self, key_id: str, number: int, at: float) -> None:
        """Count one request under a key; written within a second."""
        name = f"{key_id}.{number}"
        self._uses.add(at, name)
        self._last[name] = at

    async def uses(self) -> dict[str, KeyUse]:
        """Return the use of every version, as `id.number`. Raises: Refusal `ledger_unavailable`."""
        now = self._clock()
        names, lately = self._uses.names(now, _DAY_SECONDS), self._uses.names(now, _HOUR_SECONDS)
        try:
            last, *counted = await asyncio.gather(
                self._batch.submit("HGETALL", self._used),
                *(self._batch.submit("HGETALL", name) for name in names.values()),
            )
        except LedgerDown as down:
            raise Refusal(Problem.ledger_unavailable, error=str(down)) from None
        day: Counter[str] = Counter()
        hour: Counter[str] = Counter()
        for began, raw in zip(names, counted, strict=True):
            for name, count in pairs(raw):
                day[name.decode()] += int(count)
                if began in lately:
                    hour[name.decode()] += int(count)
        seen = {name.decode(): float(at) for name, at in pairs(last)}
        return {name: KeyUse(seen.get(name), hour[name], day[name]) for name in seen.keys() | day.keys()}

    async def first_to_warn(self, name: str) -> bool:
        """Say whether no process warned of `id.number` in the last day; the asker is then the one who does."""
        try:
            return bool(await self._batch.submit("SET", f"{self._warned}{name}", "1", "NX", "EX", _DAY_SECONDS))
        except LedgerDown:
            return False

    async def count_for_ever(self) -> None:
        """Write what was counted, every second; to be cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_SECONDS)
            await self._flush()

    async def _flush(self) -> bool:
        last, self._last = self._last, {}
        words = [word for name, at in last.items() for word in (name, f"{at:.3f}")]
        try:
            if words:
                await self._batch.submit("HSET", self._used, *words)
        except (LedgerDown, ResponseError):
            self._last = last | self._last
        return await self._uses.write(self._batch.submit)


def write_entry(entry: KeyEntry) -> bytes:
    """Return a key's entry as it is kept."""
    return msgspec.json.encode(
        {
            "service": entry.service,
            "versions": [
                {
                    "number": version.number,
                    "created_at": version.created_at,
                    "digest": version.digest,
                    "public_key": version.public_key,
                    "expires_at": version.expires_at,
                    "revoked_at": version.revoked_at,
                    "created_by": version.created_by,
                }
                for version in entry.versions
            ],
            "scopes": sorted(entry.bindings.scopes),
            "accounts": entry.bindings.accounts,
            "networks": entry.bindings.networks,
            "prefixes": entry.bindings.prefixes,
            "note": entry.note,
        }
    )


def read_entry(key_id: str, encoded: bytes) -> KeyEntry | None:
    """Return what `write_entry` wrote; None for anything else, so that one bad entry does not take the others along."""
    try:
        kept = msgspec.json.decode(encoded)
        bindings = Bindings(frozenset(kept["scopes"]), *(tuple(kept[name]) for name in ("accounts", "networks", "prefixes")))
        versions = tuple(KeyVersion(**version) for version in kept["versions"])
        return KeyEntry(key_id, kept["service"], versions, bindings, kept["note"]) if versions else None
    except (msgspec.DecodeError, KeyError, TypeError):
        return None


def _is_of(value: bytes, key_id: str, number: int | None) -> bool:
    """Say whether an open intent is a key's, or one version's."""
    found_id, _, found_number = value.decode().split()[1].rpartition(".")
    return found_id == key_id and number in (None, int(found_number))


def _quietly(_up: bool, _why: str) -> None:
    """Say nothing: the accounts' ledgers tell of the same outage."""
