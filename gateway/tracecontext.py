"""W3C Trace Context: whom a caller's headers say it was asked by, and the trace of the call that runs now.

A `traceparent` that breaks the rules is none, and takes its `tracestate` with it; a `tracestate` that does is none alone
(https://www.w3.org/TR/trace-context/, sections 3.2, 3.3 and 4.3). Of a later version what version 00 has is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

SCOPE_KEY: Final = "gateway.trace"
"""Where in an ASGI scope a request's `Running` stands, if spans are made of it."""
_PARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY: Final = r"[a-z0-9][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_MEMBER: Final = re.compile(rf"({_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])")
_MEMBERS_MAX: Final = 32
_STATE_MAX: Final = 512
_LONG_MEMBER: Final = 128
"""Of a state that is too long, members longer than this go first."""
# Ids of other systems hold runs of digits by chance; what is neither such an id nor free of them could be a number or a key.
_HEX_ID: Final = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_TELLING: Final = re.compile(r"(?:[0-9][^0-9a-zA-Z]*){9}|gk_")


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's own place in a trace."""

    trace_id: str
    """32 hex digits, not all zero."""
    span_id: str
    """16 hex digits, not all zero."""
    sampled: bool
    """Whether the caller's own spans are kept."""
    state: tuple[tuple[str, str], ...] = ()
    """What other tracing systems keep of the trace: at most 32 members and 512 characters, in order."""


@dataclass(slots=True)
class Running:
    """The trace of one call, for as long as it runs."""

    trace_id: str
    span_id: str | None = None
    """The gateway's own; None where it makes no spans."""
    over: bool = False
    """Work that a call began may outlive it, and is then no longer its."""


RUNNING: Final[ContextVar[Running | None]] = ContextVar("running", default=None)
"""The trace of the call that runs now, by which its lines of the log are marked."""


def running_ids() -> dict[str, str]:
    """Return `trace_id`, and `span_id` where there is one, of the call that runs now; empty where none does."""
    running = RUNNING.get()
    if running is None or running.over:
        return {}
    return {"trace_id": running.trace_id} | ({"span_id": running.span_id} if running.span_id else {})


def read_parent(parents: Sequence[str], states: Sequence[str] = ()) -> Parent | None:
    """Return what every `traceparent` and every `tracestate` of a request say together; None: nothing that holds."""
    found = _whole(parents)
    return Parent(found[2], found[3], bool(int(found[4], 16) & 1), read_state(states)) if found else None


def read_trace_id(parents: Sequence[str]) -> str | None:
    """Return the trace's id alone, of every `traceparent` of a request."""
    found = _whole(parents)
    return found[2] if found else None


def read_state(states: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the members of `tracestate`, without those that could tell a number or a key, and cut to what is kept."""
    texts = [text for state in states for member in state.split(",") if (text := member.strip(" \t"))]
    if len(texts) > _MEMBERS_MAX:
        return ()
    members = []
    for text in texts:
        found = _MEMBER.fullmatch(text)
        if found is None:
            return ()
        members.append((found[1], found[2]))
    if len({key for key, _ in members}) < len(members):
        return ()
    return _cut([member for member in members if not any(map(_may_tell, member))])


def _whole(parents: Sequence[str]) -> re.Match[str] | None:
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    return None if found is None or (found[1] == "00" and found[5]) else found


def _may_tell(text: str) -> bool:
    return _TELLING.search(text) is not None and not _HEX_ID.fullmatch(text)


def _cut(members: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if _length(members) > _STATE_MAX:
        members = [member for member in members if _length([member]) <= _LONG_MEMBER]
    while _length(members) > _STATE_MAX:
        members.pop()
    return tuple(members)


def _length(members: Sequence[tuple[str, str]]) -> int:
    """Return the characters of members as they are written: `key=value`, with commas between them."""
    return sum(len(key) + len(value) + 2 for key, value in members) - 1
