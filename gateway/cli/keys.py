"""`gateway keys`: issue, rotate, extend, list and revoke callers' keys."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway import addresses, keys, signatures
from gateway.cli.opened import operator, tell, with_store
from gateway.config import PREFIX
from gateway.keyring import change_key, extend, key_record, list_keys, public, revoke
from gateway.keys import KeyEntry, KeyVersion
from gateway.model import OPERATIONS, Bindings
from gateway.opened import Opened, UsageError, span
from gateway.trail.table import key_table

_ONCE: Final = "Shown once. Send it as 'Authorization: Bearer', as 'X-API-Key', as 'ssid', or as 'userId' and 'token'."


def add_keys(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway keys`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = argparse.ArgumentParser(add_help=False, parents=[configured])
    made.add_argument("--expires", metavar="SPAN", help="e.g. 90d; never if not given")
    made.add_argument("--public-key", metavar="FILE", help="PEM; requests are then signed with the private key")
    made.add_argument("--environment", default="live", choices=("live", "test"))
    made.add_argument("--json", action="store_true")

    command = commands.add_parser("issue", parents=[made], help="make a key for a service; it is shown once")
    command.add_argument("service")
    command.add_argument("--scope", action="append", choices=OPERATIONS, help="may be given twice; both if not given")
    command.add_argument("--account", action="append", default=[], help="vendor account it may use; the service's if not given")
    command.add_argument("--network", action="append", default=[], help="network it may be used from, like 10.0.0.0/8")
    command.add_argument("--prefix", action="append", default=[], help="beginning its numbers must have, like +9198")
    command.add_argument("--note", default="")
    command.set_defaults(run=_issue)

    command = commands.add_parser("rotate", parents=[made], help="add a secret to a key; the old one ends after the overlap")
    command.add_argument("key", metavar="SERVICE|ID")
    command.add_argument("--overlap", metavar="SPAN", default="7d", help="how long both are good; 7d if not given")
    command.set_defaults(run=_rotate)

    command = commands.add_parser("extend", parents=[configured], help="change when a key, or one version of it, ends")
    command.add_argument("key", metavar="ID[.VERSION]")
    command.add_argument("span", metavar="SPAN", help="from now, e.g. 7d; or never")
    command.set_defaults(run=_extend)

    command = commands.add_parser("list", parents=[configured], help="show every key and its use, never a secret")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_list)

    command = commands.add_parser("revoke", parents=[configured], help="end a key, or one version of it, at once, everywhere")
    command.add_argument("key", metavar="ID[.VERSION]")
    command.set_defaults(run=_revoke)


def _issue(arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", arguments.service):
        raise UsageError("service: must be 1 to 64 letters, digits, '.', '_' or '-'")

    async def work(opened: Opened) -> int:
        key_id = keys.mint_id(secrets.choice)
        version, shown = _version(arguments, key_id, 1)
        entry = KeyEntry(key_id, arguments.service, (version,), _bindings(arguments, opened), arguments.note)
        await opened.registry.refresh()
        await opened.registry.save(entry, key_record("key.issued", operator(), entry, version))
        return _shown(arguments, entry, version, shown)

    return with_store(arguments, work)


def _rotate(arguments: argparse.Namespace) -> int:
    overlap = span(arguments.overlap)

    async def work(opened: Opened) -> int:
        shown: dict[str, str] = {}

        def rotated(entry: KeyEntry) -> KeyEntry:
            if entry.versions[-1].public_key and not arguments.public_key:
                raise UsageError(f"{entry.key_id} signs requests: pass the new key with --public-key")
            version, fresh = _version(arguments, entry.key_id, entry.versions[-1].number + 1)
            shown.update(fresh)
            return entry.rotated(version, overlap)

        entry = await change_key(opened, "key.rotated", operator(), lambda: _one_key(opened, arguments.key), rotated)
        return _shown(arguments, entry, entry.versions[-1], shown)

    return with_store(arguments, work)


def _extend(arguments: argparse.Namespace) -> int:
    end = None if arguments.span == "never" else time.time() + span(arguments.span)

    async def work(opened: Opened) -> int:
        entry = await extend(opened, arguments.key, end, operator())
        ends = "never ends" if end is None else f"ends in {arguments.span}"
        print(f"{arguments.key} of {entry.service} {ends}; what is revoked stays so")
        return 0

    return with_store(arguments, work)


def _list(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        tell(await list_keys(opened), key_table, as_json=arguments.json)
        if opened.registry.unreadable:
            print(f"gateway: entries that cannot be read: {', '.join(opened.registry.unreadable)}", file=sys.stderr)
            return 1
        return 0

    return with_store(arguments, work)


def _revoke(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        done = await revoke(opened, arguments.key, operator())
        print(f"revoked {arguments.key} of {done.entry.service}; {done.under_way or 'no'} calls under it are still under way")
        if behind := done.replicas_behind:
            print(f"gateway: {behind} replicas of Redis lack it; a failover to one would undo it: revoke again", file=sys.stderr)
            return 1
        return 0

    return with_store(arguments, work)


def _version(arguments: argparse.Namespace, key_id: str, number: int) -> tuple[KeyVersion, dict[str, str]]:
    """Return a new version of a key, and what is shown of it once."""
    now = time.time()
    fresh = KeyVersion(
        number, now, expires_at=now + span(arguments.expires) if arguments.expires else None, created_by=operator()
    )
    if arguments.public_key:
        try:
            pem = Path(arguments.public_key).read_text(encoding="ascii")
            signatures.read_public_key(pem)
        except ValueError as error:
            raise UsageError(f"--public-key: {error}") from None
        return replace(fresh, public_key=pem), {}
    key, secret = keys.mint(secrets.choice, key_id, environment=arguments.environment)
    return replace(fresh, digest=keys.digest(secret)), {"key": key, "secret": secret}


def _bindings(arguments: argparse.Namespace, opened: Opened) -> Bindings:
    for account in arguments.account:
        if account not in opened.settings.accounts:
            raise UsageError(f"--account: there is no [accounts.{account}]; there are {', '.join(opened.settings.accounts)}")
    for network in arguments.network:
        try:
            addresses.read_network(network)
        except ValueError:
            raise UsageError(f"--network: '{network}' is not a network like 10.0.0.0/8") from None
    for prefix in arguments.prefix:
        if not re.fullmatch(PREFIX, prefix):
            raise UsageError(f"--prefix: '{prefix}' is not the beginning of a number with country code, like +9198")
    scopes = frozenset(arguments.scope or OPERATIONS)
    return Bindings(scopes, tuple(arguments.account), tuple(arguments.network), tuple(arguments.prefix))


def _one_key(opened: Opened, name: str) -> KeyEntry:
    """Return the key of an id, or the only live one of a service. Raises: UsageError."""
    entries = opened.registry.current.entries
    if name in entries:
        return entries[name]
    now = time.time()
    live = [
        entry
        for entry in entries.values()
        if entry.service == name and any(version.state(now) == "live" for version in entry.versions)
    ]
    if len(live) == 1:
        return live[0]
    if not live:
        raise UsageError(f"'{name}' is neither the id of a key nor a service that has a live one; see `gateway keys list`")
    raise UsageError(f"{name} has several keys: name one by its id, {' or '.join(entry.key_id for entry in live)}")


def _shown(arguments: argparse.Namespace, entry: KeyEntry, version: KeyVersion, shown: dict[str, str]) -> int:
    if arguments.json:
        print(json.dumps({**shown, **public(entry, version)}))
    elif shown:
        print(f"key      {shown['key']}\nuserId   {entry.key_id}\ntoken    {shown['secret']}\n{_ONCE}")
    else:
        print(f"keyid    {entry.key_id}\nSign requests with the private key and this keyid (RFC 9421).")
    return 0
