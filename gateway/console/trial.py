"""What a limit would have refused, asked of the audit history: bounded, and off the loop that answers everybody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.config import ConfigError, Policy, Settings
from gateway.console.limits import find_limit, whole_number
from gateway.console.visit import View, Visit
from gateway.limits.trial import CANDIDATE, Pages, Span, candidate, report, tried
from gateway.opened import opening
from gateway.trail import plot
from gateway.trail.replay import Replay

_AT_ONCE: Final = 2
_RECORDS_MAX: Final = 400_000
_SECONDS_MAX: Final = 15.0
_ROWS_MAX: Final = 200
_SPANS: Final = {"1h": (3_600, 60, "minute"), "1d": (86_400, 900, "quarter of an hour"), "7d": (604_800, 3_600, "hour")}
"""Seconds of each span that is offered, and of the steps of its plot, with their name."""
_LASTS: Final = {"1h": "the last hour", "1d": "the last day", "7d": "the last week"}

# Of the process, not of an application: what is shared is the processor.
_places = threading.BoundedSemaphore(_AT_ONCE)
_threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trial")


async def trial(visit: Visit) -> View:
    """Show what a limit would have refused; without a rate, where to ask for it."""
    desk, name = await find_limit(visit)
    policy, terms = desk.policies.policies()[name], desk.policies.in_force(name)
    given = {field: visit.query.get(field, "").strip() for field in ("rate", "burst", "since", "service")}
    data: dict[str, Any] = {
        "account": desk.account,
        "policy": name,
        "by": policy.by,
        "present": {"rate": str(terms.rate or ""), "burst": str(terms.burst or "")},
        "tryable": policy.rate is not None,
        "lasts": _LASTS,
        "given": given,
        "faults": {},
        "busy": False,
        "report": None,
    }
    if not (given["rate"] or given["burst"]):
        return _view(data | {"given": {**data["present"], "since": given["since"] or "1d", "service": given["service"]}})
    table = _table(policy, given)
    try:
        candidate(table, desk.account, visit.opened)
        faults = {}
    except ConfigError as error:
        faults = {fault.path.removeprefix(f"policies.{CANDIDATE}").lstrip(".") or "rate": fault.message for fault in error.faults}
    if given["since"] not in _SPANS:
        faults["since"] = f"must be one of {', '.join(_SPANS)}"
    if faults:
        return _view(data | {"faults": faults}, 400)
    seconds, step, step_name = _SPANS[given["since"]]
    work = _Work(
        visit.opened.settings, visit.opened.folder, desk.account, table, _span(visit.now, seconds, step, given["service"])
    )
    found = await _aside(work)
    if found is None:
        return _view(data | {"busy": True}, 503)
    return _view(data | {"report": {**found, "step": step_name, "step_seconds": step}})


class _Bound:
    """Ends the reading of history when there was enough of it."""

    def __init__(self) -> None:
        self._end = time.monotonic() + _SECONDS_MAX
        self.read = 0
        self.reached = False

    async def passed(self, pages: Pages) -> Pages:
        async for page in pages:
            if self.read + len(page) > _RECORDS_MAX or time.monotonic() > self._end:
                self.reached = True
                return
            self.read += len(page)
            yield page


@dataclass(frozen=True, slots=True)
class _Work:
    """One question to the history."""

    settings: Settings
    folder: Path
    account: str
    table: dict[str, Any]
    """The limit that is tried, as in the settings."""
    asked: Span

    def done(self) -> dict[str, Any]:
        """Answer it, in a thread and a loop of its own. Raises: as `tried`."""
        return asyncio.run(self._done())

    async def _done(self) -> dict[str, Any]:
        bound, unknown = _Bound(), Counter[str]()
        async with opening(self.settings, self.folder) as opened:
            policies = candidate(self.table, self.account, opened)
            replay = await tried(opened, self.account, policies, self.asked, unknown, bound.passed)
        limit = f"{self.table['rate']} with burst {self.table['burst']}"
        told, steps = report(limit, [replay], self.asked, unknown)
        return self._told(told, steps, replay, bound)

    def _told(self, told: dict[str, Any], steps: list[plot.Step], replay: Replay, bound: _Bound) -> dict[str, Any]:
        until = self.asked.until or 0.0
        worst = max(steps, key=lambda step: step[2], default=None)
        return {
            "limit": told["limit"],
            "since": self.asked.since,
            "until": until,
            "capped_at": replay.last / 1_000_000 if bound.reached else None,
            "records": bound.read,
            "calls": sum(calls for _, calls, _ in steps),
            "refused": sum(refused for _, _, refused in steps),
            "most": max((calls for _, calls, _ in steps), default=0),
            "worst": worst if worst is not None and worst[2] else None,
            "callers": told["callers"][:_ROWS_MAX],
            "callers_found": len(told["callers"]),
            "smallest": [line.removeprefix(f"{CANDIDATE}: ") for line in told["smallest"]],
            "unknown": told["unknown"],
            "steps": _whole(steps, self.asked.since, until, self.asked.step_us // 1_000_000),
        }


async def _aside(work: _Work) -> dict[str, Any] | None:
    """Return the answer; None: as many are being worked on as may be."""
    if not _places.acquire(blocking=False):
        return None
    future = _threads.submit(work.done)
    # Also when nobody waits any more: the place is taken until the work is done.
    future.add_done_callback(lambda _: _places.release())
    return await asyncio.wrap_future(future)


def _table(policy: Policy, given: dict[str, str]) -> dict[str, Any]:
    """Return the limit that is tried, as in the settings: the policy's, for everybody alike, at another rate and burst."""
    return {
        "by": list(policy.by), "count": policy.count, "operations": list(policy.operations), "services": list(policy.services),
        "rate": given["rate"] or "empty", "burst": whole_number(given["burst"]),
    }  # fmt: skip


def _span(now: float, seconds: int, step: int, service: str) -> Span:
    """Return a span of whole steps that ends with the one that is going on."""
    last = int(now) // step * step
    return Span(since=float(last - seconds + step), until=now, service=service or None, step_us=step * 1_000_000)


def _whole(steps: list[plot.Step], since: float, until: float, step: int) -> list[plot.Step]:
    """Return every step of the span, those without calls too."""
    found = {begins: (begins, calls, refused) for begins, calls, refused in steps}
    return [found.get(begins, (begins, 0, 0)) for begins in range(int(since) // step * step, int(until) + 1, step)]


def _view(data: dict[str, Any], status: int = 200) -> View:
    return View("limit_trial.html", f"What if: {data['policy']}", data, status)
