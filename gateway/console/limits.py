"""Limits: what each admits, who has used how much of it, what it refused, and, for operators, other terms for a while."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gateway import audit
from gateway.config import ConfigError
from gateway.console.pages import sentence
from gateway.console.visit import Go, Missing, View, Visit
from gateway.ledger.limits import DRILL, Made
from gateway.limits import change as changing
from gateway.limits.change import ChangedMeanwhile, Order
from gateway.limits.desk import Desk, list_limits, list_services, open_desk
from gateway.limits.history import read_changes, read_refusals
from gateway.model import MODES
from gateway.numbers import may_tell
from gateway.opened import UsageError, WrongField, read_why

_PSEUDONYM: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_GUARDS: Final = ("sweep", "repeat")
_FIRST_MAX: Final = 4
_SUBJECTS_MAX: Final = 200
_HISTORY_MAX: Final = 50
_HISTORY_SECONDS: Final = 4.0
_HOUR_SECONDS: Final = 3600
_RECORDS_MAX: Final = 20_000
_RECORDS_SECONDS: Final = 3.0
_TERMS: Final = ("rate", "burst", "concurrency", "mode")
_FIELDS: Final = ("subject", *_TERMS, "for", "why")


async def limits(visit: Visit) -> View:
    """Show every limit of every account, and what is changed of them for a while."""
    services = await list_services(visit.opened)
    told = []
    for account in visit.opened.accounts(None):
        desk = await open_desk(visit.opened, account)
        rows = await _rows(desk, services)
        policies = [{**row, **_of(rows, row)} for row in rows if not row["subject"]]
        drill = desk.changes.by_target.get(DRILL)
        told.append(
            {
                "account": account,
                "policies": [row for row in policies if row["policy"] not in _GUARDS],
                "guards": [row for row in policies if row["policy"] in _GUARDS],
                "changed": [row for row in rows if row["changed_until"]],
                "drill_until": drill.until_us / 1_000_000 if drill else None,
            }
        )
    return View("limits.html", "Limits", {"accounts": told})


async def limit(visit: Visit) -> View:
    """Show one limit: who has used how much, whom it refused or would have, and how it was changed."""
    desk, name = await find_limit(visit)
    services = await list_services(visit.opened)
    rows = [row for row in await _rows(desk, services) if row["policy"] == name]
    subjects = sorted(rows[1:], key=_fullness, reverse=True)
    async with visit.opened.trail([desk.account]) as trail:
        since = visit.now - _HOUR_SECONDS
        refused, all_refused = await read_refusals(trail, name, since, _RECORDS_MAX, _RECORDS_SECONDS)
        history = await read_changes(trail, _HISTORY_SECONDS, name)
    data = {
        **rows[0],
        "quota": _quota(desk, name, ""),
        "subjects": subjects[:_SUBJECTS_MAX],
        "subjects_found": len(subjects),
        "callers": [asdict(one) for one in refused[:_SUBJECTS_MAX]],
        "callers_whole": all_refused,
        "records_max": _RECORDS_MAX,
        "history": [_change(row) for row in history.rows[:_HISTORY_MAX]],
        "history_found": len(history.rows),
        "history_whole": history.whole,
    }
    return View("limit.html", f"Limit {name}", data)


async def change_page(visit: Visit) -> View:
    """Ask for other terms of a limit."""
    desk, name = await find_limit(visit)
    subject = _subject_in_address(visit)
    kept = desk.changed(name).get(subject)
    given = {"subject": subject, "for": "2h", "why": ""} | dict.fromkeys(_TERMS, "")
    given |= {term: str(value) for term, value in (kept.terms if kept else {}).items() if term in _TERMS}
    return await _form(visit, desk, name, given)


async def confirm_page(visit: Visit) -> View:
    """Show what other terms of a limit would mean, before they are made; changes nothing."""
    desk, name = await find_limit(visit)
    wanted = await _wanted(visit, desk, name)
    return wanted if isinstance(wanted, View) else await _confirm(visit, desk, wanted)


async def change(visit: Visit) -> View | Go:
    """Give a limit other terms, if it still is as the operator saw it."""
    desk, name = await find_limit(visit)
    wanted = await _wanted(visit, desk, name)
    if isinstance(wanted, View):
        return wanted

    def decide(found: Desk) -> list[Made]:
        return changing.set_terms(found, wanted.order, wanted.table, wanted.seconds)

    try:
        made = await changing.make(visit.opened, desk.account, decide, {name: visit.form.get("seen", "")})
    except ChangedMeanwhile:
        return await _confirm(visit, (await find_limit(visit))[0], wanted, meanwhile=True)
    except UsageError as error:
        return await _form(visit, (await find_limit(visit))[0], name, wanted.given, {"": str(error)})
    _, _, record = made[0]
    return Go(_path(desk.account, name), f"{wanted.order.target}: {record.before} → {record.after}, for {wanted.given['for']}.")


async def reset_page(visit: Visit) -> View:
    """Ask whether a change of a limit is to end now."""
    return await _reset_view(visit, _subject_in_address(visit))


async def reset(visit: Visit) -> View | Go:
    """End a change of a limit, if it still is as the operator saw it."""
    desk, name = await find_limit(visit)
    subject = visit.form.get("subject", "")
    try:
        order = _order(visit, name, subject, read_why(visit.form.get("why")))
        made = await changing.make(
            visit.opened, desk.account, lambda found: changing.reset(found, order), {name: visit.form.get("seen", "")}
        )
    except WrongField as wrong:
        return await _reset_view(visit, subject, fault=wrong.told, status=400)
    except ChangedMeanwhile:
        return await _reset_view(visit, subject, meanwhile=True, status=409)
    if not made:
        return await _reset_view(visit, subject, status=409)
    _, _, record = made[0]
    return Go(_path(desk.account, name), f"{order.target}: {record.before} → {record.after}.")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A change that was asked for, its fields each found good."""

    order: Order
    table: dict[str, Any]
    """Terms as in the settings."""
    seconds: float
    given: dict[str, str]
    """The fields of the form, the subject as records name it."""


async def find_limit(visit: Visit) -> tuple[Desk, str]:
    """Return the limits of the account, and the name of the policy, that the path names. Raises: Missing."""
    account, name = visit.path["account"], visit.path["policy"]
    if account not in visit.opened.settings.accounts:
        raise Missing("There is no such account; see the list of limits.")
    desk = await open_desk(visit.opened, account)
    if name not in desk.policies.policies():
        raise Missing("There is no such limit in this account; see the list of limits.")
    return desk, name


async def _rows(desk: Desk, services: list[str]) -> list[dict[str, Any]]:
    rows = await list_limits(desk, services)
    for row in rows:
        row["changed_until"] = audit.unix_seconds(row["changed_until"]) if row["changed_until"] else None
    return rows


def _of(rows: list[dict[str, Any]], policy: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of a policy's subjects among all limits: those that have used most."""
    own = [row for row in rows if row["policy"] == policy["policy"] and (row["subject"] or row["used"] is not None)]
    used = sorted((row for row in own if row["used"] or row["under_way"]), key=_fullness, reverse=True)
    return {"first": used[:_FIRST_MAX], "more": max(0, len(used) - _FIRST_MAX)}


def _fullness(row: dict[str, Any]) -> float:
    rate = (row["used"] or 0) / row["burst"] if row["burst"] else 0.0
    places = (row["under_way"] or 0) / row["concurrency"] if row["concurrency"] else 0.0
    return max(rate, places)


def _quota(desk: Desk, name: str, subject: str) -> dict[str, Any] | None:
    """Return how much of the vendor's quota a limit admits at worst: of its own, or of the account's; None: none is told."""
    terms, policies = desk.policies.in_force(name, subject), desk.policies.policies()
    if terms.rate is None or terms.burst is None:
        return None
    whole = {name: policies[name], **{of: policy for of, policy in policies.items() if policy.by == ("account",)}}
    for of, policy in whole.items():
        if (quota := policy.hard_limit) is not None:
            worst = terms.rate.worst_case(terms.burst, quota.window_seconds)
            return {"policy": of, "hard_limit": str(quota), "count": quota.count, "worst_case": worst}
    return None


def _change(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a change."""
    told = {name: record.get(name) for name in ("change", "subject", "before", "after", "operator", "why", "source")}
    at, until = record["at"], record.get("until")
    return {**told, "at": audit.unix_seconds(at), "until": audit.unix_seconds(until) if until else None}


async def _wanted(visit: Visit, desk: Desk, name: str) -> _Wanted | View:
    """Return what a form asks for, or the form again with what is wrong."""
    given = {field: visit.form.get(field, "").strip() for field in _FIELDS}
    faults: dict[str, str] = {}
    table: dict[str, Any] = {
        term: whole_number(given[term]) if term in ("burst", "concurrency") else given[term] for term in _TERMS
    }
    table = {term: value for term, value in table.items() if value != ""}
    try:
        changing.read_table(table)
    except ConfigError as error:
        faults |= {fault.path: fault.message for fault in error.faults}
    except UsageError as error:
        faults[""] = str(error)
    subject, seconds = given["subject"], 0.0
    try:
        if subject:
            services = await list_services(visit.opened)
            subject = changing.read_subject(subject, name, desk.policies.policies()[name], visit.opened, services)
    except WrongField as wrong:
        faults["subject"] = wrong.told
    if subject != given["subject"]:
        # Of a number that was typed the page tells the pseudonym, and how much it was used.
        pseudonym = subject.rpartition("/")[2]
        await visit.opened.record_search(pseudonym, visit.who, source=visit.source or None, why=f"for the limit {name}")
    # Whatever is wrong: a number that was typed does not come back in a page.
    given["subject"] = subject if _may_be_shown(subject) else ""
    for field, read in (("for", changing.read_span), ("why", read_why)):
        try:
            found = read(given[field])
            seconds = found if isinstance(found, float) else seconds
        except WrongField as wrong:
            faults[field] = wrong.told
            given[field] = "" if may_tell(given[field]) else given[field]
    if not faults and not desk.concerns(name, subject):
        faults["subject"] = "is not one of this account"
    if faults:
        return await _form(visit, desk, name, given, faults)
    return _Wanted(_order(visit, name, subject, given["why"]), table, seconds, given)


async def _form(visit: Visit, desk: Desk, name: str, given: Mapping[str, str], faults: Mapping[str, str] | None = None) -> View:
    """Return the form for other terms. `faults`: by field; of no one field under the empty name."""
    policy = desk.policies.policies()[name]
    terms = desk.policies.in_force(name, given["subject"])
    data = {
        "account": desk.account,
        "policy": name,
        "by": policy.by,
        "counted": policy.count,
        "before": desk.text(f"{name}:{given['subject']}" if given["subject"] else name),
        "present": {term: str(value) for term in _TERMS if (value := getattr(terms, term)) is not None},
        "modes": MODES,
        "services": (await list_services(visit.opened))[:_SUBJECTS_MAX] if policy.by == ("caller",) else [],
        "given": given,
        "faults": {field: told for field, told in (faults or {}).items() if field},
        "wrong": sentence((faults or {}).get("", "")),
    }
    return View("limit_change.html", f"Change {name}", data, 400 if faults else 200)


async def _confirm(visit: Visit, desk: Desk, wanted: _Wanted, *, meanwhile: bool = False) -> View:
    """Return the page that says what a change would mean. `meanwhile`: somebody else made one since that page was shown."""
    name, subject = wanted.order.policy, wanted.order.subject
    policy, seen = desk.policies.policies()[name], changing.state(desk, name)
    others = sorted({*policy.subjects, *desk.changed(name)} - {"", subject})
    before, by = desk.policies.in_force(name, subject), desk.changed(name).get(subject)
    try:
        made = changing.set_terms(desk, wanted.order, wanted.table, wanted.seconds)
    except UsageError as error:
        return await _form(visit, desk, name, wanted.given, {"": str(error)})
    _, _, record = made[0]
    after = desk.policies.in_force(name, subject)
    counted = subject or (desk.account if policy.by == ("account",) else "")
    used = (await desk.ledger.used([desk.policies.key(name, counted)]))[0] if counted and after.rate else None
    window = after.rate.window_seconds if after.rate else None
    data = {
        "account": desk.account,
        "policy": name,
        "subject": subject,
        "by": policy.by,
        "before": record.before,
        "after": record.after,
        "worst_before": before.rate.worst_case(before.burst, window) if before.rate and before.burst and window else None,
        "worst_after": after.rate.worst_case(after.burst, window) if after.rate and after.burst and window else None,
        "window_seconds": window,
        "quota": _quota(desk, name, subject),
        "used": used,
        "burst": after.burst if after.rate else None,
        "mode": after.mode,
        "others": others if not subject else [],
        "until": audit.unix_seconds(record.until) if record.until else None,
        "changed_by": by.operator if by else None,
        "why_before": by.why if by else None,
        "given": wanted.given,
        "seen": seen,
        "meanwhile": meanwhile,
    }
    return View("limit_confirm.html", f"Change {name}?", data, 409 if meanwhile else 200)


async def _reset_view(visit: Visit, subject: str, *, fault: str = "", meanwhile: bool = False, status: int = 200) -> View:
    desk, name = await find_limit(visit)
    kept, seen = desk.changed(name).get(subject), changing.state(desk, name)
    order = _order(visit, name, subject, "")
    made = changing.reset(desk, order)
    data = {
        "account": desk.account,
        "policy": name,
        "subject": subject,
        "before": made[0][2].before if made else None,
        "after": made[0][2].after if made else None,
        "until": kept.until_us / 1_000_000 if kept else None,
        "changed_by": kept.operator if kept else None,
        "why_before": kept.why if kept else None,
        "seen": seen,
        "fault": fault,
        "meanwhile": meanwhile,
    }
    return View("limit_reset.html", f"Reset {name}?", data, status)


def _order(visit: Visit, name: str, subject: str, why: str) -> Order:
    return Order(policy=name, subject=subject, operator=visit.who, why=why, source=visit.source or None)


def _subject_in_address(visit: Visit) -> str:
    """Return the subject that an address names; empty: everybody. Raises: UsageError."""
    subject = visit.query.get("subject", "").strip()
    if not _may_be_shown(subject):
        raise UsageError("a number must not stand in an address; type it into the form")
    return subject


def _may_be_shown(subject: str) -> bool:
    """Say whether a subject holds no number but by its pseudonym."""
    return not any(may_tell(part) for part in subject.split("/") if not _PSEUDONYM.fullmatch(part))


def whole_number(text: str) -> int | str:
    """Return a whole number that was typed, or the text where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else text


def _path(account: str, name: str) -> str:
    return f"/limits/{account}/{name}"
