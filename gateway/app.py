"""The composition root: builds every edge and stage from the settings, wires them, and owns opening and closing."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route

from gateway import __version__, embedded
from gateway.admission import Policies
from gateway.audit import Auditor
from gateway.config import SecretReference, Settings
from gateway.credentials import Exchange
from gateway.endpoints import Fallback, Health, Unset, describe, rate_limit_policy
from gateway.ledger.connect import connect
from gateway.ledger.journal import Journal
from gateway.ledger.store import RedisLedger
from gateway.model import UNSET_PATH, Secret
from gateway.numbers import Pseudonyms
from gateway.openapi import describe_api
from gateway.pipeline import Pipeline
from gateway.telemetry import Logger, LogObserver, make_logger
from gateway.upstream import HttpUpstream
from gateway.validation import Validator
from gateway.vault import FileVault, SecretUnreadable, make_secret_file, read_secret

_PSEUDONYM_KEY_MIN = 32


def create_app(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    logger: Logger | None = None,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """Return the gateway as an ASGI application; sockets are opened in its lifespan.

    `settings.redis.url` must be set: whoever starts the process starts the embedded server.
    Raises: SecretUnreadable, OSError.
    """
    log = logger or make_logger(settings.log.level)
    folder = embedded.state_folder(settings.server.state_dir, environ)
    pseudonym_key = read_pseudonym_key(settings, environ, folder)
    pseudonyms = Pseudonyms(pseudonym_key, settings.audit.pseudonym_key_id)
    account = settings.upstream.account
    vault = FileVault(settings.upstream.credential, environ, pseudonym_key)
    ledger = make_ledger(settings, environ, log, folder)
    upstream = HttpUpstream(settings.upstream)
    pipeline = Pipeline(
        body_bytes_max=settings.server.body_bytes_max,
        validator=Validator(settings.validation),
        policies=Policies(settings.quotas, account, pseudonyms),
        auditor=Auditor(account, pseudonyms),
        ledger=ledger,
        vault=vault,
        exchange=Exchange(settings.upstream.number_format),
        upstream=upstream,
        observer=LogObserver(log),
        clock=clock,
    )

    async def credential() -> None:
        vault.ping()

    async def journal() -> None:
        ledger.journal.ping()

    health = Health({"redis": ledger.ping, "credential": credential, "journal": journal})

    fallback = Fallback(settings.server.cors_origins)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await ledger.open()
            # Closed last: what the calls in flight leave behind still has to be written.
            stack.push_async_callback(ledger.aclose)
            stack.push_async_callback(upstream.aclose)
            log.info("gateway.opened", version=__version__, account=account, writer=ledger.writer)
            yield
            log.info("gateway.closing", writer=ledger.writer)

    return Starlette(
        routes=[
            Route(UNSET_PATH, Unset(pipeline, settings.server, rate_limit_policy(settings.quotas), clock)),
            Route("/livez", health.live),
            Route("/readyz", health.ready),
            Route("/openapi.json", describe(describe_api(__version__))),
        ],
        exception_handlers={404: fallback.not_found, 405: fallback.method_not_allowed},
        lifespan=lifespan,
    )


def make_ledger(settings: Settings, environ: Mapping[str, str], log: Logger, folder: Path) -> RedisLedger:
    """Return the ledger of one process. Raises: SecretUnreadable, OSError."""
    writer = f"{socket.gethostname()[:24]}-{secrets.token_hex(4)}"

    def changed(up: bool, why: str) -> None:
        if up:
            log.warning("ledger.recovered", writer=writer)
        else:
            log.error("ledger.lost", writer=writer, why=why)

    password = read_secret(settings.redis.password, environ) if settings.redis.password else None
    return RedisLedger(
        connect(settings.redis, password, read_seconds=None),
        settings.upstream.account,
        writer,
        Journal(folder / "journal", writer),
        settings.redis.timeout_ms / 1000,
        time.monotonic,
        changed,
    )


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
