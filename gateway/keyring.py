"""The keys of callers, as operators see and change them: every change recorded, whoever makes it and from where."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway import audit
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.names import KEYS_TAG
from gateway.ledger.registry import Changed, KeyUse
from gateway.opened import Opened, UsageError

_TRIES: Final = 5
_DAY_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key that was revoked, or one version of it."""

    entry: KeyEntry
    under_way: int
    """Calls admitted under it before that have not ended."""
    replicas_behind: int
    """Replicas of Redis that lack it: a failover to one would undo it."""


async def list_keys(opened: Opened) -> list[dict[str, Any]]:
    """Return every version of every key with its use, never a secret, by service and age.

    Raises: Refusal `ledger_unavailable`.
    """
    await opened.registry.refresh()
    uses = await opened.registry.uses()
    entries = sorted(opened.registry.current.entries.values(), key=lambda entry: (entry.service, entry.versions[0].created_at))
    of_service: dict[str, list[str]] = {}
    for entry in entries:
        of_service.setdefault(entry.service, []).extend(f"{entry.key_id}.{version.number}" for version in entry.versions)
    return [row for entry in entries for row in _rows(opened, entry, of_service[entry.service], uses)]


async def revoke(opened: Opened, name: str, operator: str, why: str | None = None, wait_seconds: float | None = None) -> Revoked:
    """Revoke `id` or `id.version`; in force on every process when this returns, and no call under it goes on but those told.

    Calls under way are waited for as long as one may take, or for `wait_seconds`.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """

    def revoked(entry: KeyEntry) -> KeyEntry:
        return entry.revoked(time.time(), version_number(name, entry))

    # Also where it was revoked before: that time it may not have come into force everywhere.
    entry = await change_key(opened, "key.revoked", operator, lambda: key_by_id(opened, name), revoked, why)
    longest = opened.settings.upstream.longest_ms / 1000 + 1
    under_way = await opened.registry.in_flight(entry.key_id, version_number(name, entry), longest, wait_seconds)
    return Revoked(entry, under_way, await opened.registry.replicas_behind())


async def extend(opened: Opened, name: str, end: float | None, operator: str, why: str | None = None) -> KeyEntry:
    """Change when `id` or `id.version` ends: Unix seconds, None: never. What is revoked stays so.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """

    def extended(entry: KeyEntry) -> KeyEntry:
        number = version_number(name, entry)
        versions = tuple(
            replace(version, expires_at=end) if number in (None, version.number) else version for version in entry.versions
        )
        return replace(entry, versions=versions)

    return await change_key(opened, "key.extended", operator, lambda: key_by_id(opened, name), extended, why)


async def change_key(
    opened: Opened,
    what: str,
    operator: str,
    find: Callable[[], KeyEntry],
    make: Callable[[KeyEntry], KeyEntry],
    why: str | None = None,
) -> KeyEntry:
    """Change a key as it is now, again from the start when somebody else changed it meanwhile.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """
    for _ in range(_TRIES):
        await opened.registry.refresh()
        entry = make(find())
        version = entry.versions[-1] if what == "key.rotated" else None
        try:
            await opened.registry.save(entry, key_record(what, operator, entry, version, why))
        except Changed:
            continue
        return entry
    raise UsageError("somebody else is changing this key; try again")


def key_by_id(opened: Opened, text: str) -> KeyEntry:
    """Return the key that `id` or `id.version` names. Raises: UsageError."""
    entry = opened.registry.current.entries.get(text.partition(".")[0])
    if entry is None:
        raise UsageError(f"id: there is no key '{text}'; see `gateway keys list`")
    version_number(text, entry)
    return entry


def version_number(text: str, entry: KeyEntry) -> int | None:
    """Return the version in `id.version`, None where all are meant. Raises: UsageError."""
    number = text.partition(".")[2]
    if not number:
        return None
    if number not in {str(version.number) for version in entry.versions}:
        raise UsageError(f"id: {entry.key_id} has no version '{number}'; see `gateway keys list`")
    return int(number)


def key_record(what: str, operator: str, entry: KeyEntry, version: KeyVersion | None, why: str | None = None) -> audit.Record:
    """Return the record of a change of a key."""
    return audit.change(
        what,
        at=time.time(),
        request_id=secrets.token_hex(16),
        account=KEYS_TAG,
        operator=operator,
        service=entry.service,
        key_id=entry.key_id,
        key_version=version.number if version else None,
        why=why,
    )


def _rows(opened: Opened, entry: KeyEntry, of_service: list[str], uses: dict[str, KeyUse]) -> list[dict[str, Any]]:
    """Return what is listed of each version of a key."""
    now = time.time()
    hour = sum(uses[name].last_hour for name in of_service if name in uses)
    day = sum(uses[name].last_day for name in of_service if name in uses)
    rows = []
    for version in entry.versions:
        use = uses.get(f"{entry.key_id}.{version.number}", KeyUse(None, 0, 0))
        quiet_since = max(use.last_used_at or 0.0, version.created_at)
        quiet = now - quiet_since >= opened.settings.keys.quiet_hours * 3600
        ends_in = None if version.expires_at is None else version.expires_at - now
        live = version.state(now) == "live"
        rows.append(
            public(entry, version)
            | {
                "last_used_at": use.last_used_at,
                "share_last_hour": round(use.last_hour / hour, 4) if hour else None,
                "share_last_day": round(use.last_day / day, 4) if day else None,
                "ends_soon": live and ends_in is not None and ends_in <= opened.settings.keys.expiry_warning_days * _DAY_SECONDS,
                "safe_to_revoke": live and quiet,
            }
        )
    return rows


def public(entry: KeyEntry, version: KeyVersion) -> dict[str, Any]:
    """Return what may be shown of one version of a key."""
    return {
        "id": entry.key_id,
        "version": version.number,
        "service": entry.service,
        "proof": "signature" if version.public_key else "key",
        "state": version.state(time.time()),
        "scopes": sorted(entry.bindings.scopes),
        "accounts": entry.bindings.accounts,
        "networks": entry.bindings.networks,
        "prefixes": entry.bindings.prefixes,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "expires_at": version.expires_at,
        "revoked_at": version.revoked_at,
        "note": entry.note,
    }
