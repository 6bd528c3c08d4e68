"""`gateway audit`: the newest records, and every record that fits."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from gateway.app import read_pseudonym_key
from gateway.cli.opened import Opened, UsageError, span, with_store
from gateway.ledger.connect import opened as opened_client
from gateway.ledger.registry import TAG
from gateway.ledger.store import Names
from gateway.numbers import Pseudonyms, read_number
from gateway.trail.search import Query, Row, Trail
from gateway.trail.table import record_table, show
from gateway.vault import read_secret

_TAIL: Final = 20
_READ_SECONDS: Final = 30.0


def add_audit(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway audit`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sought = argparse.ArgumentParser(add_help=False, parents=[configured])
    sought.add_argument("--number", help="in any way of writing it")
    sought.add_argument("--service")
    sought.add_argument("--key-id")
    sought.add_argument("--account", help="one vendor account, or :keys for the changes of keys; all if not given")
    sought.add_argument("--source", help="IP address of the caller")
    sought.add_argument("--decision", choices=("allowed", "denied"))
    sought.add_argument("--result", choices=("answered", "refused", "failed", "unknown"))
    sought.add_argument("--code", type=int, help="the vendor's code")
    sought.add_argument("--problem", help="slug of the error table")
    sought.add_argument("--request-id")
    sought.add_argument("--since", metavar="WHEN", help="1h, 7d, or a time")
    sought.add_argument("--until", metavar="WHEN")
    sought.add_argument("--json", action="store_true", help="one JSON object a line")
    command = commands.add_parser("tail", parents=[sought], help="the newest records")
    command.add_argument("--follow", "-f", action="store_true")
    command.add_argument("--count", "-n", type=int, default=_TAIL)
    command.set_defaults(run=_tail)
    command = commands.add_parser("search", parents=[sought], help="every record that fits; status 1 if there is none")
    command.set_defaults(run=_search)


def _tail(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = _query(arguments, opened)
        async with _trail(arguments, opened) as trail:
            rows, last = await trail.newest(query, arguments.count)
            _print(rows, arguments.json)
            if arguments.follow:
                async for row in trail.follow(query, last):
                    _print([row], arguments.json, heading=False)
        return 0

    return with_store(arguments, work)


def _search(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = _query(arguments, opened)
        async with _trail(arguments, opened) as trail:
            rows = []
            async for row in trail.search(query):
                rows.append(row)
                if arguments.json:
                    _print([row], arguments.json)
        if not arguments.json:
            _print(rows, arguments.json)
        return 0 if rows else 1

    return with_store(arguments, work)


@asynccontextmanager
async def _trail(arguments: argparse.Namespace, opened: Opened) -> AsyncIterator[Trail]:
    """Open a connection to the audit streams, without the short time-outs of the hot path."""
    settings = opened.settings
    if arguments.account not in (None, TAG, *settings.accounts):
        raise UsageError(f"--account: there is no [accounts.{arguments.account}]; there are {', '.join(settings.accounts)}")
    accounts = [arguments.account] if arguments.account else [*settings.accounts, TAG]
    password = read_secret(settings.redis.password, os.environ) if settings.redis.password else None
    async with opened_client(settings.redis, password, read_seconds=_READ_SECONDS) as client:
        yield Trail(client, [Names(account).audit for account in accounts])


def _query(arguments: argparse.Namespace, opened: Opened) -> Query:
    pseudonym = None
    if arguments.number:
        number = read_number(arguments.number, opened.settings.validation.default_region)
        if number is None:
            raise UsageError("--number: is not a telephone number; write it like +919876543210")
        key = read_pseudonym_key(opened.settings, os.environ, opened.folder)
        pseudonym = Pseudonyms(key, opened.settings.audit.pseudonym_key_id).of(number.e164)
    return Query(
        pseudonym=pseudonym,
        service=arguments.service,
        key_id=arguments.key_id,
        source=arguments.source,
        decision=arguments.decision,
        result=arguments.result,
        code=arguments.code,
        problem=arguments.problem,
        request_id=arguments.request_id,
        since=_instant("--since", arguments.since),
        until=_instant("--until", arguments.until),
    )


def _instant(name: str, text: str | None) -> float | None:
    """Return Unix seconds of `1h` (ago) or of an ISO 8601 time; without a zone it is UTC."""
    if text is None:
        return None
    if re.fullmatch(r"\d+[smhdw]", text):
        return time.time() - span(text)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{name}: must be a span like 1h or 7d, or a time like 2030-01-31T12:00:00Z") from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _print(rows: list[Row], as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        show(record_table(rows, heading))
