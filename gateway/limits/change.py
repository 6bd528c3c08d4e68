"""Changing limits while the gateway runs: what is asked is checked, decided by what holds at that moment, and recorded."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import Any, Final

import msgspec

from gateway import audit
from gateway.config import Policy, read_terms, subject_fault, terms_faults
from gateway.document import shown
from gateway.ledger import limits
from gateway.ledger.limits import Change, Made
from gateway.limits.desk import Desk, desk_with, list_services, open_desk, terms_text
from gateway.opened import Opened, UsageError, WrongField, change_limits, span

_LONGEST_SECONDS: Final = 90 * 86_400
_TOLD_MAX: Final = 30


class ChangedMeanwhile(Exception):
    """Somebody else changed the policy since the operator looked at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an operator wants of one policy, or of one of its subjects."""

    policy: str
    subject: str = ""
    """Empty: everybody."""
    operator: str
    why: str
    source: str | None = None
    """Address it came from; None: the command line."""

    @property
    def target(self) -> str:
        """`POLICY` or `POLICY:SUBJECT`."""
        return f"{self.policy}:{self.subject}" if self.subject else self.policy

    def record(self, account: str, what: str, before: str, after: str, until: float | None) -> audit.Record:
        """Return the record of its being done. `until`: Unix seconds."""
        return audit.change(
            what, at=time.time(), request_id=secrets.token_hex(16), account=account, operator=self.operator,
            policy=self.policy, subject=self.subject or None, before=before, after=after, until=until, why=self.why,
            source=self.source,
        )  # fmt: skip


def set_terms(desk: Desk, order: Order, table: dict[str, Any], seconds: float) -> list[Made]:
    """Return the change that gives a target other terms for a while; none where the account has no such target.

    `table`: terms as in the settings. The desk decides by it then. Raises: UsageError.
    """
    if order.policy not in desk.policies.policies() or not desk.concerns(order.policy, order.subject):
        return []
    before, kept = desk.text(order.target), desk.changes.by_target.get(order.target)
    until_us = desk.changes.now_us + int(seconds * 1_000_000)
    if kept is None:
        made = Change(terms=table, until_us=until_us, operator=order.operator, why=order.why)
    else:
        made = kept.with_terms(table, until_us, order.operator, order.why)
    check(desk, {**desk.changes.by_target, order.target: made}, [order.policy])
    record = order.record(desk.account, "limit.set", before, desk.text(order.target), time.time() + seconds)
    return [(order.target, made, record)]


def reset(desk: Desk, order: Order) -> list[Made]:
    """Return the change that ends a live change of a target; none where there is none. The desk decides by it then."""
    if order.target not in desk.changes.by_target:
        return []
    before = desk.text(order.target)
    desk.suppose({name: change for name, change in desk.changes.by_target.items() if name != order.target})
    return [(order.target, None, order.record(desk.account, "limit.reset", before, desk.text(order.target), None))]


async def make(
    opened: Opened, account: str, decide: Callable[[Desk], list[Made]], seen: Mapping[str, str] | None = None
) -> list[Made]:
    """Make what is decided by the limits of an account as they are, again where somebody else changed them meanwhile.

    `seen`: by policy, the `state` that the operator decided by. Returns what was made, recorded and in force at the next call.
    Raises: ChangedMeanwhile, UsageError, Refusal `ledger_unavailable`.
    """
    ledger = await opened.ledger(account)

    def decided(changes: limits.Changes) -> list[Made]:
        desk = desk_with(opened, account, ledger, changes)
        for policy, then in (seen or {}).items():
            if state(desk, policy) != then:
                raise ChangedMeanwhile
        return decide(desk)

    return await change_limits(ledger, decided)


def state(desk: Desk, policy: str) -> str:
    """Return a digest of all that is changed of a policy; it differs after each change, and when one ended."""
    return sha256(msgspec.json.encode(sorted(desk.changed(policy).items()))).hexdigest()[:32]


async def find_target(text: str, opened: Opened, *, known_only: bool = True) -> tuple[str, str]:
    """Return the policy and the subject an operator means. Raises: WrongField."""
    known: dict[str, Policy] = {**opened.settings.policies}
    for account in opened.accounts(None):
        known |= (await open_desk(opened, account)).policies.policies()
    services = await list_services(opened)
    name, colon, subject = text.partition(":")
    if not colon and name not in known:
        if name not in services and known_only:
            raise WrongField(
                "target",
                f"there is neither a policy nor a service '{shown(name)}'; policies: {', '.join(known)}; services: "
                f"{_some(services) or 'none has a key'}",
            )
        name, subject = "caller", name
    if name not in known:
        raise WrongField("target", f"there is no policy '{shown(name)}'; there are {', '.join(known)}")
    if not subject:
        return name, ""
    return name, read_subject(subject, name, known[name], opened, services if known_only else None)


def read_subject(text: str, name: str, policy: Policy, opened: Opened, services: list[str] | None) -> str:
    """Return a policy's subject, numbers as pseudonyms. `services`: that there are; None: any. Raises: WrongField."""
    parts = text.split("/")
    if len(parts) != len(policy.by):
        wanted = "/".join(part.upper() for part in policy.by)
        raise WrongField("target", f"'{name}' counts by {'/'.join(policy.by)}; write {name}:{wanted}")
    for place, dimension in enumerate(policy.by):
        if dimension == "number" and not _is_pseudonym(parts[place]):
            parts[place] = opened.pseudonym("target", parts[place])
        if dimension == "caller" and services is not None and parts[place] not in services:
            told = f"there is no service '{shown(parts[place])}'; there are {_some(services) or 'none with a key'}"
            raise WrongField("target", told)
    subject = "/".join(parts)
    if services is not None and (told := subject_fault(policy, subject, opened.settings.accounts)):
        raise WrongField("target", told)
    return subject


def read_table(table: dict[str, Any]) -> None:
    """Check terms of a change, each alone. Raises: UsageError, ConfigError with a fault for each that is wrong."""
    if not table:
        raise UsageError("nothing to change: give a rate such as 50/s, a burst, a concurrency or a mode")
    read_terms(table)


def read_span(text: str | None) -> float:
    """Return the seconds for which a change is to hold. Raises: WrongField."""
    if not text:
        raise WrongField("for", "is missing; say how long, such as 2h. What is to stay belongs into the settings")
    try:
        seconds = span(text)
    except UsageError as error:
        raise WrongField("for", str(error)) from None
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise WrongField("for", "must be from 1s to 90d; what is to stay longer belongs into the settings")
    return seconds


def check(desk: Desk, changes: Mapping[str, Change], names: list[str]) -> None:
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


def difference(before: Policy | None, after: Policy, in_force: str) -> str:
    """Return in words what a whole policy changes of another. `in_force`: that one's terms as they are now."""
    if before is None:
        return f"new: by {'+'.join(after.by)}, {terms_text(after.terms)}"
    told = [] if in_force == terms_text(after.terms) else [f"{in_force} → {terms_text(after.terms)}"]
    for name in ("by", "count", "on_store_error", "hard_limit", "operations", "services", "accounts", "subjects"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            told.append(f"{name} {_shown(old)} → {_shown(new)}")
    return ", ".join(told)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{subject}: {terms_text(terms)}" for subject, terms in value.items()) or "none"
    return "+".join(value) or "all" if isinstance(value, tuple) else str(value or "none")


def _some(services: list[str]) -> str:
    return ", ".join(services[:_TOLD_MAX]) + (f" and {len(services) - _TOLD_MAX} more" if len(services) > _TOLD_MAX else "")


def _is_pseudonym(text: str) -> bool:
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)
