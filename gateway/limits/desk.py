"""The limits of one account as they are now: what each admits, who has used how much of it, and what it refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway import audit
from gateway.admission import Policies
from gateway.config import AT_ONCE, Policy, Terms
from gateway.ledger import limits
from gateway.ledger.limits import Change
from gateway.ledger.store import RedisLedger
from gateway.opened import Opened


@dataclass(frozen=True, slots=True)
class Desk:
    """The limits of one account, as an operator works on them."""

    account: str
    ledger: RedisLedger
    policies: Policies
    changes: limits.Changes

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
            return terms_text(self.policies.in_force(policy, subject))
        except KeyError:
            return "none"

    def changed(self, policy: str) -> dict[str, Change]:
        """Return the live changes of a policy, by subject; of all its subjects under the empty one."""
        return {
            target.partition(":")[2]: change
            for target, change in self.changes.by_target.items()
            if target.partition(":")[0] == policy
        }


async def open_desk(opened: Opened, account: str) -> Desk:
    """Return an account's limits as they are now. Raises: UsageError, SecretUnreadable, Refusal `ledger_unavailable`."""
    ledger = await opened.ledger(account)
    return desk_with(opened, account, ledger, await ledger.changes())


def desk_with(opened: Opened, account: str, ledger: RedisLedger, changes: limits.Changes) -> Desk:
    """Return an account's limits as they are with these live changes. Raises: SecretUnreadable."""
    return Desk(account, ledger, opened.policies(account, changes), changes)


async def list_services(opened: Opened) -> list[str]:
    """Return every service that has a key or is a workload. Raises: Refusal `ledger_unavailable`."""
    await opened.registry.refresh()
    keys = {entry.service for entry in opened.registry.current.entries.values()}
    return sorted(keys | {workload.service or name for name, workload in opened.settings.workloads.items()})


async def list_limits(desk: Desk, services: list[str], number: str | None = None) -> list[dict[str, Any]]:
    """Return each policy, then those of its subjects that use it or are told apart: terms, usage, refusals, live change.

    `number`: the pseudonym of one whose usage is wanted too. Raises: Refusal `ledger_unavailable`.
    """
    refused = await desk.ledger.refused_last_hour()
    rows = []
    for name, policy in desk.policies.policies().items():
        subjects = ["", *_subjects(policy, services, number, set(desk.changed(name)) - {""})]
        used, under_way = await _usage(desk, name, policy, subjects)
        for subject in subjects:
            row = _row(desk, name, policy, subject) | {"used": used.get(subject), "under_way": under_way.get(subject)}
            told_apart = row["changed_until"] is not None or subject in policy.subjects
            if subject and not row["used"] and not row["under_way"] and not told_apart:
                continue
            row["refused_last_hour"] = None if subject else _refusals(refused, name, shadow=False)
            row["shadow_refused_last_hour"] = None if subject else _refusals(refused, name, shadow=True)
            rows.append(row)
    return rows


def terms_text(terms: Terms) -> str:
    """Return terms in words: `50/s burst 100 enforce`."""
    rate = f"{terms.rate} burst {terms.burst}" if terms.rate else ""
    places = f"concurrency {terms.concurrency}" if terms.concurrency else ""
    return " ".join(part for part in (rate, places, terms.mode or "") if part)


def _row(desk: Desk, name: str, policy: Policy, subject: str) -> dict[str, Any]:
    terms, change = desk.policies.in_force(name, subject), desk.changed(name).get(subject)
    window = terms.rate.window_seconds if terms.rate else 0
    return {
        "account": desk.account,
        "policy": name,
        "subject": subject or None,
        "by": list(policy.by),
        "count": policy.count,
        "operations": list(policy.operations),
        "services": list(policy.services),
        "rate": str(terms.rate) if terms.rate else None,
        "burst": terms.burst if terms.rate else None,
        "concurrency": terms.concurrency or None,
        "mode": terms.mode,
        "on_store_error": policy.on_store_error,
        "hard_limit": str(policy.hard_limit) if policy.hard_limit else None,
        "worst_case": terms.rate.worst_case(terms.burst, window) if terms.rate and terms.burst else None,
        "window_seconds": window or None,
        "changed_until": audit.rfc3339(change.until_us / 1_000_000) if change else None,
        "changed_by": change.operator if change else None,
        "why": change.why if change else None,
    }


def _refusals(refused: Mapping[tuple[str, bool], int], name: str, *, shadow: bool) -> int:
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


async def _usage(desk: Desk, name: str, policy: Policy, subjects: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the units used of the burst and the calls under way, by subject, of those for whom that is limited."""
    counted = {subject: subject or (desk.account if policy.by == ("account",) else "") for subject in subjects}
    terms = {subject: desk.policies.in_force(name, subject) for subject, kept in counted.items() if kept}
    rated = [subject for subject, found in terms.items() if found.rate is not None]
    used = await desk.ledger.used([desk.policies.key(name, counted[subject]) for subject in rated])
    under_way = {
        subject: await desk.ledger.under_way(desk.policies.key(name + AT_ONCE, counted[subject]))
        for subject, found in terms.items()
        if found.concurrency
    }
    return dict(zip(rated, map(math.ceil, used), strict=True)), under_way
