"""`gateway limits replay`: what a limit would have refused, asked of the audit history."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from gateway.admission import Policies
from gateway.cli.candidate import read_candidate
from gateway.cli.opened import with_store
from gateway.config import ConfigError
from gateway.limits.trial import CANDIDATE, Span, candidate, report, tried
from gateway.model import DIMENSIONS
from gateway.opened import Opened, UsageError, instant
from gateway.trail import plot
from gateway.trail.table import show, text_table

_TELL_EVERY_SECONDS: Final = 0.5


def add_replay(commands: Any, scoped: argparse.ArgumentParser) -> None:
    """Add `replay` to the subcommands of `gateway limits`."""
    command = commands.add_parser("replay", parents=[scoped], help="what a limit would have refused, by the audit history")
    command.add_argument("--since", default="7d", metavar="WHEN", help="1h, 7d, or a time; 7d if not given")
    command.add_argument("--until", metavar="WHEN")
    command.add_argument("--service", help="tell of its calls alone")
    command.add_argument("--rate", help="of the limit that is tried, such as 20/s")
    command.add_argument("--burst", type=int)
    command.add_argument("--by", default="caller", help=f"what it counts apart, of {', '.join(DIMENSIONS)}; caller if not given")
    command.add_argument("--count", default="calls", choices=("calls", "new_numbers"))
    command.add_argument("--file", type=Path, help="TOML with [policies.NAME] tables to be tried together")
    command.add_argument("--svg", type=Path, metavar="FILE", help="write the plot")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.file and (arguments.rate or arguments.burst):
        raise UsageError("--file: cannot be given together with --rate and --burst")
    if (arguments.rate is None) != (arguments.burst is None):
        raise UsageError("--rate, --burst: a limit is both: a rate such as 20/s, and the burst on top of it")
    since, until = instant("--since", arguments.since), instant("--until", arguments.until)
    assert since is not None
    if until is not None and until <= since:
        raise UsageError("--until: must be later than --since")

    asked = Span(since=since, until=until, service=arguments.service)

    async def work(opened: Opened) -> int:
        unknown: Counter[str] = Counter()
        replays = []
        progress = _Progress()
        for account in opened.accounts(arguments.account):
            policies = await _policies(arguments, opened, account)
            replays.append(await tried(opened, account, policies, asked, unknown, progress.told))
        progress.done()
        told, by_hour = report(_limit_text(arguments), replays, asked, unknown)
        if arguments.svg:
            arguments.svg.write_text(plot.svg(by_hour, told["limit"]), encoding="utf-8")
        if arguments.html:
            arguments.html.write_text(plot.page(told, by_hour), encoding="utf-8")
        if arguments.json:
            print(json.dumps(told))
        else:
            _print(told, by_hour)
        return 0

    return with_store(arguments, work, reads_trail=True)


async def _policies(arguments: argparse.Namespace, opened: Opened, account: str) -> Policies:
    """Return the policies that are tried: one by the options, a file's, or those in force."""
    if arguments.rate is not None:
        table = {"by": arguments.by.split(","), "count": arguments.count, "rate": arguments.rate, "burst": arguments.burst}
        try:
            return candidate(table, account, opened)
        except ConfigError as error:
            told = (str(fault).removeprefix(f"policies.{CANDIDATE}.") for fault in error.faults)
            raise UsageError("; ".join(f"--{line}" for line in told)) from None
    if arguments.file:
        return Policies(read_candidate(arguments.file, opened.settings.accounts)[1], account, opened.pseudonyms, 1)
    return opened.policies(account, await (await opened.ledger(account)).changes())


def _print(report: dict[str, Any], by_hour: list[plot.Step]) -> None:
    print(f"{report['limit']}: {report['span']}")
    if not report["callers"]:
        print("There is no call in that span.")
        return
    show(text_table(plot.CALLER_COLUMNS, [plot.caller_row(caller) for caller in report["callers"]]))
    for line in plot.lines(by_hour, shutil.get_terminal_size((100, 20)).columns):
        print(line)
    if report["policies"]:
        print("\nBy policy:")
        for row in report["policies"]:
            print(f"  {row['policy']}{' (in shadow)' if row['shadow'] else ''}: {row['would_be_refused']:,}")
    print("\nThe smallest limit that refuses nothing:")
    for line in report["smallest"]:
        print(f"  {line}")
    print("\nWhat this cannot know:")
    for line in report["unknown"]:
        print(f"  {line}")


class _Progress:
    """Tells how far the reading is, on standard error: in place on a terminal, else by a line now and then."""

    def __init__(self) -> None:
        self._count = 0
        self._told_at = time.monotonic()
        self._terminal = sys.stderr.isatty()

    async def told(self, pages: AsyncIterator[list[bytes]]) -> AsyncIterator[list[bytes]]:
        """Pass pages on, telling of them."""
        async for page in pages:
            self._count += len(page)
            if time.monotonic() - self._told_at >= (_TELL_EVERY_SECONDS if self._terminal else 10 * _TELL_EVERY_SECONDS):
                self._told_at = time.monotonic()
                self._tell()
            yield page

    def done(self) -> None:
        """Say how much was read."""
        self._tell()
        if self._terminal:
            print(file=sys.stderr)

    def _tell(self) -> None:
        line = f"gateway: {self._count:,} records read"
        print(f"\r{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)


def _limit_text(arguments: argparse.Namespace) -> str:
    if arguments.rate:
        counted = ", new numbers" if arguments.count == "new_numbers" else ""
        return f"{arguments.rate} with burst {arguments.burst} by {arguments.by}{counted}"
    return f"the policies of {arguments.file.name}" if arguments.file else "the policies in force"
