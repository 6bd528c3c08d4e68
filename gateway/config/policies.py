"""The limits: their terms, those that are built in, and what cannot be meant by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.config import values
from gateway.config.tables import ConfigError, Fault, read_table, read_tables, setting, tables_of
from gateway.config.values import Rate
from gateway.model import MODES, NUMBER_FIELDS, OPERATIONS, STORE_ERRORS

_BURST: Final = values.between(1, 1_000_000_000)
_CONCURRENCY: Final = values.between(0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be said of a limit for some who fall under it; what is left out stays as it is for all."""

    rate: Rate | None = setting("units that grow back, for this subject", values.rate, None)
    burst: int | None = setting("units that may be used at once, by this subject", _BURST, None)
    concurrency: int | None = setting("calls that may be under way at once, of this subject; 0: any number", _CONCURRENCY, None)
    mode: str | None = setting("`enforce`, `shadow` or `off`, for this subject", values.one_of(*MODES), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One limit: GCRA admits at most `burst + rate × window` in any window."""

    by: tuple[str, ...] = setting(
        "what it counts apart, each account for itself: `caller`, `number`, `account`, `operation`", values.dimensions
    )
    count: str = setting(
        "what draws a unit: each call, or each number that its subject did not touch within the rate's window",
        values.one_of("calls", "new_numbers"),
        "calls",
    )
    rate: Rate | None = setting("units that grow back; empty: no such limit", values.rate_or_none, None)
    burst: int = setting("units that may be used at once", _BURST, 1)
    concurrency: int = setting("calls that may be under way at once; 0: any number", _CONCURRENCY, 0)
    mode: str = setting("`enforce`; `shadow`: counted and recorded, never refused; `off`", values.one_of(*MODES), MODES[0])
    on_store_error: str = setting(
        "without Redis: `local`, the process' share of it; `deny`, nothing passes; `allow`, it is not looked at",
        values.one_of(*STORE_ERRORS),
        STORE_ERRORS[0],
    )
    hard_limit: Rate | None = setting(
        "the most that may pass in any such window; rate and burst that admit more are a fault. Empty: none",
        values.rate_or_none,
        None,
    )
    operations: tuple[str, ...] = setting("operations it is for; none: all", values.operations, ())
    services: tuple[str, ...] = setting("services it is for; none: all", values.names, ())
    accounts: tuple[str, ...] = setting("accounts it is for; none: all", values.names, ())
    subjects: Mapping[str, Terms] = tables_of(Terms, values.subject)

    @property
    def terms(self) -> Terms:
        """What it says for whoever has no terms of its own."""
        return Terms(rate=self.rate, burst=self.burst, concurrency=self.concurrency, mode=self.mode)


AT_ONCE: Final = ".concurrency"
"""Ends the name under which a policy's calls under way are told apart from its rate."""

BUILT_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    "caller": {"by": ["caller"], "rate": "50/s", "burst": 100},
    "number": {"by": ["number"], "rate": "30/m", "burst": 10},
    "account": {"by": ["account"], "rate": "100/s", "burst": 200},
    "sweep": {"by": ["caller"], "count": "new_numbers", "rate": "1000/h", "burst": 1000, "mode": "shadow"},
    "repeat": {"by": ["caller", "number"], "rate": "20/h", "burst": 20, "mode": "shadow"},
}
"""The policies there are without a word in the settings; a table of the same name changes what it names."""


def with_built_in(policies: Any) -> Any:
    """Return tables of policies with what is built in where they say nothing; anything else as it is."""
    if not isinstance(policies, Mapping):
        return policies
    return {**BUILT_IN, **filled_up(policies)}


def filled_up(policies: Mapping[str, Any]) -> dict[str, Any]:
    """Return these tables of policies, those of a built-in name with what they say nothing of."""
    return {
        name: {**BUILT_IN.get(name, {}), **table} if isinstance(table, Mapping) else table for name, table in policies.items()
    }


def read_policies(tables: Any, accounts: Collection[str] | None = None) -> Mapping[str, Policy]:
    """Return policies read alone, as from a candidate's file, none built in. `accounts`: that there are. Raises: ConfigError."""
    faults: list[Fault] = []
    policies = read_tables(Policy, values.name, tables, "policies", faults)
    if not faults:
        faults.extend(policy_faults(policies, accounts))
    if faults:
        raise ConfigError(tuple(faults))
    found: Mapping[str, Policy] = policies
    return found


def read_terms(table: Any) -> Terms:
    """Return terms read alone. Raises: ConfigError."""
    faults: list[Fault] = []
    terms: Terms = read_table(Terms, table, "", faults)
    if faults:
        raise ConfigError(tuple(faults))
    return terms


def policy_faults(policies: Mapping[str, Policy], accounts: Collection[str] | None) -> list[Fault]:
    """Return what is wrong with policies that no single setting shows. `accounts`: that there are; None: not known."""
    faults = []
    for name, policy in policies.items():
        here = f"policies.{name}"
        if name.endswith(AT_ONCE):
            faults.append(Fault(here, f"must not end in '{AT_ONCE}': so the calls under way of another policy are named"))
        if policy.rate is None and not policy.concurrency:
            faults.append(Fault(here, "limits nothing; give rate and burst, or concurrency"))
        if policy.count == "new_numbers" and "number" in policy.by:
            faults.append(Fault(f"{here}.by", 'cannot have "number" where new numbers are counted'))
        if policy.count == "new_numbers" and policy.rate is None:
            faults.append(Fault(f"{here}.rate", "is missing: new numbers are counted by rate and burst"))
        faults.extend(
            Fault(f"{here}.accounts", f"there is no [accounts.{account}]")
            for account in policy.accounts
            if accounts is not None and account not in accounts
        )
        faults.extend(_terms_faults(here, policy, Terms()))
        if policy.subjects and "number" in policy.by:
            faults.append(Fault(f"{here}.subjects", "cannot be told for numbers here; use `gateway limits set`"))
        for subject, terms in policy.subjects.items():
            path = f"{here}.subjects.{subject}"
            if told := subject_fault(policy, subject, accounts):
                faults.append(Fault(path, told))
            faults.extend(_terms_faults(path, policy, terms))
    return faults


def _terms_faults(path: str, policy: Policy, terms: Terms) -> list[Fault]:
    return terms_faults(path, policy, replace(terms, rate=terms.rate or policy.rate, burst=terms.burst or policy.burst))


def terms_faults(path: str, policy: Policy, terms: Terms) -> list[Fault]:
    """Return what is wrong with all terms of a policy for some who fall under it."""
    rate, burst, limit = terms.rate, terms.burst, policy.hard_limit
    if rate is None or burst is None:
        return []
    faults = []
    if burst > rate.burst_max:
        faults.append(
            Fault(f"{path}.burst", f"must be {rate.burst_max} or less at {rate}: more would take over a century to grow back")
        )
    if policy.count == "new_numbers" and burst < len(NUMBER_FIELDS):
        faults.append(Fault(f"{path}.burst", "must be 3 or more: one call may have three new numbers"))
    if limit is not None and (worst := rate.worst_case(burst, limit.window_seconds)) > limit.count:
        told = f"{rate} with burst {burst} admits up to {worst} in a window of hard_limit {limit}; lower rate or burst"
        faults.append(Fault(path, told))
    return faults


def subject_fault(policy: Policy, subject: str, accounts: Collection[str] | None) -> str:
    """Return why nobody who falls under a policy is this subject; empty where somebody may be. `accounts`: that there are."""
    parts = subject.split("/")
    if len(parts) != len(policy.by):
        return f"must be {'/'.join(policy.by)}"
    among = {
        "caller": policy.services,
        "account": policy.accounts or accounts or (),
        "operation": policy.operations or OPERATIONS,
    }
    for dimension, part in zip(policy.by, parts, strict=True):
        known = among.get(dimension)
        if known and part not in known:
            return f"the policy has no {dimension} '{part}'; it has {', '.join(known)}"
    return ""
