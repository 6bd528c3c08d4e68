"""Records and keys as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.model import NUMBER_FIELDS
from gateway.trail.search import Row


def show(table: Table) -> None:
    """Print a table, as wide as the terminal, or as wide as it needs where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def record_table(rows: Sequence[Row], heading: bool = True) -> Table:
    """Return records, one a line, each field as it was recorded."""
    table = _table(("at", "stage", "service", "operation", "numbers", "decision", "outcome", "code", "ms", "request id"), heading)
    for row in rows:
        table.add_row(
            *map(
                _text,
                (
                    row["at"],
                    row["stage"],
                    row.get("service", "–"),
                    row.get("operation", "–"),
                    _numbers(row),
                    row.get("decision", "–"),
                    row.get("problem") or row.get("result") or row.get("change", ""),
                    row.get("code", ""),
                    row.get("duration_ms", ""),
                    row.get("request_id", "–"),
                ),
            )
        )
    return table


def key_table(keys: Sequence[dict[str, Any]]) -> Table:
    """Return keys, one version a line, without secrets; `hour` and `day` are shares of the service's requests."""
    columns = ("id", "service", "state", "bound to", "last use", "hour", "day", "ends", "safe to revoke", "by", "note")
    table = _table(columns, heading=True)
    for key in keys:
        table.add_row(
            *map(
                _text,
                (
                    f"{key['id']}.{key['version']}",
                    key["service"],
                    key["state"],
                    ", ".join((*key["scopes"], *key["accounts"], *key["networks"], *key["prefixes"])),
                    _day(key["last_used_at"]),
                    _share(key["share_last_hour"]),
                    _share(key["share_last_day"]),
                    _day(key["expires_at"]) + (" soon" if key["ends_soon"] else ""),
                    "yes" if key["safe_to_revoke"] else "no" if key["state"] == "live" else "–",
                    key["created_by"],
                    key["note"],
                ),
            )
        )
    return table


def level_table(levels: Sequence[dict[str, Any]]) -> Table:
    """Return the levels of the log, one module a line, with who changed it and for how long still."""
    table = _table(("module", "level", "ends in", "by", "why"), heading=True)
    for row in levels:
        left = "–" if row["left_seconds"] is None else f"{row['left_seconds']} s"
        table.add_row(*map(_text, (row["module"], row["level"], left, row["operator"] or "–", row["why"] or "–")))
    return table


def slot_table(slots: Sequence[dict[str, Any]]) -> Table:
    """Return the slots of accounts, one a line, with what the vendor said where it was asked."""
    table = _table(("account", "slot", "state", "version", "vendor says"), heading=True)
    for slot in slots:
        table.add_row(
            *map(_text, (slot["account"], slot["slot"], slot["state"], slot["version"] or "unreadable", slot.get("said", "–")))
        )
    return table


def limit_table(limits: Sequence[dict[str, Any]]) -> Table:
    """Return limits, one a line: what each admits at worst, how much of it is used, and what it refused."""
    columns = (
        "account",
        "limit",
        "counts",
        "allows",
        "worst case",
        "mode",
        "used",
        "refused 1h",
        "in shadow 1h",
        "changed until",
    )
    table = _table(columns, heading=True)
    for row in limits:
        places = f"{row['concurrency']} at once" if row["concurrency"] else ""
        allows = ", ".join(part for part in (f"{row['rate']} burst {row['burst']}" if row["rate"] else "", places) if part)
        worst = f"{row['worst_case']} in {row['window_seconds']} s" if row["worst_case"] else row["concurrency"] or "–"
        used = [f"{row['used']}/{row['burst']}"] if row["used"] is not None else []
        used += [f"{row['under_way']} under way"] if row["under_way"] is not None else []
        table.add_row(
            *map(
                _text,
                (
                    row["account"],
                    f"{row['policy']}:{row['subject']}" if row["subject"] else row["policy"],
                    "+".join(row["by"]) + (", new numbers" if row["count"] == "new_numbers" else ""),
                    allows,
                    worst,
                    row["mode"],
                    ", ".join(used) or "–",
                    "–" if row["refused_last_hour"] is None else row["refused_last_hour"],
                    "–" if row["shadow_refused_last_hour"] is None else row["shadow_refused_last_hour"],
                    f"{row['changed_until']} ({row['why']})" if row["changed_until"] else "–",
                ),
            )
        )
    return table


def verdict_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what each limit said to one request, one a line."""
    table = _table(("try", "limit", "mode", "left", "verdict", "a retry passed from"), heading=True)
    for row in rows:
        limit = f"{row['policy']} ({row['field']})" if row["field"] else row["policy"]
        said = row["verdict"] + (", without Redis" if row["degraded"] else "")
        table.add_row(
            *map(_text, (row["attempt"], limit, row["mode"], f"{row['left']}/{row['burst']}", said, row["retry_at"] or "–"))
        )
    return table


def change_table(rows: Sequence[Row]) -> Table:
    """Return changes of limits, one a line."""
    columns = ("at", "account", "limit", "change", "before", "after", "until", "by", "why")
    table = _table(columns, heading=True)
    for row in rows:
        limit = f"{row['policy']}:{row['subject']}" if row.get("subject") else row.get("policy", "–")
        told = (row.get(name, "–") for name in ("before", "after", "until", "operator", "why"))
        table.add_row(*map(_text, (row["at"], row["account"], limit, row["change"].removeprefix("limit."), *told)))
    return table


def report_table(days: Sequence[dict[str, Any]]) -> Table:
    """Return what became of the calls of each service and day."""
    columns = ("day", "service", "calls", "answered", "refused", "failed", "unknown")
    return text_table(columns, [[day[name] if day[name] is not None else "nobody" for name in columns] for day in days])


def pseudonym_key_table(keys: Sequence[dict[str, Any]]) -> Table:
    """Return the keys that hide numbers; under a destroyed one nobody finds a number any more."""
    columns = ("key", "state", "records", "first", "last")
    return text_table(columns, [[key[name] if key[name] is not None else "–" for name in columns] for key in keys])


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return rows as they are, under the names of their columns."""
    table = _table(columns, heading=True)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def leak_table(sinks: Sequence[dict[str, Any]]) -> Table:
    """Return the places that were searched, one a line, with what was found there."""
    table = _table(("sink", "bytes", "found"), heading=True)
    for sink in sinks:
        table.add_row(*map(_text, (sink["sink"], sink["bytes"], ", ".join(sink["found"]) or "–")))
    return table


def _table(columns: Sequence[str], heading: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD if heading else None, show_header=heading, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("at", "stage", "id"))
    return table


def _text(value: Any) -> Text:
    # Text, not markup: a note or a service name must not colour or hide anything.
    return Text("".join(letter if letter.isprintable() else "?" for letter in str(value)))


def _numbers(row: Row) -> str:
    return " ".join(f"{name}:{row[f'{name}_country']}…{row[f'{name}_last2']}" for name in NUMBER_FIELDS if row.get(name))


def minute(unix_seconds: float) -> str:
    """Return an instant as `2030-01-31 12:30`, in UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _day(unix_seconds: float | None) -> str:
    return "never" if unix_seconds is None else minute(unix_seconds)


def _share(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}"
