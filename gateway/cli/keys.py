"""`gateway keys`: issue, list and revoke callers' keys."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import secrets
import time
from dataclasses import replace
from typing import Any

from gateway import keys
from gateway.cli.opened import Opened, UsageError, span, with_ledger
from gateway.keys import KeyEntry
from gateway.model import OPERATIONS
from gateway.trail.table import key_table, show


def add_keys(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway keys`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("issue", parents=[configured], help="make a key for a service; it is shown once")
    command.add_argument("service")
    command.add_argument("--scope", action="append", choices=OPERATIONS, help="may be given twice; both if not given")
    command.add_argument("--expires", metavar="SPAN", help="e.g. 90d; never if not given")
    command.add_argument("--note", default="")
    command.add_argument("--environment", default="live", choices=("live", "test"))
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_issue)
    command = commands.add_parser("list", parents=[configured], help="show every key, never a secret")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_list)
    command = commands.add_parser("revoke", parents=[configured], help="end a key at once, everywhere")
    command.add_argument("id")
    command.set_defaults(run=_revoke)


def _issue(arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", arguments.service):
        raise UsageError("service: must be 1 to 64 letters, digits, '.', '_' or '-'")
    now = time.time()
    key, key_id, secret = keys.mint(secrets.choice, environment=arguments.environment)
    entry = KeyEntry(
        key_id=key_id,
        service=arguments.service,
        digest=keys.digest(secret),
        scopes=frozenset(arguments.scope or OPERATIONS),
        created_at=now,
        expires_at=now + span(arguments.expires) if arguments.expires else None,
        created_by=_operator(),
        note=arguments.note,
    )

    async def work(opened: Opened) -> int:
        await opened.ledger.issue(entry)
        if arguments.json:
            print(json.dumps({"key": key, "id": key_id, "secret": secret, **_public(entry)}))
        else:
            print(f"key      {key}\nuserId   {key_id}\ntoken    {secret}")
            print("Shown once. Send it as 'Authorization: Bearer', as 'X-API-Key', as 'ssid', or as 'userId' and 'token'.")
        return 0

    return with_ledger(arguments, work)


def _list(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        await opened.ledger.refresh()
        entries = sorted(opened.ledger.registry.entries.values(), key=lambda entry: (entry.service, entry.created_at))
        if arguments.json:
            for entry in entries:
                print(json.dumps(_public(entry)))
        else:
            show(key_table([_public(entry) for entry in entries]))
        return 0

    return with_ledger(arguments, work)


def _revoke(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        await opened.ledger.refresh()
        entry = opened.ledger.registry.entries.get(arguments.id)
        if entry is None:
            raise UsageError(f"id: there is no key '{arguments.id}'; see `gateway keys list`")
        if entry.revoked_at is None:
            await opened.ledger.issue(replace(entry, revoked_at=time.time()))
        print(f"revoked {entry.key_id} of {entry.service}")
        return 0

    return with_ledger(arguments, work)


def _public(entry: KeyEntry) -> dict[str, Any]:
    state = "revoked" if entry.revoked_at else "expired" if entry.expires_at and entry.expires_at <= time.time() else "live"
    return {
        "id": entry.key_id,
        "service": entry.service,
        "state": state,
        "scopes": sorted(entry.scopes),
        "created_at": entry.created_at,
        "created_by": entry.created_by,
        "expires_at": entry.expires_at,
        "revoked_at": entry.revoked_at,
        "note": entry.note,
    }


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
