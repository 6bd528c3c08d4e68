"""`gateway limits`: see what each limit does, change it live with an end, and explain what it did to one request."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.cli.candidate import read_candidate
from gateway.cli.opened import operator, tell, with_store
from gateway.cli.replay import add_replay
from gateway.config import ConfigError
from gateway.document import shown
from gateway.ledger.limits import Change, Made
from gateway.limits import change
from gateway.limits.change import Order
from gateway.limits.desk import Desk, list_limits, list_services, open_desk, terms_text
from gateway.limits.history import read_changes
from gateway.model import MODES
from gateway.opened import Opened, UsageError, WrongField, read_why
from gateway.trail.search import Query
from gateway.trail.story import verdicts
from gateway.trail.table import change_table, limit_table, show, verdict_table

_TARGET_HELP: Final = "a policy, a service (its own limit under `caller`), or POLICY:SUBJECT such as caller:crm"


def add_limits(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway limits`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    scoped = argparse.ArgumentParser(add_help=False, parents=[configured])
    scoped.add_argument("--account", help="one vendor account; all if not given")
    changing = argparse.ArgumentParser(add_help=False, parents=[scoped])
    changing.add_argument("--why", help="the reason, for the audit trail")

    command = commands.add_parser("show", parents=[scoped], help="what each limit admits at worst, its usage, what it refused")
    command.add_argument("--number", help="the usage of one telephone number too")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_show)

    command = commands.add_parser("set", parents=[changing], help="change a limit for a while, on every process at its next call")
    command.add_argument("target", help=_TARGET_HELP)
    command.add_argument("rate", nargs="?", help="such as 50/s, 100/m, 1000/h; as it is if not given")
    command.add_argument("--burst", type=int)
    command.add_argument("--concurrency", type=int, help="calls under way at once; 0: any number")
    command.add_argument("--mode", choices=MODES)
    command.add_argument("--for", dest="span", metavar="SPAN", help="how long, such as 2h; at most 90d")
    command.set_defaults(run=_set)

    command = commands.add_parser("reset", parents=[changing], help="end a live change now")
    command.add_argument("target", help=_TARGET_HELP)
    command.set_defaults(run=_reset)

    command = commands.add_parser("apply", parents=[changing], help="make the policies of a file hold for a while")
    command.add_argument("file", type=Path, help="TOML with [policies.NAME] tables, as in the settings")
    command.add_argument("--for", dest="span", metavar="SPAN")
    command.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    command.set_defaults(run=_apply)

    command = commands.add_parser("history", parents=[scoped], help="every change: who, when, why, before and after")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_history)

    command = commands.add_parser("explain", parents=[configured], help="what each limit said to one request")
    command.add_argument("request_id")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_explain)

    add_replay(commands, scoped)


def _set(arguments: argparse.Namespace) -> int:
    given = {"rate": arguments.rate, "burst": arguments.burst, "concurrency": arguments.concurrency, "mode": arguments.mode}
    table = {name: value for name, value in given.items() if value is not None}
    try:
        change.read_table(table)
    except ConfigError as error:
        raise UsageError("; ".join(map(str, error.faults))) from None
    seconds, why = _span(arguments), _why(arguments)

    async def work(opened: Opened) -> int:
        policy, subject = await change.find_target(arguments.target, opened)
        order = Order(policy=policy, subject=subject, operator=operator(), why=why)

        def changed(desk: Desk) -> list[Made]:
            return change.set_terms(desk, order, table, seconds)

        return await _make(arguments, opened, changed, f"there is no policy {policy} in this account")

    return with_store(arguments, work)


def _reset(arguments: argparse.Namespace) -> int:
    why = _why(arguments)

    async def work(opened: Opened) -> int:
        policy, subject = await change.find_target(arguments.target, opened, known_only=False)
        order = Order(policy=policy, subject=subject, operator=operator(), why=why)

        def changed(desk: Desk) -> list[Made]:
            return change.reset(desk, order)

        return await _make(
            arguments,
            opened,
            changed,
            f"nothing is changed of {shown(policy)}{subject and ' for that subject'}; see `gateway limits show`",
        )

    return with_store(arguments, work)


def _apply(arguments: argparse.Namespace) -> int:
    seconds = 0.0 if arguments.dry_run else _span(arguments)
    why = "" if arguments.dry_run else _why(arguments)

    async def work(opened: Opened) -> int:
        tables, candidate = read_candidate(arguments.file, opened.settings.accounts)

        def changed(desk: Desk) -> list[Made]:
            made: list[Made] = []
            for name, policy in candidate.items():
                if policy.accounts and desk.account not in policy.accounts:
                    continue
                before, after = desk.policies.policies().get(name), policy
                if before == after and desk.text(name) == terms_text(policy.terms):
                    print(f"{desk.account}: {name}: unchanged")
                    continue
                print(f"{desk.account}: {name}: {change.difference(before, after, desk.text(name))}")
                until_us = desk.changes.now_us + int(seconds * 1_000_000)
                order = Order(policy=name, operator=operator(), why=why)
                record = order.record(
                    desk.account, "limit.applied", desk.text(name), terms_text(policy.terms), time.time() + seconds
                )
                made.append((name, Change(policy=tables[name], until_us=until_us, operator=order.operator, why=why), record))
            now = {name: applied for name, applied, _ in made if applied is not None}
            change.check(desk, {**desk.changes.by_target, **now}, list(now))
            return made

        if arguments.dry_run:
            for account in opened.accounts(arguments.account):
                changed(await open_desk(opened, account))
            return 0
        return await _make(arguments, opened, changed, "nothing to change", quiet=True)

    return with_store(arguments, work)


def _show(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        number = opened.pseudonym("--number", arguments.number) if arguments.number else None
        services = await list_services(opened)
        rows = []
        for account in opened.accounts(arguments.account):
            rows += await list_limits(await open_desk(opened, account), services, number)
        tell(rows, limit_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _history(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        async with opened.trail(opened.accounts(arguments.account)) as trail:
            read = await read_changes(trail)
        tell(sorted(read.rows, key=lambda row: row["at"]), change_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work, reads_trail=True)


def _explain(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        async with opened.trail(opened.accounts(None)) as trail:
            records = [row async for row in trail.search(Query(request_id=arguments.request_id))]
        if not records:
            raise UsageError("there is no record of this request; see `gateway audit search`")
        rows = [row for record in records if record["stage"] in ("outcome", "refusal") for row in verdicts(record)]
        if arguments.json:
            tell(rows, verdict_table, as_json=True)
            return 0
        last = records[-1]
        said = last.get("problem") or last.get("result") or "no outcome yet"
        print(f"{last['request_id']}: {said}, {last.get('service', 'nobody')}, {last['account']}, {records[0]['at']}")
        if rows:
            show(verdict_table(rows))
        else:
            print("No limit was looked at: it ended before, or has no outcome yet.")
        return 0

    return with_store(arguments, work, reads_trail=True)


async def _make(
    arguments: argparse.Namespace,
    opened: Opened,
    changed: Callable[[Desk], list[Made]],
    nothing: str,
    *,
    quiet: bool = False,
) -> int:
    """Make the changes of every account, each whole, again where somebody else made some meanwhile."""
    count = 0
    for account in opened.accounts(arguments.account):
        made = await change.make(opened, account, changed)
        count += len(made)
        for target, kept, record in made:
            until = f" until {record.until}" if kept else ""
            if not quiet:
                print(f"{account}: {target}: {record.before} → {record.after}{until}")
    if not count:
        print(f"gateway: {nothing}", file=sys.stderr)
        return 0 if quiet else 1
    return 0


def _span(arguments: argparse.Namespace) -> float:
    try:
        return change.read_span(arguments.span)
    except WrongField as wrong:
        raise UsageError(f"--{wrong}") from None


def _why(arguments: argparse.Namespace) -> str:
    try:
        return read_why(arguments.why)
    except WrongField as wrong:
        raise UsageError(f"--{wrong}") from None
