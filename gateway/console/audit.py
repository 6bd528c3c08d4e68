"""The audit trail: searched by whatever a record tells, page by page, and taken away as a file.

A number never stands in an address: a form brings it, and what is found is addressed by its pseudonyms. Whoever asks for a
number is recorded before anything is told of it: by each form, by each file, and once a session by links to a pseudonym.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, get_args
from urllib.parse import quote, urlencode

from gateway.audit import Stage, rfc3339
from gateway.console.sessions import Sessions
from gateway.console.visit import Download, Go, Missing, View, Visit
from gateway.errors import Refusal
from gateway.ledger.names import KEYS_TAG, Names
from gateway.model import NUMBER_FIELDS, RESULTS
from gateway.opened import Opened, UsageError, instant
from gateway.trail.archive import ArchiveError, Reader
from gateway.trail.export import FORMATS, Format, written
from gateway.trail.export.reading import usual
from gateway.trail.index import BrokenIndex
from gateway.trail.search import Found, Page, Query, Row, Trail

_ROWS: Final = 50
LIVE_MAX: Final = 10_000
"""Live records that one page looks at."""
_LIVE_SECONDS: Final = 5.0
_FILE_MAX: Final = 10_000
_FILE_AT_ONCE: Final = 500
_TEXTS: Final = ("service", "key_id", "problem", "request_id", "source")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "stage": get_args(Stage),
    "decision": ("allowed", "denied"),
    "result": RESULTS,
}
_TIMES: Final = ("since", "until")
_FIELDS: Final = ("pseudonyms", "account", *_TEXTS, "code", *_CHOICES, *_TIMES)
_PSEUDONYMS: Final = re.compile(r"[0-9a-f]{32}(?:\.[0-9a-f]{32}){0,31}", re.ASCII)
_CODE: Final = re.compile(r"\d{1,9}", re.ASCII)
_TEXT_MAX: Final = 200
_TYPES: Final = {"csv": "text/csv; charset=utf-8"}
_LINES: Final = "application/x-ndjson"
_TONES: Final = {"answered": "good", "refused": "warn", "failed": "bad", "unknown": "bad"}


@dataclass(frozen=True, slots=True)
class _Sought:
    """What is searched for."""

    values: dict[str, str]
    """What the fields hold; an empty one is left out."""
    wrong: dict[str, str]
    """What is wrong, by field."""
    query: Query
    trails: list[str]

    def link(self, path: str = "/audit", **more: str) -> str:
        """Return an address with these fields and more."""
        words = urlencode({**self.values, **more})
        return f"{path}?{words}" if words else path


async def page(visit: Visit) -> View:
    """Show what was recorded, the newest first."""
    sought = _read(visit.opened, visit.query)
    if visit.query.get("number"):
        sought.wrong["number"] = "A number must not stand in an address; type it here."
    if sought.wrong:
        return _view(visit, sought, None, [])
    if sought.query.pseudonyms:
        await _record_link(visit, sought.query.pseudonyms)
    older, newer = visit.query.get("older") or None, visit.query.get("newer") or None
    try:
        found, missing = await _page(visit, sought, older, newer)
        if newer is not None and found.newer is None and not found.cut:
            # The newest page is a whole one, also for who comes to it from below.
            found, missing = await _page(visit, sought, None, None)
    except ValueError:
        sought.wrong["page"] = "This address leads to no page: it was cut or altered. Search anew."
        return _view(visit, sought, None, [])
    return _view(visit, sought, found, missing)


async def search(visit: Visit) -> View | Go:
    """Go to what a form asks for; a number in it becomes its pseudonyms here."""
    sought, typed = _read(visit.opened, visit.form), visit.form.get("number", "").strip()
    for name in _TIMES:
        if name in sought.values and name not in sought.wrong:
            sought.values[name] = _as_instant(name, sought.values[name])
    if typed:
        try:
            visit.opened.number("number", typed)
        except UsageError:
            sought.wrong["number"] = "This is not a telephone number. Write it like +919876543210."
    if sought.wrong:
        return _view(visit, sought, None, [])
    if typed:
        pseudonyms = await visit.opened.search_number("number", typed, visit.who, visit.source or None)
        await _note(visit, pseudonyms)
        sought.values["pseudonyms"] = ".".join(pseudonyms)
    return Go(sought.link())


async def download(visit: Visit) -> Download:
    """Send what a search finds as a file, the newest first."""
    name = visit.path["format"]
    if name not in FORMATS:
        raise Missing(f"There is no such file; the trail is had as {', '.join(FORMATS)}.")
    sought = _read(visit.opened, visit.query)
    if sought.wrong:
        raise UsageError("; ".join(f"{field}: {message.rstrip('.')}" for field, message in sought.wrong.items()))
    for pseudonym in sought.query.pseudonyms:
        await visit.opened.record_search(pseudonym, visit.who, source=visit.source or None, why=f"as a file, {name}")
    # What cannot be had is told now: a file that ends early looks whole to many programs.
    _, missing = await _page(visit, sought, None, None)
    if missing:
        raise UsageError(f"the file would not be whole: {missing[0].rstrip('.')}")
    at = rfc3339(visit.now)[:19].replace(":", "")
    return Download(f"audit-{at}.{name}", _TYPES.get(name, _LINES), partial(_parts, sought, FORMATS[name]))


async def on_trail(
    visit: Visit, trails: list[str], ask: Callable[[Trail, Reader | None], Awaitable[Any]]
) -> tuple[Any, list[str]]:
    """Ask the trail of some accounts, or what can be had of it; return the answer, and what is missing.

    Raises: Refusal, ArchiveError or BrokenIndex where nothing can be had.
    """
    missing, reader, fault = list[str](), None, None
    try:
        reader = visit.opened.reader
    except (ArchiveError, BrokenIndex, OSError) as error:
        missing, fault = [_unsealed(error)], error
    try:
        # Who this is could not be asked either: nobody is to wait for it once more.
        async with asyncio.timeout(0 if visit.redis_away else _LIVE_SECONDS), visit.opened.client() as client:
            try:
                return await ask(_trail(client, trails, reader), reader), missing
            except (ArchiveError, BrokenIndex) as error:
                missing, fault = [_unsealed(error)], error
                return await ask(_trail(client, trails, None), None), missing
    except (Refusal, TimeoutError):
        if fault is not None:
            raise ArchiveError(f"{fault}; and Redis does not answer") from None
        if reader is None:
            raise
    away = "Redis does not answer: what is not sealed yet is missing here."
    return await ask(_trail(None, trails, reader), reader), [*missing, away]


def row_of(found: Found) -> dict[str, Any]:
    """Return what a line of the list tells of a record."""
    told = usual(found.row)
    how = told.get("problem") or told.get("result") or ""
    return {
        "id": f"{found.row['writer']}-{found.row['seq']}",
        "href": href(f"{found.row['writer']}-{found.row['seq']}"),
        "at": found.row["at"],
        "stage": found.row["stage"],
        "account": found.row["account"],
        "who": told.get("service") or told.get("operator"),
        "what": told.get("operation") or told.get("change"),
        "numbers": numbers(told),
        "decision": told.get("decision"),
        "how": how,
        "code": told.get("code"),
        "tone": "warn" if told.get("decision") == "denied" else _TONES.get(told.get("result", ""), "quiet"),
        "duration_ms": told.get("duration_ms"),
        "degraded": told.get("degraded", False),
        "attempt": told.get("attempt", 1),
        "count": told.get("count", 1),
        "sealed": found.sealed,
    }


def numbers(told: Row) -> list[dict[str, str | None]]:
    """Return the numbers of a record, as much as is told of them."""
    return [
        {"field": name, "country": told.get(f"{name}_country"), "last2": told.get(f"{name}_last2"), "pseudonym": told.get(name)}
        for name in NUMBER_FIELDS
        if told.get(name)
    ]


def href(name: str) -> str:
    """Return the address of a record's, or of a request's, story."""
    return f"/audit/{quote(name, safe='')}"


def _read(opened: Opened, given: Mapping[str, str]) -> _Sought:
    values = {name: given.get(name, "").strip() for name in _FIELDS}
    values = {name: value for name, value in values.items() if value}
    wrong, read = dict[str, str](), dict[str, Any]()
    for name, value in values.items():
        try:
            read[name] = _value(name, value)
        except UsageError as error:
            wrong[name] = str(error)
    trails = list[str]()
    try:
        trails = opened.trails(values.get("account"), by_number="pseudonyms" in values)
    except UsageError:
        wrong["account"] = f"There is no such account; there are {', '.join((*opened.settings.accounts, KEYS_TAG))}."
    return _Sought(values, wrong, Query(**({} if wrong else read)), trails)


def _value(name: str, text: str) -> Any:
    """Return what a field means. Raises: UsageError."""
    if name in _TIMES:
        try:
            return instant(name, text)
        except (UsageError, OverflowError):
            raise UsageError("Write a span back from now like 1h or 7d, or a time like 2030-01-31T12:00.") from None
    if name in _CHOICES and text not in _CHOICES[name]:
        raise UsageError(f"There is no such {name}; there are {', '.join(_CHOICES[name])}.")
    if name == "pseudonyms":
        if _PSEUDONYMS.fullmatch(text) is None:
            raise UsageError("This address names no number: it was cut or altered. Type the number.")
        return tuple(text.split("."))
    if name == "code":
        if _CODE.fullmatch(text) is None:
            raise UsageError("The vendor's codes are whole numbers, like 1503.")
        return int(text)
    if len(text) > _TEXT_MAX:
        raise UsageError(f"This is longer than {_TEXT_MAX} characters, and nothing recorded here is.")
    return text


def _as_instant(name: str, text: str) -> str:
    """Return a time as it stands in an address that means the same tomorrow."""
    found = instant(name, text) if re.fullmatch(r"\d+[smhdw]", text) else None
    return text if found is None else f"{rfc3339(found)[:19]}Z"


async def _page(visit: Visit, sought: _Sought, older: str | None, newer: str | None) -> tuple[Page, list[str]]:
    async def ask(trail: Trail, _: Reader | None) -> Page:
        return await trail.page(sought.query, _ROWS, older, newer=newer, live_max=LIVE_MAX)

    return await on_trail(visit, sought.trails, ask)


def _trail(client: Any, trails: list[str], reader: Reader | None) -> Trail:
    return Trail(client, [Names(account).audit for account in trails], reader)


def _unsealed(error: Exception) -> str:
    return f"The sealed trail cannot be read, and what only it has is missing here: {error}."


async def _record_link(visit: Visit, pseudonyms: Sequence[str]) -> None:
    """Record a search by an address that names pseudonyms, each once a session. Raises: Refusal, UsageError.

    Whoever made the address may have put together what is not of one number.
    """
    if visit.redis_away:
        raise UsageError("Redis does not answer, so a search for a number cannot be recorded, and is not made")
    assert visit.session is not None
    for pseudonym in pseudonyms:
        async with visit.opened.client() as client:
            if await Sessions(client, visit.opened.settings.console).has_searched(visit.session, pseudonym):
                continue
        await visit.opened.record_search(pseudonym, visit.who, source=visit.source or None, why="by a link")
        await _note(visit, (pseudonym,))


async def _note(visit: Visit, pseudonyms: Sequence[str]) -> None:
    assert visit.session is not None
    async with visit.opened.client() as client:
        await Sessions(client, visit.opened.settings.console).note_searches(visit.session, pseudonyms)


async def _parts(sought: _Sought, write: Format, opened: Opened) -> AsyncIterator[bytes]:
    yield write.header
    left, older = _FILE_MAX, None
    async with opened.trail(sought.trails) as trail:
        while left > 0:
            page = await trail.page(sought.query, min(left, _FILE_AT_ONCE), older, live_max=LIVE_MAX)
            left -= len(page.found)
            yield written(write, [one.record for one in reversed(page.found)])[0]
            if (older := page.older) is None:
                break


def _view(visit: Visit, sought: _Sought, found: Page | None, missing: list[str]) -> View:
    rows = [row_of(one) for one in reversed(found.found)] if found is not None else []
    pages = {name: getattr(found, name, None) for name in ("older", "newer")}
    data = {
        "rows": rows,
        "values": sought.values,
        "wrong": sought.wrong,
        "number": _number_of(sought, found),
        "missing": missing,
        "cut": found is not None and found.cut,
        "live_max": LIVE_MAX,
        "file_max": _FILE_MAX,
        "choices": {**_CHOICES},
        "accounts": [*visit.opened.settings.accounts, KEYS_TAG],
        "older": sought.link(older=pages["older"]) if pages["older"] else None,
        "newer": sought.link(newer=pages["newer"]) if pages["newer"] else None,
        "newest": sought.link(),
        "files": {name: sought.link(f"/audit.{name}") for name in FORMATS} if not sought.wrong else {},
        "without_number": _without(sought, "pseudonyms"),
    }
    return View("audit.html", "Audit", data, 400 if sought.wrong else 200)


def _without(sought: _Sought, left_out: str) -> str:
    """Return the address of a search without one of its fields."""
    return replace(sought, values={name: value for name, value in sought.values.items() if name != left_out}).link()


def _number_of(sought: _Sought, found: Page | None) -> dict[str, str | None] | None:
    """Return what may be told of the number that is searched for; None where none is."""
    if "pseudonyms" not in sought.values:
        return None
    pseudonyms = sought.values["pseudonyms"].split(".")
    for one in found.found if found is not None else ():
        for number in numbers(usual(one.row)):
            if number["pseudonym"] in pseudonyms:
                return number
    return {"field": None, "country": None, "last2": None, "pseudonym": pseudonyms[0]}
