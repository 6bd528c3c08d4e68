"""Carries on the journals of writers that died on this machine: what Redis lacks is sent, what they left open is closed.

All under their own names: an intent without a closing record gets an `abort`, since nobody can tell whether the vendor
acted, and the writer a `close`. The files go when all of it is sealed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError

from gateway.audit import Record, abort, rfc3339
from gateway.errors import Problem, Refusal
from gateway.idempotency import keep
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.chain import Chain, Claim, Link, read_tip
from gateway.ledger.connect import pairs
from gateway.ledger.journal import (
    append_to,
    drop_torn_line,
    locked,
    read_lines,
    remove,
    segment_path,
    segment_paths,
    set_aside,
    writers,
)
from gateway.ledger.names import Names
from gateway.ledger.writer import AGAIN, RESUMED, append_command
from gateway.model import Outcome
from gateway.normalisation import carried_out, outcome_of
from gateway.proving import PROVING

_AT_ONCE: Final = 500
_read_record = msgspec.json.Decoder(Record).decode


class Heir:
    """Looks after the dead writers of one account whose journals stand in one folder."""

    def __init__(
        self,
        names: Names,
        folder: Path,
        batch: Batch,
        clock: Callable[[], float],
        alarm: Callable[[str], None],
        keep_ms: int,
        ended: Callable[[Record], None] = lambda _: None,
    ) -> None:
        """`clock` gives Unix seconds; `alarm(event)` is told what somebody should look at; an answer is kept for `keep_ms`.

        `ended(record)` is told of each end that somebody else was to write.
        """
        self._names = names
        self._folder = folder
        self._batch = batch
        self._clock = clock
        self._alarm = alarm
        self._keep_ms = keep_ms
        self._ended = ended
        self._locks: dict[str, int] = {}
        self._last: dict[str, int] = {}
        """Number of the last record of those that are closed."""

    async def look(self) -> None:
        """Bring every dead writer as far as it can be brought now. Raises: LedgerDown, ResponseError; OSError is told only."""
        for writer in writers(self._folder):
            if writer not in self._locks:
                try:
                    self._locks[writer] = locked(self._folder, writer, wait=False)
                except OSError:
                    continue  # It lives, or another heir has it.
            try:
                await self._carry_on(writer)
            except OSError:
                self._alarm("journal.broken")

    async def close_lost(self, writer: str, operator: str, why: str) -> int | None:
        """Close a writer whose journal is lost; return how many intents it left open, None: it is not known, or lives.

        Raises: LedgerDown, ResponseError.
        """
        names = self._names
        tip, alive = await asyncio.gather(
            self._batch.submit("HGET", names.tips, writer), self._batch.submit("ZSCORE", names.processes, writer)
        )
        if read_tip(tip) < 0 or alive is not None:
            return None
        now = self._clock()
        closing = [self._end(intent, now) for intent in await self._open_in_redis(writer)]
        ends = Record(stage="close", at=rfc3339(now), account=names.account, operator=operator, why=why)
        chain = _behind(writer, tip)
        if not await self._send(writer, [chain.link(record) for record in (*closing, ends)], chain.seq):
            raise LedgerDown("fork")
        for record in closing:
            self._ended(record)
        return len(closing)

    def close(self) -> None:
        """Leave the rest to others."""
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()

    async def _carry_on(self, writer: str) -> None:
        names = self._names
        tip, sealed = await asyncio.gather(
            self._batch.submit("HGET", names.tips, writer), self._batch.submit("HGET", names.sealed, writer)
        )
        sealed = int(sealed or -1)
        if writer not in self._last:
            self._last[writer] = await self._close_writer(writer, tip)
        last = self._last[writer]
        if sealed >= last:
            # All are closed, and sealed: what Redis still has open was closed by an answer that it lost.
            if lingering := await self._open_in_redis(writer):
                await self._batch.submit("HDEL", names.open, *lingering)
            remove(self._folder, writer)
            self._forget(writer)
        elif read_tip(tip) < last and not await self._ship(writer, max(read_tip(tip), sealed) + 1):
            self._alarm("trail.forked")
            set_aside(self._folder, writer)
            self._forget(writer)

    def _forget(self, writer: str) -> None:
        self._last.pop(writer)
        os.close(self._locks.pop(writer))

    async def _close_writer(self, writer: str, tip: bytes | None) -> int:
        """Add to a journal what its writer could not, and return the number of the last record."""
        open_intents: dict[str, bytes] = {}
        told: set[str] = set()
        newest, closed = None, False
        damaged: list[bytes] = []
        paths = segment_paths(self._folder, writer)
        drop_torn_line(paths[-1])
        for path in paths:
            for link, head in read_lines(path, damaged):
                newest, closed = link, head.stage == "close"
                if head.stage == "intent":
                    open_intents[head.id] = link.record
                    told.add(head.id)
                elif head.intent is not None:
                    open_intents.pop(head.intent, None)
                    told.add(head.intent)
        if damaged:
            self._alarm("journal.damaged")
            append_to(self._folder / "damaged", damaged)
        chain = Chain(writer) if newest is None else Chain(writer, newest.seq + 1, newest.hash)
        if tip is not None and read_tip(tip) >= chain.seq:
            # The disk took less than Redis did.
            chain, closed = _behind(writer, tip), False
        if closed:
            return chain.seq - 1
        path, now = segment_path(self._folder, writer, chain.seq), self._clock()
        closing = [abort(_read_record(record), "unknown_outcome", now) for record in open_intents.values()]
        # What the journal tells of goes by the journal: Redis may not have been sent yet what closes it.
        closing += [self._end(intent, now) for intent in await self._open_in_redis(writer) if intent not in told]
        # A call may have left more than one try open; and a credential that was to be proved is nobody's call.
        ends = {record.request_id or record.intent: record for record in closing if record.key_id != PROVING}
        closing.append(Record(stage="close", at=rfc3339(now), account=self._names.account, why="recovered"))
        append_to(path, [chain.link(record).record for record in closing])
        for record in ends.values():
            self._ended(record)
        return chain.seq - 1

    async def _open_in_redis(self, writer: str) -> dict[str, list[str]]:
        """Return the intents of a writer that are open in Redis, each with what is told of it; the journal may lack them."""
        kept = pairs(await self._batch.submit("HGETALL", self._names.open))
        return {key.decode(): value.decode().split() for key, value in kept if key.decode().rpartition("-")[0] == writer}

    def _end(self, intent: str, now: float) -> Record:
        """Return the end of an intent of which no more than its name is known."""
        at, account = rfc3339(now), self._names.account
        return Record(stage="abort", at=at, account=account, intent=intent, result="unknown", problem="unknown_outcome")

    async def _ship(self, writer: str, first: int) -> bool:
        """Send a journal from a number on; say whether Redis took it, and not another's records in its place."""
        chunk: list[Link] = []
        expected = -1
        # Of an intent that was made under an idempotency key, the third word names it.
        claimed = {intent: words[2] for intent, words in (await self._open_in_redis(writer)).items() if len(words) > 2}
        for path in segment_paths(self._folder, writer):
            for link, _ in read_lines(path, []):
                if link.seq < first:
                    continue
                chunk.append(self._settling(link, claimed) if link.closes in claimed else link)
                if len(chunk) == _AT_ONCE:
                    if not await self._send(writer, chunk, expected):
                        return False
                    expected, chunk = chunk[-1].seq + 1, []
        return not chunk or await self._send(writer, chunk, expected)

    def _settling(self, link: Link, claimed: Mapping[str, str]) -> Link:
        """Let a record that closes a call settle its claim too: with what the record tells, whatever the vendor's words were."""
        record = _read_record(link.record)
        answer = keep(_retold(record)) if record.stage == "outcome" else b"" if record.stage == "refusal" else None
        if answer is None:
            return link
        return link._replace(claim=Claim(self._names.once(claimed[link.closes]), "", answer, self._keep_ms))

    async def _send(self, writer: str, links: list[Link], expected: int) -> bool:
        commands: list[tuple[Any, ...]] = []
        for link in links:
            # Before the first stands what is sealed; before others, lines that were damaged.
            sent = AGAIN if link.seq == expected else RESUMED
            commands.append(append_command(self._names, writer, link, sent, known=bool(commands)))
            expected = link.seq + 1
        try:
            answers: list[Any] = await asyncio.gather(*(self._batch.submit(*words) for words in commands))
        except NoScriptError:
            raise LedgerDown("script") from None  # It was forgotten amid them; the next look sends what is left.
        if any(answer[0] == b"gap" for answer in answers):
            raise LedgerDown("gap")  # Redis lost records meanwhile; the next look finds out from where.
        return all(answer[0] == b"appended" for answer in answers)


def _retold(record: Record) -> Outcome:
    """Return an outcome as far as its record tells it."""
    request_id, problem = record.request_id or "", Problem.__members__.get(record.problem or "")
    if record.problem is None and record.operation is not None:
        return carried_out(None, record.operation, request_id, record.upstream_status)
    refusal = Refusal(
        problem or Problem.internal,
        vendor_code=record.code,
        upstream_status=record.upstream_status,
        retry_after_seconds=record.retry_after_seconds,
    )
    return outcome_of(refusal, request_id)


def _behind(writer: str, tip: bytes) -> Chain:
    """Return a writer's chain as it goes on behind the newest record in the stream."""
    return Chain(writer, read_tip(tip) + 1, tip.partition(b" ")[2].decode())
