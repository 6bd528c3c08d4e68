"""Live changes of an account's limits in Redis: how processes read them, and how operators make them.

A change raises the version that every admission is compared with, so that no process decides by the old limits again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.admission import Live
from gateway.audit import Record
from gateway.config import ConfigError, Policy, Terms, read_policies, read_terms

# KEYS: changes, version. Returns {version, now, target, change, target, change, …}.
READ: Final = """
local clock = redis.call('TIME')
return {redis.call('GET', KEYS[2]) or '', clock[1] * 1000000 + clock[2], unpack(redis.call('HGETALL', KEYS[1]))}
"""
# KEYS: changes, version, audit stream. ARGV: the version that was read, then for each change its target, itself ('': none
# any more) and its record. Returns the version it made, or '' where somebody else made one meanwhile.
SAVE: Final = """
local version = redis.call('GET', KEYS[2]) or ''
if version ~= ARGV[1] then return '' end
for i = 2, #ARGV, 3 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i]) else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('XADD', KEYS[3], '*', 'r', ARGV[i + 2])
end
-- An instant: after a failover that lost changes, a counter could name two states alike.
local clock = redis.call('TIME')
version = string.format('%.0f', math.max(tonumber(version) or 0, clock[1] * 1000000 + clock[2] - 1) + 1)
redis.call('SET', KEYS[2], version)
return version
"""
DRILL: Final = "!drill"
"""Stands where a policy's name stands; no policy can have it."""


class Change(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One live change, as it is kept."""

    terms: dict[str, Any] = {}
    """As in the settings."""
    policy: dict[str, Any] | None = None
    """A whole policy in place of the settings'; `terms` is empty then."""
    until_us: int
    """Microseconds of Redis' clock at which it ends."""
    operator: str
    why: str


Made = tuple[str, Change | None, Record]
"""A target, what is changed of it (None: nothing any more), and the record of that."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is kept, as it was read once."""

    version: str
    now_us: int
    """Redis' clock."""
    by_target: Mapping[str, Change]
    """That have not ended, by `POLICY` or `POLICY:SUBJECT`."""


def read_changes(answer: Sequence[Any]) -> Changes:
    """Return what the script `READ` answered; a change that cannot be read counts as none."""
    version, now, *pairs = answer
    found = {}
    for target, encoded in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            change = msgspec.json.decode(encoded, type=Change)
        except msgspec.MsgspecError:
            continue
        if change.until_us > now:
            found[target.decode()] = change
    return Changes(version.decode(), now, found)


def live(changes: Changes) -> Live:
    """Return changes as the stages decide by them."""
    policies: dict[str, Policy] = {}
    terms: dict[str, Terms] = {}
    drill = 0
    for target, change in changes.by_target.items():
        if target == DRILL:
            drill = change.until_us
            continue
        try:
            if change.policy is not None:
                policies |= read_policies({target: change.policy})
            else:
                terms[target] = read_terms(change.terms)
        except ConfigError:
            continue  # Written by a newer gateway, say; the settings hold.
    first = min((change.until_us for change in changes.by_target.values()), default=0)
    return Live(changes.version, first, policies, terms, drill)


def encode(records: Sequence[Made]) -> list[Any]:
    """Return the arguments of `SAVE` behind the version."""
    return [
        argument
        for target, change, record in records
        for argument in (target, b"" if change is None else msgspec.json.encode(change), msgspec.json.encode(record))
    ]
