"""A console as a process of its own, before a Redis that holds a day of a gateway's life. Nothing of the vendor's is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx
from redis.asyncio import Redis as Client

from gateway import keys
from gateway.audit import Record, rfc3339
from gateway.config import Redis as RedisSettings
from gateway.console import keys as console_keys
from gateway.console.keys import ROLES
from gateway.console.visit import Route
from gateway.keyring import key_record
from gateway.keys import KeyEntry, KeyVersion
from gateway.ledger.batch import Batch
from gateway.ledger.chain import Chain
from gateway.ledger.connect import connect
from gateway.ledger.ends import Ends
from gateway.ledger.names import KEYS_TAG, Names
from gateway.ledger.registry import KeyRegistry
from gateway.model import Bindings
from gateway.opened import opening
from gateway.settings_file import load
from tests.running import PSEUDONYM_KEY, Process, Redis

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
"""What no page may show as anything but text."""
WRITER = "host-5f1c2a77"
"""Who wrote most of what `fill` writes."""
DAY, HOUR = 86_400, 3_600


class Console:
    """The console, its Redis, and a key for each role."""

    def __init__(self, folder: Path, *, port: int = 0, console: str = "", more: str = "") -> None:
        self.folder = folder
        self.redis = Redis(folder / "r")
        self._port, self._console, self._more = port, console, more
        # Accounts name secrets that nobody has given: the console must not want them.
        self.environ = {"PSEUDONYM_KEY": PSEUDONYM_KEY}
        self.keys: dict[str, str] = {}
        self._visitors: list[Visitor] = []

    def __enter__(self) -> Self:
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        self.redis.__enter__()
        self.config = self.folder / "gateway.toml"
        self.config.write_text(f"""
[server]
state_dir = "{self.folder / "state"}"
[redis]
url = "{self.redis.url}"
[accounts.main]
brand = "https://v4-api.deepcall.com"
services = ["crm", "dialler"]
[accounts.main.primary]
ssid = {{ env = "NOBODY_GAVE_THIS" }}
[accounts.main.secondary]
ssid = {{ env = "NOR_THIS" }}
[accounts.other]
brand = "https://v5-api.deepcall.com"
[accounts.other.primary]
ssid = {{ file = "/nowhere/to/be/found" }}
[audit]
pseudonym_key = {{ env = "PSEUDONYM_KEY" }}
[console]
port = {self._port}
{self._console}
{self._more}
""")
        self.start()
        self._issue_keys()
        return self

    def start(self) -> None:
        words = [sys.executable, "-m", "gateway", "console", "--config", str(self.config)]
        self.process = Process(self.folder, f"console-{time.monotonic_ns()}", words, self.environ)
        self.url = self.process.address()

    def __exit__(self, *_: object) -> None:
        for visitor in self._visitors:
            visitor.close()
        self.process.stop()
        self.redis.__exit__()

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one gateway command on these settings."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--config", str(self.config)],
            capture_output=True, text=True, timeout=60, env={**os.environ, **self.environ},
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def issue(self, name: str, role: str, *words: str) -> str:
        """Issue a key to the console by the command, and return it."""
        return str(json.loads(self.cli("console", "issue", name, "--role", role, "--json", *words).stdout)["key"])

    def _issue_keys(self) -> None:
        async def issue() -> None:
            async with opening(load(self.config, {}), self.folder / "state") as opened:
                for role in ROLES:
                    _, self.keys[role] = await console_keys.issue(opened, f"an-{role}", role, None, "tests")

        _run(issue())

    def forget_tries(self) -> None:
        """Let everybody try to sign in anew."""
        with self.redis.client() as client:
            for name in client.scan_iter("*console:tries:*"):
                client.delete(name)

    def browser(self, role: str | None = None) -> Visitor:
        """Return somebody who visits, signed in if a role is named."""
        visitor = Visitor(self.url)
        self._visitors.append(visitor)
        if role is not None:
            answer = visitor.sign_in(self.keys[role])
            assert answer.status_code == 303, answer.text
        return visitor

    def records(self, account: str = KEYS_TAG) -> list[dict[str, Any]]:
        """Return every record of an account's stream."""
        with self.redis.client() as client:
            return [json.loads(fields[b"r"]) for _, fields in client.xrange(Names(account).audit)]

    def seal(self) -> None:
        """Seal all there is."""
        (self.folder / "state").mkdir(exist_ok=True)
        self.cli("audit", "seal", "--once")

    def fill(self, calls: int = 600) -> None:
        """Write a day of life: keys of several services in every state, calls of every kind, writers, open intents."""
        _run(_fill(self.redis.url, calls))
        _run(_fill_limits(self.redis.url))
        words = ("caller:dialler", "20/s", "--burst", "100", "--for", "2h", "--account", "main", "--why", HOSTILE)
        self.cli("limits", "set", *words)

    def write_ends(self, ends: Ends) -> None:
        """Write what was counted of calls."""
        _run(_write_ends(self.redis.url, ends))


def path_of(route: Route, key: str = "crmkeyid00") -> str:
    """Return the path of a route to something that `fill` made."""
    open_parts = {"{key}": key, "{record:path}": f"{WRITER}-0", "{format}": "csv", "{account}": "main", "{policy}": "caller"}
    path = route.path
    for part, value in open_parts.items():
        path = path.replace(part, value)
    return path


class Visitor(httpx.Client):
    """A browser without a page: it keeps the cookie, and says where its forms come from."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, trust_env=False, timeout=30)
        self.url = url

    def sign_in(self, key: str, **more: str) -> httpx.Response:
        return self.send_form("/sign-in", {"key": key, **more})

    def send_form(self, path: str, form: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        """Send a form as our own page would; a header that is empty is left out."""
        sent = {"origin": self.url, "content-type": "application/x-www-form-urlencoded", **headers}
        return self.post(path, data=form or {}, headers={name: value for name, value in sent.items() if value})

    def csrf(self) -> str:
        """Return the token that stands in the forms of this session."""
        return re.findall(r'name="csrf" value="([^"]+)"', self.get("/overview").text)[0]


def _run(work: Coroutine[Any, Any, None]) -> None:
    # Playwright has a loop in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def _fill(url: str, calls: int) -> None:
    now = time.time()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.from_url(url))
        await _fill_keys(stack, url, client, now)
        chain, newest, ends = Chain(WRITER), 0, Ends(Names("main"))

        async def put(record: Record, at: float, opens: bool = False) -> str:
            nonlocal newest
            if record.stage in ("outcome", "refusal"):
                for _ in range(record.count):
                    ends.ended(record, at)
                ends.tried(record, at)
            elif record.stage == "degraded":
                ends.without_redis(at)
            link, newest = chain.link(record), max(newest, int(at * 1000))
            await client.xadd(Names("main").audit, {"r": link.record}, id=f"{newest}-*")
            if opens:
                await client.hset(Names("main").open, record.id, f"{int(at * 1_000_000)} crmkeyid00.1")
            return record.id

        begun = now - 23 * HOUR
        await put(Record(stage="open", at=rfc3339(begun), account="main", version="0.1.0", config="0" * 16), begun)
        for number in range(calls):
            # Most of them lately, so that the last hour has its share.
            at = now - 20 - (now - begun - 20) * (1 - number / calls) ** 4
            await _call(put, number, at)
        hostile = {"service": HOSTILE, "problem": HOSTILE, "origin": HOSTILE, "result": "refused", "decision": "denied"}
        await put(
            Record(stage="refusal", at=rfc3339(now - 18), account="main", request_id="0" * 32, count=3, **hostile), now - 18
        )
        await put(Record(stage="degraded", at=rfc3339(now - 15), account="main"), now - 15)
        await put(Record(stage="recovered", at=rfc3339(now - 12), account="main"), now - 12)
        for number in range(3):
            made = Record(
                stage="intent",
                at=rfc3339(now - 5),
                account="main",
                request_id=secrets.token_hex(16),
                service="crm",
                operation="end",
            )
            await put(made, now - 5 + number / 100, opens=True)
        await _write_ends(url, ends)
        names = Names("main")
        await client.hset(names.tips, chain.writer, f"{chain.seq - 1} {'0' * 64}")
        await client.hset(names.sealed, chain.writer, chain.seq - 4)
        await client.zadd(names.processes, {chain.writer: int(now * 1_000_000), HOSTILE: int((now - 90) * 1_000_000)})
        await client.set(names.slot, "secondary")


async def _write_ends(url: str, ends: Ends) -> None:
    connection = connect(RedisSettings(url=url), None, read_seconds=None)
    batch = Batch(connection.exchange, 30.0, connection.reconnect, lambda *_: None, "probe")
    written: list[tuple[Any, ...]] = [("",)]

    def submit(*command: Any) -> Any:
        written.append(command)
        return batch.submit(*command)

    while written:
        written.clear()
        await ends.write(submit)
    await connection.aclose()


async def _fill_limits(url: str) -> None:
    """Use some of the limits, and count refusals."""
    now_us = int(time.time() * 1_000_000)
    async with Client.from_url(url) as client:
        for policy, subject, interval, used in (
            # So slow to grow back that they are in use as long as tests run.
            ("caller", "crm", 200_000_000, 71),
            ("caller", "dialler", 200_000_000, 98),
            ("account", "main", 100_000_000, 140),
            ("sweep", "dialler", 36_000_000, 412),
        ):
            await client.set(f"gw:{{main}}:limit:{policy}:{subject}", f"{now_us + used * interval} {interval} 1000")
        refused = f"{Names('main').refused}{int(time.time()) // 600}"
        await client.hset(refused, mapping={"enforce caller": 37, "shadow sweep": 412})


async def _fill_keys(stack: AsyncExitStack, url: str, client: Client, now: float) -> None:
    registry = KeyRegistry(
        connect(RedisSettings(url=url), None, read_seconds=None), ("main", "other"), "host-fill", 3.0, time.time
    )
    stack.push_async_callback(registry.aclose)
    await registry.refresh()
    entries = [
        _entry("crm", "crmkeyid00", "issued for the CRM", [(now - 90 * DAY, now + 3 * DAY, None), (now - 2 * DAY, None, None)]),
        _entry("dialler", "dialkeyid0", HOSTILE, [(now - 30 * DAY, now + 200 * DAY, None)]),
        _entry("reports", "oldkeyid00", "", [(now - 300 * DAY, now - 10 * DAY, None)]),
        _entry("partner", "gonekeyid0", "left us", [(now - 60 * DAY, None, now - DAY)]),
    ]
    for entry in entries:
        await registry.save(
            entry, key_record("key.issued", HOSTILE if entry.service == "dialler" else "ops", entry, entry.versions[-1])
        )
    for name, count in (("crmkeyid00.1", 4), ("crmkeyid00.2", 36), ("dialkeyid0.1", 11)):
        for _ in range(count):
            registry.used(name.partition(".")[0], int(name.partition(".")[2]), now - 60)


def _entry(service: str, key_id: str, note: str, versions: list[tuple[float, float | None, float | None]]) -> KeyEntry:
    made = tuple(
        KeyVersion(
            number,
            created,
            digest=keys.digest(secrets.token_hex()),
            expires_at=ends,
            revoked_at=revoked,
            created_by="ops" if note != HOSTILE else HOSTILE,
        )
        for number, (created, ends, revoked) in enumerate(versions, 1)
    )
    return KeyEntry(key_id, service, made, Bindings(frozenset(("end", "reschedule")), (), ("10.0.0.0/8",), ("+91",)), note)


async def _call(put: Any, number: int, at: float) -> None:
    common: dict[str, Any] = {
        "account": "main", "request_id": secrets.token_hex(16), "service": "crm" if number % 3 else "dialler", "key_id": "crmkeyid00",
        "key_version": 2, "proof": "key", "source": "10.1.2.3", "operation": "end" if number % 4 else "reschedule",
        "limits": "caller=40/100 sweep=" + ("0/1000?9" if number % 13 == 0 else "500/1000?"), "m1": "a" * 32, "m1_country": "IN", "m1_last2": "10", "pseudonym_key": "k1",
    }  # fmt: skip
    if number % 11 == 0:
        common["limits"] = "caller=0/100!2 sweep=500/1000?"
        problem = ("quota_exceeded", "credential_unknown", "scope_missing")[number // 11 % 3]
        refused = {**common, "decision": "denied", "result": "refused", "problem": problem, "status": 429, "duration_ms": 0.4}
        await put(Record(stage="refusal", at=rfc3339(at), **refused), at)
        return
    intent = await put(Record(stage="intent", at=rfc3339(at), **common), at)
    took = 30 + (number * 37) % 90 + (900 if number % 97 == 0 else 0)
    ended = at + took / 1000
    failed = number % 53 == 0
    how = {"result": "failed", "problem": "upstream_timeout", "status": 504} if failed else {"result": "answered", "status": 200}
    closing = {
        **common,
        "intent": intent,
        "decision": "allowed",
        "slot": "primary",
        "duration_ms": float(took),
        "degraded": number % 71 == 0,
        **how,
    }
    await put(Record(stage="outcome", at=rfc3339(ended), **closing), ended)
