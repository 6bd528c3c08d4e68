"""Where things are kept, by the settings: each account's ledger and limits, the keys, the pseudonyms' key, the archive."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway import embedded
from gateway.admission import Policies
from gateway.config import SecretReference, Settings
from gateway.ledger.connect import Connection, connect
from gateway.ledger.journal import Bounds, Journal
from gateway.ledger.registry import KeyRegistry
from gateway.ledger.store import Away, Claims, RedisLedger, Serving
from gateway.model import Secret
from gateway.numbers import Pseudonyms
from gateway.telemetry import Logger
from gateway.vault import SecretUnreadable, make_secret_file, read_secret

_PSEUDONYM_KEY_MIN: Final = 32
_PLACE_LONGER_MS: Final = 1000
_LONGER_US: Final = 5_000_000
"""What a call takes beside its tries: to be admitted, and to be recorded."""


def make_policies(settings: Settings, account: str, pseudonyms: Pseudonyms) -> Policies:
    """Return the limits of one vendor account, by the settings alone."""
    return Policies(settings.policies, account, pseudonyms, settings.upstream.longest_ms + _PLACE_LONGER_MS)


def make_ledger(
    settings: Settings, account: str, environ: Mapping[str, str], log: Logger, folder: Path, serving: Serving | None = None
) -> RedisLedger:
    """Return one account's ledger of one process; `serving`: of one that serves callers. Raises: SecretUnreadable, OSError."""
    writer = _writer()
    log = log.of("ledger")

    def answered(answer: str, seconds: float) -> None:
        if log.debugs:
            log.debug("ledger.answered", account=account, answer=answer, duration_ms=round(seconds * 1000, 3))

    def changed(up: bool, why: str) -> None:
        if up:
            log.warning("ledger.recovered", account=account, writer=writer)
        else:
            log.error("ledger.lost", account=account, writer=writer, why=why)

    def alarm(event: str) -> None:
        log.error(event, account=account, writer=writer)

    audit = settings.audit
    bounds = Bounds(audit.journal_bytes_max, audit.journal_seconds_max, audit.disk_free_bytes_min)
    return RedisLedger(
        _connection(settings, environ),
        account,
        writer,
        Journal(folder / "journal" / account, writer, bounds),
        settings.redis.timeout_ms / 1000,
        Away(settings.audit.on_store_error == "spool", settings.keys.stale_seconds_max),
        time.monotonic,
        changed,
        time.time,
        alarm,
        serving,
        Claims(settings.idempotency.keep_hours * 3_600_000, settings.upstream.longest_ms * 1000 + _LONGER_US),
        answered,
    )


def make_registry(settings: Settings, environ: Mapping[str, str]) -> KeyRegistry:
    """Return one process' copy of the keys. Raises: SecretUnreadable."""
    return KeyRegistry(_connection(settings, environ), settings.accounts, _writer(), settings.redis.timeout_ms / 1000, time.time)


def read_pseudonym_key(settings: Settings, environ: Mapping[str, str], folder: Path) -> Secret:
    """Return the key behind the pseudonyms; with the embedded server one is made in the state folder if none is set.

    Raises: SecretUnreadable.
    """
    reference = settings.audit.pseudonym_key
    if reference is None:
        path = folder / "pseudonym.key"
        make_secret_file(path)
        reference = SecretReference("file", (str(path),))
    key = read_secret(reference, environ)
    if len(key.reveal()) < _PSEUDONYM_KEY_MIN:
        raise SecretUnreadable(
            f"audit.pseudonym_key is shorter than {_PSEUDONYM_KEY_MIN} characters: make one with `openssl rand -hex 32`"
        )
    return key


def archive_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return the folder of the sealed trail."""
    return Path(settings.audit.archive or embedded.state_folder(settings.server.state_dir, environ) / "archive")


def _connection(settings: Settings, environ: Mapping[str, str]) -> Connection:
    password = read_secret(settings.redis.password, environ) if settings.redis.password else None
    return connect(settings.redis, password, read_seconds=None)


def _writer() -> str:
    return f"{socket.gethostname()[:24]}-{secrets.token_hex(4)}"
