"""Live changes of the log's levels in Redis: they stand beside the keys, and each ends by itself.

Every process reads them once a second; what Redis no longer tells, while it is away, still ends when it was to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.ledger.connect import pairs
from gateway.ledger.writer import Script

# KEYS: levels. Returns {now, {module, change, module, change, …}}; a change is when it ends, in microseconds, and what it is.
READ: Final = """
local clock = redis.call('TIME')
return {clock[1] * 1000000 + clock[2], redis.call('HGETALL', KEYS[1])}
"""
# KEYS: tips, audit stream, levels. ARGV: those of the record, then the module, what it is changed to ('' for what the settings
# say), and for how many microseconds.
SAVE: Final = Script("""
local behind = append_first()
if behind then return behind end
if ARGV[9] == '' then
  redis.call('HDEL', KEYS[3], ARGV[8])
else
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[3], ARGV[8], string.format('%.0f', clock[1] * 1000000 + clock[2] + ARGV[10]) .. ' ' .. ARGV[9])
end
return {'saved'}
""")


class _Kept(msgspec.Struct):
    level: str
    operator: str
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One live change of a level."""

    level: str
    left_seconds: float
    """Until it ends."""
    operator: str
    why: str | None = None


def words(module: str, change: Change | None) -> tuple[str, bytes, int]:
    """Return the words of `SAVE` behind those of the record; None: what the settings say."""
    if change is None:
        return module, b"", 0
    kept = _Kept(change.level, change.operator, change.why)
    return module, msgspec.json.encode(kept), int(change.left_seconds * 1_000_000)


def read_levels(answer: Sequence[Any]) -> dict[str, Change]:
    """Return what the script `READ` answered and has not ended, by module; a change that cannot be read counts as none."""
    now, raw = answer
    found: dict[str, Change] = {}
    for module, text in pairs(raw):
        until, _, encoded = text.partition(b" ")
        try:
            kept, left = msgspec.json.decode(encoded, type=_Kept), (int(until) - now) / 1_000_000
        except (msgspec.MsgspecError, ValueError):
            continue
        if left > 0:
            found[module.decode()] = Change(kept.level, left, kept.operator, kept.why)
    return found
