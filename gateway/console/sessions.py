"""Who is signed in: sessions in Redis, each under the digest of an id that the browser alone holds."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from gateway.audit import change
from gateway.config import Console
from gateway.console.keys import ROLES, Role, key_of
from gateway.ledger.names import KEYS_TAG
from gateway.ledger.registry import Changed
from gateway.opened import Opened, UsageError

_BASE: Final = f"gw:{{{KEYS_TAG}}}:console:session:"
_ENDED: Final = f"gw:{{{KEYS_TAG}}}:console:ended"
"""By who somebody is: how often all sessions were ended. A count and no time, since clocks differ."""
_KINDS: Final = ("console", "oidc")
_ID_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_NOTICE_SECONDS: Final = 60
_RECENT_MAX: Final = 1000


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody signed in."""

    who: str
    """As records name who did something: `console:NAME`."""
    role: Role
    csrf: str
    """Stands in every form of this session."""
    began_at: float
    """Unix seconds."""
    key_id: str | None = None
    """The console key that it rests on, and ends with; None where somebody was proved in another way."""
    ended_before: int = 0
    """How often all sessions of this one were ended before it began."""

    def may(self, role: Role) -> bool:
        """Say whether it may do what a role may."""
        return ROLES.index(self.role) >= ROLES.index(role)


_read = msgspec.json.Decoder(Session).decode


class Sessions:
    """The sessions, as one request works on them. Redis' faults go to whoever opened the client."""

    def __init__(self, client: Any, settings: Console) -> None:
        self._client = client
        self._idle_seconds = settings.session_idle_minutes * 60
        self._whole_seconds = settings.session_hours * 3600

    async def begin(self, who: str, role: Role, now: float, key_id: str | None = None) -> str:
        """Sign somebody in, and return the id for the browser. `now`: Unix seconds."""
        identity = secrets.token_urlsafe(_ID_BYTES)
        csrf, ended = secrets.token_urlsafe(_ID_BYTES), await self._times_ended(who)
        session = Session(who=who, role=role, csrf=csrf, began_at=now, key_id=key_id, ended_before=ended)
        await self._client.set(_name(identity), msgspec.json.encode(session), ex=min(self._idle_seconds, self._whole_seconds))
        return identity

    async def find(self, identity: str, now: float) -> Session | None:
        """Return a session that goes on, and let its idle time begin anew; None where there is none, or none any more."""
        kept = await self._client.get(_name(identity))
        if kept is None:
            return None
        session = _read(kept)
        left = session.began_at + self._whole_seconds - now
        ended = session.ended_before != await self._times_ended(session.who)
        if left <= 0 or ended or not await self._rests_on_a_live_key(session, now):
            await self.end(identity)
            return None
        await self._client.pexpire(_name(identity), int(min(self._idle_seconds, left) * 1000) + 1)
        return session

    async def end(self, identity: str) -> None:
        """Sign somebody out."""
        await self._client.delete(_name(identity), _name(identity) + ":notice")

    async def has_searched(self, session: Session, pseudonym: str) -> bool:
        """Say whether a search for a number was recorded in a session."""
        return bool(await self._client.sismember(_sought(session), pseudonym))

    async def note_searches(self, session: Session, pseudonyms: Sequence[str]) -> None:
        """Note that searches for numbers were recorded in a session."""
        await self._client.sadd(_sought(session), *pseudonyms)
        await self._client.expire(_sought(session), self._whole_seconds)

    async def leave_notice(self, identity: str, text: str) -> None:
        """Leave a line for the next page of a session."""
        await self._client.set(_name(identity) + ":notice", text, ex=_NOTICE_SECONDS)

    async def take_notice(self, identity: str) -> str:
        """Return the line that was left, once; empty where there is none."""
        name = _name(identity) + ":notice"
        left = await self._client.get(name)
        if left is not None:
            await self._client.delete(name)
        return left.decode() if left is not None else ""

    async def _times_ended(self, who: str) -> int:
        return int(await self._client.hget(_ENDED, who) or 0)

    async def _rests_on_a_live_key(self, session: Session, now: float) -> bool:
        if session.key_id is None:
            return True
        key = await key_of(self._client, session.key_id)
        return key is not None and key.state(now) == "live"


async def end_all(opened: Opened, who: str, operator: str) -> None:
    """End every session of somebody, named as records do, with its next request.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """
    kind, _, name = who.partition(":")
    if kind not in _KINDS or not name or not who.isprintable():
        raise UsageError("WHO: name somebody as records do, like oidc:ada@example.com or console:ada")
    async with opened.client() as client:
        before = await client.hget(_ENDED, who) or b""
    record = change(
        "console.sessions_ended",
        at=time.time(),
        request_id=secrets.token_hex(16),
        account=KEYS_TAG,
        operator=operator,
        subject=who,
    )
    try:
        await opened.registry.replace(_ENDED, who, before, str(int(before or 0) + 1).encode(), record)
    except Changed:
        raise UsageError("somebody else is ending these sessions; try again") from None


class Recent:
    """Who was signed in a little while ago, as this process saw it: for reading what is sealed while Redis is away.

    A session ends here as it would in Redis. Whose key is revoked meanwhile is not known; Redis is needed for that too.
    """

    def __init__(self, settings: Console) -> None:
        self._idle_seconds = settings.session_idle_minutes * 60
        self._whole_seconds = settings.session_hours * 3600
        self._seen: dict[str, tuple[Session, float]] = {}

    def note(self, identity: str, session: Session | None, now: float) -> None:
        """Note what Redis says of a session; None: there is none."""
        self._seen.pop(_name(identity), None)
        if session is not None:
            self._seen[_name(identity)] = session, now
        if len(self._seen) > _RECENT_MAX:
            del self._seen[next(iter(self._seen))]

    def find(self, identity: str, now: float) -> Session | None:
        """Return a session that went on when Redis was asked last, and would go on now."""
        session, seen_at = self._seen.get(_name(identity), (None, 0.0))
        if session is None or now - seen_at > self._idle_seconds or now - session.began_at > self._whole_seconds:
            return None
        return session


def known_id(text: str) -> str:
    """Return what a browser shows as its id, empty where it cannot be one."""
    return text if _ID.fullmatch(text) else ""


def _sought(session: Session) -> str:
    return f"{_BASE}{sha256(session.csrf.encode()).hexdigest()}:sought"


def _name(identity: str) -> str:
    return _BASE + sha256(identity.encode()).hexdigest()
