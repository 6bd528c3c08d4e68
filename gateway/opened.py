"""What operators work with, at a command line or in the console: what the settings name, opened for a while."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gateway.admission import Policies
from gateway.audit import search
from gateway.config import SecretReference, Settings
from gateway.errors import Complaint
from gateway.ledger import limits
from gateway.ledger.connect import connect, refusing
from gateway.ledger.names import KEYS_TAG, Names
from gateway.ledger.registry import KeyRegistry
from gateway.ledger.store import RedisLedger
from gateway.model import PhoneNumber, Secret
from gateway.numbers import Pseudonyms, may_tell, read_number
from gateway.stores import archive_folder, make_ledger, make_policies, make_registry, read_pseudonym_key
from gateway.telemetry import make_logger
from gateway.trail.archive import STATE, Reader
from gateway.trail.search import Trail
from gateway.vault import SecretUnreadable, read_secret

__all__ = ["Opened", "SecretUnreadable", "UsageError", "WrongField", "change_limits", "instant", "opening", "span"]

_PATIENT_MS: Final = 3000
_READ_SECONDS: Final = 30.0
_TRIES: Final = 5
_WHY_MAX: Final = 200
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class UsageError(Complaint):
    """What was asked for cannot be done as it was asked. The message is one line: the reason and the fix."""


class WrongField(UsageError):
    """One thing that was given is wrong. The message begins with its name."""

    def __init__(self, field: str, told: str) -> None:
        super().__init__(f"{field}: {told}")
        self.field, self.told = field, told


@dataclass(frozen=True)
class Opened:
    """What a command works with, for as long as it runs."""

    settings: Settings
    registry: KeyRegistry
    folder: Path
    stack: AsyncExitStack
    _ledgers: dict[str, RedisLedger] = field(default_factory=dict, init=False, repr=False)

    async def ledger(self, account: str) -> RedisLedger:
        """Return an account's ledger, closed when the command ends. Raises: UsageError."""
        if account not in self._ledgers:
            self.accounts(account)
            self._ledgers[account] = make_ledger(self.settings, account, os.environ, make_logger("silent"), self.folder)
            self.stack.push_async_callback(self._ledgers[account].aclose)
        return self._ledgers[account]

    def policies(self, account: str, changes: limits.Changes) -> Policies:
        """Return an account's limits as they are with these live changes. Raises: SecretUnreadable."""
        policies = make_policies(self.settings, account, self.pseudonyms)
        policies.adopt(limits.live(changes))
        return policies

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """What turns numbers into pseudonyms; its key is read once. Raises: SecretUnreadable."""
        return Pseudonyms(read_pseudonym_key(self.settings, os.environ, self.folder), self.settings.audit.pseudonym_key_id)

    def pseudonym(self, option: str, text: str) -> str:
        """Return the pseudonym of a number, in any way of writing it. Raises: WrongField, SecretUnreadable."""
        return self.pseudonyms.of(self.number(option, text).e164)

    def number(self, option: str, text: str) -> PhoneNumber:
        """Return a number, in any way of writing it. Raises: WrongField."""
        number = read_number(text, self.settings.validation.default_region)
        if number is None:
            raise WrongField(option, "is not a telephone number; write it like +919876543210")
        return number

    def pseudonyms_ever(self, number: PhoneNumber) -> tuple[str, ...]:
        """Return a number's pseudonyms, under the current key first, then under earlier ones. Raises: SecretUnreadable."""
        earlier = (Pseudonyms(read_secret(reference, os.environ), name) for name, reference in self.settings.audit.pseudonym_keys)
        return tuple(dict.fromkeys(keys.of(number.e164) for keys in (self.pseudonyms, *earlier)))

    async def search_number(self, option: str, text: str, operator: str, source: str | None = None) -> tuple[str, ...]:
        """Return a number's pseudonyms as `pseudonyms_ever`, once it is recorded who searches for it.

        Raises: UsageError, SecretUnreadable, Refusal `ledger_unavailable`.
        """
        number = self.number(option, text)
        pseudonyms = self.pseudonyms_ever(number)
        await self.record_search(pseudonyms[0], operator, source=source, number=number, pseudonym_key=self.pseudonyms.key_id)
        return pseudonyms

    async def record_search(self, pseudonym: str, operator: str, **told: Any) -> None:
        """Record that somebody searches for a number. `told`: as `search` takes it. Raises: Refusal `ledger_unavailable`."""
        request_id = secrets.token_hex(16)
        record = search(pseudonym, at=time.time(), request_id=request_id, account=KEYS_TAG, operator=operator, **told)
        await self.registry.record(record)

    def accounts(self, asked: str | None) -> list[str]:
        """Return the account that was asked for, or all. Raises: UsageError."""
        if asked is not None and asked not in self.settings.accounts:
            raise UsageError(f"--account: there is no [accounts.{asked}]; there are {', '.join(self.settings.accounts)}")
        return [asked] if asked is not None else list(self.settings.accounts)

    def one_account(self, asked: str | None) -> str:
        """Return the account that was asked for, or the only one. Raises: UsageError."""
        accounts = self.accounts(asked)
        if len(accounts) > 1:
            raise UsageError(f"--account: name one of {', '.join(accounts)}")
        return accounts[0]

    def trails(self, asked: str | None, *, by_number: bool) -> list[str]:
        """Return whose trails are searched for the account that was asked for, which may be `:keys`. Raises: UsageError."""
        if asked == KEYS_TAG:
            return [KEYS_TAG]
        accounts = self.accounts(asked)
        # Of a number the trail of keys tells nothing but who searched for it.
        return accounts if asked or by_number else [*accounts, KEYS_TAG]

    def secret(self, reference: SecretReference) -> Secret:
        """Return what a reference leads to. Raises: SecretUnreadable."""
        return read_secret(reference, os.environ)

    @asynccontextmanager
    async def trail(self, accounts: list[str]) -> AsyncIterator[Trail]:
        """Open the trail of some accounts: what is sealed, where it is on this machine, and what is live."""
        async with self.client() as client:
            yield Trail(client, [Names(account).audit for account in accounts], self.reader)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """Lend a client of Redis, the same to all who ask, without the short time-outs of the hot path.

        Raises: SecretUnreadable; Refusal `ledger_unavailable` in place of redis-py's errors.
        """
        with refusing():
            yield self._client

    @cached_property
    def _client(self) -> Any:
        redis = self.settings.redis
        connection = connect(redis, self.secret(redis.password) if redis.password else None, read_seconds=_READ_SECONDS)
        self.stack.push_async_callback(connection.aclose)
        return connection.client

    @cached_property
    def reader(self) -> Reader | None:
        """The sealed trail, closed when the command ends; None: it is not on this machine.

        Raises: ArchiveError, BrokenIndex, OSError.
        """
        folder = archive_folder(self.settings, os.environ)
        return self.stack.enter_context(Reader(folder)) if (folder / STATE).exists() else None

    @property
    def sealed(self) -> Reader:
        """The sealed trail, for what cannot do without. Raises: as `reader`, UsageError."""
        if self.reader is None:
            raise UsageError("there is no sealed trail on this machine: run this beside the sealer, or set audit.archive")
        return self.reader


@asynccontextmanager
async def opening(settings: Settings, folder: Path) -> AsyncIterator[Opened]:
    """Open what the settings name, for one command or one page; Redis is asked only when something is wanted of it.

    `folder`: for state. Raises: SecretUnreadable.
    """
    async with AsyncExitStack() as stack:
        # A person waits here, so a slow answer is better than none.
        patient = replace(settings, redis=replace(settings.redis, timeout_ms=max(_PATIENT_MS, settings.redis.timeout_ms)))
        registry = make_registry(patient, os.environ)
        stack.push_async_callback(registry.aclose)
        yield Opened(patient, registry, folder, stack)


async def change_limits(ledger: RedisLedger, decide: Callable[[limits.Changes], list[limits.Made]]) -> list[limits.Made]:
    """Make what is decided by the live changes there are, again where somebody else made some meanwhile; return it.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """
    for _ in range(_TRIES):
        changes = await ledger.changes()
        made = decide(changes)
        if not made or await ledger.change(changes, made):
            return made
    raise UsageError("the limits are being changed by somebody else; try again")


def instant(name: str, text: str | None) -> float | None:
    """Return Unix seconds of `1h` (ago) or of an ISO 8601 time; without a zone it is UTC. Raises: WrongField."""
    if text is None:
        return None
    if re.fullmatch(r"\d+[smhdw]", text):
        return max(0.0, time.time() - span(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise WrongField(name, "must be a span like 1h or 7d, or a time like 2030-01-31T12:00:00Z") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def read_why(text: str | None) -> str:
    """Return the reason of a change, as it may stand in the trail. Raises: WrongField."""
    why = (text or "").strip()
    if not why or len(why) > _WHY_MAX or not why.isprintable():
        raise WrongField("why", f"give the reason in at most {_WHY_MAX} printable characters; it stands in the audit trail")
    if may_tell(why):
        raise WrongField("why", "may hold a telephone number or a key; the audit trail must not")
    return why


def span(text: str) -> float:
    """Return the seconds of `30m`, `12h` or `90d`. Raises: UsageError."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise UsageError(f"'{text}' is not a span of time; write it like 30m, 12h or 90d")
    return int(match[1]) * float(_UNITS[match[2]])
