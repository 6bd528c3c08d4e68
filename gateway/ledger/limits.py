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
from gateway.ledger.connect import pairs
from gateway.ledger.writer import Script

# KEYS: changes, version. Returns {version, now, {target, change, target, change, …}}.
READ: Final = """
local clock = redis.call('TIME')
return {redis.call('GET', KEYS[2]) or '', clock[1] * 1000000 + clock[2], redis.call('HGETALL', KEYS[1])}
"""
# KEYS: tips, audit stream, changes, version. ARGV: those of the first record, then the version that was read, how many targets
# have ended, how many are changed, those that have ended, each changed one with what is changed of it ('': nothing any more),
# then the other records. Returns {'saved', the version it made}, or {'stale'} where somebody else made one meanwhile.
SAVE: Final = Script("""
local ended, first = tonumber(ARGV[9]), 11 + tonumber(ARGV[9])
local last = first + 2 * tonumber(ARGV[10]) - 1
local behind = append_first()
for i = last + 1, #ARGV, 4 do
  if behind then return behind end
  behind = append(KEYS[1], KEYS[2], ARGV[1], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[2], ARGV[i + 3])
end
if behind then return behind end
local version = redis.call('GET', KEYS[4]) or ''
if version ~= ARGV[8] then return {'stale'} end
for i = 11, first - 1 do redis.call('HDEL', KEYS[3], ARGV[i]) end
for i = first, last, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[3], ARGV[i]) else redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
end
-- An instant: after a failover that lost changes, a counter could name two states alike.
local clock = redis.call('TIME')
version = string.format('%.0f', math.max(tonumber(version) or 0, clock[1] * 1000000 + clock[2] - 1) + 1)
redis.call('SET', KEYS[4], version)
return {'saved', version}
""")
DRILL: Final = "!drill"
"""Stands where a policy's name stands; no policy can have it."""
_POLICY: Final = "policy"
"""Names the whole policy among the terms that end apart."""


class Change(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One live change, as it is kept."""

    terms: dict[str, Any] = {}
    """As in the settings."""
    policy: dict[str, Any] | None = None
    """A whole policy in place of the settings'."""
    until_us: int
    """Microseconds of Redis' clock at which it ends."""
    ends: dict[str, int] = {}
    """The same, of those terms that were set before the others and end apart from them."""
    operator: str
    why: str

    def with_terms(self, terms: dict[str, Any], until_us: int, operator: str, why: str) -> Change:
        """Return it with other terms beside those it has; each ends when it was said to."""
        kept = {name: self.ends.get(name, self.until_us) for name in self.terms}
        if self.policy is not None:
            kept[_POLICY] = self.ends.get(_POLICY, self.until_us)
        ends = {**kept, **dict.fromkeys(terms, until_us)}
        last = max(ends.values())
        return Change(
            terms={**self.terms, **terms}, policy=self.policy, until_us=last, operator=operator, why=why,
            ends={name: end for name, end in ends.items() if end != last},
        )  # fmt: skip

    def at(self, now_us: int) -> Change | None:
        """Return what of it has not ended; None: nothing."""
        over = {name for name, end in self.ends.items() if end <= now_us}
        if self.until_us <= now_us or not over:
            return None if self.until_us <= now_us else self
        terms = {name: value for name, value in self.terms.items() if name not in over}
        ends = {name: end for name, end in self.ends.items() if name not in over}
        return msgspec.structs.replace(self, terms=terms, policy=None if _POLICY in over else self.policy, ends=ends)


Made = tuple[str, Change | None, Record]
"""A target, what is changed of it (None: nothing any more), and the record of that."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is kept, as it was read once."""

    version: str
    now_us: int
    """Redis' clock."""
    by_target: Mapping[str, Change]
    """What has not ended, by `POLICY` or `POLICY:SUBJECT`."""
    ended: tuple[bytes, ...] = ()
    """Targets of what has."""

    def at(self, now_us: int) -> Changes:
        """Return them as they are later."""
        found = {target: left for target, change in self.by_target.items() if (left := change.at(now_us)) is not None}
        return Changes(self.version, now_us, found, self.ended)


def read_changes(answer: Sequence[Any]) -> Changes:
    """Return what the script `READ` answered; a change that cannot be read counts as none."""
    version, now, raw = answer
    found: dict[str, Change] = {}
    ended = []
    for target, encoded in pairs(raw):
        try:
            change = msgspec.json.decode(encoded, type=Change)
            if (left := change.at(now)) is None:
                ended.append(target)
            else:
                found[target.decode()] = left
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return Changes(version.decode(), now, found, tuple(ended))


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
            if change.terms:
                terms[target] = read_terms(change.terms)
        except ConfigError:
            continue  # Written by a newer gateway, say; the settings hold.
    first = min((end for change in changes.by_target.values() for end in (change.until_us, *change.ends.values())), default=0)
    return Live(changes.version, first, policies, terms, drill)


def encode(before: Changes, made: Sequence[Made]) -> list[Any]:
    """Return the words of `SAVE` between its first record and the others."""
    targets = [word for target, change, _ in made for word in (target, b"" if change is None else msgspec.json.encode(change))]
    return [before.version, len(before.ended), len(made), *before.ended, *targets]
