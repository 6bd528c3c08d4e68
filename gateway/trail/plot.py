"""Calls and would-be refusals over time: as two lines of blocks for a terminal, as SVG, and as a page that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from gateway.trail.table import minute

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 900, 270, 60, 30, 24
_STYLE: Final = """body{font:15px system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1b1f24}
body{background:#fff}table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #d0d7de}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}"""

Step = tuple[int, int, int]
"""Unix seconds at which it begins, calls, would-be refusals."""


def lines(hours: Sequence[Step], width: int) -> list[str]:
    """Return the plot as lines of text no wider than `width`, hours taken together where there are more of them."""
    together = max(1, -(-len(hours) // max(10, width - 20)))
    groups = [hours[first : first + together] for first in range(0, len(hours), together)]
    if not groups:
        return []
    calls = [sum(hour[1] for hour in group) for group in groups]
    refused = [sum(hour[2] for hour in group) for group in groups]
    most = max(calls)
    unit = "h" if together == 1 else f"{together} h"
    return [
        f"{'calls':>15}  {_bar(calls, most)}  most {most:,} in {unit}",
        f"{'would refuse':>15}  {_bar(refused, most)}  most {max(refused):,} in {unit}",
        f"{'':>15}  {minute(groups[0][0][0])} to {minute(groups[-1][-1][0] + 3600)}, UTC",
    ]


def svg(hours: Sequence[Step], title: str) -> str:
    """Return the plot as an SVG document: a bar an hour, the part that would have been refused at its foot."""
    most = max((calls for _, calls, _ in hours), default=0) or 1
    step = (_WIDTH - _LEFT) / max(1, len(hours))
    plain = _HEIGHT - _BOTTOM - _TOP
    bars = []
    for place, (begins, calls, refused) in enumerate(hours):
        x = _LEFT + place * step
        for count, colour in ((calls, "#8fb4d9"), (refused, "#c93c37")):
            height = count / most * plain
            bars.append(
                f'<rect x="{x:.2f}" y="{_HEIGHT - _BOTTOM - height:.2f}" width="{max(0.5, step * 0.9):.2f}" '
                f'height="{height:.2f}" fill="{colour}"><title>{minute(begins)}: {calls} calls, '
                f"{refused} would be refused</title></rect>"
            )
    ticks = []
    for place in sorted({0, len(hours) // 2, max(0, len(hours) - 1)}) if hours else ():
        anchor = "start" if place == 0 else "end" if place == len(hours) - 1 else "middle"
        x = _LEFT + place * step
        ticks.append(f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{minute(hours[place][0])}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="12">'
        f'<title>{escape(title)}</title><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<line x1="{_LEFT}" y1="{_HEIGHT - _BOTTOM}" x2="{_WIDTH}" y2="{_HEIGHT - _BOTTOM}" stroke="#57606a"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{most}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT - _BOTTOM}" text-anchor="end">0</text>'
        f"{''.join(bars)}{''.join(ticks)}"
        f'<text x="{_WIDTH}" y="14" text-anchor="end"><tspan fill="#3f6f9f">calls an hour</tspan>, '
        f'<tspan fill="#c93c37">would be refused</tspan></text></svg>'
    )


def page(report: dict[str, Any], hours: Sequence[Step]) -> str:
    """Return a report as one HTML page that loads nothing and runs nothing."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in (caller_row(c) for c in report["callers"])
    )
    heads = "".join(f"<th>{head}</th>" for head in CALLER_COLUMNS)
    smallest = "".join(f"<li>{escape(line)}</li>" for line in report["smallest"])
    unknown = "".join(f"<li>{escape(line)}</li>" for line in report["unknown"])
    title = f"What would have been refused: {report['limit']}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{escape(report['span'])}</p>{svg(hours, title)}"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f"<h2>The smallest limit that refuses nothing</h2><ul>{smallest}</ul>"
        f"<h2>What this cannot know</h2><ul>{unknown}</ul></body></html>\n"
    )


CALLER_COLUMNS: Final = ("caller", "calls", "refused then", "would be refused", "share", "worst hour", "burst needed")


def caller_row(caller: dict[str, Any]) -> tuple[Any, ...]:
    """Return a caller's line of a report, under `CALLER_COLUMNS`."""
    share = f"{caller['would_be_refused'] / caller['calls']:.1%}" if caller["calls"] else "–"
    worst = f"{caller['worst_hour']} ({caller['worst_hour_refused']})" if caller["worst_hour_refused"] else "–"
    needed = caller["burst_needed"]
    return (
        caller["service"], caller["calls"], caller["refused_then"], caller["would_be_refused"], share, worst,
        "–" if needed is None else needed,
    )  # fmt: skip


def _bar(counts: Sequence[int], most: int) -> str:
    if not most:
        return " " * len(counts)
    # What is there at all is seen.
    return "".join(_BLOCKS[0 if not count else max(1, round(count / most * (len(_BLOCKS) - 1)))] for count in counts)
