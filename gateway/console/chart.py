"""Counts over time as bars that stand on each other, in SVG without a style or a script of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from gateway.model import RESULTS

_WIDTH, _HEIGHT, _GAP = 1000, 200, 0.18


def bars(buckets: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Return the bars of buckets that have a `label` and a count for each of `RESULTS`, from the foot up.

    These are classes of the style sheet too. A table must tell the same beside it.
    """
    most = max((sum(bucket[kind] for kind in RESULTS) for bucket in buckets), default=0) or 1
    step = _WIDTH / max(1, len(buckets))
    drawn = Markup().join(_bar(bucket, place * step, step, most) for place, bucket in enumerate(buckets))
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{title}">{drawn}'
        '<line class="base" x1="0" y1="{height}" x2="{width}" y2="{height}"/></svg>'
    ).format(width=_WIDTH, height=_HEIGHT, title=title, drawn=drawn)


def _bar(bucket: Mapping[str, Any], x: float, step: float, most: int) -> Markup:
    parts, y = [], float(_HEIGHT)
    for kind in RESULTS:
        if count := bucket[kind]:
            # What is there at all is seen.
            height = max(2.0, count / most * _HEIGHT)
            y = max(0.0, y - height)
            parts.append(
                Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    kind, f"{x + step * _GAP / 2:.2f}", f"{y:.2f}", f"{step * (1 - _GAP):.2f}", f"{height:.2f}"
                )
            )
    told = ", ".join(f"{bucket[kind]} {kind}" for kind in RESULTS if bucket[kind])
    return Markup("<g><title>{}: {}</title>{}</g>").format(bucket["label"], told, Markup().join(parts)) if parts else Markup()
