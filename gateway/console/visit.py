"""What a page is given, and what it gives back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gateway.audit import change
from gateway.console.keys import Role
from gateway.console.sessions import Session
from gateway.console.verifier import Verifier
from gateway.ledger.names import KEYS_TAG
from gateway.opened import Opened


class Missing(Exception):
    """There is nothing at this address. The message is one line for who asked."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page, by somebody who may have it."""

    opened: Opened
    """What the settings name; open until the answer is made."""
    session: Session | None
    """None on pages that need no role."""
    path: Mapping[str, str]
    """The parts of the path that the route leaves open."""
    query: Mapping[str, str]
    form: Mapping[str, str]
    """Of a POST, whose origin and token were checked."""
    source: str
    """Address it came from; empty where that is not known."""
    now: float
    """Unix seconds."""
    verifier: Verifier
    """Of the whole console."""
    redis_away: bool = False
    """Whether Redis did not answer when it was asked who this is."""
    under_way: str = ""
    """Id of a sign-in elsewhere that this browser began; empty: none."""

    @property
    def who(self) -> str:
        """Who asks, as records name an operator."""
        return self.session.who if self.session is not None else ""

    async def record(self, what: str, **told: Any) -> None:
        """Record what somebody did here, and return when Redis has it. `told`: as `audit.change` takes it.

        Raises: Refusal `ledger_unavailable`.
        """
        told = {"operator": self.who, "source": self.source or None, **told}
        record = change(what, at=self.now, request_id=secrets.token_hex(16), account=KEYS_TAG, **told)
        await self.opened.registry.record(record)


@dataclass(frozen=True, slots=True)
class View:
    """A page. The same `data` fills the template and is what the page's `.json` holds: plain values, no secret."""

    template: str
    title: str
    data: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Go:
    """Another page to go to, after something was done."""

    path: str
    """Of ours; or another site's address, for signing in there."""
    notice: str = ""
    """One line that the next page tells."""
    begins: str | None = None
    """Id of a session that begins with this."""
    ends: bool = False
    """Whether the session ends with this."""
    under_way: str | None = None
    """Id of a sign-in elsewhere that begins with this; the browser brings it back."""
    from_here: bool = False
    """Whether a page of ours leads there: what another site's redirect leads to is not given the session's cookie."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file, made while it is sent."""

    name: str
    """Letters, digits, dots, dashes and underscores."""
    media_type: str
    parts: Callable[[Opened], AsyncIterator[bytes]]
    """Given what the settings name, opened for as long as the file takes."""


class Route(NamedTuple):
    """One row of the table of routes."""

    method: Literal["GET", "POST"]
    path: str
    role: Role | None
    """Who may have it; None: anybody."""
    page: Callable[[Visit], Awaitable[View | Go | Download]]
    twin: bool = True
    """Of a GET: whether it is had as JSON too."""
    outlives_redis: bool = False
    """Whether it goes on without Redis, for who was signed in a little while ago."""
