"""What proves operators and auditors to the console: keys with a role, of which only a digest is kept.

`gc_<role>_<id>_<secret>`, in form and strength the callers' key.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from typing import Any, Final, Literal

import msgspec

from gateway import keys
from gateway.audit import change
from gateway.ledger.connect import pairs
from gateway.ledger.names import KEYS_TAG
from gateway.ledger.registry import Changed
from gateway.opened import Opened, UsageError

Role = Literal["auditor", "operator"]
ROLES: Final[tuple[Role, ...]] = ("auditor", "operator")
"""Each may do what those before it may."""
PREFIX: Final = "gc_"
_HASH: Final = f"gw:{{{KEYS_TAG}}}:console:keys"
_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_DAY_SECONDS: Final = 86_400


class ConsoleKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one key."""

    key_id: str
    name: str
    """Who holds it, as records name the holder behind `console:`."""
    role: Role
    digest: str
    """Lower-case hex SHA-256 of the secret."""
    created_at: float
    """Unix seconds, like those below."""
    created_by: str
    expires_at: float | None = None
    """None: never."""
    revoked_at: float | None = None

    def state(self, now: float) -> Literal["live", "expired", "revoked"]:
        """Say whether it is good at an instant in Unix seconds."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "live"

    def public(self, now: float) -> dict[str, Any]:
        """Return what may be shown of it."""
        return {
            "id": self.key_id,
            "name": self.name,
            "role": self.role,
            "state": self.state(now),
            "created_at": self.created_at,
            "created_by": self.created_by,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
        }


_read = msgspec.json.Decoder(ConsoleKey).decode


async def issue(opened: Opened, name: str, role: Role, days: int | None, operator: str) -> tuple[ConsoleKey, str]:
    """Make a key, and return it with its text, which is shown once.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("NAME: must be 1 to 64 letters, digits, '.', '_', '@' or '-'")
    if days is not None and not 1 <= days <= 3650:
        raise UsageError("--days: must be from 1 to 3650")
    now, key_id = time.time(), keys.mint_id(secrets.choice)
    text, secret = keys.mint(secrets.choice, key_id, environment=role, prefix=PREFIX)
    key = ConsoleKey(
        key_id=key_id, name=name, role=role, digest=keys.digest(secret), created_at=now, created_by=operator,
        expires_at=now + days * _DAY_SECONDS if days else None,
    )  # fmt: skip
    await _save(opened, b"", key, "console.key_issued", operator)
    return key, text


async def list_keys(opened: Opened) -> list[ConsoleKey]:
    """Return every key by name and age. Raises: Refusal `ledger_unavailable`."""
    async with opened.client() as client:
        kept = [_read(entry) for _, entry in pairs(await client.hgetall(_HASH))]
    return sorted(kept, key=lambda key: (key.name, key.created_at))


async def revoke(opened: Opened, name: str, operator: str) -> ConsoleKey:
    """Revoke the key of an id, or the only live one of a name; its sessions end with their next request.

    Raises: UsageError, Refusal `ledger_unavailable`.
    """
    now = time.time()
    kept = await list_keys(opened)
    found = [key for key in kept if key.key_id == name] or [key for key in kept if key.name == name and key.state(now) == "live"]
    if not found:
        raise UsageError(f"'{name}' is neither the id of a key nor a name that has a live one; see `gateway console list`")
    if len(found) > 1:
        raise UsageError(f"{name} has several keys: name one by its id, {' or '.join(key.key_id for key in found)}")
    revoked = msgspec.structs.replace(found[0], revoked_at=found[0].revoked_at or now)
    await _save(opened, msgspec.json.encode(found[0]), revoked, "console.key_revoked", operator)
    return revoked


async def key_of(client: Any, key_id: str) -> ConsoleKey | None:
    """Return a key by its id."""
    entry = await client.hget(_HASH, key_id)
    return None if entry is None else _read(entry)


async def proved(client: Any, text: str, now: float) -> tuple[ConsoleKey | None, str]:
    """Return the live key that was shown, or None; and what the trail is to say of it where there is none."""
    presented = keys.parse(text.strip(), PREFIX)
    if presented is None:
        return None, "no key of the console"
    key = await key_of(client, presented.key_id)
    if key is None or not hmac.compare_digest(key.digest, presented.digest):
        return None, "unknown key"
    state = key.state(now)
    return (key, "") if state == "live" else (None, f"{state} key {key.key_id} of {key.name}")


async def _save(opened: Opened, before: bytes, key: ConsoleKey, what: str, operator: str) -> None:
    record = change(
        what,
        at=time.time(),
        request_id=secrets.token_hex(16),
        account=KEYS_TAG,
        operator=operator,
        key_id=key.key_id,
        subject=key.name,
        after=key.role,
    )
    try:
        await opened.registry.replace(_HASH, key.key_id, before, msgspec.json.encode(key), record)
    except Changed:
        raise UsageError("somebody else is changing this key; try again") from None
