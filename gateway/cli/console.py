"""`gateway console`: serve the console, issue, list and revoke the keys to it, and sign people out."""

from __future__ import annotations

import argparse
import json
import os
import time

from gateway.addresses import is_within
from gateway.cli.opened import operator, tell, with_store
from gateway.console import keys
from gateway.console.app import create_console
from gateway.console.sessions import end_all
from gateway.console.tops import prepare
from gateway.opened import Opened, UsageError
from gateway.server import bind, serve_one
from gateway.stores import archive_folder
from gateway.telemetry import make_logger
from gateway.trail.table import minute, text_table

_LOOPBACK = ("127.0.0.0/8", "::1/128")


def add_console(parser: argparse.ArgumentParser, _: argparse.ArgumentParser) -> None:
    """Add the options and subcommands of `gateway console`; it serves where none is given."""
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.set_defaults(run=serve)
    commands = parser.add_subparsers(metavar="COMMAND")
    # Named before the subcommand or behind it: what is not named behind it must not undo what was named before.
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
    command = commands.add_parser("issue", parents=[configured], help="make a key to the console; it is shown once")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--role", required=True, choices=("auditor", "operator"))
    command.add_argument("--days", type=int, metavar="N", help="how long it is good; for ever if not given")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=issue)
    command = commands.add_parser("list", parents=[configured], help="show every key to the console, never a secret")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=list_)
    command = commands.add_parser("revoke", parents=[configured], help="end a key to the console, and its sessions")
    command.add_argument("key", metavar="NAME|ID")
    command.set_defaults(run=revoke)
    command = commands.add_parser("sign-out", parents=[configured], help="end all sessions of somebody, however signed in")
    command.add_argument("who", metavar="WHO", help="as records name them: oidc:ada@example.com")
    command.set_defaults(run=sign_out)


def serve(arguments: argparse.Namespace) -> int:
    """Serve the pages until SIGTERM or SIGINT."""

    async def work(opened: Opened) -> int:
        settings = opened.settings
        host = arguments.host or settings.console.host
        if not settings.console.public_url and host != "localhost" and not is_within(host, _LOOPBACK):
            raise UsageError(
                "console.public_url: is missing; where the console listens beyond this machine, say by which https:// address "
                "browsers reach it"
            )
        if settings.console.oidc.client_secret is not None:
            opened.secret(settings.console.oidc.client_secret)  # Told now, and not to the first who signs in.
        listener = bind(host, settings.console.port if arguments.port is None else arguments.port)
        address, port = listener.getsockname()[:2]
        log = make_logger(settings.log.level)
        log.info("console.listening", address=f"http://{address}:{port}")
        prepare(archive_folder(settings, os.environ))
        try:
            await serve_one(create_console(settings, opened.folder, log, port), listener, settings.server)
        finally:
            listener.close()
        return 0

    return with_store(arguments, work)


def issue(arguments: argparse.Namespace) -> int:
    """Make a key; it is shown once."""

    async def work(opened: Opened) -> int:
        key, text = await keys.issue(opened, arguments.name, arguments.role, arguments.days, operator())
        if arguments.json:
            print(json.dumps({"key": text, **key.public(time.time())}))
        else:
            print(f"{text}\nShown once. {key.name} signs in with it, as {key.role}.")
        return 0

    return with_store(arguments, work)


def list_(arguments: argparse.Namespace) -> int:
    """Show every key, never a secret."""

    async def work(opened: Opened) -> int:
        now = time.time()
        rows = [key.public(now) for key in await keys.list_keys(opened)]
        columns = ("id", "name", "role", "state", "created_at", "created_by", "expires_at")
        shown = [
            [minute(row[name]) if name.endswith("_at") and row[name] else row[name] or "–" for name in columns] for row in rows
        ]
        tell(rows, lambda _: text_table([name.replace("_", " ") for name in columns], shown), as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def revoke(arguments: argparse.Namespace) -> int:
    """End a key, and with their next request its sessions."""

    async def work(opened: Opened) -> int:
        key = await keys.revoke(opened, arguments.key, operator())
        print(f"revoked {key.key_id} of {key.name}; whoever is signed in with it is so no more")
        return 0

    return with_store(arguments, work)


def sign_out(arguments: argparse.Namespace) -> int:
    """End all sessions of somebody, with their next request; whether they may sign in anew is another matter."""

    async def work(opened: Opened) -> int:
        await end_all(opened, arguments.who, operator())
        print(f"signed out {arguments.who}; to keep them out, revoke their key or take their role away at the provider")
        return 0

    return with_store(arguments, work)
