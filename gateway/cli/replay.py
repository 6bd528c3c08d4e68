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
from gateway.config import ConfigError, Rate, read_policies
from gateway.ledger.names import Names
from gateway.model import DIMENSIONS, Limit
from gateway.opened import Opened, UsageError, instant
from gateway.trail import plot
from gateway.trail.replay import Replay, Tally, hours, in_order, smallest_rate
from gateway.trail.search import Trail
from gateway.trail.table import minute, show, text_table

_CANDIDATE: Final = "candidate"
_TELL_EVERY_SECONDS: Final = 0.5
_LATE_SECONDS: Final = 30.0


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

    async def work(opened: Opened) -> int:
        unknown: Counter[str] = Counter()
        replays = []
        progress = _Progress()
        for account in opened.accounts(arguments.account):
            replay = Replay(await _policies(arguments, opened, account), arguments.service)
            async with opened.trail([account]) as trail:
                await _run(replay, progress.told(_pages(trail, account, since, until)), since, until or time.time(), unknown)
            replays.append(replay)
        progress.done()
        report, by_hour = _report(arguments, replays, since, until, unknown)
        if arguments.svg:
            arguments.svg.write_text(plot.svg(by_hour, report["limit"]), encoding="utf-8")
        if arguments.html:
            arguments.html.write_text(plot.page(report, by_hour), encoding="utf-8")
        if arguments.json:
            print(json.dumps(report))
        else:
            _print(report, by_hour)
        return 0

    return with_store(arguments, work)


async def _run(replay: Replay, pages: AsyncIterator[list[bytes]], since: float, until: float, unknown: Counter[str]) -> None:
    only_own = replay.service is not None and all("caller" in policy.by for policy in replay.policies.policies().values())
    async for now, demand in in_order(pages, unknown):
        # The journal may have brought it, long after its own time; and a clock may have been wrong.
        if not since * 1_000_000 <= now <= until * 1_000_000:
            continue
        # What others did matters only to a limit that is shared with them.
        if not only_own or demand.service == replay.service:
            replay.put(now, demand)


def _pages(trail: Trail, account: str, since: float, until: float | None) -> AsyncIterator[list[bytes]]:
    return trail.pages(Names(account).audit, since, None if until is None else until + _LATE_SECONDS)


async def _policies(arguments: argparse.Namespace, opened: Opened, account: str) -> Policies:
    """Return the policies that are tried: one by the options, a file's, or those in force."""
    if arguments.rate is not None:
        table = {"by": arguments.by.split(","), "count": arguments.count, "rate": arguments.rate, "burst": arguments.burst}
        try:
            candidate = read_policies({_CANDIDATE: table})
        except ConfigError as error:
            told = (str(fault).removeprefix(f"policies.{_CANDIDATE}.") for fault in error.faults)
            raise UsageError("; ".join(f"--{line}" for line in told)) from None
    elif arguments.file:
        _, candidate = read_candidate(arguments.file, opened.settings.accounts)
    else:
        return opened.policies(account, await (await opened.ledger(account)).changes())
    return Policies(candidate, account, opened.pseudonyms, 1)


def _report(
    arguments: argparse.Namespace, replays: list[Replay], since: float, until: float | None, unknown: Counter[str]
) -> tuple[dict[str, Any], list[plot.Hour]]:
    tallies: dict[tuple[str, int], Tally] = {}
    by_policy: Counter[tuple[str, bool]] = Counter()
    bursts: dict[tuple[str, str], int] = {}
    keys: set[str] = set()
    for replay in replays:
        by_policy += replay.by_policy
        keys |= replay.pseudonym_keys
        for of, burst in replay.bursts.items():
            bursts[of] = max(bursts.get(of, 0), burst)
        for where, tally in replay.tallies.items():
            tallies.setdefault(where, Tally()).add(tally)
    by_hour = [(hour // 1_000_000, tally.calls, tally.refused) for hour, tally in hours(tallies)]
    first = min((replay.first for replay in replays if replay.first), default=0)
    report = {
        "limit": _limit_text(arguments),
        "span": f"{minute(since)} to {minute(until or time.time())}, {sum(hour[1] for hour in by_hour):,} calls",
        "callers": _callers(tallies, bursts),
        "policies": [
            {"policy": policy, "shadow": shadow, "would_be_refused": count} for (policy, shadow), count in by_policy.most_common()
        ],
        "smallest": _smallest(replays),
        "hours": [
            {"service": service, "hour": minute(hour / 1_000_000), "calls": tally.calls, "would_be_refused": tally.refused}
            for (service, hour), tally in sorted(tallies.items(), key=lambda item: (item[0][1], item[0][0]))
        ],
        "unknown": _unknown(since, first, keys, unknown),
    }
    return report, by_hour


def _callers(tallies: dict[tuple[str, int], Tally], bursts: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    callers: list[dict[str, Any]] = []
    for service in sorted({service for service, _ in tallies}):
        own = {hour: tally for (of, hour), tally in tallies.items() if of == service}
        worst = max(own, key=lambda hour: own[hour].refused)
        needed = [burst for (policy, of), burst in bursts.items() if of == service and policy == _CANDIDATE]
        callers.append(
            {
                "service": service,
                "calls": sum(tally.calls for tally in own.values()),
                "refused_then": sum(tally.refused_then for tally in own.values()),
                "would_be_refused": sum(tally.refused for tally in own.values()),
                "worst_hour": minute(worst / 1_000_000),
                "worst_hour_refused": own[worst].refused,
                "burst_needed": needed[0] if needed else None,
            }
        )
    callers.sort(key=lambda caller: caller["would_be_refused"], reverse=True)
    return callers


def _smallest(replays: list[Replay]) -> list[str]:
    """Return for each policy the least that would have refused nobody."""
    told = []
    tried: dict[str, Limit] = {}
    for replay in replays:
        for policy, limit in replay.limits.items():
            tried.setdefault(policy, limit)
    for policy, limit in tried.items():
        rate, burst = Rate(limit.units, limit.window_seconds), limit.burst
        bursts = [found for replay in replays for (of, _), found in replay.bursts.items() if of == policy]
        if not bursts:
            continue  # Nobody who is told of drew on it.
        needed = max(bursts)
        line = f"{policy}: at {rate}, burst {needed}"
        measured = [one for replay in replays for (of, _), one in replay.smallest.items() if of == policy]
        if measured and all(one.seeks_rate for one in measured):
            rates = [smallest_rate(one.interval_us, rate.window_seconds) for one in measured]
            least = None if None in rates else max(found for found in rates if found is not None)
            line += f"; at burst {burst}, " + (
                str(Rate(least, rate.window_seconds)) if least else "no rate: more than that came in one millisecond"
            )
        told.append(line)
    return told or ["no call came under a limit"]


def _unknown(since: float, first: int, keys: set[str], unknown: Counter[str]) -> list[str]:
    told = [
        "how callers would have behaved: one that is refused may try again; one that was refused then may have called less",
        "the order within a millisecond: the history has the time of arrival, the live limiter that of admission, by Redis",
        "calls that were refused for their form or their key: they cost nothing, then as now",
        "limits on calls under way (concurrency): they are not tried",
        "how full the limits were when the history begins: they are taken for unused",
    ]
    if first and first / 1_000_000 - since > 3600:
        told.append(f"what was before {minute(first / 1_000_000)}: the history begins there")
    if unknown["late"]:
        told.append(f"when {unknown['late']:,} calls fall that an outage's journal brought late: they are left out")
    if unknown["unreadable"]:
        told.append(f"what {unknown['unreadable']:,} entries of the history say: they are no records, and left out")
    if len(keys) > 1:
        told.append(f"which numbers are one: pseudonyms were made with {len(keys)} keys ({', '.join(sorted(keys))})")
    return told


def _print(report: dict[str, Any], by_hour: list[plot.Hour]) -> None:
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
