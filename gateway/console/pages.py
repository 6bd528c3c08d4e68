"""The templates, and how times and counts are written in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gateway.console.chart import bars
from gateway.model import RESULTS
from gateway.trail.table import minute

_DAY_SECONDS = 86_400
_RECORDED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", re.ASCII)


def make_templates() -> Environment:
    """Return the templates: everything is escaped, and a name that is missing is an error."""
    templates = Environment(
        loader=PackageLoader("gateway.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(
        time=_time, minute=minute, instant=_instant, lasts=lasts, count=_count, bytes=_bytes, share=_share, ms=_ms, sum_of=_sum_of
    )
    templates.globals["bars"] = bars
    return templates


def sentence(told: str) -> str:
    """Return what is told in half a line, as a sentence; empty where nothing is."""
    return f"{told[:1].upper()}{told[1:]}." if told else ""


def lasts(seconds: float) -> str:
    """Return how long something lasts, in its largest whole unit: `3 d`, `12 min`."""
    for unit, length in (("d", _DAY_SECONDS), ("h", 3600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _time(unix_seconds: float | None, empty: str = "never") -> Markup:
    """Return an instant as people read it, in UTC, and as machines do."""
    if unix_seconds is None:
        return Markup('<span class="quiet">{}</span>').format(empty)
    at = datetime.fromtimestamp(unix_seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M"))


def _sum_of(bucket: Mapping[str, Any]) -> int:
    return sum(bucket[kind] for kind in RESULTS)


def _instant(at: str) -> str:
    """Return an instant as records tell it, `2030-01-31 12:30:00.123`; what is none as it is."""
    return f"{at[:10]} {at[11:23]}" if _RECORDED.fullmatch(at) else at


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _share(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}"


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "–"
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"
