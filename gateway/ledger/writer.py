"""Brings one writer's records into its account's stream: each once, in their order, whatever Redis forgets meanwhile.

Every record goes to the journal first. As long as Redis takes what it is sent, records are sent as they are made. After an
answer that did not come, or that says that records are missing, they are sent again from the first one that Redis lacks,
by the same script, which leaves out what it has; new ones queue up behind.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import islice
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from gateway.audit import Record
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.chain import Chain, Claim, Link
from gateway.ledger.journal import Journal
from gateway.ledger.names import Names

_AT_ONCE: Final = 500
_MENDED_MAX: Final = 5
FIRST, AGAIN, RESUMED = "first", "again", "resumed"


class Script:
    """A script that records, by its text and its digest."""

    def __init__(self, body: str) -> None:
        """`body` follows on `append.lua`."""
        self.text = (resources.files("gateway.ledger") / "append.lua").read_text(encoding="utf-8") + body
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# KEYS: tips, audit stream, open intents, the claim of the call's idempotency key, where it has one. ARGV: writer, how the record
# is sent, seq, prev, hash, record, its id, what it opens ('': nothing), the intent it closes ('': none); of a claim: its owner
# ('': whichever call's last try is closed), the answer to be kept ('': the claim ends), milliseconds it is kept.
# A claim is settled as its intent is closed: between the two a repeated call would look like one of which nobody knows.
APPEND: Final = Script("""
local behind, last = append_first()
if behind then return behind end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[3], ARGV[7], ARGV[8]) end
if ARGV[9] ~= '' then redis.call('HDEL', KEYS[3], ARGV[9]) end
if KEYS[4] then
  local head, owner, intent = string.match(redis.call('GET', KEYS[4]) or '', '^(%x+ (%S+) (%S+) %d+ )')
  if owner == ARGV[10] or (ARGV[10] == '' and intent == ARGV[9]) then
    if ARGV[11] == '' then redis.call('DEL', KEYS[4]) else redis.call('SET', KEYS[4], head .. ARGV[11], 'PX', ARGV[12]) end
  end
end
return {'appended', last}
""")


class TrailWriter:
    """One writer of an account's trail."""

    def __init__(
        self,
        names: Names,
        writer: str,
        journal: Journal,
        batch: Batch,
        now: Callable[[], float],
        alarm: Callable[[str], None],
        opening: Callable[[str], Record],
    ) -> None:
        """Sends nothing. `now` is a monotonic clock; `alarm(event)` is told what somebody should look at.

        `opening(why)` makes the first record of a writer that goes on under another name.
        """
        self._names = names
        self._chain = Chain(writer)
        self.journal = journal
        self._batch = batch
        self._now = now
        self._alarm = alarm
        self._opening = opening
        self._waiting: deque[Link] = deque()
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._first_missing: int | None = None
        """Number from which the journal is to be read again: Redis had these records, and lost them."""
        self._resumes_at: int | None = None
        self._in_order = True
        """Whether Redis has, or was sent, all records there are."""
        self._catching_up: asyncio.Task[None] | None = None
        self._open: dict[int, None] = {}
        """Numbers of the intents that nothing has closed, in their order."""
        self._told_again: dict[str, Link] = {}
        """By their ids of before: records that were told again under another name."""
        self.taken = -1
        """Number of the newest record that Redis is known to have taken."""
        self.sealed = -1
        """Number of the newest record that is sealed."""

    @property
    def name(self) -> str:
        """Name of this writer in the trail."""
        return self._chain.writer

    @property
    def last(self) -> int:
        """Number of its newest record; -1: it has none."""
        return self._chain.seq - 1

    @property
    def next_id(self) -> str:
        """Id that the next record will have."""
        return f"{self._chain.writer}-{self._chain.seq}"

    @property
    def waiting(self) -> int:
        """How many records Redis is not known to have."""
        return len(self._waiting)

    @property
    def done(self) -> int:
        """Number up to which all is sealed and no intent is open: of that a heir would need nothing."""
        return min(self.sealed, next(iter(self._open), self._chain.seq) - 1)

    @property
    def behind(self) -> bool:
        """Whether records wait that are not on their way."""
        return not self._in_order

    @property
    def full(self) -> bool:
        """Whether as much waits for Redis as may."""
        return self.used_ratio >= 1

    @property
    def used_ratio(self) -> float:
        """How much of what may wait for Redis does, by bytes or by time; 1 and more: all of it."""
        bounds = self.journal.bounds
        used = self._waiting_bytes / bounds.bytes_max
        return max(used, (self._now() - self._waiting_since) / bounds.seconds_max) if self._waiting else used

    @property
    def unsealed(self) -> int:
        """How many of its records are not known to be sealed."""
        return self.last - self.sealed

    def write(self, record: Record, opens: str = "", claim: Claim | None = None) -> Link:
        """Take a record into the chain and the journal, without sending it."""
        if record.intent in self._told_again:
            record.intent = f"{self.name}-{self._told_again[record.intent].seq}"
        link = self._chain.link(record, opens)
        if claim is not None:
            link = link._replace(claim=claim)
        if record.stage == "intent":
            self._open[link.seq] = None
        elif link.closes:
            writer, _, number = link.closes.rpartition("-")
            if writer == self.name:
                self._open.pop(int(number), None)
        self.journal.add(link)
        if not self._waiting:
            self._waiting_since = self._now()
        self._waiting.append(link)
        self._waiting_bytes += len(link.record)
        return link

    def send(self, record: Record, claim: Claim | None = None) -> None:
        """Take a record and bring it to Redis, at once or when Redis is there again; no caller waits for it."""
        link = self.write(record, claim=claim)
        if not self._in_order or self._batch.down:
            self._fall_behind()
            return
        name = self.name

        def answered(future: asyncio.Future[Any]) -> None:
            answer = None if _failed(future) else future.result()
            if answer is not None and answer[0] == b"appended":
                if name == self.name:
                    self._taken(link.seq)
                return
            if answer is not None:
                self._mend(name, answer)
            self._fall_behind()

        # Nobody waits for a record; but who asks another process under the same key is to find its answer.
        sent = self._batch.submit(*append_command(self._names, name, link, FIRST), hurry=link.claim is not None)
        sent.add_done_callback(answered)

    async def run(
        self,
        script: Script,
        record: Record,
        keys: Sequence[str],
        words: Sequence[Any],
        *,
        opens: str = "",
        more: Sequence[Record] = (),
    ) -> Any:
        """Take records, and run a script that appends them and does more; return the script's answer.

        Those that were taken before are appended where that was not done yet.

        The script has the keys `tips` and `audit stream` before `keys`; the words `writer, how they are sent, seq, prev, hash,
        record, id` of the first record before `words`, and `seq, prev, hash, record` of each of the others after them.
        `opens`: what the first one leaves open. Raises: LedgerDown, ResponseError, after which they are in the chain all the
        same.
        """
        taken = (record, *more)
        sent, known = (AGAIN if record.seq >= 0 else FIRST), True
        links = [self._link(one, opens if one is record else "") for one in taken]
        if not self._in_order:
            links, sent = await self._reached(links, taken), AGAIN
        while True:
            name = self.name
            names = (self._names.tips, self._names.audit, *keys)
            others = (word for link in links[1:] for word in (link.seq, link.prev, link.hash, link.record))
            how = ("EVALSHA", script.sha) if known else ("EVAL", script.text)
            try:
                answer = await self._batch.submit(
                    *how, len(names), *names, name, sent, *link_words(links[0]), record.id, *words, *others
                )
            except NoScriptError:
                # A restart or failover forgot it. Nothing was run, but what was sent behind it may be there first.
                known = False
            except (LedgerDown, ResponseError):
                self._fall_behind()
                raise
            else:
                if answer[0] not in (b"gap", b"fork"):
                    if name == self.name:
                        self._taken(links[-1].seq)
                    return answer
                self._mend(name, answer)
            self._fall_behind()
            links, sent = await self._reached(links, taken), AGAIN

    def _link(self, record: Record, opens: str) -> Link:
        if record.seq < 0:
            return self.write(record, opens)
        link, _ = Link.read(msgspec.json.encode(record))
        return self._told_again.get(record.id, link)

    async def catch_up(self) -> None:
        """Return when Redis has all there is. Raises: LedgerDown, ResponseError."""
        while self._waiting or self._first_missing is not None:
            await asyncio.shield(self._catching_up or self._begin_catching_up())

    def lost(self, tip: int) -> None:
        """Learn the number of the newest record of ours that Redis has; what it had and has lost is sent again."""
        if tip < self.taken:
            self._alarm("trail.redis_lost_records")
            self._first_missing = tip + 1
            self.taken = max(tip, self.sealed)
            self._fall_behind()

    async def _reached(self, links: list[Link], records: Sequence[Record]) -> list[Link]:
        """Return when Redis has some records; as the links they are now, where they were told again under another name."""
        while True:
            links = [self._told_again.get(record.id, link) for link, record in zip(links, records, strict=True)]
            for link, record in zip(links, records, strict=True):
                record.writer, record.seq, record.prev = self.name, link.seq, link.prev
            if self.taken >= links[-1].seq:
                return links
            await self.catch_up()

    def _fall_behind(self) -> None:
        """Send records one behind the other from the first that Redis lacks, before any new one is sent."""
        self._in_order = False
        if not self._batch.down and self._catching_up is None:
            self._begin_catching_up()

    def _begin_catching_up(self) -> asyncio.Task[None]:
        self._catching_up = task = asyncio.create_task(self._catch_up())
        task.add_done_callback(_read_error)
        return task

    async def _catch_up(self) -> None:
        mended = 0
        try:
            while self._waiting or self._first_missing is not None:
                self._read_missing()
                name, links = self.name, list(islice(self._waiting, _AT_ONCE))
                # The first by its text: where Redis forgot the script, the others find it again.
                commands = [
                    append_command(self._names, name, link, self._how(link), known=number > 0)
                    for number, link in enumerate(links)
                ]
                answers = await asyncio.gather(*(self._batch.submit(*words) for words in commands), return_exceptions=True)
                if name != self.name:
                    continue
                wrong = next((number for number, answer in enumerate(answers) if not self._is_ours(answer)), None)
                # Of another writer's records the first may look like ours: none of them counts before all were looked at.
                good = links if wrong is None else [] if _is_fork(answers[wrong]) else links[:wrong]
                if good:
                    self._taken(good[-1].seq)
                if wrong is None:
                    continue
                answer = answers[wrong]
                if isinstance(answer, NoScriptError):
                    continue  # It was forgotten amid them; what is first now brings it again.
                if isinstance(answer, BaseException):
                    raise answer
                mended += 1
                if mended > _MENDED_MAX:
                    raise LedgerDown("gap")
                self._mend(name, answer)
            self._in_order = True
        finally:
            self._catching_up = None

    def _is_ours(self, answer: Any) -> bool:
        """Say whether a record stands in the stream, and nobody wrote under our name further than we did."""
        return not isinstance(answer, BaseException) and answer[0] == b"appended" and answer[1] < self._chain.seq

    def _mend(self, name: str, answer: Sequence[Any]) -> None:
        """Find out how to go on where a record, sent under a name, did not follow on what Redis has."""
        if name != self.name:
            return
        if _is_fork(answer):
            self._take_another_name()
            return
        tip = int(answer[1])
        if self.taken > max(tip, self.sealed):
            self._alarm("trail.redis_lost_records")
            self.taken = max(tip, self.sealed)
        self._first_missing = tip + 1

    def _read_missing(self) -> None:
        """Put before what waits whatever Redis had and lost, as far as the journal still has it and it is not sealed."""
        if self._first_missing is None:
            return
        first, self._first_missing = self._first_missing, None
        end = self._waiting[0].seq if self._waiting else self._chain.seq
        found: list[Link] = []
        closed: list[str] = []
        try:
            self.journal.write()
            for link in self.journal.read_from(first):
                if link.seq >= end:
                    break
                if link.seq > self.sealed:
                    found.append(link)
                elif link.closes:
                    closed.append(link.closes)
        except OSError:
            self._alarm("trail.journal_unreadable")
        if closed:
            # What sealed records closed is not to be open in Redis again: once this process is killed, it would be closed twice.
            self._batch.submit("HDEL", self._names.open, *closed).add_done_callback(_failed)
        self._waiting.extendleft(reversed(found))
        self._waiting_bytes += sum(len(link.record) for link in found)
        if self._waiting:
            # What stands before it is sealed; or it is lost, and the trail will show it.
            self._resumes_at = self._waiting[0].seq

    def _take_another_name(self) -> None:
        """Go on as another writer: somebody else writes under this name. What nobody took is told again under the new one."""
        self._alarm("trail.forked")
        before, waiting = self.name, list(self._waiting)
        self._chain = self._chain.begun_anew()
        self.journal = self.journal.begun_anew(self.name)
        self._waiting.clear()
        self._waiting_bytes, self.taken, self.sealed = 0, -1, -1
        self._first_missing = self._resumes_at = None
        self._open.clear()
        self.write(self._opening(f"instead of {before}"))
        for link in waiting:
            record = msgspec.json.decode(link.record, type=Record)
            self._told_again[f"{before}-{link.seq}"] = self.write(record, link.opens, link.claim)

    def _how(self, link: Link) -> str:
        return RESUMED if link.seq == self._resumes_at else AGAIN

    def _taken(self, seq: int) -> None:
        self.taken = max(self.taken, seq)
        while self._waiting and self._waiting[0].seq <= seq:
            self._waiting_bytes -= len(self._waiting.popleft().record)
        self._waiting_since = self._now()


def append_command(names: Names, writer: str, link: Link, sent: str, *, known: bool = True) -> tuple[Any, ...]:
    """Return the command that appends one record; `known`: whether Redis has the script."""
    keys: tuple[str, ...] = (names.tips, names.audit, names.open)
    how = ("EVALSHA", APPEND.sha) if known else ("EVAL", APPEND.text)
    told: tuple[Any, ...] = (writer, sent, *link_words(link), f"{writer}-{link.seq}", link.opens, link.closes)
    if link.claim is not None:
        name, *of_claim = link.claim
        keys, told = (*keys, name), (*told, *of_claim)
    return (*how, len(keys), *keys, *told)


def link_words(link: Link) -> tuple[Any, ...]:
    """Return the words of a link that every script that records takes."""
    return link.seq, link.prev, link.hash, link.record


def _is_fork(answer: Any) -> bool:
    return not isinstance(answer, BaseException) and answer[0] != b"gap"


def _failed(future: asyncio.Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None


def _read_error(task: asyncio.Task[None]) -> None:
    """Look at how a task ended: who waits for it is told too, and nobody may be waiting."""
    if not task.cancelled():
        task.exception()
