"""`gateway audit`: the newest records, and every record that fits."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractAsyncContextManager
from typing import Final

from gateway.cli.opened import Opened, instant, with_store
from gateway.ledger.registry import TAG
from gateway.trail.search import Query, Row, Trail
from gateway.trail.table import record_table, show

_TAIL: Final = 20


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


def _trail(arguments: argparse.Namespace, opened: Opened) -> AbstractAsyncContextManager[Trail]:
    if arguments.account == TAG:
        return opened.trail([TAG])
    accounts = opened.accounts(arguments.account)
    return opened.trail(accounts if arguments.account else [*accounts, TAG])


def _query(arguments: argparse.Namespace, opened: Opened) -> Query:
    return Query(
        pseudonym=opened.pseudonym("--number", arguments.number) if arguments.number else None,
        service=arguments.service,
        key_id=arguments.key_id,
        source=arguments.source,
        decision=arguments.decision,
        result=arguments.result,
        code=arguments.code,
        problem=arguments.problem,
        request_id=arguments.request_id,
        since=instant("--since", arguments.since),
        until=instant("--until", arguments.until),
    )


def _print(rows: list[Row], as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        show(record_table(rows, heading))
