"""Callers: their keys, what these were used for, and, for operators, their end."""

from __future__ import annotations

from typing import Any, Final

from gateway import keyring
from gateway.console.pages import sentence
from gateway.console.visit import Go, Missing, View, Visit
from gateway.opened import UsageError, WrongField, read_why, span

_SHOWN_MAX: Final = 200
_WAIT_SECONDS: Final = 3.0
_STATES: Final = ("live", "expired", "revoked")
_SPANS: Final = ("7d", "30d", "90d", "365d")


async def callers(visit: Visit) -> View:
    """Show the keys of every service, the live ones unless others are asked for."""
    service, state = visit.query.get("service", "").strip(), visit.query.get("state", "live")
    rows = await keyring.list_keys(visit.opened)
    found = [row for row in rows if service in ("", row["service"]) and state in ("all", row["state"])]
    data = {
        "rows": found[:_SHOWN_MAX],
        "found": len(found),
        "shown_max": _SHOWN_MAX,
        "counts": {name: sum(row["state"] == name for row in rows) for name in _STATES},
        "ending": [_named(row) for row in rows if row["ends_soon"]],
        "services": sorted({row["service"] for row in rows}),
        "service": service,
        "state": state if state in (*_STATES, "all") else "live",
        "unreadable": list(visit.opened.registry.unreadable),
    }
    return View("callers.html", "Callers", data)


async def caller(visit: Visit) -> View:
    """Show one key with all its versions, and how far a rotation was adopted."""
    return View("caller.html", "A caller's key", await _one(visit))


async def revoke_page(visit: Visit) -> View:
    """Ask whether a key, or one version of it, is to end at once."""
    return View("revoke.html", "Revoke a key", {**await _one(visit), "wrong": ""})


async def revoke(visit: Visit) -> View | Go:
    """End a key, or one version of it, at once."""
    why = visit.form.get("why", "").strip()
    if wrong := _wrong_reason(why):
        return View("revoke.html", "Revoke a key", {**await _one(visit), "wrong": wrong}, 400)
    name = await _name(visit)
    done = await keyring.revoke(visit.opened, name, visit.who, why, _WAIT_SECONDS)
    told = f"Revoked {name} of {done.entry.service}; {done.under_way or 'no'} calls under it are still under way."
    if done.replicas_behind:
        told += f" {done.replicas_behind} replicas of Redis lack it; a failover to one would undo it: revoke again."
    return Go(f"/callers/{done.entry.key_id}", told)


async def extend_page(visit: Visit) -> View:
    """Ask when a key, or one version of it, is to end."""
    return View("extend.html", "Change when a key ends", {**await _one(visit), "spans": _SPANS, "wrong": ""})


async def extend(visit: Visit) -> View | Go:
    """Change when a key, or one version of it, ends."""
    why, ends = visit.form.get("why", "").strip(), visit.form.get("ends", "")
    wrong = _wrong_reason(why) or ("" if ends in (*_SPANS, "never") else "Say when it is to end.")
    if wrong:
        return View("extend.html", "Change when a key ends", {**await _one(visit), "spans": _SPANS, "wrong": wrong}, 400)
    name = await _name(visit)
    end = None if ends == "never" else visit.now + span(ends)
    entry = await keyring.extend(visit.opened, name, end, visit.who, why)
    told = "never ends" if end is None else f"ends in {ends}"
    return Go(f"/callers/{entry.key_id}", f"{name} of {entry.service} {told}; what is revoked stays so.")


async def _one(visit: Visit) -> dict[str, Any]:
    """Return what is told of the key, or the version, that the path names. Raises: Missing."""
    name = await _name(visit)
    rows = [row for row in await keyring.list_keys(visit.opened) if row["id"] == name.partition(".")[0]]
    meant = [row for row in rows if name in (row["id"], _named(row))]
    return {"name": name, "rows": rows, "meant": meant, "service": rows[0]["service"], "note": rows[0]["note"]}


async def _name(visit: Visit) -> str:
    name = visit.path["key"]
    await visit.opened.registry.refresh()
    try:
        keyring.key_by_id(visit.opened, name)
    except UsageError:
        raise Missing("There is no such key; see the list of callers.") from None
    return name


def _named(row: dict[str, Any]) -> str:
    return f"{row['id']}.{row['version']}"


def _wrong_reason(why: str) -> str:
    try:
        read_why(why)
    except WrongField as wrong:
        return sentence(wrong.told)
    return ""
