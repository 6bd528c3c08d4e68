"""`gateway limits`: see what each limit does, change it live with an end, and explain what it did to one request."""

from __future__ import annotations

import argparse
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from gateway import audit
from gateway.admission import Policies
from gateway.cli.candidate import read_candidate
from gateway.cli.opened import operator, tell, with_store
from gateway.cli.replay import add_replay
from gateway.config import AT_ONCE, ConfigError, Policy, Terms, read_terms, subject_fault, terms_faults
from gateway.document import shown
from gateway.ledger import limits
from gateway.ledger.limits import Change, Made
from gateway.ledger.store import RedisLedger
from gateway.model import MODES
from gateway.numbers import may_tell
from gateway.opened import Opened, UsageError, change_limits, span
from gateway.trail.search import Query
from gateway.trail.story import verdicts
from gateway.trail.table import change_table, limit_table, show, verdict_table

_WHY_MAX: Final = 200
_LONGEST_SECONDS: Final = 90 * 86_400
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


@dataclass(frozen=True, slots=True)
class _Desk:
    """The limits of one account, as an operator works on them."""

    account: str
    ledger: RedisLedger
    policies: Policies
    changes: limits.Changes

    def record(self, what: str, target: str, before: str, after: str, until: float | None, why: str) -> audit.Record:
        """Return the record of one change."""
        policy, _, subject = target.partition(":")
        return audit.change(
            what, at=time.time(), request_id=secrets.token_hex(16), account=self.account, operator=operator(),
            policy=policy, subject=subject or None, before=before, after=after, until=until, why=why,
        )  # fmt: skip

    def suppose(self, changes: Mapping[str, Change]) -> None:
        """Decide by other live changes than there are."""
        self.policies.adopt(limits.live(limits.Changes("", 0, changes)))

    def concerns(self, policy: str, subject: str) -> bool:
        """Say whether a subject can be one of this account's."""
        parts = dict(zip(self.policies.policies()[policy].by, subject.split("/"), strict=False))
        return not subject or parts.get("account", self.account) == self.account

    def text(self, target: str) -> str:
        """Return what holds now for a target, in words."""
        policy, _, subject = target.partition(":")
        try:
            return _terms_text(self.policies.in_force(policy, subject))
        except KeyError:
            return "none"


async def _desk(opened: Opened, account: str) -> _Desk:
    ledger = await opened.ledger(account)
    return _desk_with(opened, account, ledger, await ledger.changes())


def _desk_with(opened: Opened, account: str, ledger: RedisLedger, changes: limits.Changes) -> _Desk:
    return _Desk(account, ledger, opened.policies(account, changes), changes)


def _set(arguments: argparse.Namespace) -> int:
    given = {"rate": arguments.rate, "burst": arguments.burst, "concurrency": arguments.concurrency, "mode": arguments.mode}
    table = {name: value for name, value in given.items() if value is not None}
    if not table:
        raise UsageError("nothing to change: give a rate such as 50/s, --burst, --concurrency or --mode")
    try:
        read_terms(table)
    except ConfigError as error:
        raise UsageError("; ".join(map(str, error.faults))) from None
    seconds, why = _span(arguments), _why(arguments)

    async def work(opened: Opened) -> int:
        policy, subject = await _target(arguments.target, opened)
        target = f"{policy}:{subject}" if subject else policy

        def changed(desk: _Desk) -> list[Made]:
            if policy not in desk.policies.policies() or not desk.concerns(policy, subject):
                return []
            before, kept = desk.text(target), desk.changes.by_target.get(target)
            until_us = desk.changes.now_us + int(seconds * 1_000_000)
            if kept is None:
                made = Change(terms=table, until_us=until_us, operator=operator(), why=why)
            else:
                made = kept.with_terms(table, until_us, operator(), why)
            _check(desk, {**desk.changes.by_target, target: made}, [policy])
            after = desk.policies.in_force(policy, subject)
            return [(target, made, desk.record("limit.set", target, before, _terms_text(after), time.time() + seconds, why))]

        return await _make(arguments, opened, changed, f"there is no policy {policy} in this account")

    return with_store(arguments, work)


def _reset(arguments: argparse.Namespace) -> int:
    why = _why(arguments)

    async def work(opened: Opened) -> int:
        policy, subject = await _target(arguments.target, opened, known_only=False)
        target = f"{policy}:{subject}" if subject else policy

        def changed(desk: _Desk) -> list[Made]:
            if target not in desk.changes.by_target:
                return []
            before = desk.text(target)
            rest = {name: change for name, change in desk.changes.by_target.items() if name != target}
            desk.suppose(rest)
            return [(target, None, desk.record("limit.reset", target, before, desk.text(target), None, why))]

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

        def changed(desk: _Desk) -> list[Made]:
            made: list[Made] = []
            for name, policy in candidate.items():
                if policy.accounts and desk.account not in policy.accounts:
                    continue
                before, after = desk.policies.policies().get(name), policy
                if before == after and desk.text(name) == _terms_text(policy.terms):
                    print(f"{desk.account}: {name}: unchanged")
                    continue
                print(f"{desk.account}: {name}: {_policy_diff(before, after, desk.text(name))}")
                change = Change(
                    policy=tables[name], until_us=desk.changes.now_us + int(seconds * 1_000_000), operator=operator(), why=why
                )
                until = time.time() + seconds
                record = desk.record("limit.applied", name, desk.text(name), _terms_text(policy.terms), until, why)
                made.append((name, change, record))
            now = {name: change for name, change, _ in made if change is not None}
            _check(desk, {**desk.changes.by_target, **now}, list(now))
            return made

        if arguments.dry_run:
            for account in opened.accounts(arguments.account):
                changed(await _desk(opened, account))
            return 0
        return await _make(arguments, opened, changed, "nothing to change", quiet=True)

    return with_store(arguments, work)


def _show(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        number = opened.pseudonym("--number", arguments.number) if arguments.number else None
        services = await _services(opened)
        rows = []
        for account in opened.accounts(arguments.account):
            desk = await _desk(opened, account)
            rows += await _rows(desk, services, number)
        tell(rows, limit_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


def _history(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        async with opened.trail(opened.accounts(arguments.account)) as trail:
            rows = [row async for row in trail.search(Query(stage="change")) if row["change"].startswith(("limit.", "drill."))]
            not_made = {row["intent"] async for row in trail.search(Query(stage="abort")) if "change" in row}
        tell([row for row in rows if f"{row['writer']}-{row['seq']}" not in not_made], change_table, as_json=arguments.json)
        return 0

    return with_store(arguments, work)


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

    return with_store(arguments, work)


async def _rows(desk: _Desk, services: list[str], number: str | None) -> list[dict[str, Any]]:
    refused = await desk.ledger.refused_last_hour()
    rows = []
    for name, policy in desk.policies.policies().items():
        own = {target.partition(":")[2] for target in desk.changes.by_target if target.startswith(f"{name}:")}
        for subject in ("", *_subjects(policy, services, number, own)):
            target = f"{name}:{subject}" if subject else name
            terms, change = desk.policies.in_force(name, subject), desk.changes.by_target.get(target)
            counted = subject or (desk.account if policy.by == ("account",) else "")
            used, under_way = await _used(desk, name, counted, terms) if counted else (None, None)
            if subject and not used and not under_way and change is None and subject not in policy.subjects:
                continue
            window = terms.rate.window_seconds if terms.rate else 0
            rows.append(
                {
                    "account": desk.account,
                    "policy": name,
                    "subject": subject or None,
                    "by": list(policy.by),
                    "count": policy.count,
                    "rate": str(terms.rate) if terms.rate else None,
                    "burst": terms.burst if terms.rate else None,
                    "concurrency": terms.concurrency or None,
                    "mode": terms.mode,
                    "on_store_error": policy.on_store_error,
                    "worst_case": terms.rate.worst_case(terms.burst, window) if terms.rate and terms.burst else None,
                    "window_seconds": window or None,
                    "used": used,
                    "under_way": under_way,
                    "refused_last_hour": None if subject else _refusals(refused, name, shadow=False),
                    "shadow_refused_last_hour": None if subject else _refusals(refused, name, shadow=True),
                    "changed_until": audit.rfc3339(change.until_us / 1_000_000) if change else None,
                    "changed_by": change.operator if change else None,
                    "why": change.why if change else None,
                }
            )
    return rows


def _refusals(refused: dict[tuple[str, bool], int], name: str, *, shadow: bool) -> int:
    return refused.get((name, shadow), 0) + refused.get((name + AT_ONCE, shadow), 0)


def _subjects(policy: Policy, services: list[str], number: str | None, own: set[str]) -> list[str]:
    found = {*policy.subjects, *own}
    if policy.by == ("caller",):
        found |= set(services)
    if policy.by == ("number",) and number:
        found.add(number)
    if policy.by == ("caller", "number") and number:
        found |= {f"{service}/{number}" for service in services}
    return sorted(found)


async def _used(desk: _Desk, name: str, subject: str, terms: Terms) -> tuple[int | None, int | None]:
    """Return the units used of the burst and the calls under way; None where that is not limited."""
    used = under_way = None
    if terms.rate is not None:
        used = math.ceil(await desk.ledger.used(desk.policies.key(name, subject)))
    if terms.concurrency:
        under_way = await desk.ledger.under_way(desk.policies.key(name + AT_ONCE, subject))
    return used, under_way


async def _make(
    arguments: argparse.Namespace,
    opened: Opened,
    changed: Callable[[_Desk], list[Made]],
    nothing: str,
    *,
    quiet: bool = False,
) -> int:
    """Make the changes of every account, each whole, again where somebody else made some meanwhile."""
    count = 0
    for account in opened.accounts(arguments.account):
        ledger = await opened.ledger(account)

        def decide(changes: limits.Changes, account: str = account, ledger: RedisLedger = ledger) -> list[Made]:
            return changed(_desk_with(opened, account, ledger, changes))

        made = await change_limits(ledger, decide)
        count += len(made)
        for target, change, record in made:
            until = f" until {record.until}" if change else ""
            if not quiet:
                print(f"{account}: {target}: {record.before} → {record.after}{until}")
    if not count:
        print(f"gateway: {nothing}", file=sys.stderr)
        return 0 if quiet else 1
    return 0


async def _target(text: str, opened: Opened, *, known_only: bool = True) -> tuple[str, str]:
    """Return the policy and the subject an operator means. Raises: UsageError."""
    known: dict[str, Policy] = {**opened.settings.policies}
    for account in opened.accounts(None):
        known |= (await _desk(opened, account)).policies.policies()
    services = await _services(opened)
    name, colon, subject = text.partition(":")
    if not colon and name not in known:
        if name not in services and known_only:
            raise UsageError(
                f"target: there is neither a policy nor a service '{shown(name)}'; policies: {', '.join(known)}; services: "
                f"{', '.join(services) or 'none has a key'}"
            )
        name, subject = "caller", name
    if name not in known:
        raise UsageError(f"target: there is no policy '{shown(name)}'; there are {', '.join(known)}")
    if not subject:
        return name, ""
    return name, _subject(subject.split("/"), name, known[name], opened, services if known_only else None)


def _subject(parts: list[str], name: str, policy: Policy, opened: Opened, services: list[str] | None) -> str:
    """Return a policy's subject, numbers as pseudonyms. `services`: that there are; None: any. Raises: UsageError."""
    if len(parts) != len(policy.by):
        wanted = "/".join(part.upper() for part in policy.by)
        raise UsageError(f"target: '{name}' counts by {'/'.join(policy.by)}; write {name}:{wanted}")
    for place, dimension in enumerate(policy.by):
        if dimension == "number" and not _is_pseudonym(parts[place]):
            parts[place] = opened.pseudonym("target", parts[place])
        if dimension == "caller" and services is not None and parts[place] not in services:
            raise UsageError(
                f"target: there is no service '{shown(parts[place])}'; there are {', '.join(services) or 'none with a key'}"
            )
    subject = "/".join(parts)
    if services is not None and (told := subject_fault(policy, subject, opened.settings.accounts)):
        raise UsageError(f"target: {told}")
    return subject


async def _services(opened: Opened) -> list[str]:
    """Return every service that has a key or is a workload."""
    await opened.registry.refresh()
    keys = {entry.service for entry in opened.registry.current.entries.values()}
    return sorted(keys | {workload.service or name for name, workload in opened.settings.workloads.items()})


def _check(desk: _Desk, changes: Mapping[str, Change], names: list[str]) -> None:
    """Refuse changes of policies by which somebody would get what the settings would refuse, and decide by them.

    Each change ends at a time of its own, so it has to be right with any of the others and without. Raises: UsageError.
    """
    for name in names:
        subjects = {target.partition(":")[2] for target in changes if target.partition(":")[0] == name}
        desk.suppose(changes)
        for policy in (desk.policies.configured.get(name), desk.policies.policies().get(name)):
            subjects |= set(policy.subjects) if policy else set()
        for subject in ("", *sorted(subjects - {""})):
            there = [target for target in dict.fromkeys((name, f"{name}:{subject}")) if target in changes]
            for count in range(len(there), -1, -1):
                for some in combinations(there, count):
                    desk.suppose({target: changes[target] for target in some})
                    if (found := desk.policies.policies().get(name)) is None:
                        continue
                    faults = terms_faults(f"{name}:{subject}" if subject else name, found, desk.policies.in_force(name, subject))
                    if faults:
                        over = " and ".join(target for target in there if target not in some)
                        raise UsageError(f"{faults[0]}{over and f' (once the change of {over} has ended)'}")
    desk.suppose(changes)


def _terms_text(terms: Terms) -> str:
    rate = f"{terms.rate} burst {terms.burst}" if terms.rate else ""
    places = f"concurrency {terms.concurrency}" if terms.concurrency else ""
    return " ".join(part for part in (rate, places, terms.mode or "") if part)


def _policy_diff(before: Policy | None, after: Policy, in_force: str) -> str:
    if before is None:
        return f"new: by {'+'.join(after.by)}, {_terms_text(after.terms)}"
    told = [] if in_force == _terms_text(after.terms) else [f"{in_force} → {_terms_text(after.terms)}"]
    for name in ("by", "count", "on_store_error", "hard_limit", "operations", "services", "accounts", "subjects"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            told.append(f"{name} {_shown(old)} → {_shown(new)}")
    return ", ".join(told)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{subject}: {_terms_text(terms)}" for subject, terms in value.items()) or "none"
    return "+".join(value) or "all" if isinstance(value, tuple) else str(value or "none")


def _is_pseudonym(text: str) -> bool:
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)


def _span(arguments: argparse.Namespace) -> float:
    if arguments.span is None:
        raise UsageError("--for: is missing; say how long, such as --for 2h. What is to stay belongs into the settings")
    seconds = span(arguments.span)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError("--for: must be from 1s to 90d; what is to stay longer belongs into the settings")
    return seconds


def _why(arguments: argparse.Namespace) -> str:
    why = (arguments.why or "").strip()
    if not why or len(why) > _WHY_MAX or not why.isprintable():
        raise UsageError(f"--why: give the reason in at most {_WHY_MAX} printable characters; it stands in the audit trail")
    if may_tell(why):
        raise UsageError("--why: may hold a telephone number or a key; the audit trail must not")
    return why
