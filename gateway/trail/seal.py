"""The sealer: carries the live streams into the archive, and signs what the archive is then.

One for all gateways; a lease in Redis sees to it, and that nobody goes on in another archive. Its signing key is nowhere
else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.audit import Record, change, rfc3339, unix_seconds
from gateway.ledger.chain import read_tip
from gateway.ledger.names import KEYS_TAG, Names
from gateway.trail.archive import CHECKPOINT, Archive, ArchiveError, is_sealable
from gateway.trail.note import Checkpoint, NoteError, Signer
from gateway.trail.search import decode, encoded, order, still_reached

_PAGE: Final = 1000
_LEASE_MS: Final = 10_000
_COMMANDS_SECONDS: Final = 3600
_CLOSED_SECONDS: Final = 30 * 86_400
"""A machine may come back as late, with a journal whose records are sealed, and has to be told."""
_TRIM_EVERY_SECONDS: Final = 60.0
_RETAIN_EVERY_SECONDS: Final = 3600.0
_LEASE_KEY: Final = f"gw:{{{KEYS_TAG}}}:sealer"
_ARCHIVE_KEY: Final = f"gw:{{{KEYS_TAG}}}:archive"
# KEYS: the lease, the archive in use. ARGV: who asks, milliseconds, its archive. Returns whether the asker has the lease, and
# the archive in use.
_LEASE: Final = """
local holder, archive = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {0, archive or ''} end
if archive and archive ~= ARGV[3] then return {0, archive} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not archive then redis.call('SET', KEYS[2], ARGV[3]) end
return {1, ARGV[3]}
"""
# KEYS: the lease. ARGV: who gives it back.
_GIVE_BACK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one round did."""

    note: str
    """The signed checkpoint."""
    size: int
    """Records sealed, in all."""
    added: int
    more: bool
    """Whether more waits to be sealed."""
    alarms: tuple[str, ...]
    """What somebody should look at: two records of one name, missing ones, entries that are no records."""


@dataclass(slots=True)
class _Page:
    """What was read of a stream."""

    stream: str
    reached: str
    """Id of its last entry; empty: there is none."""
    more: bool
    records: list[bytes] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Sealer:
    """Seals what the streams hold."""

    client: Any
    accounts: tuple[str, ...]
    archive: Archive
    signer: Signer
    stream_seconds: float
    """How long sealed records stay in the streams too."""
    clock: Callable[[], float]
    """Unix seconds."""
    record: Callable[[Record], Awaitable[None]]
    """Brings a record of the sealer's own to the trail."""
    keep_seconds: float = 0.0
    """How long sealed records are kept; 0: for ever."""
    _name: str = field(default_factory=lambda: secrets.token_hex(8))
    _trimmed_at: float = 0.0
    _looked_at: float = 0.0
    _removing: tuple[Record, int] | None = None
    """What says that records were removed, and the place up to which; they are, once that is sealed."""
    _told: dict[str, int] = field(default_factory=dict)
    _looked_for: dict[str, int] = field(default_factory=dict)
    """By writer: the number of a record before which some are missing, and the stream was read again for them."""
    _signed_until: str = ""

    async def seal(self) -> Sealed | None:
        """Seal some thousand records at most, or nothing but the moment; None: another sealer has the lease.

        Raises: ArchiveError, OSError when the archive cannot be written, redis.exceptions.RedisError.
        """
        has_lease, in_use = await self.client.eval(
            _LEASE, 2, _LEASE_KEY, _ARCHIVE_KEY, self._name, _LEASE_MS, self.archive.state.id
        )
        if in_use.decode() not in ("", self.archive.state.id):
            raise ArchiveError(
                f"{self.archive.folder} is another archive than the one in use: give the sealer that one, or, where it is lost, "
                f"delete the Redis key {_ARCHIVE_KEY}"
            )
        if not has_lease:
            return None
        before, alarms, more = self.archive.state.size, [], False
        now = sealed_until = self.clock()
        for account in self.accounts:
            page = await self._read(account)
            alarms += page.odd
            if page.reached:
                alarms += await asyncio.to_thread(self.archive.add, page.records, {page.stream: page.reached}, account)
            if page.more:
                # Behind it more waits: of what came later nothing is said yet, or its writers would seem to be silent.
                more = True
                if page.reached:
                    sealed_until = min(sealed_until, order(page.reached)[0] / 1000)
        over = self.archive.forget(rfc3339(now - _COMMANDS_SECONDS), rfc3339(now - _CLOSED_SECONDS))
        note = self._sign(sealed_until)
        await asyncio.to_thread(self.archive.publish, note)
        # For the gateways, whose metrics tell it: the archive is on another machine.
        told = f"{unix_seconds(self._signed_until)} {self.archive.state.size}"
        await self.client.set(Names(KEYS_TAG).checkpoint, told)
        await self._tell(over)
        if now - self._trimmed_at >= _TRIM_EVERY_SECONDS:
            self._trimmed_at = now
            self._told.clear()  # Redis may have lost it.
            await self._trim(now)
        await self._retain(now)
        size = self.archive.state.size
        return Sealed(note, size, size - before, more, tuple(alarms))

    async def aclose(self) -> None:
        """Give the lease back."""
        await self.client.eval(_GIVE_BACK, 1, _LEASE_KEY, self._name)

    async def _read(self, account: str) -> _Page:
        names, tips = Names(account), self.archive.state.tips
        # Asked first: what Redis says to have of a writer now, the stream has when it is read.
        said = await self.client.hgetall(names.tips)
        reached = await still_reached(self.client, names.audit, self.archive.state.positions.get(names.audit))
        entries = await self.client.xrange(names.audit, f"({reached}" if reached else "-", "+", count=_PAGE)
        page = _Page(names.audit, entries[-1][0].decode() if entries else "", len(entries) >= _PAGE)
        following = {writer: tip.seq + 1 for writer, tip in tips.items()}
        missing: dict[str, int] = {}
        for identity, fields in entries:
            record = encoded(fields)
            row = decode(record)
            if row is None or not is_sealable(record):
                page.odd.append(f"entry {identity.decode()} of {names.audit} is no record")
                continue
            page.records.append(record)
            writer, seq, due = row["writer"], row["seq"], following.get(row["writer"], 0)
            if seq > due:
                missing.setdefault(writer, seq)
            following[writer] = max(due, seq + 1)
        if not page.more:
            missing |= {
                writer: last
                for writer, last in ((name.decode(), read_tip(kept)) for name, kept in said.items())
                if last >= following.get(writer, 0)
            }
        if reached and any(seq > self._looked_for.get(writer, -1) for writer, seq in missing.items()):
            # A master whose clock is behind that of the one before it gives ids that are below those already read.
            self._looked_for |= missing
            del self.archive.state.positions[names.audit]
            return _Page(names.audit, "", True)
        return page

    def _sign(self, until: float) -> str:
        # Also where a stream is read again, or a clock was set back, no checkpoint is older than the one before.
        self._signed_until = max(self._signed_until or self._signed_before(), rfc3339(until))
        tree, tips = self.archive.tree, self.archive.state.tips
        checkpoint = Checkpoint(
            origin=self.signer.name,
            size=tree.size,
            root=tree.root,
            at=self._signed_until,
            tips={writer: tip.seq for writer, tip in tips.items() if tip.opened and not tip.closed},
        )
        return self.signer.sign(checkpoint.text())

    def _signed_before(self) -> str:
        try:
            return Checkpoint.parse((self.archive.folder / CHECKPOINT).read_text(encoding="utf-8").partition("\n\n")[0]).at
        except (FileNotFoundError, UnicodeDecodeError, NoteError):
            return ""

    async def _tell(self, over: list[tuple[str, str]]) -> None:
        """Let writers know how far they are sealed, so that they can let go of their journals."""
        by_account: dict[str, dict[str, int]] = {}
        for writer, tip in self.archive.state.tips.items():
            if self._told.get(writer) != tip.seq:
                by_account.setdefault(tip.account, {})[writer] = tip.seq
        for account, told in by_account.items():
            await self.client.hset(Names(account).sealed, mapping=told)
            self._told.update(told)
        for account, writer in over:
            self._told.pop(writer, None)
            await self.client.hdel(Names(account).tips, writer)
            await self.client.hdel(Names(account).sealed, writer)

    async def _retain(self, now: float) -> None:
        """Remove the segments that are old enough, once the trail itself says that they were."""
        if self._removing is not None:
            record, before = self._removing
            if self.archive.index.place_of(record.writer, record.seq) is not None:
                await asyncio.to_thread(self.archive.remove, before)
                self._removing = None
        elif self.keep_seconds and now - self._looked_at >= _RETAIN_EVERY_SECONDS:
            self._looked_at = now
            before, root = await asyncio.to_thread(self.archive.older_than, rfc3339(now - self.keep_seconds))
            if before:
                record = change(
                    "trail.removed", at=now, request_id=secrets.token_hex(16), account=KEYS_TAG, operator="gateway",
                    before="0", after=str(before), subject=root.hex(),
                )  # fmt: skip
                await self.record(record)
                self._removing = record, before

    async def _trim(self, now: float) -> None:
        oldest = f"{int((now - self.stream_seconds) * 1000)}-0"
        positions: Mapping[str, str] = self.archive.state.positions
        for stream, sealed in positions.items():
            # What stands at the bound stays.
            await self.client.xtrim(stream, minid=min(oldest, sealed, key=order), approximate=False)
