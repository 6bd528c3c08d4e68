"""The command line: reads arguments, files and environment, then hands values over.

Every expected fault ends in one line on standard error, with the reason and the fix, and a status other than 0.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway import __version__, check, config, demo, embedded, keys
from gateway.app import make_ledger, read_pseudonym_key
from gateway.check import load
from gateway.config import ConfigError, Settings
from gateway.embedded import EmbeddedError
from gateway.errors import Refusal
from gateway.keys import KeyEntry
from gateway.ledger.connect import connect
from gateway.ledger.store import Names, RedisLedger
from gateway.model import OPERATIONS
from gateway.numbers import Pseudonyms, read_number
from gateway.server import CONFIG_VARIABLE, BindError, bind, serve
from gateway.telemetry import make_logger
from gateway.trail.search import Query, Row, Stream
from gateway.trail.table import key_table, record_table, show
from gateway.vault import SecretUnreadable, read_secret

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TAIL: Final = 20
_READ_SECONDS: Final = 30.0


class UsageError(Exception):
    """What was asked for cannot be done as it was asked. The message is one line: the reason and the fix."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage or settings."""
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["sandbox"]:
        from gateway.sandbox.__main__ import main as sandbox_main  # noqa: PLC0415 - a serving gateway never loads it

        return sandbox_main(words[1:])
    arguments = _parser().parse_args(words)
    try:
        status: int = arguments.run(arguments)
        return status
    except ConfigError as error:
        for fault in error.faults:
            _complain(str(fault))
        return 2
    except (UsageError, BindError, EmbeddedError, SecretUnreadable) as error:
        _complain(str(error))
        return 2
    except Refusal as refusal:
        _complain(
            f"{refusal.problem.slug}: Redis does not answer ({refusal.facts.get('error', 'no reason given')}); "
            "see `gateway check`"
        )
        return 1
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or 'no file'}")
        return 1
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True, slots=True)
class Opened:
    """What a command works with, for as long as it runs."""

    settings: Settings
    ledger: RedisLedger
    folder: Path


def _serve(arguments: argparse.Namespace) -> int:
    settings, path = _settings(arguments)
    workers = arguments.workers or settings.server.workers
    folder = embedded.state_folder(settings.server.state_dir, os.environ)
    embedded.make_folder(folder)
    check.start_faults(settings, os.environ)
    listener = bind(arguments.host or settings.server.host, settings.server.port if arguments.port is None else arguments.port)
    host, port = listener.getsockname()[:2]
    log = make_logger(settings.log.level)
    store = None if _has_redis(settings) else embedded.start(folder)
    try:
        if store is not None:
            os.environ["GATEWAY_REDIS_URL"] = store.url
        os.environ[CONFIG_VARIABLE] = str(path)
        check.durability(config.parse(check.document(path), os.environ), os.environ, log)
        log.info("gateway.listening", address=f"http://{host}:{port}", workers=workers)
        serve(settings, listener, workers)
    finally:
        listener.close()
        if store is not None:
            store.close()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    findings = check.check(_config_path(arguments), os.environ, online=not arguments.offline)
    for finding in findings:
        print(finding)
    faults = [finding for finding in findings if finding.level == "fault"]
    print(f"{len(faults)} faults, {len(findings) - len(faults)} other findings" if findings else "all is well")
    return 1 if faults else 0


def _issue(arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", arguments.service):
        raise UsageError("service: must be 1 to 64 letters, digits, '.', '_' or '-'")
    now = time.time()
    key, key_id, secret = keys.mint(secrets.choice, environment=arguments.environment)
    entry = KeyEntry(
        key_id=key_id,
        service=arguments.service,
        digest=keys.digest(secret),
        scopes=frozenset(arguments.scope or OPERATIONS),
        created_at=now,
        expires_at=now + _span(arguments.expires) if arguments.expires else None,
        created_by=_operator(),
        note=arguments.note,
    )

    async def work(opened: Opened) -> int:
        await opened.ledger.issue(entry)
        if arguments.json:
            print(json.dumps({"key": key, "id": key_id, "secret": secret, **_public(entry)}))
        else:
            print(f"key      {key}\nuserId   {key_id}\ntoken    {secret}")
            print("Shown once. Send it as 'Authorization: Bearer', as 'X-API-Key', as 'ssid', or as 'userId' and 'token'.")
        return 0

    return _with_ledger(arguments, work)


def _list(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        await opened.ledger.refresh()
        entries = sorted(opened.ledger.registry.entries.values(), key=lambda entry: (entry.service, entry.created_at))
        if arguments.json:
            for entry in entries:
                print(json.dumps(_public(entry)))
        else:
            show(key_table([_public(entry) for entry in entries]))
        return 0

    return _with_ledger(arguments, work)


def _revoke(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        await opened.ledger.refresh()
        entry = opened.ledger.registry.entries.get(arguments.id)
        if entry is None:
            raise UsageError(f"id: there is no key '{arguments.id}'; see `gateway keys list`")
        if entry.revoked_at is None:
            await opened.ledger.issue(replace(entry, revoked_at=time.time()))
        print(f"revoked {entry.key_id} of {entry.service}")
        return 0

    return _with_ledger(arguments, work)


def _tail(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = _query(arguments, opened)
        async with _stream(opened) as stream:
            rows, last = await stream.newest(query, arguments.count)
            _print(rows, arguments.json)
            if arguments.follow:
                async for row in stream.follow(query, last, lambda: False):
                    _print([row], arguments.json, heading=False)
        return 0

    return _with_ledger(arguments, work)


def _search(arguments: argparse.Namespace) -> int:
    async def work(opened: Opened) -> int:
        query = _query(arguments, opened)
        async with _stream(opened) as stream:
            rows = [row async for row in stream.search(query)]
        _print(rows, arguments.json)
        return 0 if rows else 1

    return _with_ledger(arguments, work)


class _stream:  # noqa: N801 - read as a function where it is used
    """A connection to the audit stream, without the short time-outs of the hot path."""

    def __init__(self, opened: Opened) -> None:
        settings = opened.settings
        password = read_secret(settings.redis.password, os.environ) if settings.redis.password else None
        self._connection = connect(settings.redis, password, read_seconds=_READ_SECONDS)
        self._key = Names(settings.upstream.account).audit

    async def __aenter__(self) -> Stream:
        return Stream(self._connection.client, self._key)

    async def __aexit__(self, *_: object) -> None:
        await self._connection.aclose()


def _query(arguments: argparse.Namespace, opened: Opened) -> Query:
    pseudonym = None
    if arguments.number:
        number = read_number(arguments.number, opened.settings.validation.default_region)
        if number is None:
            raise UsageError("--number: is not a telephone number; write it like +919876543210")
        key = read_pseudonym_key(opened.settings, os.environ, opened.folder)
        pseudonym = Pseudonyms(key, opened.settings.audit.pseudonym_key_id).of(number.e164)
    return Query(
        pseudonym=pseudonym,
        service=arguments.service,
        key_id=arguments.key_id,
        decision=arguments.decision,
        result=arguments.result,
        code=arguments.code,
        problem=arguments.problem,
        request_id=arguments.request_id,
        since=_instant("--since", arguments.since),
        until=_instant("--until", arguments.until),
    )


def _instant(name: str, text: str | None) -> float | None:
    """Return Unix seconds of `1h` (ago) or of an ISO 8601 time; without a zone it is UTC."""
    if text is None:
        return None
    if re.fullmatch(r"\d+[smhdw]", text):
        return time.time() - _span(text)
    from datetime import UTC, datetime  # noqa: PLC0415 - for this rare form only

    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{name}: must be a span like 1h or 7d, or a time like 2030-01-31T12:00:00Z") from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _span(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise UsageError(f"'{text}' is not a span of time; write it like 30m, 12h or 90d")
    return int(match[1]) * float(_UNITS[match[2]])


def _with_ledger(arguments: argparse.Namespace, work: Callable[[Opened], Awaitable[int]]) -> int:
    """Run work on the ledger, on the embedded server where no Redis is configured."""
    settings, _ = _settings(arguments)
    folder = embedded.state_folder(settings.server.state_dir, os.environ)

    async def run() -> int:
        async with AsyncExitStack() as stack:
            opened = settings
            if not _has_redis(settings):
                store = embedded.start(folder)
                stack.callback(store.close)
                opened = replace(settings, redis=replace(settings.redis, url=store.url))
            # A person waits here, so a slow answer is better than none.
            opened = replace(opened, redis=replace(opened.redis, timeout_ms=max(3000, opened.redis.timeout_ms)))
            ledger = make_ledger(opened, os.environ, make_logger("error"), folder)
            stack.push_async_callback(ledger.aclose)
            return await work(Opened(opened, ledger, folder))

    return asyncio.run(run())


def _settings(arguments: argparse.Namespace) -> tuple[Settings, Path]:
    path = _config_path(arguments)
    return load(path, os.environ), path


def _config_path(arguments: argparse.Namespace) -> Path:
    """Return the configuration file: `--config`, `GATEWAY_CONFIG`, `config/gateway.toml`, or a demo's."""
    given = arguments.config or os.environ.get(CONFIG_VARIABLE)
    if given:
        return Path(given)
    candidates = [Path("config/gateway.toml"), demo.config_path(os.environ)]
    if arguments.run not in (_serve, _check):
        candidates.reverse()  # Next to a running demo, its keys and records are what is meant.
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise UsageError("there is no configuration: pass --config FILE, or run `gateway demo` first")


def _has_redis(settings: Settings) -> bool:
    return bool(settings.redis.url or settings.redis.sentinels)


def _public(entry: KeyEntry) -> dict[str, Any]:
    state = "revoked" if entry.revoked_at else "expired" if entry.expires_at and entry.expires_at <= time.time() else "live"
    return {
        "id": entry.key_id,
        "service": entry.service,
        "state": state,
        "scopes": sorted(entry.scopes),
        "created_at": entry.created_at,
        "created_by": entry.created_by,
        "expires_at": entry.expires_at,
        "revoked_at": entry.revoked_at,
        "note": entry.note,
    }


def _print(rows: list[Row], as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        show(record_table(rows, heading))


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _complain(line: str) -> None:
    print(f"gateway: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="Swaps an internal credential for the vendor's.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", metavar="FILE", help="settings; GATEWAY_CONFIG or config/gateway.toml if not given")

    command = commands.add_parser("demo", help="start everything on this machine and make one call")
    command.add_argument("--once", action="store_true", help="end after the call")
    command.add_argument("--port", type=int, default=8080)
    command.set_defaults(run=demo.run)

    command = commands.add_parser("serve", parents=[configured], help="serve callers")
    command.add_argument("--host")
    command.add_argument("--port", type=int)
    command.add_argument("--workers", type=int, help="processes that share the port")
    command.set_defaults(run=_serve)

    command = commands.add_parser("check", parents=[configured], help="report every fault of settings, secrets, Redis, vendor")
    command.add_argument("--offline", action="store_true", help="ask neither Redis nor the vendor")
    command.set_defaults(run=_check)

    commands.add_parser("sandbox", help="run the vendor's stand-in alone; see `gateway sandbox --help`", add_help=False)
    _add_keys(commands.add_parser("keys", help="issue, list and revoke callers' keys"), configured)
    _add_audit(commands.add_parser("audit", help="read the audit trail"), configured)
    return parser


def _add_keys(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("issue", parents=[configured], help="make a key for a service; it is shown once")
    command.add_argument("service")
    command.add_argument("--scope", action="append", choices=OPERATIONS, help="may be given twice; both if not given")
    command.add_argument("--expires", metavar="SPAN", help="e.g. 90d; never if not given")
    command.add_argument("--note", default="")
    command.add_argument("--environment", default="live", choices=("live", "test"))
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_issue)
    command = commands.add_parser("list", parents=[configured], help="show every key, never a secret")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_list)
    command = commands.add_parser("revoke", parents=[configured], help="end a key at once, everywhere")
    command.add_argument("id")
    command.set_defaults(run=_revoke)


def _add_audit(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sought = argparse.ArgumentParser(add_help=False, parents=[configured])
    sought.add_argument("--number", help="in any way of writing it")
    sought.add_argument("--service")
    sought.add_argument("--key-id")
    sought.add_argument("--decision", choices=("allowed", "denied"))
    sought.add_argument("--result", choices=("answered", "refused", "failed", "unknown"))
    sought.add_argument("--code", type=int, help="the vendor's code")
    sought.add_argument("--problem", help="slug of the error table")
    sought.add_argument("--request-id")
    sought.add_argument("--since", metavar="WHEN", help="1h, 7d, or a time")
    sought.add_argument("--until", metavar="WHEN")
    sought.add_argument("--json", action="store_true", help="one JSON object a line")
    command = commands.add_parser("tail", parents=[sought], help="the newest records")
    command.add_argument("--follow", "-f", action="store_true")
    command.add_argument("--count", "-n", type=int, default=_TAIL)
    command.set_defaults(run=_tail)
    command = commands.add_parser("search", parents=[sought], help="every record that fits; status 1 if there is none")
    command.set_defaults(run=_search)
