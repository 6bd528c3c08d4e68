"""`gateway audit`: the newest records, every record that fits, what nobody knows the outcome of, sums, and exports."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from gateway.cli.opened import operator, tell, with_store
from gateway.cli.seal import add_seal
from gateway.model import RESULTS
from gateway.opened import Opened, UsageError, instant
from gateway.trail.archive import write_whole
from gateway.trail.export import FORMATS, written
from gateway.trail.search import Query, Row, Trail
from gateway.trail.table import pseudonym_key_table, record_table, report_table, show

_TAIL: Final = 20
_PAGE: Final = 100
_EXPORTED_AT_ONCE: Final = 1000
_FOLLOW_SECONDS: Final = 1.0


def add_audit(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway audit`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    spanned = argparse.ArgumentParser(add_help=False, parents=[configured])
    spanned.add_argument("--since", metavar="WHEN", help="1h, 7d, or a time")
    spanned.add_argument("--until", metavar="WHEN")
    sought = argparse.ArgumentParser(add_help=False, parents=[spanned])
    sought.add_argument("--number", help="in any way of writing it; the search is recorded")
    sought.add_argument("--service")
    sought.add_argument("--key-id")
    sought.add_argument("--account", help="one vendor account, or :keys for keys and searches; all if not given")
    sought.add_argument("--source", help="IP address of the caller")
    sought.add_argument("--decision", choices=("allowed", "denied"))
    sought.add_argument("--result", choices=RESULTS)
    sought.add_argument("--code", type=int, help="the vendor's code")
    sought.add_argument("--problem", help="slug of the error table")
    sought.add_argument("--stage", help="intent, outcome, refusal, abort, change, search, open, close, …")
    sought.add_argument("--request-id")
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="one JSON object a line")

    command = commands.add_parser("tail", parents=[sought, shown], help="the newest records")
    command.add_argument("--follow", "-f", action="store_true")
    command.add_argument("--count", "-n", type=int, default=_TAIL)
    command.set_defaults(run=_tail)

    command = commands.add_parser("search", parents=[sought, shown], help="every record that fits; status 1 if there is none")
    command.add_argument(
        "--page", nargs="?", const="", metavar="OLDER", help=f"the newest {_PAGE} only, or those before a page that told OLDER"
    )
    command.set_defaults(run=_search)

    command = commands.add_parser(
        "unknown", parents=[spanned, shown], help="calls of which nobody knows whether the vendor acted; status 1 if there is one"
    )
    command.set_defaults(run=_unknown)

    command = commands.add_parser("report", parents=[spanned, shown], help="calls by service and day, from what is sealed")
    command.set_defaults(run=_report)

    command = commands.add_parser("export", parents=[sought], help="what is sealed, for other tools")
    command.add_argument("--format", choices=tuple(FORMATS), default="jsonl")
    command.add_argument("--cursor", type=Path, metavar="FILE", help="where to go on from, kept there; made at the first time")
    command.add_argument("--follow", "-f", action="store_true", help="go on with what is sealed from now on")
    command.set_defaults(run=_export)

    command = commands.add_parser("pseudonym-keys", parents=[configured, shown], help="which keys numbers are hidden with")
    command.set_defaults(run=_pseudonym_keys)
    add_seal(commands, configured)


def _tail(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = await _query(arguments, opened)
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
        query = await _query(arguments, opened)
        async with _trail(arguments, opened) as trail:
            if arguments.page is not None:
                return await _one_page(arguments, trail, query)
            rows = []
            async for row in trail.search(query):
                rows.append(row)
                if arguments.json:
                    _print([row], arguments.json)
        if not arguments.json:
            _print(rows, arguments.json)
        return 0 if rows else 1

    return with_store(arguments, work, reads_trail=True)


async def _one_page(arguments: argparse.Namespace, trail: Trail, query: Query) -> int:
    try:
        page = await trail.page(query, _PAGE, arguments.page or None)
    except ValueError as error:
        raise UsageError(f"--page: {error}") from None
    _print(page.rows, arguments.json)
    if page.older is not None:
        print(f"older: --page {page.older}", file=sys.stderr)
    return 0 if page.rows else 1


def _unknown(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = Query(result="unknown", since=instant("--since", arguments.since), until=instant("--until", arguments.until))
        async with opened.trail(opened.accounts(None)) as trail:
            rows = [row async for row in trail.search(query)]
        _print(rows, arguments.json)
        return 1 if rows else 0

    return with_store(arguments, work, reads_trail=True)


def _report(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        days = opened.sealed.index.report(instant("--since", arguments.since), instant("--until", arguments.until))
        tell([day._asdict() for day in days], report_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _export(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query, reader = await _query(arguments, opened), opened.sealed
        after = _read_cursor(arguments.cursor)
        write, left_out = FORMATS[arguments.format], 0
        if after < 0:
            sys.stdout.buffer.write(write.header)
        while True:
            size = reader.refresh()
            while found := reader.index.find(query, after=after, before=size, limit=_EXPORTED_AT_ONCE):
                told, odd = written(write, reader.records(found))
                sys.stdout.buffer.write(told)
                left_out += odd
                # On its way before the cursor moves: what is cut off in between is written twice, never left out.
                sys.stdout.buffer.flush()
                after = found[-1][0]
                _write_cursor(arguments.cursor, after)
            if not arguments.follow:
                break
            await asyncio.sleep(_FOLLOW_SECONDS)
        if left_out:
            print(f"gateway: {left_out} records cannot be told in this format; see them as jsonl", file=sys.stderr)
        return 0

    return with_store(arguments, work)


def _pseudonym_keys(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        audit = opened.settings.audit
        kept = {name for name, _ in audit.pseudonym_keys}
        used = {use.key_id: use for use in (opened.reader.index.pseudonym_keys() if opened.reader is not None else [])}
        rows = []
        for name in dict.fromkeys((audit.pseudonym_key_id, *kept, *used)):
            state = "current" if name == audit.pseudonym_key_id else "kept" if name in kept else "destroyed"
            use = used.get(name)
            rows.append({
                "key": name, "state": state, "records": use.records if use else 0,
                "first": use.first if use else None, "last": use.last if use else None,
            })  # fmt: skip
        tell(rows, pseudonym_key_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _trail(arguments: argparse.Namespace, opened: Opened) -> AbstractAsyncContextManager[Trail]:
    return opened.trail(opened.trails(arguments.account, by_number=bool(arguments.number)))


async def _query(arguments: argparse.Namespace, opened: Opened) -> Query:
    """Return what is asked for; who asks for a number is recorded before anything is told of it."""
    pseudonyms: tuple[str, ...] = ()
    if arguments.number:
        pseudonyms = await opened.search_number("--number", arguments.number, operator())
    return Query(
        pseudonyms=pseudonyms,
        stage=arguments.stage,
        account=arguments.account,
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


def _read_cursor(path: Path | None) -> int:
    """Return the place of the last record that was exported; -1: none was. Raises: UsageError."""
    if path is None or not path.exists():
        return -1
    text = path.read_text(encoding="utf-8").strip()
    if not text.isdecimal():
        raise UsageError(f"--cursor: {path} is no cursor of an export; name another file, or remove it to begin anew")
    return int(text)


def _write_cursor(path: Path | None, place: int) -> None:
    if path is not None:
        write_whole(path, f"{place}\n".encode())


def _print(rows: list[Row], as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        show(record_table(rows, heading))
