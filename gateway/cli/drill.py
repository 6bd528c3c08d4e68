"""`gateway drill redis-down`: every process behaves for a while as if Redis were away, and calls show what callers would see.

The calls are real ones, by a key of the drill's own that ends with it, for numbers nobody has; its limit is known, so that
what passes beyond it can be counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from gateway import audit, keys
from gateway.cli.opened import operator, with_store
from gateway.keyring import key_record
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.limits import DRILL, Change, Changes, Made
from gateway.ledger.names import Names
from gateway.ledger.store import RedisLedger
from gateway.model import UNSET_PATH, Bindings
from gateway.opened import Opened, UsageError, change_limits, span
from gateway.trail.table import show, text_table

_SERVICE: Final = "drill"
_PREFIX: Final = "+911000"
"""No subscriber's number in India begins so: codes from 1 on are those of services."""
_AROUND_SECONDS: Final = 3.0
_RETURN_SECONDS: Final = 1.0
"""From the end of the outage until every process has seen it."""
_LONGEST_SECONDS: Final = 3600
_ASK_FASTER: Final = 1.5
_PHASES: Final = ("before", "during", "after")
_COLUMNS: Final = ("", "calls", "admitted", "limit allows", "beyond", "refused by", "p50 ms", "p99 ms", "longest ms")


def add_drill(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Add the subcommands to `gateway drill`."""
    commands = parser.add_subparsers(required=True, metavar="DRILL")
    command = commands.add_parser("redis-down", parents=[configured], help="what callers would see of an outage of Redis")
    command.add_argument("--for", dest="span", default="10s", metavar="SPAN", help="how long; 10s if not given")
    command.add_argument("--account", help="needed where there are several")
    command.add_argument("--url", help="of the running gateway; by the settings if not given")
    command.add_argument("--rate", type=int, default=20, help="the drill's own limit, calls a second; it asks half as much again")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_redis_down)


@dataclass(slots=True)
class _Phase:
    """What the calls of one part of the drill got."""

    begun: float
    ended: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    admitted: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def _redis_down(arguments: argparse.Namespace) -> int:
    seconds = span(arguments.span)
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise UsageError("--for: must be from 1s to 1h")
    if not 1 <= arguments.rate <= 1000:
        raise UsageError("--rate: must be from 1 to 1000")

    async def work(opened: Opened) -> int:
        account = opened.one_account(arguments.account)
        services = opened.settings.accounts[account].services
        if services and _SERVICE not in services:
            raise UsageError(f"accounts.{account}.services: add '{_SERVICE}', as whom the drill calls")
        server = opened.settings.server
        url = (arguments.url or f"http://{server.host}:{server.port}").rstrip("/")
        await _reach(url)
        ledger = await opened.ledger(account)
        lasts = seconds + 2 * _AROUND_SECONDS + _RETURN_SECONDS
        key = await _key(opened, account, lasts)
        own = Change(
            terms={"rate": f"{arguments.rate}/s", "burst": arguments.rate, "mode": "enforce"},
            until_us=0, operator=operator(), why="drill redis-down",
        )  # fmt: skip
        await _change(ledger, account, f"caller:{_SERVICE}", own, lasts, f"{arguments.rate}/s burst {arguments.rate} enforce")
        phases = await _drive(arguments, ledger, account, url, key, seconds)
        unrecorded = await _unrecorded(opened, account, phases[0].begun)
        return _report(arguments, phases, unrecorded)

    return with_store(arguments, work)


async def _reach(url: str) -> None:
    """Raise UsageError where no gateway answers: before a key is issued for nothing."""
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            alive = (await http.get(f"{url}/livez")).json() == {"status": "ok"}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        alive = False
    if not alive:
        raise UsageError("--url: no gateway answers there; give the address of one that runs, like http://127.0.0.1:8080")


async def _drive(
    arguments: argparse.Namespace, ledger: RedisLedger, account: str, url: str, key: str, seconds: float
) -> list[_Phase]:
    """Call all the time, and let Redis be away for a part of it."""
    phases: list[_Phase] = []
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(timeout=30, trust_env=False, limits=limits) as http, asyncio.TaskGroup() as calls:
        for name, lasts in zip(_PHASES, (_AROUND_SECONDS, seconds, _AROUND_SECONDS), strict=True):
            if name == "after":
                await asyncio.sleep(_RETURN_SECONDS)
            if name == "during":
                drill = Change(until_us=0, operator=operator(), why="drill redis-down")
                await _change(ledger, account, DRILL, drill, seconds, "Redis away")
            phase = _Phase(time.monotonic())
            phases.append(phase)
            for number in range(int(lasts * arguments.rate * _ASK_FASTER)):
                await asyncio.sleep(max(0.0, phase.begun + number / (arguments.rate * _ASK_FASTER) - time.monotonic()))
                calls.create_task(_call(http, url, key, phase))
            await asyncio.sleep(max(0.0, phase.begun + lasts - time.monotonic()))
            phase.ended = time.monotonic()
    return phases


async def _call(http: httpx.AsyncClient, url: str, key: str, phase: _Phase) -> None:
    number = f"{_PREFIX}{random.randrange(1_000_000):06d}"  # noqa: S311 - a number, no secret
    headers = {"Authorization": f"Bearer {key}"}
    begun = time.monotonic()
    try:
        answer = await http.post(url + UNSET_PATH, json={"m1": number, "expiry_duration": -1}, headers=headers)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        phase.refused[type(error).__name__] += 1
        return
    phase.milliseconds.append((time.monotonic() - begun) * 1000)
    if body.get("origin") == "gateway" and answer.status_code in (401, 403, 429, 503):
        phase.refused[body.get("policy") or body["error"]] += 1
    else:
        phase.admitted += 1


async def _change(ledger: RedisLedger, account: str, target: str, change: Change, seconds: float, after: str) -> None:
    """Make a live change that ends by itself. Raises: UsageError."""
    policy, _, subject = target.partition(":")

    def decide(changes: Changes) -> list[Made]:
        change.until_us = changes.now_us + int(seconds * 1_000_000)
        record = audit.change(
            "drill.began" if target == DRILL else "limit.set", at=time.time(), request_id=secrets.token_hex(16),
            account=account, operator=operator(), policy=None if target == DRILL else policy, subject=subject or None,
            after=after, until=time.time() + seconds, why=change.why,
        )  # fmt: skip
        return [(target, change, record)]

    await change_limits(ledger, decide)


async def _key(opened: Opened, account: str, lasts: float) -> str:
    """Issue the drill's key: for one account, for nobody's numbers, until a minute after."""
    await opened.registry.refresh()
    key_id = keys.mint_id(secrets.choice)
    key, secret = keys.mint(secrets.choice, key_id)
    now = time.time()
    version = KeyVersion(
        1, now, digest=keys.digest(secret), public_key="", expires_at=now + lasts + 60, revoked_at=None, created_by=operator()
    )
    bindings = Bindings(frozenset(("end",)), (account,), (), (_PREFIX,))
    entry = KeyEntry(key_id, _SERVICE, (version,), bindings, "drill redis-down")
    await opened.registry.save(entry, key_record("key.issued", operator(), entry, version))
    return key


async def _unrecorded(opened: Opened, account: str, begun: float) -> int:
    """Return how many outcomes of the drill have no intent in the trail, once the journals were carried over."""
    since = time.time() - (time.monotonic() - begun)
    await asyncio.sleep(1.0)
    intents: set[str] = set()
    wanted: set[str] = set()
    async with opened.trail([account]) as trail:
        async for page in trail.pages(Names(account).audit, since - 1):
            for encoded in page:
                record = json.loads(encoded)
                if record.get("service") == _SERVICE and record["stage"] == "intent":
                    intents.add(f"{record['writer']}-{record['seq']}")
                elif record.get("service") == _SERVICE and record["stage"] == "outcome":
                    wanted.add(record["intent"])
    return len(wanted - intents)


def _report(arguments: argparse.Namespace, phases: list[_Phase], unrecorded: int) -> int:
    rows = [_row(name, phase, arguments.rate) for name, phase in zip(_PHASES, phases, strict=True)]
    calls = sum(row["admitted"] for row in rows)
    if arguments.json:
        print(json.dumps({"phases": rows, "admitted_without_intent": unrecorded}))
    else:
        show(text_table(_COLUMNS, [_shown(row) for row in rows]))
        print(f"{calls} calls were made, {unrecorded or 'none'} of them without an intent in the audit trail.")
        print("A real outage costs one call for each process one wait of redis.timeout_ms more.")
    return 1 if unrecorded or not phases[1].milliseconds else 0


def _row(name: str, phase: _Phase, rate: int) -> dict[str, Any]:
    times = sorted(phase.milliseconds)
    allowed = int(rate + rate * (phase.ended - phase.begun)) + 1
    return {
        "phase": name,
        "calls": len(times) + sum(phase.refused[kind] for kind in phase.refused if kind[0].isupper()),
        "admitted": phase.admitted,
        "allowed": allowed,
        "beyond": max(0, phase.admitted - allowed),
        "refused": dict(phase.refused),
        "p50_ms": round(times[len(times) // 2], 1) if times else None,
        "p99_ms": round(times[int(len(times) * 0.99)], 1) if times else None,
        "longest_ms": round(times[-1], 1) if times else None,
    }


def _shown(row: dict[str, Any]) -> tuple[Any, ...]:
    refused = ", ".join(f"{kind} {count}" for kind, count in row["refused"].items()) or "–"
    figures = ("–" if row[name] is None else row[name] for name in ("p50_ms", "p99_ms", "longest_ms"))
    return (row["phase"], row["calls"], row["admitted"], row["allowed"], row["beyond"], refused, *figures)
