"""What Redis tells of itself and of an account, asked rarely and with bounds: for pages, not for calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.ledger.chain import read_tip
from gateway.ledger.connect import FAULTS, pairs
from gateway.ledger.names import Names
from gateway.model import SLOTS, Slot

_LOOKED_AT_MAX: Final = 1000
_LAST_INSTANT: Final = 253_402_300_799
"""The end of year 9999, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """One server; None where it does not tell, as a cluster of many does not."""

    version: str | None = None
    memory_bytes: int | None = None
    memory_max_bytes: int | None = None
    """0: no bound."""
    policy: str | None = None
    """What it drops once memory is full; only `noeviction` keeps records."""
    append_only: bool | None = None
    last_write_ok: bool | None = None
    replicas: int | None = None

    @property
    def durable(self) -> bool | None:
        """Say whether it keeps what it acknowledged."""
        if self.append_only is None or self.policy is None:
            return None
        return self.append_only and self.policy == "noeviction" and self.last_write_ok is not False


@dataclass(frozen=True, slots=True)
class AccountHealth:
    """One vendor account. Times are Unix seconds."""

    account: str
    active: Slot
    writers: tuple[tuple[str, float], ...]
    """Processes that serve, each with when it last said so; the newest first."""
    open_intents: int
    oldest_open: float | None
    """None: none is open, or none of those that were looked at tells."""
    tried: Mapping[Slot, tuple[float, str | None]]
    """By slot when its credential was tried last, and which version of it; nothing of one that never was."""
    unsealed: int | None
    """Records that no sealer told to have sealed; None: there are too many writers to ask."""


async def store_health(client: Any) -> StoreHealth:
    """Return what a server tells."""
    try:
        info = await client.info()
    except FAULTS:
        return StoreHealth()
    if not isinstance(info.get("redis_version"), str):
        return StoreHealth()
    return StoreHealth(
        version=info.get("valkey_version", info["redis_version"]),
        memory_bytes=info.get("used_memory"),
        memory_max_bytes=info.get("maxmemory"),
        policy=info.get("maxmemory_policy"),
        append_only=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
        last_write_ok=info["aof_last_write_status"] == "ok" if "aof_last_write_status" in info else None,
        replicas=info.get("connected_slaves"),
    )


async def account_health(client: Any, account: str) -> AccountHealth:
    """Return how it is with an account. Raises: redis-py's errors."""
    names = Names(account)
    slot = await client.get(names.slot)
    beats = await client.zrevrange(names.processes, 0, _LOOKED_AT_MAX - 1, withscores=True)
    _, looked_at = await client.hscan(names.open, count=_LOOKED_AT_MAX)
    begun = [at for value in looked_at.values() if (at := _instant(value.partition(b" ")[0], 1_000_000)) is not None]
    return AccountHealth(
        account=account,
        active=next((known for known in SLOTS if slot == known.encode()), SLOTS[0]),
        writers=tuple(
            (writer.decode(errors="replace"), at) for writer, score in beats if (at := _instant(score, 1_000_000)) is not None
        ),
        open_intents=await client.hlen(names.open),
        oldest_open=min(begun, default=None),
        tried=_tried(await client.zrange(names.tried, 0, -1, withscores=True)),
        unsealed=await _unsealed(client, names),
    )


def _tried(kept: Any) -> dict[Slot, tuple[float, str | None]]:
    found: dict[Slot, tuple[float, str | None]] = {}
    for name, score in kept:  # The newest last.
        told, _, version = name.partition(b" ")
        if (at := _instant(score)) is not None:
            found |= {slot: (at, version.decode(errors="replace") or None) for slot in SLOTS if told == slot.encode()}
    return found


def _instant(kept: Any, parts: int = 1) -> float | None:
    """Return Unix seconds that are kept in such parts of a second; None for what no gateway keeps."""
    with suppress(ValueError):
        seconds = float(kept) / parts
        return seconds if 0 <= seconds <= _LAST_INSTANT else None
    return None


async def _unsealed(client: Any, names: Names) -> int | None:
    if await client.hlen(names.tips) > _LOOKED_AT_MAX:
        return None
    sealed = {writer: int(seq) for writer, seq in pairs(await client.hgetall(names.sealed))}
    tips = pairs(await client.hgetall(names.tips))
    return sum(max(0, read_tip(tip) - sealed.get(writer, -1)) for writer, tip in tips)
